"""What was done into an output folder, so that the same command goes on where it stopped.

The journal is a file of JSON lines in the folder. A line is added when its target has its name, so
every line is true; the last line of a target counts. A line that a kill or a full disk has torn is
passed over: its target is then kept as any file that the journal does not know. A large journal of
which most lines count no more is written anew, whole by rename, by the next one to open it alone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from .errors import MediaError
from .media import files
from .media.video.places import find, is_numbered

NAME = ".llenhance-journal.jsonl"
SYNC = 1.0  # seconds between two syncs: each costs a flush of the disk, and each target had one
SMALL = 1 << 20  # bytes: a journal too small to be worth writing anew

Recipe = Mapping[str, Any]  # everything but the input that decides the bytes of a target
State = tuple[int, int]  # size in bytes and time of change in nanoseconds
Entry = dict[str, Any]


def state(path: Path) -> State:
    """What tells that a file, or numbered pictures, are still what they were; raises OSError."""
    try:
        pictures = [file for _, file in find(path)] if is_numbered(path) else [path]
    except MediaError as error:
        raise OSError(str(error)) from None
    found = [file.stat() for file in pictures or [path]]
    return sum(one.st_size for one in found), max(one.st_mtime_ns for one in found)


def read(folder: Path) -> dict[str, Entry]:
    """The last whole line of each target; empty without a journal that can be read."""
    try:
        data = files.read(folder / NAME)
    except MediaError:
        return {}
    return {name: entry for name, (entry, _) in _latest(data).items()}


def _latest(data: bytes) -> dict[str, tuple[Entry, bytes]]:
    """What the last whole line of each target says, and the line."""
    latest = {}
    for line in data.splitlines():
        try:
            entry = json.loads(line)
            latest[entry["target"]] = entry, line
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return latest


def judge(
    entry: Entry | None, source: Path, given: State, target: Path, recipe: Recipe
) -> Literal["same", "changed", "foreign"]:
    """What an entry says of a target that exists.

    "same": it was made from this input with this recipe. "changed": we made it, from this input,
    but the input or the recipe has changed. "foreign": we did not make it, or it was touched since,
    or it was made from another input: replacing it would lose something. An input under another
    name is the same one if both are of one file, or if it is unchanged and no longer there under
    its old name.
    """
    try:
        if entry is None or entry.get("output") != list(state(target)):
            return "foreign"
    except OSError:
        return "foreign"
    before, unchanged = str(entry.get("source")), entry.get("input") == list(given)
    renamed = before != os.path.abspath(source) and not files.same(Path(before), source)
    if renamed and (not unchanged or os.path.lexists(before)):
        return "foreign"
    return "same" if unchanged and entry.get("recipe") == plain(recipe) else "changed"


def plain(recipe: Recipe) -> Any:
    """A recipe as it comes back from the file."""
    return json.loads(json.dumps(recipe, default=str))


def key(folder: Path, target: Path) -> str:
    """How the journal of ``folder`` names a target."""
    return target.relative_to(folder).as_posix()


class Journal:
    """The journal of a folder, open for adding. Not for several threads at once."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where it cannot be written; a link is not followed."""
        self.folder = folder
        self.file = _open(folder / NAME)
        self.synced = 0.0
        self.torn = False
        try:
            end = self.file.seek(0, os.SEEK_END)
            if end:
                self.file.seek(end - 1)
                self.torn = self.file.read(1) != b"\n"
        except OSError:  # a FIFO
            self.file.close()
            raise

    def add(self, source: Path, given: State, target: Path, recipe: Recipe) -> None:
        """Tell that ``target``, which has its name and is on the disk, is made. Raises OSError."""
        entry = {
            "target": key(self.folder, target),
            "source": os.path.abspath(source),
            "input": given,
            "output": state(target),
            "recipe": recipe,
        }
        # ASCII, with the bytes of any name in it; one write, so that a line is whole or torn.
        line = json.dumps(entry, default=str).encode("ascii") + b"\n"
        if self.torn:  # the line before this one has no end
            line = b"\n" + line
        self.torn = True
        written = self.file.write(line)
        self.torn = written != len(line)
        if time.monotonic() - self.synced > SYNC:
            self.sync()

    def sync(self) -> None:
        """Bring what was added to the disk."""
        os.fsync(self.file.fileno())
        self.synced = time.monotonic()

    def close(self) -> None:
        try:
            self.sync()
        finally:
            self.file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: Path) -> FileIO:
    """Open a journal for adding, after writing it anew where that is worth it; raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    while True:
        file = FileIO(os.open(path, flags, 0o666), "r+")
        try:
            if not _renewed(file, path) and _shared(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # another one has the name by now


def _renewed(file: FileIO, path: Path) -> bool:
    """Write a journal anew that is large and mostly out of date, where no other run has it open.
    Whether another file has the name now, which is to be opened instead."""
    if os.fstat(file.fileno()).st_size <= SMALL or not _lock(file, alone=True):
        return False
    if not _is_named(file, path):  # another run was quicker, and has added to its new one
        return True
    file.seek(0)
    data = file.readall() or b""
    kept = b"".join(line + b"\n" for _, line in _latest(data).values())
    if 2 * len(kept) > len(data):
        return False
    try:
        with files.publish(path, overwrite=True, like=path) as temporary:
            temporary.write_bytes(kept)
    except MediaError:  # no room, perhaps: the old one serves as well
        return False
    return True


def _shared(file: FileIO, path: Path) -> bool:
    """Keep others from writing it anew as long as it is open; False where that has happened."""
    _lock(file, alone=False)
    return _is_named(file, path)


def _is_named(file: FileIO, path: Path) -> bool:
    """Whether this file still has the name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _lock(file: FileIO, *, alone: bool) -> bool:
    """Lock a file alone, if no one else has, or with others, which waits; False where it fails, and
    where the system has no such locks: there a journal is never written anew."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
    except (ImportError, OSError):
        return False
    return True
