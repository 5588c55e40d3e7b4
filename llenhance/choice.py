"""What a user decides about videos, and which of it a finished one depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .media.picture import MAX_PIXELS
from .media.video.places import RawFormat, raw_format


@dataclass(frozen=True)
class Choice:
    """What a user decides about videos; None leaves it to the output's container."""

    codec: str | None = None
    crf: int | None = None
    preset: str | None = None
    pix_fmt: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    start: float | None = None  # seconds from the first frame
    end: float | None = None
    constant_rate: bool = False
    stabilize: float | Literal["auto", "off"] = "auto"
    on_error: Literal["repeat", "skip", "fail"] = "repeat"
    allow_truncated: bool = False
    verify: bool = True
    restart: bool = False
    preview: bool = False
    frame_rate: str | None = None  # of numbered pictures
    raw: str | None = None  # PIXELS:WxH@RATE of standard input; PIXELS of standard output
    max_pixels: int = MAX_PIXELS  # of a frame, checked before it is decoded
    strip: bool = False  # write no metadata
    quality: int | None = None  # of numbered pictures
    duration: float | None = None  # seconds, of a camera

    @property
    def raw_format(self) -> RawFormat | None:
        """Raises Refusal for words that are no such format."""
        return None if self.raw is None else raw_format(self.raw)


# Choices that decide whether and how a video is made, not what it is: the journal leaves them out.
NOT_IN_FILE = {"verify", "restart", "allow_truncated", "preview", "max_pixels", "quality"}

# What changes no frame: a run with another choice of these goes on from the same pieces.
NOT_IN_FRAMES = NOT_IN_FILE | {"raw", "duration", "strip"}
