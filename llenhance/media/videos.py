"""The door of the room where videos are read and written: what other rooms call.

Importing it loads PyAV; OpenCV follows with the first clip that is read through it.
"""

from .video_hdr import HdrView
from .video_input import (
    CONTAINERS,
    Frame,
    StreamInfo,
    Turn,
    VideoInfo,
    VideoReader,
    clock,
    constant_rate,
    probe,
)
from .video_output import (
    Encoding,
    VideoWriter,
    default_codec,
    default_suffix,
    encoders,
    join,
    mastering_display,
    plan_encoding,
    verify,
)

__all__ = [
    "CONTAINERS",
    "Encoding",
    "Frame",
    "HdrView",
    "StreamInfo",
    "Turn",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "clock",
    "constant_rate",
    "default_codec",
    "default_suffix",
    "encoders",
    "join",
    "mastering_display",
    "plan_encoding",
    "probe",
    "verify",
]
