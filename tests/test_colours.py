"""Colours of pictures: wide gamuts, profiles and CMYK go through a network and come back."""

import io
import struct

import imagecodecs
import numpy as np
import pictures
import pytest
import tifffile
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab
from test_images import picture

from llenhance import pixels
from llenhance.media import colour, images
from llenhance.media.images import Picture

SCENE = pictures.dark_scene()


def brighten(image):
    """An enhancement that mixes channels and neighbours, as the networks do."""
    values = np.clip(pixels.to_float(image), 0, 1)
    mean = values.mean(2, keepdims=True)
    values = values**0.5 * 0.9 + 0.1 * mean
    return pixels.from_float(values.astype(np.float32), image.dtype)


@pytest.mark.parametrize("name", ["p3", "adobe", "prophoto"])
def test_wide_gamut_picture_and_its_srgb_twin_agree(name):
    twin = np.rint(pixels.to_float(pictures.dark_scene(64, 64)) * 65535).astype(np.uint16)
    profile, srgb = pictures.icc(name), pictures.icc("srgb")
    wide = imagecodecs.cms_transform(
        twin, srgb, profile, colorspace="rgb", outcolorspace="rgb", outdtype="uint16",
        intent=imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
    )  # fmt: skip
    out = io.BytesIO()
    tifffile.imwrite(out, wide, photometric="rgb", iccprofile=profile)
    read = images.read(out.getvalue())
    written = images.encode(images.enhanced(read, brighten), "tiff")
    result = images.read(written)
    assert result.icc == profile
    assert result.frames[0].dtype == np.uint16
    seen = imagecodecs.cms_transform(
        result.frames[0], profile, srgb, colorspace="rgb", outcolorspace="rgb",
        outdtype="float32", intent=imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
    )  # fmt: skip
    expected = pixels.to_float(brighten(twin))
    difference = deltaE_ciede2000(rgb2lab(np.clip(seen, 0, 1)), rgb2lab(expected))
    assert difference.mean() < 0.5
    # and a tool that takes the values for sRGB would be far off
    naive = deltaE_ciede2000(rgb2lab(pixels.to_float(brighten(wide))), rgb2lab(expected))
    assert naive.mean() > 3 * difference.mean()


@pytest.mark.parametrize("name", ["p3", "adobe", "prophoto"])
def test_tables_agree_with_littlecms(name):
    profile = pictures.icc(name)
    for dtype in (np.uint8, np.uint16):
        frame = picture(40, 50, 3, dtype)
        by_tables = colour.to_srgb(frame, profile)
        by_lcms = colour.to_srgb(pixels.to_float(frame), profile)
        assert np.abs(by_tables - by_lcms).max() < 1e-3
        back = colour.from_srgb(by_tables, profile, frame.dtype)
        steps = np.abs(pixels.from_float(back, frame.dtype).astype(int) - frame)
        assert steps.max() <= (0 if dtype == np.uint8 else 48)  # few near black
        assert steps.mean() < 0.1
        slow = colour.from_srgb(by_lcms, profile)
        assert np.abs(back - slow).max() < 1e-3


def test_colours_outside_srgb_are_not_clipped():
    profile = pictures.icc("prophoto")
    frame = np.zeros((4, 4, 3), np.uint16)
    frame[..., 1] = 30000  # a green that no sRGB screen can show
    read = Picture([frame], "tiff", icc=profile)
    same = images.enhanced(read, lambda image: image).frames[0]
    assert np.abs(same.astype(int) - frame).max() <= 40
    brighter = images.enhanced(read, brighten).frames[0]
    assert brighter[0, 0, 1] > 31000
    assert brighter[0, 0, 0] < 0.5 * brighter[0, 0, 1]


def as_a_network(image):
    assert image.shape == (16, 17, 3)
    return image


@pytest.mark.parametrize("name", ["p3", "adobe", "prophoto", "grey"])
def test_colour_way_out_and_back_changes_nothing(name):
    channels = 1 if name == "grey" else 3
    for dtype in (np.uint8, np.uint16):
        frame = picture(16, 17, channels, dtype)
        read = Picture([frame], "tiff", icc=pictures.icc(name))
        same = images.enhanced(read, as_a_network).frames[0]
        assert same.shape == frame.shape
        tolerance = 0 if dtype == np.uint8 else 48
        assert np.abs(same.astype(int) - frame).max() <= tolerance


@pytest.mark.parametrize("profile", [None, "p3"])
def test_twice_the_size_with_alpha_and_profile(profile):
    frame = np.dstack((SCENE, pictures.alpha_plane(48, 64).astype(np.uint8)))
    read = Picture([frame], "png", exif=pictures.exif(), icc=profile and pictures.icc(profile))

    def twice(image):
        rgb, layout = pixels.split(image)
        return pixels.join(rgb.repeat(2, 0).repeat(2, 1), layout)

    back = images.read(images.encode(images.enhanced(read, twice), "png"))
    assert back.frames[0].shape == (96, 128, 4)
    # What lies outside sRGB is enlarged linearly, not repeated as here.
    error = np.abs(back.frames[0][::2, ::2, :3].astype(int) - SCENE)
    assert error.mean() < 1 if profile else error.max() == 0
    assert np.abs(back.frames[0][::2, ::2, 3].astype(int) - frame[..., 3]).max() <= 2
    assert Image.open(io.BytesIO(images.encode(back, "png"))).getexif().get_ifd(34665)[40962] == 128


