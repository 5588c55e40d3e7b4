"""The door of the room where videos are read and written: what other rooms call.

Importing it loads PyAV; OpenCV follows with the first clip that is read through it.
"""

from .files import CONTAINERS
from .video.camera import CameraReader, Closed, Window, check_display
from .video.hdr import HdrView
from .video.info import VideoInfo, clock, plain_info, probe
from .video.join import join, verify
from .video.pipe import PipeReader, PipeWriter, check_raw, pipe_format
from .video.plan import Encoding, plan_encoding
from .video.reading import Frame, VideoReader, constant_rate
from .video.sequence import SequenceReader, SequenceWriter, first_number, picture_format
from .video.writing import VideoWriter

__all__ = [
    "CONTAINERS",
    "CameraReader",
    "Closed",
    "Encoding",
    "Frame",
    "HdrView",
    "PipeReader",
    "PipeWriter",
    "SequenceReader",
    "SequenceWriter",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "Window",
    "check_display",
    "check_raw",
    "clock",
    "constant_rate",
    "first_number",
    "join",
    "picture_format",
    "pipe_format",
    "plain_info",
    "plan_encoding",
    "probe",
    "verify",
]
