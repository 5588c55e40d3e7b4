"""Finding files, and giving finished ones their names."""

import errno
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from llenhance.errors import MediaError, Refusal
from llenhance.media import files

LOCKS = pytest.mark.skipif(os.name == "nt", reason="no locks here")


def names(folder):
    return sorted(os.listdir(folder))


def test_publish_makes_the_target_appear_whole(tmp_path):
    target = tmp_path / "out.bin"
    with files.publish(target, overwrite=False) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"half")
        assert not target.exists()
        temporary.write_bytes(b"whole")
    assert target.read_bytes() == b"whole"
    assert names(tmp_path) == ["out.bin"]


def test_publish_leaves_nothing_when_the_block_fails(tmp_path):
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")

    def fail():
        with files.publish(target, overwrite=True) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["out.bin"]


def test_publish_does_not_replace_what_appeared_meanwhile(tmp_path):
    target = tmp_path / "out.bin"
    with (
        pytest.raises(MediaError, match="exists"),
        files.publish(target, overwrite=False) as temporary,
    ):
        temporary.write_bytes(b"new")
        target.write_bytes(b"someone else's")
    assert target.read_bytes() == b"someone else's"
    assert names(tmp_path) == ["out.bin"]


def test_a_link_whose_answer_was_lost_is_still_ours(tmp_path, monkeypatch):
    """Over a network the first answer may be lost, and the second try says that it is there."""
    link = os.link

    def twice(one, other):
        link(one, other)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", twice)
    with files.publish(tmp_path / "out.bin", overwrite=False) as temporary:
        temporary.write_bytes(b"new")
    assert names(tmp_path) == ["out.bin"]


def test_publish_takes_the_permissions_of_the_source(tmp_path):
    source = tmp_path / "in.bin"
    source.write_bytes(b"x")
    source.chmod(0o640)
    with files.publish(tmp_path / "out.bin", overwrite=False, like=source) as temporary:
        temporary.write_bytes(b"y")
    assert (tmp_path / "out.bin").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users here")
def test_a_read_only_original_has_a_read_only_copy():
    """As a user: to root nothing is read-only."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's own is root's alone
        folder = Path(name)
        folder.chmod(0o777)
        source = folder / "in.bin"
        source.write_bytes(b"x")
        source.chmod(0o444)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with files.publish(folder / "out.bin", overwrite=False, like=source) as temporary:
                temporary.write_bytes(b"y")
        finally:
            os.seteuid(user)
        assert (folder / "out.bin").read_bytes() == b"y"
        assert (folder / "out.bin").stat().st_mode & 0o777 == 0o444


def test_publish_takes_a_name_of_250_bytes(tmp_path):
    target = tmp_path / ("n" * 246 + ".jpg")
    with files.publish(target, overwrite=False) as temporary:
        temporary.write_bytes(b"y")
    assert target.exists()


def test_a_full_disk_is_named(tmp_path):
    """A real limit on file size stands for the full disk."""
    code = f"""
import resource, signal, pathlib
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from llenhance.media import files
from llenhance.errors import MediaError
target = pathlib.Path({str(tmp_path / "out.bin")!r})
try:
    with files.publish(target, overwrite=False) as temporary:
        temporary.write_bytes(bytes(100_000))
except MediaError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot write" in out.stdout
    assert "large" in out.stdout
    assert names(tmp_path) == []


