"""Damaged and hostile pictures are refused in one line, before they cost anything."""

import functools
import io
import struct
import zlib

import av
import cv2
import numpy as np
import pictures
import pytest
import tifffile
from PIL import Image
from test_images import TIMES, animation

from llenhance import pixels
from llenhance.errors import MediaError
from llenhance.media import images
from llenhance.media.formats import isobmff
from llenhance.media.images import Picture

SCENE = pictures.dark_scene()
WRITTEN = [name for name, row in images.FORMATS.items() if not row.instead]


@functools.cache
def samples():
    """Files of each format that can be written, with metadata where it holds some."""
    given_ = Picture(
        [SCENE],
        "png",
        exif=pictures.exif(),
        xmp=pictures.xmp(),
        iptc=pictures.iptc(),
        icc=pictures.icc("p3"),
    )
    files = [(name, images.encode(given_, name)) for name in WRITTEN]
    files.append(("jpeg", pictures.photo(6)))
    files.append(("jpeg", pictures.pillow(SCENE, "JPEG", progressive=True)))
    files.append(("heif", pictures.heic(SCENE)))
    told = isobmff.with_metadata(pictures.heic(SCENE), pictures.exif(6), pictures.xmp(6), None)
    files.append(("heif", told))
    files.append(("raw", pictures.dng(SCENE.astype(np.uint16))))
    files.append(("rare", pictures.psd(SCENE, resources=((0x0422, pictures.exif()),))))
    first, *others = [Image.fromarray(frame) for frame in animation(3)]
    for name in ("GIF", "PNG", "WEBP", "TIFF"):
        data = pictures.pillow(first, name, save_all=True, append_images=others)
        files.append((name.lower(), data))
    return files


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_truncated_pictures_are_refused(share):
    for name, data in samples():
        cut = data[: int(len(data) * share)]
        with pytest.raises(MediaError) as caught:
            print(name, len(images.read(cut).frames), "frames were taken")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "WEBP", "PPM", "GIF"])
