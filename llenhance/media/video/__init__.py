"""One purpose of videos a file; the door is ``videos``."""
