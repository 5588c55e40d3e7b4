"""The door of the room where videos are read and written: what other rooms call.

Importing it loads PyAV; OpenCV follows with the first clip that is read through it.
"""

from .files import CONTAINERS
from .video.camera import CameraReader, Closed, Window, check_display
from .video.codecs import default_codec, encoders
from .video.hdr import HdrView
from .video.info import StreamInfo, Turn, VideoInfo, clock, probe
from .video.join import join, verify
from .video.pipe import PipeReader, PipeWriter, check_raw, pipe_format
from .video.plan import Encoding, mastering_display, plan_encoding
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
    "StreamInfo",
    "Turn",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "Window",
    "check_display",
    "check_raw",
    "clock",
    "constant_rate",
    "default_codec",
    "encoders",
    "first_number",
    "join",
    "mastering_display",
    "picture_format",
    "pipe_format",
    "plan_encoding",
    "probe",
    "verify",
]
