"""The finished pieces of a long video, kept beside its target so that nothing is done twice.

A run that is killed leaves them there; the same command goes on after the last of them. Where a
piece ends depends on the frames alone, and each begins with an encoder, and a reader, of its own:
so a run that went on ends with the very frames of one that was never interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from .errors import Appeared, MediaError
from .media import files, videos
from .media.video.places import find, folder_of, is_numbered, numbered, state_of
from .pixels import Array

FRAMES = 250  # in a piece: no more than encoders put between two key frames anyhow
_FORM = 2  # of the state file, and of the times in the pieces


@dataclass(frozen=True)
class Piece:
    """One finished piece."""

    name: str  # of its file; empty where its frames are files of their own
    size: int  # bytes
    frames: int
    first: int  # when it begins and ends, in units of the source's time base
    end: int
    next: int | None  # pts of the frame that follows; None: it is the last piece
    origin: int | None  # pts from which the source has to be read for that frame


def size_of(target: Path) -> int:
    """Bytes that are kept for a target."""
    total = 0
    with suppress(OSError):
        total = sum(entry.stat().st_size for entry in os.scandir(folder_of(target)))
        if is_numbered(target):
            total += sum(path.stat().st_size for _, path in find(target))
    return total


class Pieces(ABC):
    """Writes frames piece by piece; a context manager that leaves only whole pieces.

    ``made_by`` says all that the pixels depend on, under names for people; pieces that were made
    by something else are thrown away, and ``discarded`` says why. ``begin`` is the piece after
    which to go on, or None. Frames go to :meth:`write`; :meth:`finish` ends a piece. Raises
    MediaError when the folder cannot be written or another process is at work in it.
    """

    def __init__(
        self,
        target: Path,
        info: videos.VideoInfo,
        made_by: Mapping[str, Any],
        *,
        restart: bool = False,
    ) -> None:
        self._target, self.folder = target, folder_of(target)
        self.pieces: list[Piece] = []
        self.notes: list[str] = []  # what the reader said about what is in the pieces
        self.discarded: str | None = None  # why what an earlier run left is not gone on from
        self._info = info
        self._made_by = json.loads(json.dumps({"form": _FORM, **made_by}))
        self._writer: videos.VideoWriter | videos.SequenceWriter | None = None
        self._open = ExitStack()  # the piece that is being written
        self._temporary: Path | None = None
        self._removed = False
        try:
            self._lock = _lock(target)
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
        if not self._removed and not self._worth_keeping():
            self._remove()
        self._lock.close()

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
    def span(self) -> tuple[int, int]:
        """When the first piece begins and the last one ends, in units of the source's time base."""
        return self.pieces[0].first, self.pieces[-1].end

    @property
    def duration(self) -> float:
        """Seconds from the beginning of the first to the end of the last piece."""
        first, end = self.span
        return float((end - first) * self._info.time_base)

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
            self._writer = self._begin()
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
        name = self._name()
        self._save_memory(memory)
        begins, origin = None, None
        if following is not None:
            begins, origin = following.pts, following.origin
            origin = begins if origin is None else origin
        size = (self.folder / name).stat().st_size if name else writer.size
        self.pieces.append(Piece(name, size, writer.frames, *writer.span, begins, origin))
        self._save()

    def memory(self) -> dict[str, Any]:
        """What the stabilizer knew after the last finished piece."""
        found = self._memory_after(len(self.pieces))
        assert found is not None  # read when the pieces were taken up
        return found

    def remove(self) -> None:
        """The video has its name: nothing of it is needed here any more."""
        self.pieces = []
        self._remove()

    @abstractmethod
    def _name(self) -> str:
        """Of the file of the piece that comes next; empty where it is no file of its own."""

    @abstractmethod
    def _begin(self) -> videos.VideoWriter | videos.SequenceWriter:
        """Open the next piece."""

    @abstractmethod
    def _is_there(self, piece: Piece, before: int) -> bool:
        """Whether what a piece says of itself is true; ``before``: frames in the earlier ones."""

    def _worth_keeping(self) -> bool:
        """Whether there is something for another run to go on from."""
        return bool(self.pieces)

    def _take_up(self) -> bool:
        """Whether there is something to go on from."""
        try:
            state = json.loads(state_of(self._target).read_bytes())
            made_by = dict(state["made_by"])
            pieces = [Piece(**piece) for piece in state["pieces"]]
            notes = [str(note) for note in state["notes"]]
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError):
            self.discarded = "what an earlier run left cannot be read"
            return False
        names = {*made_by, *self._made_by}
        changed = sorted(n for n in names if made_by.get(n) != self._made_by.get(n))
        if changed:
            self.discarded = (
                f"an earlier run left {sum(piece.frames for piece in pieces)} frames, but since"
                f" then the {' and the '.join(changed)} changed"
            )
            return False
        before = 0
        for number, piece in enumerate(pieces):
            if not self._is_there(piece, before):
                del pieces[number:]
                break
            before += piece.frames
        while self._memory_after(len(pieces)) is None:
            del pieces[-1]
        self.pieces, self.notes = pieces, notes
        return True

    def _memory_after(self, count: int) -> dict[str, Any] | None:
        """What was saved after so many pieces: nothing after none; None where it is unreadable."""
        if not count:
            return {}
        try:
            place = self.folder / f"{count - 1:05}.npz"
            with place.open("rb") as file, np.load(file) as saved:
                return dict(saved)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
            return None

    def _clear(self) -> None:
        for entry in os.scandir(self.folder):
            if entry.name != "lock":
                with suppress(OSError):
                    os.unlink(entry.path)

    def _remove(self) -> None:
        if os.name == "nt":  # which removes no file that is open
            self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._removed = True

    def _save(self) -> None:
        state = {
            "made_by": self._made_by,
            "pieces": [asdict(piece) for piece in self.pieces],
            "notes": self.notes,
        }
        with files.publish(state_of(self._target), overwrite=True) as temporary:
            temporary.write_text(json.dumps(state, indent=1) + "\n")

    def _save_memory(self, memory: Mapping[str, Any]) -> None:
        place = self.folder / f"{len(self.pieces):05}.npz"
        with files.publish(place, overwrite=True) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **memory)


