"""Reading and writing pictures: every format, layout and depth."""

import io
import itertools
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from fractions import Fraction

import cv2
import imagecodecs
import numpy as np
import pictures
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from llenhance import pixels
from llenhance.errors import MediaError
from llenhance.media import colour, images, tiffblock
from llenhance.media.formats import codecs, isobmff, webp
from llenhance.media.images import Picture

SCENE = pictures.dark_scene()
WRITTEN = [name for name, row in images.FORMATS.items() if not row.instead]
EXACT = {
    "png": (np.uint8, np.uint16),
    "tiff": (np.uint8, np.uint16, np.float32),
    "bmp": (np.uint8,),
    "pnm": (np.uint8, np.uint16),
    "webp": (np.uint8,),
    "jp2": (np.uint8, np.uint16),
}


def picture(height, width, channels, dtype, seed=0):
    """Random values over the whole range; ``channels`` 1 is (H, W)."""
    values = np.random.default_rng(seed).random((height, width, channels), np.float32)
    frame = pixels.from_float(values, np.dtype(dtype))
    return frame[..., 0] if channels == 1 else frame


# Layouts and depths ----------------------------------------------------------------------------


def exact_cases():
    for name, dtypes in EXACT.items():
        row = images.FORMATS[name]
        for dtype, channels in itertools.product(dtypes, (1, 2, 3, 4)):
            if (channels < 3 and not row.grey) or (channels in (2, 4) and not row.alpha):
                continue
            if name == "bmp" and channels == 2:
                continue  # comes back as RGBA
            yield pytest.param(name, dtype, channels, id=f"{name}-{dtype.__name__}-{channels}")


@pytest.mark.parametrize(("name", "dtype", "channels"), list(exact_cases()))
@pytest.mark.parametrize("size", [(1, 1), (37, 53), (2, 300)])
def test_lossless_formats_give_back_every_value(name, dtype, channels, size):
    frame = picture(*size, channels, dtype)
    data = images.encode(Picture([frame], name), name)
    back = images.read(data)
    assert back.format == name == images.sniff(data[:64])
    assert back.frames[0].dtype == dtype
    assert back.frames[0].shape == frame.shape
    assert np.array_equal(back.frames[0], frame)
    assert not back.notes
    assert not back.truncated


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (16, 9)])
def test_every_format_takes_every_picture_or_says_what_is_lost(name, dtype, channels, size):
    given_ = Picture(
        [
            picture(*size, channels, dtype) // 2
            if dtype != np.float32
            else picture(*size, channels, dtype) / 2
        ],
        "png",
    )
    told = " ".join(images.losses(given_, name))
    back = images.read(images.encode(given_, name)).frames[0]
    row = images.FORMATS[name]
    assert back.shape[:2] == size
    assert ("transparency" in told) == (channels in (2, 4) and not row.alpha)
    assert (" bits" in told) == (
        back.dtype.itemsize < np.dtype(dtype).itemsize or (name == "avif" and dtype != np.uint8)
    )
    if row.alpha and channels in (2, 4):
        assert back.ndim == 3
        assert back.shape[2] in (2, 4)