def test_truncation_can_be_allowed_and_is_marked(name):
    options = {"interlace": False} if name == "GIF" else {}
    data = pictures.pillow(pictures.dark_scene(200, 300), name, **options)
    cut = data[: len(data) * 7 // 10]
    try:
        read = images.read(cut, allow_truncated=True)
    except MediaError:
        assert name in ("TIFF", "WEBP")  # nothing of these can be shown without their end
        return
    assert read.truncated
    assert read.frames[0].shape == (200, 300, 3)
    whole = images.read(data).frames[0]
    assert np.array_equal(read.frames[0][:80], whole[:80])
    assert not images.read(data, allow_truncated=True).truncated


def test_damage_that_libjpeg_only_warns_about_is_refused():
    data = bytearray(pictures.pillow(pictures.dark_scene(200, 300), "JPEG"))
    middle = data.index(b"\xff\xda") + 400
    data[middle : middle + 40] = bytes((b * 7 + 13) % 255 for b in data[middle : middle + 40])
    Image.open(io.BytesIO(data)).load()  # Pillow takes it without a word
    with pytest.raises(MediaError, match="damaged"):
        images.read(bytes(data))
    assert images.read(bytes(data), allow_truncated=True).truncated


def test_a_bit_flipped_in_a_png_is_refused():
    data = bytearray(pictures.pillow(SCENE, "PNG"))
    data[len(data) // 2] ^= 4
    with pytest.raises(MediaError, match="checksum"):
        images.read(bytes(data))


def huge_png():
    ihdr = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", ihdr), (b"IDAT", zlib.compress(bytes(50))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts
    )


def huge(name):
    if name == "png":
        return huge_png()
    if name == "pnm":
        return b"P6\n60000 60000\n255\n"
    if name == "hdr":
        return b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 60000 +X 60000\n" + bytes(50)
    data = bytearray(images.encode(Picture([SCENE], "png"), name))
    if name == "jpeg":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    elif name == "gif":
        data[6:10] = struct.pack("<HH", 60_000, 60_000)
    elif name == "bmp":
        data[18:26] = struct.pack("<ii", 60_000, 60_000)
    elif name == "webp":
        data = bytearray(images.encode(Picture([SCENE], "png", xmp=pictures.xmp()), name))
        data[24:30] = b"\xff\xff\xff" * 2
    elif name == "jp2":
        at = data.index(b"\xff\x4f\xff\x51") + 8
        data[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    elif name == "avif":
        at = data.index(b"ispe") + 8
        data[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    elif name == "exr":
        at = data.index(b"dataWindow\0box2i\0") + 21
        data[at : at + 16] = struct.pack("<4i", 0, 0, 59_999, 59_999)
    elif name == "tiff":
        with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
            places = [file.pages[0].tags[tag].valueoffset for tag in (256, 257)]
        for at in places:
            data[at : at + 4] = struct.pack("<HH", 60_000, 0)
    return bytes(data)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_pixel_limit_is_checked_before_decoding(name):
    data = huge(name)
    with pytest.raises(MediaError, match=r"more than the limit of 268000000 \(--max-pixels\)"):
        images.read(data)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_pixel_limit_can_be_set(name):
    data = images.encode(Picture([SCENE], "png"), name)
    images.read(data, max_pixels=48 * 64)
    with pytest.raises(MediaError, match="limit of 3071"):
        images.read(data, max_pixels=48 * 64 - 1)


def test_frames_count_against_the_pixel_limit():
    data = images.encode(Picture(animation(), "gif", durations=TIMES), "gif")
    with pytest.raises(MediaError, match="frames"):
        images.read(data, max_pixels=20 * 30 * 3)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0\x08\0\0\0\0\0", b"RIFF\4\0\0\0WEBP",
     b"GIF89a", b"BM" + bytes(60), b"P6", b"P6 ", b"v/1\x01", b"#?RADIANCE\n",
     b"\0\0\0\x18ftypavif" + bytes(40), b"\xff\x4f\xff\x51", b"hello", bytes(100)],
)  # fmt: skip
def test_stubs_are_one_line(data):
    with pytest.raises(MediaError) as caught:
        images.read(data)
    assert "\n" not in str(caught.value)


def test_what_opencv_itself_refuses_is_one_line():
    """Its own exceptions derive from nothing that others raise, and ended a whole batch."""
    wide = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1048577\n"
    with pytest.raises(MediaError, match=r"is damaged: OpenCV refuses it") as caught:
        images.read(wide)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("name", ["jpeg", "png", "tiff", "webp", "avif", "hdr", "exr"])
def test_too_little_memory_is_no_damage(name, allow, monkeypatch):
    """Whatever the decoder raises for it, it is MemoryError and not "is damaged"."""
    frame = SCENE.astype(np.uint16) * 257 if name in ("png", "avif") else SCENE
    data = images.encode(Picture([frame], "png"), name)
    opencv = "OpenCV(5) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes"
    pillow = "out of memory when reading image file"
    errors = {
        "jpeg": ("simplejpeg.decode_jpeg", ValueError("Insufficient memory (case 4)")),
        "png": ("cv2.imdecode", cv2.error(opencv)),
        "hdr": ("cv2.imdecode", cv2.error("std::bad_alloc")),
        "tiff": ("tifffile.TiffPage.asarray", MemoryError("Unable to allocate 3 GiB")),
        "webp": ("PIL.WebPImagePlugin.WebPImageFile.load", OSError(pillow)),
        "avif": ("imagecodecs.avif_decode", RuntimeError("avifDecoderParse: Out of memory")),
        "exr": ("av.CodecContext.create", av.error.MemoryError(12, "Cannot allocate memory")),
    }
    place, error = errors[name]

    def short(*_, **__):
        raise error

    monkeypatch.setattr(place, short)
    with pytest.raises(MemoryError):
        images.read(data, allow_truncated=allow)


def mutations(seed, rounds):
    """Mutated samples: bytes flipped, cut, doubled, numbers set to extremes."""
    rng = np.random.default_rng(seed)
    seeds = list(samples())
    extremes = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\x80\0\0\0"]
    for _ in range(rounds):
        name, data = seeds[rng.integers(len(seeds))]
        out = bytearray(data)
        for _ in range(rng.integers(1, 6)):
            # Headers and metadata stand in front: most of the trouble is there.
            reach = len(out) if rng.random() < 0.4 else min(len(out), 600)
            at = int(rng.integers(reach))
            kind = rng.integers(5)
            if kind == 0:
                out[at] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                out[at] = int(rng.integers(256))
            elif kind == 2:
                out[at : at + 4] = extremes[rng.integers(len(extremes))]
            elif kind == 3:
                del out[at : at + int(rng.integers(1, 40))]
            else:
                out[at:at] = out[at : at + int(rng.integers(1, 40))]
            if not out:
                out = bytearray(b"\0")
        yield name, bytes(out)


def survive(seed, rounds, capfd):
    """Read mutated files: a Picture or a MediaError of one line, and silence."""
    refused, lines = 0, []
    for name, data in mutations(seed, rounds):
        try:
            read = images.read(data, max_pixels=4_000_000, allow_truncated=seed % 2 == 1)
        except MediaError as error:
            refused += 1
            lines.append((name, str(error)))
        else:
            assert read.frames
            assert all(frame.dtype in pixels.WHITE for frame in read.frames)
    assert [line for line in lines if "\n" in line[1]] == []
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""
    assert refused > rounds / 4  # the mutations do hit


@pytest.mark.parametrize("seed", [0, 1])
def test_mutated_files_are_survived(seed, capfd):
    survive(seed, 400, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_many_mutated_files_are_survived(seed, capfd):
    """20,000 in all."""
    survive(seed, 2000, capfd)
