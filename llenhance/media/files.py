"""Files and folders: what is found, and how a finished file gets its name."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import Appeared, MediaError, Refusal

PREFIX, SUFFIX = ".llenhance-", ".tmp"  # of temporary files: hidden, short, recognisable
SYSTEM = {"thumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "system volume information"}
FULL = 1 << 16  # bytes: a disk with less room takes nothing worth starting
HAS_MODES = os.name != "nt"  # Windows's one permission would keep a file from being replaced
JUNCTION = 0xA0000003  # Windows's number for it
ABANDONED = 3600  # seconds since anybody wrote into a temporary file that has no lock

VIDEO_SUFFIXES = frozenset(
    [
        ".3gp",
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogg",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    ]
)
# How streams in Ogg begin, all of them at the beginning of the file.
OGG_SOUND = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")
OGG_VIDEO = (b"\x80theora", b"OVP80", b"BBCD\0", b"\x01video")
# Containers that videos are written to: suffix -> FFmpeg's name for the muxer.
CONTAINERS = {".mkv": "matroska", ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".webm": "webm"}


def walk(
    folder: Path, recursive: bool, trouble: Callable[[Path, str, bool], None] | None = None
) -> Iterator[Path]:
    """Every file below ``folder`` in a stable order, hidden and system files passed over.

    Links to folders are not followed. ``trouble`` is told, with a path, a reason and whether that
    is a failure, of folders that cannot be read, of links to folders that would be gone into, and
    of links to files outside of ``folder``, which are then left out. Without it a folder that
    cannot be read raises MediaError, and links to files are files wherever they lead.
    """
    root = os.path.realpath(folder)
    stack = [_entries(folder, trouble)]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            continue
        if entry.name.startswith(".") or entry.name.lower() in SYSTEM:
            continue
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False) and not _is_junction(entry):
            if recursive:
                stack.append(_entries(path, trouble))
        elif os.path.isdir(path):  # not entry.is_dir(): that raises for a link to itself
            if recursive and trouble is not None:
                trouble(path, "a link to a folder is not followed", False)
        elif trouble is not None and entry.is_symlink() and _leads_out(path, root):
            trouble(path, "a link that leads out of the folder is not followed", False)
        else:
            yield path


def _entries(
    folder: Path, trouble: Callable[[Path, str, bool], None] | None
) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return iter(sorted(found, key=lambda entry: os.fsencode(entry.name)))
    except OSError as error:
        reason = error.strerror or str(error)
        if trouble is None:
            raise MediaError(f"{folder}: {reason}") from None
        trouble(folder, f"cannot be read: {reason}", True)
        return iter(())


def _is_junction(entry: os.DirEntry[str]) -> bool:
    """Whether what looks like a folder is Windows's other kind of link to one."""
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:  # which is told when it is gone into
        return False
    return getattr(found, "st_reparse_tag", 0) == JUNCTION


def _leads_out(link: Path, root: str) -> bool:
    """Whether a link leads to something outside of ``root``; one that leads nowhere does not."""
    return os.path.exists(link) and not inside(os.path.realpath(link), root)


def inside(path: str, folder: str) -> bool:
    """Whether a real path lies below a real folder, or is it."""
    path, folder = os.path.normcase(path), os.path.normcase(folder)
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def read(path: Path, most: int | None = None) -> bytes:
    """The bytes of a regular file; raises MediaError for anything else (a FIFO would hang), and for
    one of more than ``most`` bytes, before any of them takes memory."""
    try:
        _refuse_irregular(path)
        if most is not None and path.stat().st_size > most:
            raise MediaError(too_long(most))
        return path.read_bytes()
    except OSError as error:
        raise MediaError(error.strerror or str(error)) from None


def too_long(most: int) -> str:
    """What is wrong with more than so many bytes."""
    return f"has more than {most:,} bytes, too many for a picture within --max-pixels"


def check_readable(path: Path) -> None:
    """Raises MediaError, as :func:`read` would, for what cannot be opened and read."""
    try:
        _refuse_irregular(path)
        path.open("rb").close()
    except OSError as error:
        raise MediaError(error.strerror or str(error)) from None


def _refuse_irregular(path: Path) -> None:
    if not path.is_file():
        raise MediaError("not a regular file" if path.exists() else missing(path))