class Segments(Pieces):
    """The pieces of a video file, each a file with pictures alone; ``writer`` opens one."""

    def __init__(
        self,
        target: Path,
        info: videos.VideoInfo,
        made_by: Mapping[str, Any],
        writer: Callable[[Path], videos.VideoWriter],
        *,
        restart: bool = False,
    ) -> None:
        self._writer_for = writer
        super().__init__(target, info, made_by, restart=restart)

    @property
    def paths(self) -> list[Path]:
        return [self.folder / piece.name for piece in self.pieces]

    def keep_good(self) -> None:
        """Throw away the pieces from the first bad one on."""
        good = 0
        for piece, path in zip(self.pieces, self.paths, strict=True):
            seconds = float((piece.end - piece.first) * self._info.time_base)
            try:
                videos.verify(path, piece.frames, seconds)
            except MediaError:
                break
            good += 1
        if good < len(self.pieces):
            del self.pieces[good:]
            self._save()

    def _name(self) -> str:
        return f"{len(self.pieces):05}.part"

    def _begin(self) -> videos.VideoWriter:
        place = self.folder / self._name()
        self._temporary = self._open.enter_context(files.publish(place, overwrite=True))
        return self._open.enter_context(self._writer_for(self._temporary))

    def _is_there(self, piece: Piece, before: int) -> bool:  # noqa: ARG002
        path = self.folder / piece.name
        return path.is_file() and path.stat().st_size == piece.size


class Runs(Pieces):
    """The pieces of a video that becomes numbered pictures. These get their own names at once; what
    is kept beside them says how far a run came, and what the stabilizer knew there.

    ``writer`` opens a writer that begins with a number, and may write over the pictures that a run
    which was cut off has left; ``first`` is the number of the first frame. Raises MediaError, too,
    where that run was another one and neither ``restart`` nor ``overwrite`` is given.
    """

    def __init__(
        self,
        target: Path,
        info: videos.VideoInfo,
        made_by: Mapping[str, Any],
        writer: Callable[[int, bool], videos.SequenceWriter],
        first: int,
        *,
        restart: bool = False,
        overwrite: bool = False,
    ) -> None:
        self._first, self._writer_from = first, writer
        self._afresh = restart or overwrite
        self._goes_on = state_of(target).is_file()
        super().__init__(target, info, made_by, restart=restart)
        self._save()  # before the first picture: from here on another run knows whose they are

    def finish(
        self,
        memory: Mapping[str, Any],
        following: videos.Frame | None = None,
        notes: list[str] | None = None,
    ) -> None:
        lost = self._writer.dropped if self._writer is not None else []
        super().finish(memory, following, [*(notes or []), *lost])

    def _name(self) -> str:
        return ""

    def _begin(self) -> videos.SequenceWriter:
        writer = self._writer_from(self._first + self.frames, self._afresh or self._goes_on)
        return self._open.enter_context(writer)

    def _is_there(self, piece: Piece, before: int) -> bool:
        numbers = range(self._first + before, self._first + before + piece.frames)
        try:
            sizes = [numbered(self._target, number).stat().st_size for number in numbers]
        except OSError:
            return False
        if sum(sizes) != piece.size:
            self.discarded = (
                f"pictures {numbers[0]} to {numbers[-1]}, which an earlier run left, are not as it"
                " left them"
            )
        return self.discarded is None

    def _take_up(self) -> bool:
        if super()._take_up() and self.discarded is None:
            return True
        self.pieces, self.notes = [], []
        return False

    def _worth_keeping(self) -> bool:
        if not (self.folder.is_dir() and find(self._target)):
            return False
        under_way = self._writer.frames if self._writer is not None else 0
        return self._goes_on or self.frames + under_way > 0  # else the pictures are not ours

    def _clear(self) -> None:
        if self.discarded and not self._afresh:
            self._lock.close()
            needed = "starting afresh needs --restart or --on-exists overwrite"
            raise MediaError(f"{self.discarded}: {needed}")
        super()._clear()


def forget(target: Path) -> None:
    """Throw away what is kept of a video that another run has made, unless one is at work on it."""
    if folder_of(target).is_dir():
        with suppress(MediaError, OSError), _lock(target):
            shutil.rmtree(folder_of(target), ignore_errors=True)


def _lock(target: Path) -> IO[bytes]:
    """A file that is locked as long as it is open, and no longer, in the folder for ``target``.

    Raises Appeared where it is taken, and OSError where there can be no such file.
    """
    path = folder_of(target) / "lock"
    while True:
        path.parent.mkdir(0o700, exist_ok=True)  # as private as a source may be
        with suppress(FileNotFoundError):  # a run that ends has just removed it: once more
            file = path.open("ab")
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise Appeared(target, "another run is writing it") from None
            except (ImportError, OSError):  # Windows, and file systems without locks: two runs for
                return file  # one target are then not found out
            try:
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
            except FileNotFoundError:
                pass
            file.close()
