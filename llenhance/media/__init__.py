"""Files, pictures and videos: the only place that knows formats, BGR and the disk."""