def missing(path: Path) -> str:
    """Why a path that does not exist does not: absent, or a link that leads nowhere."""
    return "a link that leads nowhere" if path.is_symlink() else "no such file"


def head(path: Path, size: int = 64) -> bytes:
    """The first bytes of a regular file, or none when it is no such file or cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def is_video(path: Path, start: bytes) -> bool:
    """Whether a file is to be treated as a video, by its first 64 bytes or else its suffix."""
    return (
        start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide")
        or start.startswith((b"\x1aE\xdf\xa3", b"FLV\x01", b"\0\0\x01\xba", b"OggS", b"YUV4MPEG2"))
        or (start.startswith(b"RIFF") and start[8:12] == b"AVI ")
        or path.suffix.lower() in VIDEO_SUFFIXES
    )


def is_something_else(path: Path, start: bytes) -> bool:
    """Whether a file that :func:`is_video` takes is hardly one, by its first 4096 bytes: TypeScript
    and not a transport stream, or a container of sound alone."""
    if start[4:8] == b"ftyp":
        return start[8:12] in (b"M4A ", b"M4B ", b"M4P ")
    if start.startswith(b"OggS"):
        return any(s in start for s in OGG_SOUND) and not any(v in start for v in OGG_VIDEO)
    if path.suffix.lower() == ".ts":  # its packets, of 188 bytes or 192 in the other form, begin so
        return not any(
            start[at : at + 1] == b"G" and start[at + size : at + size + 1] in (b"G", b"")
            for at, size in ((0, 188), (4, 192))
        )
    return path.suffix.lower() == ".mka"


def same(a: Path, b: Path) -> bool:
    """Whether both names lead to one file, through links too."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)
    except ValueError:  # what no file can be called
        return False


