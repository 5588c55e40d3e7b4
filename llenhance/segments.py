"""The finished pieces of a long video, kept beside its target so that nothing is done twice.

A run that is killed leaves them there; the same command goes on after the last of them. Where a
piece ends depends on the frames alone, and each begins with an encoder, and a reader, of its own:
so a run that went on ends with the very frames of one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from .errors import MediaError
from .media import files, videos
from .pixels import Array

FRAMES = 250  # in a piece: no more than encoders put between two key frames anyhow
_FORM = 1  # of the state file


@dataclass(frozen=True)
class Piece:
    """One finished piece."""

    name: str  # of its file
    size: int  # bytes
    frames: int
    first: int  # when it begins and ends, in units of the source's time base
    end: int
    next: int | None  # pts of the frame that follows; None: it is the last piece
    origin: int | None  # pts from which the source has to be read for that frame


def folder_of(target: Path) -> Path:
    """Where the pieces of a target are: .NAME.llenhance-parts beside it."""
    name = f".{target.name}.llenhance-parts"
    if len(os.fsencode(name)) > 255:
        digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]
        name = f".{digest}.llenhance-parts"
    return target.with_name(name)


def size_of(target: Path) -> int:
    """Bytes that are kept for a target."""
    total = 0
    with suppress(OSError):
        total = sum(entry.stat().st_size for entry in os.scandir(folder_of(target)))
    return total


class Segments:
    """Writes frames piece by piece; a context manager that leaves only whole pieces.

    ``made_by`` says all that the pixels depend on, under names for people; pieces that were made
    by something else are thrown away, and ``note`` says why. ``begin`` is the piece after which to
    go on, or None. Frames go to :meth:`write`; :meth:`finish` ends a piece. Raises MediaError when
    the folder cannot be written or another process is at work in it.
    """

    def __init__(
        self,
        target: Path,
        info: videos.VideoInfo,
        encoding: videos.Encoding,
        cut: tuple[float, float | None],
        made_by: Mapping[str, Any],
        *,
        restart: bool = False,
    ) -> None:
        self.folder = folder_of(target)
        self.pieces: list[Piece] = []
        self.notes: list[str] = []  # what the reader said about what is in the pieces
        self.note: str | None = None
        self._info, self._encoding, self._cut = info, encoding, cut
        self._made_by = json.loads(json.dumps({"form": _FORM, **made_by}))
        self._writer: videos.VideoWriter | None = None
        self._open = ExitStack()  # the piece that is being written
        self._temporary: Path | None = None
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = _lock(self.folder)
        except OSError as error:
            reason = error.strerror or error
            raise MediaError(f"cannot write into {self.folder}: {reason}") from None
        files.sweep(self.folder)
        if restart or not self._take_up():
            self._clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            unfinished = MediaError("unfinished")
            with suppress(MediaError):
                self._open.__exit__(MediaError, unfinished, None)
        self._lock.close()
        if not self.pieces:
            self._remove()

    @property
    def begin(self) -> Piece | None:
        return self.pieces[-1] if self.pieces else None

    @property
    def whole(self) -> bool:
        """Whether the last piece is there."""
        return bool(self.pieces) and self.pieces[-1].next is None

    @property
    def frames(self) -> int:
        """Frames in finished pieces."""
        return sum(piece.frames for piece in self.pieces)

    @property
    def duration(self) -> float:
        """Seconds from the beginning of the first to the end of the last piece."""
        return float((self.pieces[-1].end - self.pieces[0].first) * self._info.time_base)

    @property
    def paths(self) -> list[Path]:
        return [self.folder / piece.name for piece in self.pieces]

    @property
    def size(self) -> int:
        """Bytes so far, the piece under way included."""
        size, temporary = sum(piece.size for piece in self.pieces), self._temporary
        if temporary is not None:
            with suppress(OSError):  # it has got its name meanwhile
                size += temporary.stat().st_size
        return size

    def write(self, image: Array, pts: int, duration: int) -> None:
        """As VideoWriter.write."""
        if self._writer is None:
            place = self.folder / f"{len(self.pieces):05}.part"
            self._temporary = self._open.enter_context(files.publish(place, overwrite=True))
            self._writer = self._open.enter_context(
                videos.VideoWriter(
                    self._temporary, self._info, plan=self._encoding, cut=self._cut, part=True
                )
            )
        self._writer.write(image, pts, duration)

    def finish(
        self,
        memory: Mapping[str, Any],
        following: videos.Frame | None = None,
        notes: list[str] | None = None,
    ) -> None:
        """End the piece. ``memory``: of the stabilizer after its last frame; ``following``: the
        frame that comes next, None at the end; ``notes``: the reader's so far."""
        writer = self._writer
        if writer is None:
            return
        self._open.close()  # flushed, synced and renamed
        self._writer = self._temporary = None
        self.notes = list(dict.fromkeys([*self.notes, *(notes or [])]))
        name = f"{len(self.pieces):05}.part"
        self._save_memory(memory)
        begins, origin = None, None
        if following is not None:
            begins, origin = following.pts, following.origin
            origin = begins if origin is None else origin
        size = (self.folder / name).stat().st_size
        self.pieces.append(Piece(name, size, writer.frames, *writer.span, begins, origin))
        self._save()

    def memory(self) -> dict[str, Any]:
        """What the stabilizer knew after the last finished piece."""
        if not self.pieces:
            return {}
        with np.load(self.folder / f"{len(self.pieces) - 1:05}.npz") as saved:
            return dict(saved)

    def keep_good(self) -> int:
        """Throw away the pieces from the first bad one on; how many those were."""
        good = 0
        for piece, path in zip(self.pieces, self.paths, strict=True):
            seconds = float((piece.end - piece.first) * self._info.time_base)
            try:
                videos.verify(path, piece.frames, seconds)
            except MediaError:
                break
            good += 1
        bad = len(self.pieces) - good
        if bad:
            del self.pieces[good:]
            self._save()
        return bad

    def remove(self) -> None:
        """The video has its name: nothing of it is needed here any more."""
        self.pieces = []
        self._remove()

    def _take_up(self) -> bool:
        """Whether there is something to go on from."""
        try:
            state = json.loads((self.folder / "state.json").read_bytes())
            made_by = dict(state["made_by"])
            pieces = [Piece(**piece) for piece in state["pieces"]]
            notes = [str(note) for note in state["notes"]]
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError):
            self.note = "what an earlier run left cannot be read: starting afresh"
            return False
        names = {*made_by, *self._made_by}
        changed = sorted(n for n in names if made_by.get(n) != self._made_by.get(n))
        if changed:
            self.note = (
                f"an earlier run left {sum(piece.frames for piece in pieces)} frames, but since"
                f" then the {' and the '.join(changed)} changed: starting afresh"
            )
            return False
        for number, piece in enumerate(pieces):
            path = self.folder / piece.name
            memory = self.folder / f"{number:05}.npz"
            if not memory.is_file() or not path.is_file() or path.stat().st_size != piece.size:
                del pieces[number:]
                break
        self.pieces, self.notes = pieces, notes
        return True

    def _clear(self) -> None:
        for entry in os.scandir(self.folder):
            if entry.name != "lock":
                with suppress(OSError):
                    os.unlink(entry.path)

    def _remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _save(self) -> None:
        state = {
            "made_by": self._made_by,
            "pieces": [asdict(piece) for piece in self.pieces],
            "notes": self.notes,
        }
        with files.publish(self.folder / "state.json", overwrite=True) as temporary:
            temporary.write_text(json.dumps(state, indent=1) + "\n")

    def _save_memory(self, memory: Mapping[str, Any]) -> None:
        place = self.folder / f"{len(self.pieces):05}.npz"
        with files.publish(place, overwrite=True) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **memory)


def _lock(folder: Path) -> IO[bytes]:
    """A file that is locked as long as it is open, and no longer; MediaError where it is taken."""
    file = (folder / "lock").open("ab")
    try:
        import fcntl
    except ImportError:  # Windows; two runs for one target are then not found out
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise MediaError("another run is writing this video") from None
    return file
