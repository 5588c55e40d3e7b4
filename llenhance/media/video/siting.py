"""Where the colour samples of a frame lie among those of brightness, which PyAV cannot say.

swscale honours what a decoder says of it, and takes a frame that says nothing, such as one made of
RGB, for one with its samples in the middle of the pixels that share them. Unless both ways of a
conversion are told the same, colours move by half a pixel.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av

from .info import VideoInfo

_LEFT, _MIDDLE = "left", "unspecified"
_TELL = ("h264", "hevc")  # decoders that always say it; what others leave open is the left


def _place(source: VideoInfo) -> str:
    # OpenCV reads 8-bit clips as if the samples lay in the middle, whatever a clip says, and a
    # writer cannot know which decoder gave the pixels. For others it is where players look
    # without a tag, which no output has.
    return _MIDDLE if source.bit_depth == 8 and source.color_matrix != 0 else _LEFT


class Siting:
    """Says on frames of a source where their colour samples lie, for both ways of a conversion."""

    def __init__(self, source: VideoInfo) -> None:
        self._place = _place(source)
        self._told = self._place == _LEFT and source.codec in _TELL
        self._kind: tuple[str, int, int] | None = None
        self._graph: tuple[Any, Any, Any] | None = None  # all of it, which keeps its ends alive

    def decoded(self, frame: Any) -> Any:
        """A frame as its decoder gave it, about to become RGB."""
        parts = frame.format.components
        halved = len(parts) > 2 and parts[1].width < frame.width
        return frame if self._told or not halved else self.mark(frame)

    def mark(self, frame: Any) -> Any:
        """The frame, its pixels not copied, its times lost."""
        kind = (frame.format.name, frame.width, frame.height)
        if self._graph is None or kind != self._kind:
            graph = av.filter.Graph()
            entry = graph.add_buffer(
                format=frame.format,
                width=frame.width,
                height=frame.height,
                time_base=Fraction(1, 1000),
            )
            mark = graph.add("setparams", f"chroma_location={self._place}")
            way_out = graph.add("buffersink")
            entry.link_to(mark)
            mark.link_to(way_out)
            graph.configure()
            self._kind, self._graph = kind, (graph, entry, way_out)
        self._graph[1].push(frame)
        return self._graph[2].pull()
