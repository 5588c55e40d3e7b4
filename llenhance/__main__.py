"""``python -m llenhance`` is the same as ``llenhance``."""

from .cli import main

main()