def sweep(folder: Path) -> None:
    """Remove what earlier runs left when they were killed. Files of running ones, also of those in
    other containers and on other hosts, are locked by them and stay."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.startswith(PREFIX) and entry.name.endswith(SUFFIX):
                with suppress(OSError):
                    _remove_unlocked(entry.path)


def _remove_unlocked(path: str) -> None:
    """Remove a file that nobody has locked; raises OSError for one that is, or may be."""
    how = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK if os.name != "nt" else 0
    try:
        descriptor = os.open(path, os.O_RDWR | how)  # where locks go over the network: to write
    except PermissionError:  # it has the permissions of a read-only original
        descriptor = os.open(path, os.O_RDONLY | how)
    try:
        if _lock(descriptor):
            os.unlink(path)
            return
    finally:
        os.close(descriptor)
    # Without locks, on Windows, which does not remove what is open, an old one is nobody's.
    if time.time() - os.stat(path).st_mtime > ABANDONED:
        os.unlink(path)


def _lock(descriptor: int) -> bool:
    """Lock a file as long as it is open; False where the system has no locks. Raises OSError where
    it is taken, or on a file system without locks."""
    try:
        import fcntl
    except ImportError:  # Windows, which does not rename a file that is open either
        return False
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


@contextmanager
def publish(
    target: Path,
    *,
    overwrite: bool,
    like: Path | None = None,
    times: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Path]:
    """Give a temporary name beside ``target``; when the block ends well, it becomes ``target``.

    The file is there, empty, and open to no more people than ``like``. The target appears whole by
    rename, synced to disk, with the permissions of ``like`` and, with ``times``, its time of
    change; ``tell`` is told where the file system does not take them. When the block raises, or the
    target has appeared meanwhile and may not be overwritten, nothing is left behind. Raises
    Appeared in that case, and MediaError with a reason for what the disk refuses.
    """
    try:
        temporary, descriptor = _begun(target.parent, like)
    except OSError as error:
        raise MediaError(_told(error, target)) from None
    try:
        yield temporary
        with temporary.open("rb+") as file:  # before it is as read-only as its original may be
            os.fsync(file.fileno())
        if like is not None:
            _resemble(temporary, like, times, tell)
        if overwrite:
            os.replace(temporary, target)
        else:
            _rename_to_free(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise MediaError(_told(error, target)) from None
    finally:
        if descriptor is not None:
            os.close(descriptor)
        with suppress(OSError):
            temporary.unlink()


def _begun(folder: Path, like: Path | None) -> tuple[Path, int | None]:
    """(a new temporary file, the descriptor that it stays locked by); raises OSError."""
    mode = 0o666 if like is None else 0o600
    if like is not None:
        with suppress(OSError):
            mode |= like.stat().st_mode & 0o666
    while True:
        path = folder / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        try:
            if not _lock(descriptor):
                os.close(descriptor)
                return path, None
            if path.exists():
                return path, descriptor
        except BlockingIOError:
            pass
        except OSError:  # a file system without locks, where nothing is swept
            return path, descriptor
        os.close(descriptor)  # another run swept it before it was locked


def _resemble(path: Path, like: Path, times: bool, tell: Callable[[str], None]) -> None:
    """Give a file the permissions of another, and its times; where it cannot have them, as on some
    file systems of cameras and other systems, it is as good without."""
    try:
        if HAS_MODES:
            os.chmod(path, like.stat().st_mode & 0o777)
    except OSError as error:
        tell(f"its permissions are not kept: {error.strerror or error}")
    if times:
        try:
            copy_times(like, path)
        except OSError as error:
            tell(f"its time of change is not kept: {error.strerror or error}")


def copy_times(source: Path, target: Path) -> None:
    """Give a file the times of access and change of another; raises OSError."""
    found = source.stat()
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _told(error: OSError, target: Path) -> str:
    if error.errno == errno.ENOSPC:
        return f"cannot write {target}: the disk is full"
    return f"cannot write {target}: {error.strerror or error}"


def _rename_to_free(temporary: Path, target: Path) -> None:
    """Rename without replacing: a hard link fails where the name is taken, a rename would not."""
    taken = Appeared(target)
    try:
        os.link(temporary, target)
    except FileExistsError:
        with suppress(OSError):  # over a network it may be our own link, whose answer was lost
            if os.path.samestat(os.lstat(temporary), os.lstat(target)):
                return
        raise taken from None
    except OSError:  # a file system without links
        if target.exists():
            raise taken from None
        os.replace(temporary, target)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    with suppress(OSError):  # some file systems cannot sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def identity(path: Path) -> tuple[int, int] | None:
    """What two names of one file have in common; None where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_replaceable(target: Path) -> None:
    """Raises Refusal for what no file may take the place of: a folder, a pipe, a device."""
    if os.path.isdir(target):
        raise Refusal(f"{target} is a folder")
    folder = os.path.realpath(target.parent)
    special = folder == "/dev" or inside(folder, "/proc")  # there, even what is a regular file
    if special or (os.path.exists(target) and not os.path.isfile(target)):
        raise Refusal(f"{target} is not a regular file (-o - writes to standard output)")


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder


def check_name(target: Path) -> None:
    """Raises Refusal for a name that is too long for its folder."""
    most = 255
    if hasattr(os, "pathconf"):
        with suppress(OSError, ValueError):
            most = os.pathconf(_nearest(target.parent), "PC_NAME_MAX")
    # Linux counts bytes, Windows UTF-16's units.
    encoded = target.name.encode("utf-16-le", "surrogatepass")
    if (len(os.fsencode(target.name)) if HAS_MODES else len(encoded) // 2) > most:
        raise Refusal(f"{target}: the name is too long")


def make_folder(folder: Path) -> None:
    """Create a target folder and its parents; raises Refusal when that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"cannot make the folder {folder}: {error.strerror}") from None


def check_writable(folder: Path) -> None:
    """Raises Refusal when the folder, or the nearest one above it that exists, takes no files."""
    folder = _nearest(folder)
    if not os.path.isdir(folder):
        raise Refusal(f"{folder} is not a folder")
    try:
        if not os.access(folder, os.W_OK | os.X_OK):
            read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
            reason = "a read-only file system" if read_only else "permission denied"
            raise Refusal(f"cannot write into {folder}: {reason}")
        if not shutil.disk_usage(folder).total:
            raise Refusal(f"cannot write into {folder}: it holds no files")
        if shutil.disk_usage(folder).free < FULL:
            raise Refusal(f"cannot write into {folder}: the disk is full")
    except OSError as error:
        raise Refusal(f"cannot write into {folder}: {error.strerror or error}") from None
