"""The door of the room where videos are read and written: what other rooms call.

Importing it loads PyAV; OpenCV follows with the first clip that is read through it.
"""

from .files import CONTAINERS
from .video_camera import CameraReader, Closed, Window, check_display
from .video_codecs import default_codec, encoders
from .video_hdr import HdrView
from .video_info import StreamInfo, Turn, VideoInfo, clock, probe
from .video_input import Frame, VideoReader, constant_rate
from .video_join import join, verify
from .video_output import VideoWriter
from .video_pipe import PipeReader, PipeWriter, check_raw, pipe_format
from .video_plan import Encoding, mastering_display, plan_encoding
from .video_sequence import SequenceReader, SequenceWriter, first_number, picture_format

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
