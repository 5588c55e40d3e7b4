"""What a command line names: files, folders, patterns, lists and streams, each recognised."""

from __future__ import annotations

import codecs
import fnmatch
import glob
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .errors import MediaError
from .media import files, images
from .media.video.places import camera_number, find, is_numbered

SNIFFED = 4096  # bytes: a camera's raw file and a TIFF differ only that far in
STREAM = "-"  # stdin as an input, stdout as an output
Y4M = b"YUV4MPEG2"  # how such frames on standard input begin
MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class Input:
    """A path that the command line names: by itself, or through a pattern or a list."""

    path: Path | None  # None is standard input
    under: Path | None = None  # its place below the part of the pattern that holds no wildcard
    matched: bool = False  # by a pattern: what is no picture is passed over


@dataclass(frozen=True)
class Source:
    """A file to enhance; ``under`` is its place in the tree of the input folder it was found in."""

    path: Path | None
    kind: str
    format: str | None  # of a picture, by its bytes
    folder: Path | None = None
    under: Path | None = None


@dataclass
class Found:
    """What the inputs come to."""

    sources: list[Source] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def is_special(name: str) -> bool:
    """Whether a word is a list or a pattern, and no file has exactly that name."""
    return (name.startswith("@") or not MAGIC.isdisjoint(name)) and not os.path.lexists(name)


def expand(inputs: Sequence[str], output: str | None, found: Found) -> Iterator[Input]:
    """Every path that the inputs name; of a pattern's matches not those that lie in a folder
    ``output`` below the pattern's own, or it would take what an earlier run made."""
    for name in inputs:
        if name == STREAM:
            yield Input(None)
        elif not name:
            found.failures.append(("''", "no such file"))
        elif not is_special(name):
            yield Input(Path(name))
        elif name.startswith("@"):
            try:
                for path in _listed(name[1:]):
                    yield Input(Path(path))
            except MediaError as error:
                found.failures.append((name, str(error)))
        else:
            made, taken = _made_by(name, output), 0
            for item in _matches(name, found):
                if made and files.inside(os.path.realpath(str(item.path)), made):
                    found.left_out.append((str(item.path), "lies in the output folder"))
                else:
                    taken += 1
                    yield item
            if not taken:
                found.failures.append((name, "nothing matches this pattern"))


def _made_by(pattern: str, output: str | None) -> str | None:
    """The output folder, where a pattern that begins above it could reach into it."""
    if output in (None, STREAM):
        return None
    base, made = (os.path.realpath(str(path)) for path in (_fixed(pattern), output))
    return made if base != made and files.inside(made, base) else None


def _fixed(pattern: str) -> Path:
    """The folders of a pattern before its first wildcard."""
    return Path(*itertools.takewhile(MAGIC.isdisjoint, Path(pattern).parts))


