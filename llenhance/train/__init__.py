"""Training: data, losses, recipes, loop. Imported by nothing but its own command."""