@given(
    st.sampled_from(["png", "tiff", "webp", "jp2"]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([3, 4]),
    st.integers(0, 9),
)
@settings(max_examples=40)
def test_any_size_survives(name, height, width, channels, seed):
    frame = picture(height, width, channels, np.uint8, seed)
    assert np.array_equal(images.read(images.encode(Picture([frame], name), name)).frames[0], frame)


def test_other_readers_agree_on_16_bits():
    frame = picture(20, 31, 3, np.uint16)
    png = images.encode(Picture([frame], "png"), "png")
    assert np.array_equal(cv2.imdecode(np.frombuffer(png, np.uint8), -1)[..., ::-1], frame)
    tiff = images.encode(Picture([frame], "tiff"), "tiff")
    assert np.array_equal(tifffile.imread(io.BytesIO(tiff)), frame)
    pnm = images.encode(Picture([frame], "pnm"), "pnm")
    assert np.array_equal(cv2.imdecode(np.frombuffer(pnm, np.uint8), -1)[..., ::-1], frame)
    grey_alpha = picture(20, 31, 2, np.uint16)
    png = images.encode(Picture([grey_alpha], "png"), "png")
    assert np.array_equal(imagecodecs.png_decode(png), grey_alpha)


def test_a_dark_16_bit_photo_stays_one():
    dark = pictures.dark_scene_16()
    assert dark.max() < 256
    done, coded = cv2.imencode(".png", dark[..., ::-1])
    assert done
    read = images.read(bytes(coded))
    assert read.frames[0].dtype == np.uint16
    assert np.array_equal(read.frames[0], dark)


def test_the_format_is_decided_by_the_bytes():
    for name in WRITTEN:
        data = images.encode(Picture([SCENE], "png"), name)
        assert images.sniff(data[:64]) == name
        assert images.read(data).format == name
    assert images.sniff(b"MZ\x90") is None
    assert images.sniff(b"") is None
    assert images.format_of_suffix(".JPG") == "jpeg"
    assert images.format_of_suffix(".mp4") is None


def test_suffixes_belong_to_one_format():
    suffixes = [suffix for row in images.FORMATS.values() for suffix in row.suffixes]
    assert len(suffixes) == len(set(suffixes))


# Palettes, bitmaps and other odd layouts -------------------------------------------------------


@pytest.mark.parametrize("name", ["PNG", "TIFF", "BMP", "GIF"])
def test_palette_comes_back_as_rgb(name):
    image = Image.fromarray(SCENE).quantize(32)
    read = images.read(pictures.pillow(image, name)).frames[0]
    assert np.array_equal(read, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ["PNG", "GIF", "WEBP"])
def test_transparent_palette_comes_back_as_rgba(name):
    image = Image.fromarray(SCENE).quantize(32)
    data = pictures.pillow(image, name, transparency=3) if name != "WEBP" else None
    if data is None:
        rgba = np.dstack((SCENE, pictures.alpha_plane(48, 64).astype(np.uint8)))
        data = pictures.pillow(rgba, "WEBP", lossless=True, exact=True)
        assert np.array_equal(images.read(data).frames[0], rgba)
        return
    read = images.read(data).frames[0]
    assert read.shape == (48, 64, 4)
    assert np.array_equal(read[..., 3] == 0, np.asarray(image) == 3)


@pytest.mark.parametrize("name", ["PNG", "TIFF", "BMP", "PPM"])
def test_one_bit_comes_back_as_rgb(name):
    image = Image.fromarray(SCENE).convert("1")
    read = images.read(pictures.pillow(image, name)).frames[0]
    assert np.array_equal(read, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_png_of_any_depth_and_interlace_is_grey_over_the_whole_range(bits):
    top = 2**bits - 1
    values = np.arange(8 * 16).reshape(8, 16) * top // 127
    if bits == 16:
        rows = values.astype(">u2").view(np.uint8)
    else:
        spread = (values[..., None] >> np.arange(bits)[::-1]) & 1
        rows = np.packbits(spread.reshape(8, -1).astype(np.uint8), axis=1)
    body = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    ihdr = struct.pack(">IIBBBBB", 16, 8, bits, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b))
        for k, b in ((b"IHDR", ihdr), (b"IDAT", body), (b"IEND", b""))
    )
    read = images.read(data).frames[0]
    white = 65535 if bits == 16 else 255
    expected = np.round(values * (white / top))
    if bits == 1:
        assert read.shape == (8, 16, 3)
        read = read[..., 0]
    assert np.array_equal(read, expected)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_grey_key_of_few_bits_becomes_alpha(bits):
    top = 2**bits - 1
    values = np.arange(64, dtype=np.uint8).reshape(4, 16) % (top + 1)
    spread = (values[..., None] >> np.arange(bits)[::-1]) & 1
    body = zlib.compress(np.pad(np.packbits(spread.reshape(4, -1), axis=1), ((0, 0), (1, 0))))
    data = pictures.with_png_chunks(
        b"\x89PNG\r\n\x1a\n", (b"IHDR", struct.pack(">IIBBBBB", 16, 4, bits, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", top)), (b"IDAT", body), (b"IEND", b""),
    )  # fmt: skip
    read = images.read(data).frames[0]
    assert read.shape == (4, 16, 4 if bits == 1 else 2)
    assert np.array_equal(read[..., 0], values * (255 // top))
    assert np.array_equal(read[..., -1], np.where(values == top, 0, 255))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_colour_key_becomes_alpha(dtype):
    frame = picture(6, 7, 3, dtype)
    frame[2, 3] = key = np.array([3, 200, 7], dtype)
    done, coded = cv2.imencode(".png", frame[..., ::-1])
    assert done
    data = pictures.with_png_chunks(bytes(coded), (b"tRNS", key.astype(">u2").tobytes()))
    read = images.read(data).frames[0]
    assert read.shape == (6, 7, 4)
    assert np.array_equal(read[..., :3], frame)
    assert (read[..., 3] == 0).sum() == 1
    assert read[2, 3, 3] == 0


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_tiff_of_odd_depth_fills_sixteen_bits(bits):
    values = np.arange(2**bits, dtype=np.uint16).reshape(-1, 32)
    out = io.BytesIO()
    tifffile.imwrite(out, values, bitspersample=bits)
    read = images.read(out.getvalue()).frames[0]
    assert read.dtype == np.uint16
    assert read.min() == 0
    assert read.max() == 65535
    assert np.array_equal(np.round(read / (65535 / (2**bits - 1))), values)


@pytest.mark.parametrize("layout", ["planar", "tiled", "miniswhite", "premultiplied", "bigtiff"])
def test_tiff_layouts(layout):
    frame = picture(70, 80, 3, np.uint16)
    out = io.BytesIO()
    if layout == "planar":
        tifffile.imwrite(out, frame.transpose(2, 0, 1), planarconfig="separate", photometric="rgb")
    elif layout == "tiled":
        tifffile.imwrite(out, frame, tile=(32, 32), compression="lzw", predictor=True)
    elif layout == "bigtiff":
        tifffile.imwrite(out, frame, bigtiff=True, byteorder=">")
    elif layout == "miniswhite":
        tifffile.imwrite(out, 65535 - frame[..., 0], photometric="miniswhite")
        frame = frame[..., 0]
    else:
        alpha = pictures.alpha_plane(70, 80, 65535)
        stored = np.rint(frame * (alpha / 65535)[..., None]).astype(np.uint16)
        stored = np.dstack((stored, alpha.astype(np.uint16)))
        tifffile.imwrite(out, stored, photometric="rgb", extrasamples=["assocalpha"])
        read = images.read(out.getvalue())
        opaque = alpha == 65535
        assert np.array_equal(read.frames[0][opaque][:, :3], frame[opaque])
        assert np.array_equal(read.frames[0][..., 3], alpha)
        again = tifffile.imread(io.BytesIO(images.encode(read, "tiff")))
        assert np.abs(again.astype(int) - stored).max() <= 1
        return
    read = images.read(out.getvalue())
    assert np.array_equal(read.frames[0], frame)
    assert np.array_equal(images.read(images.encode(read, "tiff")).frames[0], frame)


@pytest.mark.parametrize("name", ["tiff", "png", "jp2"])
def test_sixteen_bits_become_full_floats(name):
    """Half floats have 11 bits."""
    whole = images.read(images.encode(Picture([picture(8, 9, 3, np.uint16)], "png"), name))
    assert images.read(images.encode(whole, "exr")).depth == 32


def test_tiff_keeps_compression_predictor_and_half_floats():
    frame = picture(40, 50, 3, np.float32).astype(np.float16)
    out = io.BytesIO()
    tifffile.imwrite(out, frame, compression="zstd", photometric="rgb")
    read = images.read(out.getvalue())
    assert read.frames[0].dtype == np.float32
    with tifffile.TiffFile(io.BytesIO(images.encode(read, "tiff"))) as file:
        page = file.pages[0]
        assert page.compression.name == "ZSTD"
        assert page.dtype == np.float16
        assert np.array_equal(page.asarray(), frame)
    out = io.BytesIO()
    tifffile.imwrite(out, SCENE, compression="lzw", predictor=True)
    with tifffile.TiffFile(io.BytesIO(images.encode(images.read(out.getvalue()), "tiff"))) as file:
        assert (file.pages[0].compression.name, int(file.pages[0].predictor)) == ("LZW", 2)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_a_tiff_channel_of_no_kind_is_no_transparency(channels):
    frame = picture(20, 30, channels, np.uint8)
    colours = 1 if channels == 2 else 3
    out = io.BytesIO()
    tifffile.imwrite(
        out, frame, photometric="rgb" if colours == 3 else "minisblack", planarconfig="contig",
        extrasamples=["unspecified"] * (channels - colours), metadata=None,
    )  # fmt: skip
    read = images.read(out.getvalue())
    assert np.array_equal(read.frames[0], frame[..., 0] if colours == 1 else frame[..., :3])
    assert read.notes == [
        "2 extra channels were dropped" if channels == 5 else "1 extra channel was dropped"
    ]


def test_a_tiff_channel_of_untold_kind_is_transparency():
    frame = picture(20, 30, 4, np.uint8)
    done, coded = cv2.imencode(".tif", frame[..., [2, 1, 0, 3]])
    assert done
    with tifffile.TiffFile(io.BytesIO(bytes(coded))) as file:
        assert not file.pages[0].extrasamples
    read = images.read(bytes(coded))
    assert np.array_equal(read.frames[0], frame)
    assert not read.notes


def test_tiff_pages_all_come_back_and_thumbnails_do_not():
    pages = [picture(20, 30, 3, np.uint8), picture(10, 12, 1, np.uint16)]
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:
        file.write(pages[0], photometric="rgb")
        file.write(pages[0][::4, ::4].copy(), photometric="rgb", subfiletype=1)
        file.write(pages[1], photometric="minisblack")
    read = images.read(out.getvalue())
    assert [frame.shape for frame in read.frames] == [(20, 30, 3), (10, 12)]
    assert "smaller copies" in read.notes[0]
    back = images.read(images.encode(read, "tiff"))
    assert all(np.array_equal(a, b) for a, b in zip(back.frames, pages, strict=True))
    assert images.losses(read, "png") == ["only the first of 2 pages is kept"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"P1\n# hello\n3 2\n101\n0 1 0", [[0, 255, 0], [255, 0, 255]]),
        (b"P2 2 1 15 # fifteen\n0 15\n", [[0, 255]]),
        (b"P5\n2 1\n1023\n\x00\x00\x03\xff", [[0, 65535]]),
        (b"P3\n1 1\n255\n1 2 3", [[[1, 2, 3]]]),
    ],
)
def test_pnm_text_comments_and_odd_ranges(text, expected):
    read = images.read(text).frames[0]
    expected = np.array(expected)
    if text[1:2] == b"1":
        expected = np.repeat(expected[..., None], 3, 2)
    assert np.array_equal(read, expected)


# JPEG ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [30, 75, 92])
@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_coded_as_its_input(quality, sampling, progressive):
    data = pictures.pillow(
        SCENE, "JPEG", quality=quality, subsampling=sampling, progressive=progressive
    )
    out = images.encode(images.read(data), "jpeg")
    before, after = (Image.open(io.BytesIO(d)) for d in (data, out))
    assert after.quantization == before.quantization
    assert after.layer == before.layer  # components, sampling factors, table numbers
    assert after.info.get("progressive") == before.info.get("progressive")
    assert abs(len(out) - len(data)) < 0.1 * len(data)


def test_jpeg_quality_can_be_asked_for_and_sampling_stays():
    data = pictures.pillow(SCENE, "JPEG", quality=95, subsampling="4:2:2")
    small = images.encode(images.read(data), "jpeg", quality=20)
    assert len(small) < len(data) / 2
    assert Image.open(io.BytesIO(small)).layer[0][1:3] == (2, 1)
    with pytest.raises(MediaError, match="1 to 100"):
        images.encode(images.read(data), "jpeg", quality=0)


def test_grey_jpeg_stays_grey():
    data = pictures.pillow(SCENE[..., 1], "JPEG")
    read = images.read(data)
    assert read.frames[0].shape == (48, 64)
    assert Image.open(io.BytesIO(images.encode(read, "jpeg"))).mode == "L"


def test_rgb_jpeg_stays_rgb():
    data = pictures.pillow(SCENE, "JPEG", keep_rgb=True, subsampling="4:4:4", quality=90)
    read = images.read(data)
    assert np.abs(read.frames[0].astype(int) - SCENE).mean() < 2
    out = images.encode(read, "jpeg")
    assert b"Adobe" in out[:200]
    again = images.read(out)
    assert again.quality.rgb
    assert np.abs(again.frames[0].astype(int) - read.frames[0]).mean() < 1


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_is_applied_once(turn):
    data = pictures.photo(turn)
    read = images.read(data)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(read.frames[0], np.asarray(upright))
    for name in ("jpeg", "png", "webp", "tiff", "jp2"):
        again = images.read(images.encode(read, name))
        assert again.frames[0].shape == read.frames[0].shape
        assert np.abs(again.frames[0].astype(int) - read.frames[0]).mean() < 4


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_tiff_pages_are_turned_each_by_its_own_tag(turn):
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:
        file.write(SCENE, photometric="rgb", metadata=None)
        file.write(SCENE, photometric="rgb", metadata=None, extratags=[(274, 3, 1, turn, True)])
    read = images.read(out.getvalue())
    image = Image.open(io.BytesIO(out.getvalue()))
    image.seek(1)
    expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(read.frames[0], SCENE)
    assert np.array_equal(read.frames[1], expected)
    with tifffile.TiffFile(io.BytesIO(images.encode(read, "tiff"))) as file:
        assert file.pages[1].tags[274].value == 1
        assert np.array_equal(file.pages[1].asarray(), expected)


# Animations ------------------------------------------------------------------------------------


def animation(count=4, channels=3):
    frames = [pictures.dark_scene(20, 30, seed) for seed in range(count - 1)]
    frames.append(frames[-1])  # two alike: an encoder might merge them
    if channels == 4:
        alpha = np.where(pictures.alpha_plane(20, 30) > 127, 255, 0).astype(np.uint8)
        frames = [np.dstack((frame, alpha)) for frame in frames]
    return frames


TIMES = [Fraction(7, 100), Fraction(1, 2), Fraction(3, 100), Fraction(2)]


@pytest.mark.parametrize("name", ["gif", "png", "webp"])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("loops", [0, 1, 3])
def test_animations_keep_frames_timing_and_loops(name, channels, loops):
    given_ = Picture(animation(4, channels), name, durations=TIMES, loops=loops)
    data = images.encode(given_, name)
    read = images.read(data)
    assert len(read.frames) == 4
    assert read.durations == TIMES
    assert read.loops == loops
    for before, after in zip(given_.frames, read.frames, strict=True):
        assert after.shape == before.shape
        seen = before[..., -1] > 0 if channels == 4 else np.ones(before.shape[:2], bool)
        error = np.abs(after[seen].astype(int) - before[seen])
        assert error.max() == 0 if name != "gif" else error.mean() < 4
        if channels == 4:
            assert np.array_equal(after[..., 3], before[..., 3])
    image = Image.open(io.BytesIO(data))
    assert image.n_frames == 4
    shown = []
    for number in range(4):
        image.seek(number)
        image.load()
        shown.append(image.info["duration"])
    assert [round(ms) for ms in shown] == [70, 500, 30, 2000]


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP"])
def test_animations_by_others_are_composed(name):
    frames = [Image.fromarray(frame) for frame in animation(4)[:3]]
    options = {"lossless": True} if name == "WEBP" else {}
    options |= {"duration": [70, 500, 30], "loop": 0}
    data = pictures.pillow(frames[0], name, save_all=True, append_images=frames[1:], **options)
    read = images.read(data)
    image = Image.open(io.BytesIO(data))
    assert len(read.frames) == 3
    assert read.durations == TIMES[:3]
    for number, frame in enumerate(read.frames):
        image.seek(number)
        assert np.array_equal(frame, np.asarray(image.convert("RGB")))


def test_16_bit_apng():
    frames = [picture(8, 9, 4, np.uint16, seed) for seed in range(2)]
    read = images.read(images.encode(Picture(frames, "png", durations=TIMES[:2]), "png"))
    assert all(np.array_equal(a, b) for a, b in zip(read.frames, frames, strict=True))


@pytest.mark.parametrize("name", ["gif", "webp", "png", "avif"])
def test_a_gif_whose_frames_outgrow_it_is_written_as_what_can_be_read(name):
    """A second frame beyond the screen made a WebP and an APNG that nothing could open."""
    sizes = ((20, 30), (35, 45))
    small, large = (
        images.encode(Picture([np.full((*size, 3), 90, np.uint8)], "gif"), "gif") for size in sizes
    )
    data = small[:-1] + large[large.index(b"\x21\xf9") :]
    given_ = images.read(data)
    assert [frame.shape for frame in given_.frames] == [(20, 30, 3)] * 2
    assert any("beyond" in note for note in given_.notes)
    again = images.read(images.encode(given_, name))
    assert [frame.shape for frame in again.frames] == [(20, 30, 3)] * 2


def gif_frame(values: np.ndarray, palette: bytes, transparent: bool) -> bytes:
    """A frame of 256 colours with a palette of its own; 9 bits a code, cleared in time."""
    codes: list[int] = []
    for n, value in enumerate(values.ravel().tolist()):
        codes += [256, value] if n % 100 == 0 else [value]
    codes.append(257)
    body = sum(code << 9 * n for n, code in enumerate(codes)).to_bytes(
        9 * len(codes) // 8 + 1, "little"
    )
    parts = b"".join(
        bytes([len(body[n : n + 255])]) + body[n : n + 255] for n in range(0, len(body), 255)
    )
    head = b"!\xf9\4" + bytes([transparent, 1, 0, 255, 0])
    place = struct.pack("<BHHHHB", 0x2C, 0, 0, values.shape[1], values.shape[0], 0x87)
    return head + place + palette + b"\x08" + parts + b"\0"


@pytest.mark.parametrize("transparent", [False, True])
def test_a_gif_that_begins_grey_may_go_on_in_colour(transparent):
    values = np.arange(16 * 15, dtype=np.uint8).reshape(15, 16)
    grey = bytes(n for n in range(256) for _ in range(3))
    colours = bytes(v for n in range(256) for v in (n, 255 - n, n // 2))
    data = b"GIF89a" + struct.pack("<HHBBB", 16, 15, 0x70, 0, 0)
    data += gif_frame(values, grey, transparent) + gif_frame(values, colours, transparent) + b";"
    first, second = images.read(data).frames
    assert np.array_equal(first[..., :3], np.repeat(values[..., None], 3, 2))
    wanted = np.stack([values, 255 - values, values // 2], 2)
    assert np.array_equal(second[..., :3], wanted)


def test_gif_of_few_colours_is_exact():
    frame = np.asarray(Image.fromarray(SCENE).quantize(64).convert("RGB"))
    read = images.read(images.encode(Picture([frame], "gif"), "gif"))
    assert np.array_equal(read.frames[0], frame)


def test_grey_becomes_a_gif_of_the_same_grey():
    grey = SCENE[..., 1].copy()
    for frame in (grey, grey[..., None], np.dstack((grey, np.full_like(grey, 255)))):
        read = images.read(images.encode(Picture([frame], "png"), "gif")).frames[0]
        assert np.abs(read[..., :3].astype(int) - grey[..., None]).max() <= 1


def test_what_a_gif_cannot_hold_is_said():
    few = np.asarray(Image.fromarray(SCENE).quantize(64).convert("RGB"))
    assert images.losses(Picture([few], "png"), "gif") == []
    assert images.losses(Picture([SCENE], "gif"), "gif") == []  # it never held more
    assert images.losses(Picture([SCENE], "png"), "gif") == ["the colours become 255 a frame"]
    deep = SCENE.astype(np.uint16) * 257
    told = images.losses(Picture([deep], "png"), "gif")
    assert told == ["16 bits become 8 bits", "the colours become 255 a frame"]
    for alpha, lost in ((0, []), (128, ["half-clear pixels become clear or opaque"]), (255, [])):
        clear = np.dstack((few, np.full(few.shape[:2], alpha, np.uint8)))
        assert images.losses(Picture([clear], "png"), "gif") == lost
    grey = np.zeros((4, 4), np.uint8)
    for frame in (grey, grey[..., None], np.dstack((grey, grey))):
        assert images.losses(Picture([frame], "png"), "gif") == []
    for time, lost in ((Fraction(1, 30), ["times become hundredths of a second"]), (TIMES[0], [])):
        assert images.losses(Picture([few, few], "png", durations=[time] * 2), "gif") == lost


@pytest.mark.parametrize(
    ("time", "delays"),
    [
        (Fraction(1, 30), [3, 4, 3, 3, 4, 3]),
        (Fraction(16, 1000), [2, 2, 2, 2, 2, 2]),  # players take 1 for a tenth of a second
        (Fraction(1, 100), [1, 1, 1, 1, 1, 1]),
        (Fraction(0), [0, 0, 0, 0, 0, 0]),
        (Fraction(1000), [65535, 65535, 65535, 65535, 65535, 65535]),
    ],
)
def test_a_gif_lasts_as_long_as_its_frames_together(time, delays):
    frames = [SCENE[:8, :8]] * 6
    read = images.read(images.encode(Picture(frames, "webp", durations=[time] * 6), "gif"))
    assert [round(100 * one) for one in read.durations] == delays


def test_an_animated_avif_tells_no_number_of_loops():
    frames = [SCENE, SCENE[::-1].copy()]
    durations = [Fraction(1, 10)] * 2
    for loops, told in ((0, []), (3, ["the animation repeats without end"])):
        given_ = Picture(frames, "gif", durations=durations, loops=loops)
        assert images.losses(given_, "avif") == told
        assert images.losses(given_, "webp") == []


def test_a_tiff_of_64_bit_floats_says_what_it_loses():
    out = io.BytesIO()
    tifffile.imwrite(out, SCENE / 255, photometric="rgb")
    read = images.read(out.getvalue())
    assert read.frames[0].dtype == np.float32
    assert read.notes == ["floating point values of 64 bits were read as 32 bits"]


def test_what_a_still_format_loses_of_an_animation():
    given_ = Picture(animation(), "gif", durations=TIMES)
    assert images.losses(given_, "jpeg") == ["only the first of 4 frames is kept"]
    assert images.losses(given_, "tiff") == ["the timing of the animation is lost"]
    assert np.array_equal(images.read(images.encode(given_, "bmp")).frames[0], given_.frames[0])


# AVIF, JPEG 2000, EXR, HDR ---------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 12)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_avif_of_8_and_12_bits(dtype, bits, channels):
    scene = pictures.dark_scene(48, 64)
    frame = pixels.from_float(pixels.to_float(scene), np.dtype(dtype))
    frame = frame[..., 0] if channels == 1 else frame
    if channels == 4:
        alpha = pictures.alpha_plane(48, 64, pixels.WHITE[np.dtype(dtype)]).astype(dtype)
        frame = np.dstack((frame, alpha))
    data = images.encode(Picture([frame], "png"), "avif", quality=97)
    read = images.read(data)
    assert read.depth == bits
    assert read.frames[0].dtype == dtype
    assert read.frames[0].shape == frame.shape
    error = np.abs(pixels.to_float(read.frames[0]) - pixels.to_float(frame))
    assert error.mean() < 0.01
    again = images.read(images.encode(read, "avif"))
    assert again.depth == bits


def test_animated_avif():
    given_ = Picture(animation(), "avif", durations=[Fraction(1, 10)] * 4)
    read = images.read(images.encode(given_, "avif"))
    assert len(read.frames) == 4
    assert read.durations == given_.durations


def test_jpeg_2000_stays_lossy_or_lossless():
    assert images.read(pictures.pillow(SCENE, "JPEG2000")).lossless
    lossy = images.read(
        pictures.pillow(
            SCENE, "JPEG2000", irreversible=True, quality_mode="dB", quality_layers=[40]
        )
    )
    assert lossy.lossless is False
    again = images.read(images.encode(lossy, "jp2"))
    assert again.lossless is False
    assert np.abs(again.frames[0].astype(int) - lossy.frames[0]).mean() < 2


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_exr_keeps_light_depth_and_attributes(half, channels):
    frame = picture(20, 30, channels, np.float32) * np.float32(12)
    if channels == 4:
        frame[..., 3] = pictures.alpha_plane(20, 30, 1)
    given_ = Picture(
        [frame],
        "exr",
        linear=True,
        depth=16 if half else 32,
        carried=[(b"owner", b"string\0me")],
        premultiplied=channels == 4,
        icc=colour.linear_profile(),
    )
    data = images.encode(given_, "exr", provenance="llenhance 1")
    read = images.read(data)
    assert read.depth == given_.depth
    expected = frame.astype(np.float16).astype(np.float32) if half else frame
    if channels == 4:
        opaque = expected[..., 3] == 1
        assert np.array_equal(read.frames[0][..., 3], expected[..., 3])
        assert np.allclose(read.frames[0][opaque], expected[opaque], rtol=1e-6)
    else:
        assert np.array_equal(read.frames[0], expected)
    assert (b"owner", b"string\0me") in read.carried
    assert (b"software", b"string\0llenhance 1") in read.carried
    assert images.encode(read, "exr") == images.encode(
        images.read(images.encode(read, "exr")), "exr"
    )


def test_transparency_of_other_formats_comes_back_from_an_exr():
    """Its colours are multiplied by alpha, theirs are not."""
    frame = picture(20, 30, 4, np.float32)
    frame[..., 3] = 0.25 + 0.5 * frame[..., 3]
    given_ = Picture([frame], "png", icc=colour.linear_profile())
    read = images.read(images.encode(given_, "exr"))
    assert np.allclose(read.frames[0], frame, atol=1e-5)


def test_light_without_opacity_stays_in_an_exr():
    """A glow is added to what lies behind it; what is clear and black stays so."""
    frame = np.ones((20, 30, 4), np.float32)
    frame[..., :3] = picture(20, 30, 3, np.float32) + np.float32(0.1)
    frame[2:5, :, :3] = 0
    given_ = Picture([frame], "exr", linear=True, icc=colour.linear_profile())
    given_.frames[0][:5, :, 3] = 0
    given_.frames[0][5:, :, 3] = 0.5
    given_.glow = np.zeros((20, 30), bool)
    given_.glow[:2] = True
    read = images.read(images.encode(given_, "exr"))
    assert np.allclose(read.frames[0], frame, atol=1e-6)
    assert np.array_equal(read.glow, given_.glow)
    lit = images.enhanced(read, lambda image: image + np.float32(0.2))
    back = images.read(images.encode(lit, "exr")).frames[0]
    assert (back[:2, :, :3] > frame[:2, :, :3] + 0.01).all()
    assert not back[2:5].any()
    with tifffile.TiffFile(io.BytesIO(images.encode(lit, "tiff"))) as file:
        stored = file.asarray()
    assert stored[:2, :, :3].min() > 0
    assert not stored[2:5].any()


def moved_exr(data: bytes, left: int, top: int) -> bytes:
    """An EXR of single lines whose windows begin elsewhere."""
    moved = bytearray(data)
    for name in (b"dataWindow", b"displayWindow"):
        at = data.index(name + b"\0box2i\0") + len(name) + 11
        right, bottom = struct.unpack_from("<4i", data, at)[2:]
        struct.pack_into("<4i", moved, at, left, top, right + left, bottom + top)
    height, table = bottom + 1, at
    while struct.unpack_from("<Q", data, table)[0] != table + 8 * height:  # the first chunk
        table += 1
    for offset in struct.unpack_from(f"<{height}Q", data, table):
        struct.pack_into("<i", moved, offset, struct.unpack_from("<i", data, offset)[0] + top)
    return bytes(moved)


@pytest.mark.parametrize("origin", [(0, 0), (10, 10), (-3, 7)])
def test_an_exr_may_begin_anywhere(origin):
    frame = picture(6, 9, 3, np.float32)
    given_ = Picture([frame], "exr", linear=True, compression="ZIPS", icc=colour.linear_profile())
    data = moved_exr(images.encode(given_, "exr"), *origin)
    read = images.read(data)
    assert np.array_equal(read.frames[0], frame)
    assert read.notes == []


def test_pixels_beyond_what_an_exr_shows_are_named():
    frame = picture(6, 8, 3, np.float32)
    given_ = Picture([frame], "exr", linear=True, compression="ZIPS", icc=colour.linear_profile())
    data = bytearray(images.encode(given_, "exr"))
    at = data.index(b"displayWindow\0box2i\0") + 24
    struct.pack_into("<4i", data, at, 2, 0, 5, 5)
    read = images.read(bytes(data))
    assert read.notes == ["50% of its pixels lie outside the display window: left out"]
    assert np.array_equal(read.frames[0], frame[:, 2:6])


def test_radiance_keeps_light_and_header():
    frame = picture(20, 30, 3, np.float32) * np.float32(12)
    read = images.read(
        images.encode(
            Picture(
                [frame],
                "hdr",
                linear=True,
                carried=[(b"", b"VIEW= -vtv")],
                icc=colour.linear_profile(),
            ),
            "hdr",
        )
    )
    assert np.abs(read.frames[0] - frame).max() < 12 / 128
    again = images.encode(read, "hdr", provenance="llenhance 1")
    assert b"\nVIEW= -vtv\n" in again
    assert b"\nSOFTWARE=llenhance 1\n" in again
    assert np.array_equal(images.read(again).frames[0], read.frames[0])


def test_light_in_primaries_of_its_own_is_converted_for_radiance():
    light = np.tile(np.array([0.2, 0.1, 0.05], np.float32), (4, 5, 1))
    ap0 = struct.pack("<8f", 0.7347, 0.2653, 0, 1, 0.0001, -0.077, 0.32168, 0.33767)
    given_ = Picture(
        [light], "exr", linear=True, carried=[(b"chromaticities", b"chromaticities\0" + ap0)]
    )
    read = images.read(images.encode(given_, "exr"))
    assert images.losses(read, "exr") == []
    assert images.losses(read, "hdr") == [
        "the colours are converted to sRGB and the profile is lost"
    ]
    back = images.read(images.encode(read, "hdr")).frames[0]
    # What all programs write that know no other primaries is nothing of its own.
    plain = b"chromaticities\0" + struct.pack("<8f", *colour.REC709)
    given_.carried = [(b"chromaticities", plain)]
    assert images.losses(images.read(images.encode(given_, "exr")), "hdr") == []
    # The matrix from AP0 to linear sRGB, as in the ACES documents.
    aces = [[2.5217, -1.1340, -0.3878], [-0.2765, 1.3727, -0.0962], [-0.0154, -0.1530, 1.1683]]
    np.testing.assert_allclose(back[0, 0], np.array(aces) @ light[0, 0], atol=0.004)


def test_light_above_one_is_brightened_and_not_clipped():
    frame = picture(8, 8, 3, np.float32) * np.float32(0.1)
    frame[0, 0] = 20
    given_ = Picture([frame], "exr", linear=True, icc=colour.linear_profile())

    def brighten(image):
        """As Enhancer.enhance does with floats."""
        seen = pixels.tone_map(image)
        return pixels.apply_change(image, seen, np.sqrt(seen))

    result = images.enhanced(given_, brighten).frames[0]
    assert result[0, 0].min() >= 20
    assert (result[1:] > frame[1:]).all()
    same = images.enhanced(given_, lambda image: image).frames[0]
    assert np.allclose(same, frame, rtol=1e-4, atol=1e-6)


def test_light_that_is_no_number_is_written_without_a_word():
    frame = picture(4, 4, 3, np.float32)
    frame[0, 0] = (np.nan, np.inf, -np.inf)
    frame[1, 1] = (3e38, -3e38, 1e-40)
    given_ = Picture([frame], "exr", linear=True, depth=32, icc=colour.linear_profile())
    for name in WRITTEN:
        assert images.read(images.encode(given_, name)).frames[0].shape[:2] == (4, 4)
    bright = images.enhanced(given_, lambda image: pixels.apply_change(
        image, pixels.tone_map(image), np.sqrt(pixels.tone_map(image))
    ))  # fmt: skip
    assert np.isfinite(bright.frames[0][2:]).all()
    assert not np.isnan(bright.frames[0]).any()
    assert bright.frames[0][0, 0, 1] > 1e30  # the sun stays the sun


def test_linear_light_becomes_srgb_in_a_format_of_integers():
    frame = np.full((4, 4, 3), 0.2140411, np.float32)
    given_ = Picture([frame], "exr", linear=True, icc=colour.linear_profile())
    png = images.read(images.encode(given_, "png"))
    assert png.frames[0].dtype == np.uint16
    assert np.abs(png.frames[0].astype(int) - 32768).max() < 20  # sRGB's middle grey
    back = images.read(images.encode(png, "exr"))
    assert np.allclose(back.frames[0], frame, atol=1e-4)
    assert "light above 1 is compressed" in images.losses(given_, "png")


# Pictures that are only read -------------------------------------------------------------------


@pytest.mark.parametrize("ten_bit", [False, True])
@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_heic_is_read_upright_and_becomes_jpeg(ten_bit, turn):
    pytest.importorskip("pillow_heif")
    plain = pictures.heic(SCENE, turn=turn, ten_bit=ten_bit)
    # EXIF says "turned" too, as phones write it, and must not turn the picture again.
    data = isobmff.with_metadata(plain, pictures.exif(6), pictures.xmp(6), None)
    assert images.sniff(data[:64]) == "heif"
    read = images.read(data)
    assert images.FORMATS["heif"].instead == "jpeg"
    frame = np.rot90(read.frames[0], -turn)
    assert frame.dtype == (np.uint16 if ten_bit else np.uint8)
    seen = pixels.to_float(np.ascontiguousarray(frame)) * 255
    assert np.abs(seen - SCENE).mean() < 4
    out = images.encode(read, "jpeg")
    again = images.read(out)
    assert again.frames[0].shape == read.frames[0].shape
    assert pictures.MAKER_NOTE in again.exif
    assert b'tiff:Orientation="1"' in again.xmp
    assert ("16 bits become 8 bits" in images.losses(read, "jpeg")) == ten_bit


def test_heic_metadata_of_an_unreadable_type_ends_nothing():
    """A flipped bit in the name of EXIF ended the process inside of libheif's binding."""
    pytest.importorskip("pillow_heif")
    told = isobmff.with_metadata(pictures.heic(SCENE), pictures.exif(), pictures.xmp(), None)
    data = bytearray(told)
    data[data.index(b"Exif", data.index(b"infe")) + 1] ^= 0x80
    program = (
        "import sys\n"
        "from llenhance.media import images\n"
        "read = images.read(sys.stdin.buffer.read())\n"
        "print(read.frames[0].shape, read.exif, len(read.xmp))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=bytes(data), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == [
        *f"{SCENE.shape} None".split(),
        str(len(pictures.xmp())),
    ]


def test_heic_limit_is_checked_before_decoding():
    data = bytearray(pictures.heic(SCENE))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    with pytest.raises(MediaError, match="--max-pixels"):
        images.read(bytes(data))


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_raw_is_developed_as_it_was_exposed(turn):
    pytest.importorskip("rawpy")
    light = np.full((64, 96, 3), (800, 1600, 400), np.uint16)
    data = pictures.dng(light, turn)
    assert images.sniff(data) == "raw"
    read = images.read(data)
    assert images.FORMATS["raw"].instead == "tiff"
    assert read.frames[0].dtype == np.uint16
    assert read.frames[0].shape == ((96, 64, 3) if turn > 4 else (64, 96, 3))
    # not brightened: the values are those of the light, by sRGB's curve
    expected = colour.encode_srgb(np.float32([800, 1600, 400]) / 65535) * 65535
    assert np.abs(read.frames[0][20:40, 20:40] - expected).max() < 65535 * 0.01
    tiff = images.read(images.encode(read, "tiff"))
    assert tiff.format == "tiff"
    assert tiff.pages[0].main[33432].data == b"Someone\0"
    assert 50706 not in tiff.pages[0].main
    assert np.array_equal(tiff.frames[0], read.frames[0])


@pytest.mark.parametrize(
    ("module", "words"),
    [("pillow_heif", "pip install 'llenhance[heif]'"), ("rawpy", "pip install 'llenhance[raw]'")],
)
def test_without_the_extra_one_line_says_what_to_install(module, words, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    data = (
        pictures.heic(SCENE) if module == "pillow_heif" else pictures.dng(SCENE.astype(np.uint16))
    )
    with pytest.raises(MediaError) as caught:
        images.read(data)
    assert words in str(caught.value)


def test_without_libgl_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    codecs.cv2.cache_clear()
    with pytest.raises(MediaError, match="apt install libgl1"):
        images.encode(Picture([SCENE], "png"), "png")


def test_avif_turned_by_its_boxes_is_turned_once():
    data = pictures.pillow(SCENE, "AVIF", quality=95, exif=pictures.exif(6), subsampling="4:4:4")
    assert b"irot" in data
    read = images.read(data)
    assert read.frames[0].shape == (64, 48, 3)
    assert np.abs(read.frames[0].astype(int) - np.rot90(SCENE, -1)).mean() < 4
    again = images.read(images.encode(read, "avif"))
    assert again.frames[0].shape == (64, 48, 3)


def test_avif_with_alpha_and_metadata():
    frame = np.dstack((SCENE, pictures.alpha_plane(48, 64).astype(np.uint8)))
    given_ = Picture(
        [frame], "png", exif=pictures.exif(), xmp=pictures.xmp(), icc=pictures.icc("p3")
    )
    data = images.encode(given_, "avif", quality=100)
    image = Image.open(io.BytesIO(data))
    assert image.mode == "RGBA"
    assert np.array_equal(np.asarray(image), frame)
    assert image.info["xmp"] == pictures.xmp()
    assert image.info["icc_profile"] == given_.icc
    assert image.getexif()[271] == "Make & Co"
    assert np.array_equal(images.read(data).frames[0], frame)


def test_encode_does_not_change_the_picture():
    read = images.read(pictures.photo(6))
    before = replace(read, frames=[frame.copy() for frame in read.frames], notes=list(read.notes))
    images.encode(read, "png", provenance="llenhance 1")
    assert np.array_equal(read.frames[0], before.frames[0])
    assert (read.exif, read.xmp, read.notes) == (before.exif, before.xmp, before.notes)


def test_the_same_picture_gives_the_same_bytes():
    read = images.read(pictures.photo(6))
    for name in WRITTEN:
        assert images.encode(read, name) == images.encode(read, name)


def test_reading_pictures_is_light():
    code = (
        "import sys, llenhance.media.images\n"
        "heavy = {'torch', 'onnxruntime', 'tifffile', 'imagecodecs', 'av'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_photoshop_documents_are_read_with_what_they_carry():
    resources = (
        (0x0404, pictures.iptc()), (0x040F, pictures.icc("p3")), (0x040C, b"a thumbnail"),
        (0x0422, pictures.exif()), (0x0424, pictures.xmp()),
    )  # fmt: skip
    read = images.read(pictures.psd(SCENE, resources=resources))
    assert (read.format, read.notes) == ("rare", [])
    assert np.array_equal(read.frames[0], SCENE)
    back = images.read(images.encode(read, "png"))
    assert back.icc == pictures.icc("p3")
    assert (back.xmp, back.iptc) == (pictures.xmp(), pictures.iptc())
    assert pictures.MAKER_NOTE in back.exif

    four = picture(20, 30, 4, np.uint8)
    assert np.array_equal(images.read(pictures.psd(four, transparent=True)).frames[0], four)
    assert np.array_equal(images.read(pictures.psd(four)).frames[0], four[..., :3])

    ink = np.asarray(Image.fromarray(SCENE).convert("CMYK"))
    read = images.read(pictures.psd(255 - ink, 4))
    assert np.abs(read.frames[0].astype(int) - SCENE).max() <= 2
    assert "CMYK" in read.notes[0]


def test_rare_photoshop_documents_are_refused_in_one_line():
    with pytest.raises(MediaError, match=r"16 bits a channel, which is not read"):
        images.read(pictures.psd(picture(20, 30, 3, np.uint16), bits=16))
    with pytest.raises(MediaError, match=r"rare kind \(LAB\)"):
        images.read(pictures.psd(SCENE, 9))
    data = pictures.psd(SCENE)
    with pytest.raises(MediaError, match="max-pixels"):
        images.read(data, max_pixels=1000)
    for cut in (20, 30, 40, len(data) - 9):
        with pytest.raises(MediaError, match="is damaged"):
            images.read(data[:cut])


@pytest.mark.parametrize("suffix", ["pcx", "sgi", "ico", "dds"])
def test_rare_formats_are_read_and_written_as_png(suffix):
    image = pictures.dark_scene(32, 32, 3)
    file = io.BytesIO()
    pillow = Image.fromarray(image)
    pillow.save(file, suffix.upper(), **({"sizes": [(32, 32)]} if suffix == "ico" else {}))
    picture = images.read(file.getvalue())
    assert picture.format == "rare"
    np.testing.assert_array_equal(picture.frames[0][..., :3], image)
    assert images.FORMATS["rare"].instead == "png"
    assert images.sniff(images.encode(picture, "png")) == "png"
    with pytest.raises(MediaError, match="max-pixels"):
        images.read(file.getvalue(), max_pixels=1000)
    with pytest.raises(MediaError):
        images.read(file.getvalue()[:40])


def test_damaged_headers_take_no_time():
    """Both were searched in quadratic, or exponential, time."""
    data = pictures.pillow(SCENE, "JPEG")
    for end in (b"", b"\0", b"\xd0"):
        with pytest.raises(MediaError):
            images.read(data[: len(data) // 2] + b"\xff" * 2_000_000 + end)
    with pytest.raises(MediaError):
        images.read(b"P6\n" + b"#" * 500 + b"\nwords")


@pytest.mark.parametrize("space", [12, 14])
def test_a_jpeg_2000_of_other_colours_is_refused(space):
    data = images.encode(Picture([SCENE], "jp2"), "jp2")
    at = data.index(b"colr") + 7
    with pytest.raises(MediaError, match="rare kind"):
        images.read(data[:at] + struct.pack(">I", space) + data[at + 4 :])


def test_a_jpeg_whose_jfif_and_adobe_disagree_is_written_as_it_was_read():
    """Decoders believe JFIF, which says YCbCr."""
    plain = pictures.pillow(SCENE, "JPEG", quality=95, subsampling=0)
    adobe = pictures.jpeg_segment(0xEE, b"Adobe" + bytes([0, 100, 0, 0, 0, 0, 0]))
    assert plain[2:4] == b"\xff\xe0"
    read = images.read(plain[:20] + adobe + plain[20:])
    again = images.read(images.encode(read, "jpeg"))
    assert np.abs(again.frames[0].astype(int) - read.frames[0]).mean() < 3


# What a second review found ---------------------------------------------------------------------


def tiff(*pages, **options):
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:
        for frame, own in pages:
            file.write(frame, photometric="rgb", metadata=None, **options, **own)
    return out.getvalue()


def test_a_phase_one_file_is_a_cameras():
    data = tiff((SCENE, {}))
    assert images.sniff(data) == "tiff"
    assert images.sniff(data[:8] + b"IIII" + data[12:]) == "raw"


def test_a_tiff_whose_picture_lies_beside_its_thumbnail_is_not_taken_for_that():
    data = tiff((SCENE[::4, ::4].copy(), {"subfiletype": 1, "subifds": 1}), (SCENE, {}))
    with pytest.raises(MediaError, match="with its picture beside a thumbnail"):
        images.read(data)


def test_a_tiff_whose_last_link_is_garbage_gives_what_decodes():
    data = bytearray(tiff((SCENE, {})))
    block = tiffblock.Block(bytes(data))
    link = block.next_at(block.offset(block.first))
    data[link : link + 4] = struct.pack("<I", len(data) + 1000)
    with pytest.raises(MediaError, match=r"is damaged: after page 1 .*--allow-truncated"):
        images.read(bytes(data))
    read = images.read(bytes(data), allow_truncated=True)
    assert read.truncated
    np.testing.assert_array_equal(read.frames[0], SCENE)


def test_a_tiff_with_too_few_strips_is_damaged():
    data = bytearray(tiff((SCENE, {}), rowsperstrip=8))
    block = tiffblock.Block(bytes(data))
    for tag in (273, 279):
        entry = block.find(block.offset(block.first), tag)
        data[entry.at + 4 : entry.at + 8] = struct.pack("<I", 5)
    with pytest.raises(MediaError, match="is damaged"):
        images.read(bytes(data))
    assert images.read(bytes(data), allow_truncated=True).truncated


def test_pages_of_unlike_floats_keep_the_deeper_one():
    half = np.full((8, 8, 3), 0.25, np.float16)
    wide = np.full((8, 8, 3), 100_000.123, np.float32)
    read = images.read(tiff((half, {}), (wide, {})))
    again = images.read(images.encode(read, "tiff"))
    np.testing.assert_array_equal(again.frames[1], wide)


def test_light_that_half_floats_cannot_hold_stays_finite():
    read = images.read(tiff((np.full((8, 8, 3), 60_000, np.float16), {})))
    read.frames = [read.frames[0] * 4]
    again = images.read(images.encode(read, "tiff"))
    assert again.frames[0].max() == np.finfo(np.float16).max


def test_a_page_with_alpha_on_its_own_keeps_its_hidden_colours():
    clear = np.dstack([SCENE, np.zeros(SCENE.shape[:2], np.uint8)])
    data = tiff(
        (clear, {"extrasamples": ["assocalpha"]}), (clear, {"extrasamples": ["unassalpha"]})
    )
    read = images.read(data)
    again = images.read(images.encode(read, "tiff"))
    np.testing.assert_array_equal(again.frames[1], clear)


def test_private_tags_of_science_are_not_a_cameras():
    data = tiff((SCENE, {"extratags": [(50838, "I", 2, (1, 2), True), (52545, "B", 1, 7, True)]}))
    read = images.read(data)
    assert read.notes == ["content credentials were dropped (they are signed for the original)"]
    out = tiffblock.Block(images.encode(read, "tiff"))
    assert 50838 in out.tags(out.offset(out.first)).main
    assert 52545 not in out.tags(out.offset(out.first)).main


@pytest.mark.parametrize("name", ["png", "tiff", "jp2"])
def test_grey_with_alpha_keeps_its_profile(name):
    frame = np.dstack([SCENE[..., 0], pictures.alpha_plane(*SCENE.shape[:2]).astype(np.uint8)])
    picture_ = Picture([frame], name, icc=pictures.icc("grey"))
    assert images.losses(picture_, name) == []
    read = images.read(images.encode(picture_, name))
    assert read.icc == picture_.icc
    np.testing.assert_array_equal(read.frames[0], frame)


def test_a_large_webp_is_read_though_pillow_refuses(monkeypatch):
    frame = np.dstack([SCENE, pictures.alpha_plane(*SCENE.shape[:2]).astype(np.uint8)])
    for wanted in (SCENE, frame):
        data = images.encode(Picture([wanted], "webp", lossless=True), "webp")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        monkeypatch.setattr(webp, "LARGE", 200)
        np.testing.assert_array_equal(images.read(data).frames[0], wanted)
        with pytest.raises(MediaError, match="is damaged"):
            images.read(data[:60] + bytes(len(data) - 60))
        monkeypatch.undo()
