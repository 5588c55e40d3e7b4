"""Files, pictures and videos: the only place that knows formats and what a disk refuses."""
