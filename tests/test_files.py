"""Finding files, and giving finished ones their names."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from llenhance.errors import MediaError, Refusal
from llenhance.media import files


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


def test_sweep_removes_what_a_killed_run_left(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    for name in (
        f"{files.PREFIX}{gone}-00aa{files.SUFFIX}",
        f"{files.PREFIX}{os.getpid()}-00bb{files.SUFFIX}",
        f"{files.PREFIX}{10**30}-00cc{files.SUFFIX}",
        ".llenhance-notes.txt",
        "other.tmp",
    ):
        (tmp_path / name).write_bytes(b"")
    files.sweep(tmp_path)
    assert f"{files.PREFIX}{gone}-00aa{files.SUFFIX}" not in names(tmp_path)
    assert len(names(tmp_path)) == 4


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
