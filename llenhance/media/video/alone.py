"""What is lost where frames go on alone, as pictures or through a pipe, without a video around."""

from __future__ import annotations

from .info import VideoInfo


class Lost:
    """Sentences for people; ``sentences`` may grow with every frame that is seen."""

    def __init__(self, source: VideoInfo) -> None:
        self.sentences = [f"{kind} metadata is dropped" for kind in source.per_frame]
        if source.alpha:
            self.sentences.append("transparency is dropped")
        if source.hdr:
            kind = "PQ" if source.color_transfer == 16 else "HLG"
            self.sentences.append(f"the values stay {kind}, which nothing beside the frames says")
        self._step = 1 / (source.frame_rate * source.time_base)
        self._before: int | None = None
        self._even = True

    def see(self, pts: int) -> None:
        """A frame is shown at this time, in units of the source's time base."""
        apart = self._step if self._before is None else pts - self._before
        if self._even and abs(apart - self._step) > self._step / 2:
            self._even = False
            self.sentences.append("the times of the frames are dropped: they follow evenly now")
        self._before = pts