def publishing(folder):
    """A process that publishes into a folder, has written its temporary file and waits."""
    code = """
import sys
from pathlib import Path
from llenhance.media import files
with files.publish(Path(sys.argv[1]) / "out.bin", overwrite=False) as temporary:
    temporary.write_bytes(b"new")
    print("written", flush=True)
    sys.stdin.readline()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"written\n"
    return process


@LOCKS
def test_sweep_removes_what_a_killed_run_left(tmp_path):
    with publishing(tmp_path) as killed:
        killed.kill()
    left = names(tmp_path)
    assert len(left) == 1
    kept = [
        f"{files.PREFIX}notes.txt",
        "other.tmp",
    ]
    for name in kept:
        (tmp_path / name).write_bytes(b"")
    # In a container it may have had the number of a process that lives here, or the number 1.
    for number in (os.getpid(), 1):
        (tmp_path / f"{files.PREFIX}{number}-00aa{files.SUFFIX}").write_bytes(b"")
        (tmp_path / f"{files.PREFIX}{number}-00bb{files.SUFFIX}").mkdir()
        kept.append(f"{files.PREFIX}{number}-00bb{files.SUFFIX}")
    files.sweep(tmp_path)
    assert names(tmp_path) == sorted(kept)


@LOCKS
def test_sweep_leaves_what_is_being_written(tmp_path, monkeypatch):
    """Whoever writes it: seen from another container, no such process lives."""
    with publishing(tmp_path) as other, files.publish(tmp_path / "b", overwrite=False) as own:
        own.write_bytes(b"own")
        monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(ProcessLookupError()))
        files.sweep(tmp_path)
        assert len(names(tmp_path)) == 2
        other.communicate(b"\n")
    assert names(tmp_path) == ["b", "out.bin"]
    assert (tmp_path / "out.bin").read_bytes() == b"new"


@LOCKS
def test_a_file_that_is_swept_before_it_is_locked_is_begun_again(tmp_path, monkeypatch):
    lock, swept = files._lock, []

    def late(descriptor):
        if not swept:
            swept.append(True)
            files.sweep(tmp_path)
        return lock(descriptor)

    monkeypatch.setattr(files, "_lock", late)
    with files.publish(tmp_path / "a", overwrite=False) as temporary:
        temporary.write_bytes(b"x")
    assert names(tmp_path) == ["a"]


@LOCKS
def test_without_locks_files_are_written_and_nothing_is_swept(tmp_path, monkeypatch):
    import fcntl

    def unsupported(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with files.publish(tmp_path / "a", overwrite=False) as temporary:
        temporary.write_bytes(b"x")
        files.sweep(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"x"


def test_on_windows_what_nobody_has_open_is_swept_once_it_is_old(tmp_path, monkeypatch):
    """It has no such locks, and does not let what is open be removed."""
    monkeypatch.setattr(files, "_lock", lambda _: False)
    old, new = (tmp_path / f"{files.PREFIX}1-{n}{files.SUFFIX}" for n in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, time.time() - 2 * files.ABANDONED))
    files.sweep(tmp_path)
    assert names(tmp_path) == [new.name]


def test_on_windows_a_read_only_source_does_not_make_its_picture_so(tmp_path, monkeypatch):
    source = tmp_path / "in.bin"
    source.write_bytes(b"x")
    source.chmod(0o444)
    os.utime(source, (5, 5))
    monkeypatch.setattr(files, "HAS_MODES", False)
    with files.publish(tmp_path / "a", overwrite=False, like=source, times=True) as temporary:
        temporary.write_bytes(b"y")
    assert (tmp_path / "a").stat().st_mode & 0o200
    assert (tmp_path / "a").stat().st_mtime == 5


def test_on_windows_a_name_is_as_long_as_its_utf16(tmp_path, monkeypatch):
    files.check_name(tmp_path / ("\u6708" * 85))
    with pytest.raises(Refusal, match="too long"):
        files.check_name(tmp_path / ("\u6708" * 86))
    monkeypatch.setattr(files, "HAS_MODES", False)
    files.check_name(tmp_path / ("\u6708" * 255))
    with pytest.raises(Refusal, match="too long"):
        files.check_name(tmp_path / ("\u6708" * 256))


def test_a_folder_of_which_nothing_is_told_takes_only_itself(tmp_path, monkeypatch):
    """Such as a file system whose server has gone."""

    class Gone:
        name, path = "gone", str(tmp_path / "gone")

        def stat(self, **_):
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    assert not files._is_junction(Gone())


def test_junctions_and_the_bins_of_windows_are_not_gone_into(tmp_path, monkeypatch):
    for folder in ("in", "junction", "$RECYCLE.BIN", "System Volume Information"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"x")
    monkeypatch.setattr(files, "_is_junction", lambda entry: entry.name == "junction")
    told = []
    found = files.walk(tmp_path, True, lambda *words: told.append(words))
    assert list(found) == [tmp_path / "in" / "a.png"]
    assert told == [(tmp_path / "junction", "a link to a folder is not followed", False)]


def test_what_is_written_of_a_private_file_is_private_all_the_time(tmp_path):
    source = tmp_path / "in.bin"
    source.write_bytes(b"x")
    for mode, least in ((0o600, 0o600), (0o640, 0o640), (0o400, 0o600), (0o755, 0o644)):
        source.chmod(mode)
        with files.publish(tmp_path / "out.bin", overwrite=True, like=source) as temporary:
            temporary.write_bytes(b"y")
            assert temporary.stat().st_mode & 0o777 & ~least == 0
        assert (tmp_path / "out.bin").stat().st_mode & 0o777 == mode


def test_permissions_and_times_that_cannot_be_had_are_told(tmp_path, monkeypatch):
    """As on a file system that knows none, mounted by another user."""
    source = tmp_path / "in.bin"
    source.write_bytes(b"x")
    source.chmod(0o600)

    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    told = []
    with files.publish(
        tmp_path / "out.bin", overwrite=False, like=source, times=True, tell=told.append
    ) as temporary:
        temporary.write_bytes(b"y")
    assert (tmp_path / "out.bin").stat().st_mode & 0o777 == 0o600
    assert told == [
        "its permissions are not kept: Operation not permitted",
        "its time of change is not kept: Operation not permitted",
    ]


def test_walk_passes_over_hidden_and_system_files(tmp_path):
    for name in ("b.jpg", "a.jpg", ".hidden.jpg", "Thumbs.db", "._a.jpg", ".DS_Store"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.jpg").write_bytes(b"")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "d.jpg").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    flat = [path.name for path in files.walk(tmp_path, recursive=False)]
    deep = [path.name for path in files.walk(tmp_path, recursive=True)]
    assert flat == ["a.jpg", "b.jpg", "self"]
    assert deep == ["a.jpg", "b.jpg", "self", "c.jpg"]


def test_read_refuses_what_is_no_regular_file(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for path, reason in (
        (fifo, "not a regular file"),
        (tmp_path, "not a regular file"),
        (link, "leads nowhere"),
        (tmp_path / "absent", "no such file"),
    ):
        with pytest.raises(MediaError, match=reason):
            files.read(path)
    assert files.head(fifo) == b""


def test_same_sees_through_links(tmp_path):
    a = tmp_path / "a"
    a.write_bytes(b"")
    (tmp_path / "soft").symlink_to(a)
    os.link(a, tmp_path / "hard")
    (tmp_path / "b").write_bytes(b"")
    assert files.same(a, tmp_path / "soft")
    assert files.same(a, tmp_path / "hard")
    assert not files.same(a, tmp_path / "b")


def test_videos_are_known_by_bytes_or_name(tmp_path):
    assert files.is_video(tmp_path / "x", b"\0\0\0\x20ftypisom" + bytes(52))
    assert files.is_video(tmp_path / "x", b"\x1aE\xdf\xa3" + bytes(60))
    assert files.is_video(tmp_path / "x.mp4", b"")
    assert not files.is_video(tmp_path / "x.txt", b"hello")


def test_an_unwritable_place_is_refused(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(Refusal, match="not a folder"):
        files.check_writable(blocked / "sub")
    files.check_writable(tmp_path / "new" / "deep")