def test_an_srgb_profile_is_recognised_and_costs_nothing():
    seen = []

    def note(image):
        seen.append(image)
        return image

    images.enhanced(Picture([SCENE], "jpeg", icc=pictures.icc("srgb")), note)
    assert seen[0] is SCENE
    assert colour.is_srgb(pictures.icc("srgb"))
    assert not colour.is_srgb(pictures.icc("p3"))


@pytest.mark.parametrize("name", ["jpeg", "png", "tiff", "webp", "jp2", "avif", "gif"])
def test_the_profile_stays_byte_for_byte(name):
    profile = pictures.icc("p3") + bytes(1)  # odd length
    profile = struct.pack(">I", len(profile)) + profile[4:]
    given_ = Picture([SCENE], name, icc=profile)
    assert images.read(images.encode(given_, name)).icc == profile
    assert images.read(images.encode(given_, name, strip=True)).icc == profile


def test_a_long_profile_is_split_into_jpeg_segments():
    profile = pictures.icc("p3") + bytes(150_000)
    profile = struct.pack(">I", len(profile)) + profile[4:]
    data = images.encode(Picture([SCENE], "jpeg", icc=profile), "jpeg")
    assert Image.open(io.BytesIO(data)).info["icc_profile"] == profile
    assert images.read(data).icc == profile


def test_colours_are_converted_for_a_format_without_profiles():
    wide = Picture([SCENE], "png", icc=pictures.icc("p3"))
    converted = images.read(images.encode(wide, "bmp")).frames[0]
    expected = colour.as_srgb(SCENE, wide.icc)
    assert np.array_equal(converted, expected)
    assert not np.array_equal(converted, SCENE)
    assert "converted to sRGB" in images.losses(wide, "bmp")[0]


def test_a_profile_that_does_not_fit_is_dropped_and_named():
    grey = images.read(pictures.pillow(SCENE, "PNG", icc_profile=pictures.icc("grey")))
    assert grey.icc is None
    assert "does not fit" in grey.notes[0]
    junk = images.read(pictures.pillow(SCENE, "JPEG", icc_profile=b"junk" * 50))
    assert junk.icc is None


@pytest.mark.parametrize("target", ["avif", "png"])
@pytest.mark.parametrize("source", ["avif", "png"])
def test_colours_told_by_numbers_are_named_and_kept(source, target):
    frame = SCENE.astype(np.uint16) * 257
    if source == "avif":
        data = bytes(
            imagecodecs.avif_encode(
                frame >> 6, level=90, bitspersample=10, primaries=9, transfer=16, matrix=9
            )
        )
    else:
        data = images.encode(Picture([frame], "png"), "png")
        data = pictures.with_png_chunks(data, (b"cICP", b"\x09\x10\0\1"))
    read = images.read(data)
    assert read.notes == ["its colours (BT.2020, PQ) are taken for sRGB"]
    assert images.losses(read, "jpeg")[-1] == "what tells its colours (BT.2020, PQ) is lost"
    assert "lost" not in " ".join(images.losses(read, target))
    for strip in (False, True):
        back = images.encode(read, target, strip=strip)
        assert images.read(back).cicp[:2] == (9, 16)
        if target == "avif":
            matrix = b"\0\x09" if source == "avif" else b"\0\x06"
            assert b"colrnclx\0\x09\0\x10" + matrix in back
        else:
            assert (b"cICP", b"\x09\x10\0\1") in pictures.png_chunks(back)


@pytest.mark.parametrize("frame", [SCENE, SCENE[..., 0].copy()], ids=["colour", "grey"])
def test_a_profile_that_cannot_be_used_is_dropped_and_named(frame):
    """Its header says that it is one of RGB, and what follows is nothing."""
    broken = pictures.icc("p3")[:128] + bytes(400)
    assert colour.space(broken) == "rgb"
    read = images.read(pictures.pillow(frame, "PNG", icc_profile=broken))
    assert read.icc is None
    assert read.notes == ["the colour profile does not fit the picture and was dropped"]
    assert np.array_equal(images.enhanced(read, lambda rgb: rgb).frames[0], frame)
    wide = images.read(pictures.pillow(frame, "PNG", icc_profile=pictures.icc("p3")))
    assert (wide.icc, wide.notes) == (pictures.icc("p3"), [])


def tiff_of(*pages):
    """(frame, photometric, profile) of each page -> a TIFF."""
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:
        for frame, kind, profile in pages:
            file.write(frame, photometric=kind, iccprofile=profile, metadata=None)
    return out.getvalue()


