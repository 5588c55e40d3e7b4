"""How fast this machine could be, and how fast llenhance is on it: ``python -m benchmarks``."""
