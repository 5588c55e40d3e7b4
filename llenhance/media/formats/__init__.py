"""One format of pictures a file; the door is ``images``."""