def _listed(name: str) -> list[str]:
    """The paths in a list, one a line or each ended by NUL; "-" is the list on standard input."""
    try:
        data = sys.stdin.buffer.read() if name == STREAM else files.read(Path(name))
        if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # as PowerShell writes files
            data = data.decode("utf-16").encode("utf-8", "surrogatepass")
    except OSError as error:
        raise MediaError(f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise MediaError("is not UTF-16, as which it begins") from None
    if b"\0" in data:
        lines = data.split(b"\0")
    else:
        text = data.removeprefix(b"\xef\xbb\xbf")  # as some editors begin a file
        lines = [line.removesuffix(b"\r") for line in text.split(b"\n")]
    try:
        paths = [os.fsdecode(line) for line in lines if line]
    except UnicodeDecodeError:  # Windows, where any bytes are no name
        raise MediaError("is not UTF-8") from None
    if not paths:
        raise MediaError("an empty list")
    return paths


def _matches(pattern: str, found: Found) -> Iterator[Input]:
    """What a shell with ``**`` would make of a pattern; links to folders end a ``**``."""
    parts = Path(pattern).parts
    base = _fixed(pattern)
    if "**" not in parts:
        for name in sorted(glob.glob(pattern), key=os.fsencode):
            path = Path(name)
            yield Input(path, None if os.path.isdir(path) else path.relative_to(base), matched=True)
    elif os.path.isdir(base):
        wild = parts[len(base.parts) :]
        for path in files.walk(base, True, _trouble(found)):
            under = path.relative_to(base)
            if _fits(under.parts, wild):
                yield Input(path, under, matched=True)


def _fits(parts: tuple[str, ...], wild: tuple[str, ...]) -> bool:
    """Whether a path matches a pattern in which ``**`` stands for any number of folders."""
    if not wild:
        return not parts
    if wild[0] == "**":
        return any(_fits(parts[skipped:], wild[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatch(parts[0], wild[0]) and _fits(parts[1:], wild[1:])


def _trouble(found: Found) -> Callable[[Path, str, bool], None]:
    """Keeps what :func:`files.walk` tells."""

    def told(path: Path, reason: str, failure: bool) -> None:
        (found.failures if failure else found.left_out).append((str(path), reason))

    return told


def collect(
    named: Sequence[Input],
    recursive: bool,
    include: Sequence[str],
    exclude: Sequence[str],
    found: Found,
    raw: bool,
) -> None:
    """Recognise every file that was named, or that lies in a folder that was."""

    def chosen(under: Path) -> bool:
        return (not include or _any(under, include)) and not _any(under, exclude)

    for item in named:
        path = item.path
        if path is None:
            kind = "video" if raw or _frames_wait() else "picture"
            found.sources.append(Source(None, kind, None))
        elif camera_number(path) is not None or is_sequence(path):
            found.sources.append(Source(path, "video", None))
        elif os.path.isdir(path):
            before = len(found.sources) + len(found.failures)
            for file in files.walk(path, recursive, _trouble(found)):
                if chosen(file.relative_to(path)):
                    _add(file, found, folder=path, under=file.relative_to(path), matched=True)
            if before == len(found.sources) + len(found.failures) and not item.matched:
                chosen_from = " that the patterns leave" if include or exclude else ""
                deeper = "; --recursive looks into the folders in it"
                hint = chosen_from or ("" if recursive else deeper)
                reason = f"no pictures or videos in this folder{hint}"
                found.failures.append((str(path), reason))
        elif chosen(item.under or Path(path.name)):
            _add(path, found, under=item.under, matched=item.matched)
    if named and not found.sources and not found.failures:
        more = f" and {len(named) - 1} more" if len(named) > 1 else ""
        found.failures.append((f"{named[0].path}{more}", "nothing of it is to be enhanced"))


def _frames_wait() -> bool:
    """Whether standard input is a video with a header of its own (Y4M)."""
    if not hasattr(sys.stdin.buffer, "peek"):
        return False
    try:
        start: bytes = sys.stdin.buffer.peek(len(Y4M))[: len(Y4M)]
    except OSError:  # which is told when it is read
        return False
    # What has come so far may be less than the whole word; no picture begins with a part of it.
    return bool(start) and Y4M.startswith(start)


def is_sequence(path: Path) -> bool:
    """Whether a name stands for numbered pictures of which there are some."""
    if images.format_of_suffix(path.suffix) is None or not is_numbered(path):
        return False
    try:
        return bool(find(path))
    except MediaError:
        return False


def _any(under: Path, patterns: Sequence[str]) -> bool:
    """Whether a file's name, a folder that it lies in, or its whole path matches a pattern."""
    words = (*under.parts, under.as_posix())
    return any(fnmatch.fnmatch(word, pattern) for pattern in patterns for word in words)


def _add(
    path: Path,
    found: Found,
    *,
    folder: Path | None = None,
    under: Path | None = None,
    matched: bool,
) -> None:
    """Add a file as a source or as a failure; ``matched``: it is passed over if it is neither."""
    try:
        source = _recognise(path, matched)
    except MediaError as error:
        if not matched or _is_named_like_ours(path):
            found.failures.append((str(path), str(error)))
        return
    if source is not None:
        found.sources.append(replace(source, folder=folder, under=under))
    elif not matched:
        found.failures.append((str(path), "neither a picture nor a video"))


def _is_named_like_ours(path: Path) -> bool:
    return images.format_of_suffix(path.suffix) is not None or files.is_video(path, b"")


def _recognise(path: Path, matched: bool) -> Source | None:
    """What a file is, by its bytes; None for what is not ours. Sound and source code are not where
    nobody named the file: where it ``matched`` a pattern or lies in a folder.

    Raises MediaError for what cannot be read, and for what only its name says is a picture.
    """
    start = files.head(path, SNIFFED)
    format_name = images.sniff(start)
    if format_name is not None:
        return Source(path, "picture", format_name)
    if not start:
        files.check_readable(path)
        if _is_named_like_ours(path):
            raise MediaError("is empty")
        return None
    if files.is_video(path, start):
        if matched and files.is_something_else(path, start):
            return None
        return Source(path, "video", None)
    if _is_named_like_ours(path):
        raise MediaError("is not a picture of a format that is read")
    return None
