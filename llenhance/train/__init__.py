"""Training: data, batches, losses, recipes, loop. Imported by nothing but its own command."""