def test_every_page_of_a_tiff_goes_by_its_own_profile():
    cmyk, inks = np.asarray(Image.fromarray(SCENE).convert("CMYK")), pictures.cmyk_icc()
    read = images.read(tiff_of((cmyk, "separated", inks), (cmyk, "separated", inks)))
    assert np.array_equal(*read.frames)
    assert read.notes == ["CMYK was converted by its profile and comes back as sRGB"]

    p3, srgb = pictures.icc("p3"), pictures.icc("srgb")
    converted = colour.as_srgb(SCENE, p3)
    assert not np.array_equal(converted, SCENE)
    for first in ((SCENE, "rgb", srgb), (SCENE[..., 0], "minisblack", None)):
        read = images.read(tiff_of(first, (SCENE, "rgb", p3)))
        assert np.array_equal(read.frames[0], first[0])
        assert np.array_equal(read.frames[1], converted)
        assert read.icc is None
        assert read.notes == ["its pages have unlike colour profiles and come back as sRGB"]


def test_pages_of_one_profile_keep_it():
    p3, srgb = pictures.icc("p3"), pictures.icc("srgb")
    read = images.read(tiff_of((SCENE, "rgb", p3), (SCENE, "rgb", p3)))
    assert (read.icc, read.notes) == (p3, [])
    assert all(np.array_equal(frame, SCENE) for frame in read.frames)
    read = images.read(tiff_of((SCENE, "rgb", srgb), (SCENE[..., 0], "minisblack", None)))
    assert (read.icc, read.notes) == (srgb, [])


def test_a_profile_goes_before_numbers():
    data = pictures.pillow(SCENE, "PNG", icc_profile=pictures.icc("p3"))
    read = images.read(pictures.with_png_chunks(data, (b"cICP", b"\x09\x10\0\1")))
    assert read.notes == []
    assert images.losses(read, "jpeg") == []
    assert b"colrnclx\0\x02\0\x02" in images.encode(read, "avif")
    assert b"cICP" in images.encode(read, "png")


def test_a_png_of_narrow_range_says_so_afterwards_too():
    narrow = (b"cICP", b"\x09\x10\0\0")
    read = images.read(pictures.with_png_chunks(pictures.pillow(SCENE, "PNG"), narrow))
    assert narrow in pictures.png_chunks(images.encode(read, "png", strip=True))
    assert images.losses(read, "jpeg") == ["what only PNG has is lost (cICP)"]


def test_colours_near_srgb_are_no_news():
    for numbers in ((1, 13), (2, 2), (1, 1), (6, 6)):
        data = imagecodecs.avif_encode(SCENE, level=90, primaries=numbers[0], transfer=numbers[1])
        assert images.read(bytes(data)).notes == []
        assert images.losses(images.read(bytes(data)), "jpeg") == []


def test_a_heic_in_hdr_says_so():
    pytest.importorskip("pillow_heif")
    told = b"\0\0\0\x13colrnclx\0\x09\0\x10\0\x09\x80"
    read = images.read(pictures.heic(SCENE, ten_bit=True, colour=told))
    assert read.notes == ["its colours (BT.2020, PQ) are taken for sRGB"]


def test_cmyk_jpeg_is_converted_and_says_so():
    cmyk = Image.fromarray(SCENE).convert("CMYK")
    read = images.read(pictures.pillow(cmyk, "JPEG", quality=95))
    assert "CMYK" in read.notes[0]
    assert read.frames[0].shape == (48, 64, 3)
    assert np.abs(read.frames[0].astype(int) - SCENE).mean() < 6
    out = io.BytesIO()
    tifffile.imwrite(out, np.asarray(cmyk), photometric="separated")
    tiff = images.read(out.getvalue())
    assert np.abs(tiff.frames[0].astype(int) - SCENE).max() <= 2
    assert Image.open(io.BytesIO(images.encode(read, "jpeg"))).mode == "RGB"


def test_cmyk_jpeg_goes_by_its_profile():
    from PIL import ImageCms

    profile = pictures.cmyk_icc()
    rng = np.random.default_rng(3)
    ink = np.kron(rng.integers(0, 256, (6, 8, 4)), np.ones((8, 8, 1))).astype(np.uint8)
    cmyk = Image.fromarray(ink, "CMYK")
    data = pictures.pillow(cmyk, "JPEG", quality=100, icc_profile=profile)
    stored = Image.open(io.BytesIO(data))
    expected = ImageCms.profileToProfile(
        stored, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB",
    )  # fmt: skip
    read = images.read(data)
    assert read.notes == ["CMYK was converted by its profile and comes back as sRGB"]
    assert read.icc is None
    assert np.abs(read.frames[0].astype(int) - np.asarray(expected)).mean() < 1.5
    formula = np.asarray(stored.convert("RGB")).astype(int)
    assert np.abs(formula - np.asarray(expected)).mean() > 5
