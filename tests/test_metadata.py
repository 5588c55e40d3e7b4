"""EXIF, XMP, IPTC, comments: what stays to the byte, what changes, what must not be left behind."""

import io
import re
import struct

import numpy as np
import pictures
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llenhance.errors import MediaError
from llenhance.media import images, metadata, tiffblock
from llenhance.media.formats import isobmff
from llenhance.media.formats.jp2 import box
from llenhance.media.images import Picture
from llenhance.media.tiffblock import Block

SCENE = pictures.dark_scene()
HOLDERS = ["jpeg", "png", "tiff", "webp", "jp2", "avif"]  # of EXIF and XMP
IPTC_HOLDERS = ["jpeg", "png", "tiff", "jp2"]
MAKE, MODEL_DATE, NOTE = 271, 36867, 37500


def full():
    """A picture with all kinds of metadata, as read from a JPEG."""
    return images.read(pictures.photo(6))


def pillow_exif(data):
    return Image.open(io.BytesIO(data)).getexif()


# JPEG to JPEG ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("turn", [1, 6])
def test_only_the_bytes_that_must_change_do(order, turn):
    before = pictures.exif(turn, (64, 48), order=order)
    data = pictures.photo(turn, order=order)
    out = images.encode(images.read(data), "jpeg")
    after = next(p[6:] for m, p in pictures.segments(out) if p.startswith(b"Exif\0\0"))
    changed = {n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b}
    block = Block(before)
    first = block.offset(block.first)
    deeper = block.child(first, tiffblock.EXIF_IFD)
    second = block.offset(block.next_at(first))
    length = block.integer(block.find(second, 514))
    allowed = set()
    for directory, tag in ((first, 274), (deeper, 40962), (deeper, 40963)):
        entry = block.find(directory, tag)
        allowed |= set(range(entry.data_at, entry.data_at + entry.size))
    allowed |= set(range(block.next_at(first), block.next_at(first) + 4))
    assert changed <= allowed
    assert len(after) == len(before) - length  # the thumbnail was the end


def test_every_other_segment_keeps_its_bytes():
    data = pictures.photo(1)
    out = images.encode(images.read(data), "jpeg")
    before, after = (pictures.segments(d) for d in (data, out))
    for kept in ((0xE5, b"maker's own segment"), (0xFE, b"a comment")):
        assert kept in before
        assert kept in after
    jfif = [p for m, p in after if m == 0xE0]
    assert jfif == [p for m, p in before if m == 0xE0]
    iptc = next(p for m, p in after if m == 0xED)
    assert pictures.iptc() in iptc
    assert b"resolution info!" in iptc
    assert Image.open(io.BytesIO(out)).info["dpi"] == (300, 300)


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff", "jp2", "avif"])
def test_no_dark_thumbnail_is_left_anywhere(name):
    data = pictures.photo(6)
    assert data.count(pictures.DARK_THUMBNAIL_MARK) >= 3  # EXIF, XMP, Photoshop
    assert pictures.DARK_THUMBNAIL_MARK not in images.encode(images.read(data), name)


def test_a_thumbnail_in_the_middle_is_blanked_and_nothing_moves():
    block = pictures.exif()
    tail = b"the maker's data behind the thumbnail"
    after = metadata.renewed_exif(block + tail, 64, 48)
    assert len(after) == len(block + tail)
    assert after.endswith(tail)
    assert pictures.DARK_THUMBNAIL_MARK not in after


def test_jfif_thumbnails_are_dropped():
    data = pictures.pillow(SCENE, "JPEG", dpi=(72, 72))
    small = bytes(range(3 * 4))
    jfif = b"JFIF\0" + struct.pack(">HBHHBB", 0x0102, 1, 72, 72, 2, 2) + small
    with_small = data[:2] + pictures.jpeg_segment(0xE0, jfif) + data[20:]
    with_small = with_small[:2] + with_small[2:]
    out = images.encode(images.read(with_small), "jpeg")
    after = next(p for m, p in pictures.segments(out) if m == 0xE0)
    assert after == jfif[:12] + b"\0\0"


def test_multi_picture_index_and_what_it_points_to_are_dropped():
    data = pictures.pillow(SCENE, "JPEG")
    preview = pictures.pillow(SCENE[::4, ::4].copy(), "JPEG")
    mpf = pictures.jpeg_segment(0xE2, b"MPF\0II*\0" + bytes(30))
    read = images.read(data[:20] + mpf + data[20:] + preview)
    assert read.notes == [f"behind the picture, previews were dropped ({len(preview)} bytes)"]
    out = images.encode(read, "jpeg")
    assert b"MPF\0" not in out
    assert out.count(b"\xff\xd8\xff") == 1
    assert out.endswith(b"\xff\xd9")


@pytest.mark.parametrize("name", ["PNG", "PPM"])
def test_what_follows_a_picture_is_named(name):
    """As ``cat a.png b.png | llenhance -`` has it; PNM by its standard may."""
    data = pictures.pillow(SCENE, name)
    assert images.read(data).notes == images.read(data + b"\n").notes == []
    for rest, what in ((data, "more pictures were"), (b"words", "data were")):
        read = images.read(data + rest)
        assert np.array_equal(read.frames[0], SCENE)
        assert read.notes == [f"behind the picture, {what} dropped ({len(rest)} bytes)"]


def test_gain_maps_are_dropped_and_named():
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        b'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0" '
        b'xmlns:Container="http://ns.google.com/photos/1.0/container/" '
        b'xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="image/jpeg">'
        b"<Container:Directory><rdf:Seq><rdf:li/></rdf:Seq></Container:Directory>"
        b"</rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    data = pictures.pillow(SCENE, "JPEG")
    segment = pictures.jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    iso = pictures.jpeg_segment(0xE2, b"urn:iso:std:iso:ts:21496:-1\0\0\0\0\0")
    gain_map = pictures.pillow(SCENE[..., 0], "JPEG")
    read = images.read(data[:20] + segment + iso + data[20:] + gain_map)
    assert read.notes == ["a gain map was dropped (it was made for the dark picture)"]
    out = images.encode(read, "jpeg")
    assert b"hdrgm:Version" not in out
    assert b"Container:Directory" not in out
    assert b'dc:format="image/jpeg"' in out
    assert b"21496" not in out
    assert out.count(b"\xff\xd8\xff") == 1


def test_metadata_speaks_of_no_video_that_followed_the_picture():
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        b'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" GCamera:MotionPhoto="1" '
        b'GCamera:MicroVideoOffset="99" GCamera:SpecialTypeID="night" '
        b'xmlns:Container="http://ns.google.com/photos/1.0/container/">'
        b"<Container:Directory><rdf:Seq><rdf:li/></rdf:Seq></Container:Directory>"
        b"<GCamera:MotionPhotoVersion>1</GCamera:MotionPhotoVersion>"
        b"</rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    segment = pictures.jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    data = pictures.pillow(SCENE, "JPEG")
    out = images.encode(images.read(data[:20] + segment + data[20:]), "jpeg")
    assert b'GCamera:SpecialTypeID="night"' in out
    for gone in (b"MotionPhoto", b"MicroVideo", b"Container:Directory"):
        assert gone not in out


def test_content_credentials_are_dropped_and_named():
    data = pictures.pillow(SCENE, "JPEG")
    read = images.read(data[:20] + pictures.jpeg_segment(0xEB, b"JP\0\1" + bytes(40)) + data[20:])
    assert "content credentials" in read.notes[0]


def test_extended_xmp_stays_with_its_packet():
    data = pictures.photo()
    extension = b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + bytes(8) + b"<x/>"
    data = data[:20] + pictures.jpeg_segment(0xE1, extension) + data[20:]
    assert (0xE1, extension) in pictures.segments(images.encode(images.read(data), "jpeg"))


# Between formats -------------------------------------------------------------------------------


@pytest.mark.parametrize("source", HOLDERS)
@pytest.mark.parametrize("target", HOLDERS)
def test_metadata_goes_from_every_format_to_every_other(source, target):
    first = images.read(images.encode(full(), source))
    data = images.encode(first, target)
    read = images.read(data)
    block = Block(read.exif)
    tags = block.tags(block.offset(block.first))
    assert tags.main[MAKE].data == b"Make & Co\0"
    assert tags.main[tiffblock.ORIENTATION].data[:2] == b"\1\0"
    assert tags.exif[NOTE].data == pictures.MAKER_NOTE
    assert tags.exif[MODEL_DATE].data == b"2024:05:06 07:08:09\0"
    assert tags.gps[2].data == struct.pack("<6I", 52, 1, 31, 1, 12, 1)
    assert "Nächte".encode() in read.xmp
    assert b'tiff:Orientation="1"' in read.xmp
    if {source, target} <= set(IPTC_HOLDERS):
        assert read.iptc == pictures.iptc()
    elif target not in IPTC_HOLDERS and source in IPTC_HOLDERS:
        assert "IPTC is lost" in images.losses(first, target)


def test_what_only_one_format_has_is_named_where_another_loses_it():
    extended = b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + bytes(8) + b"<x/>"
    data = pictures.photo()
    data = data[:20] + pictures.jpeg_segment(0xE1, extended) + data[20:]
    lost = "what only JPEG has is lost (extended XMP, APP5, comment)"
    assert lost in images.losses(images.read(data), "png")
    assert images.losses(images.read(data), "jpeg") == []

    primaries = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    ordinary = [(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", primaries), (b"sRGB", b"\0"),
                (b"pHYs", struct.pack(">IIB", 2835, 2835, 1))]  # fmt: skip
    plain = pictures.with_png_chunks(pictures.pillow(SCENE, "PNG"), *ordinary)
    assert images.losses(images.read(plain), "jpeg") == []
    rich = (b"gAMA", struct.pack(">I", 100_000)), (b"tEXt", b"Author\0me"), (b"tEXt", b"Title\0x")
    data = pictures.with_png_chunks(pictures.pillow(SCENE, "PNG"), *rich)
    assert images.losses(images.read(data), "jpeg") == ["what only PNG has is lost (gAMA, tEXt)"]

    gif = Picture([SCENE], "gif", carried=[(b"comment", b"hello")])
    assert images.losses(gif, "png") == ["what only GIF has is lost (comment)"]
    light = SCENE.astype(np.float32) / 255
    exr = images.read(images.encode(Picture([light], "exr", linear=True), "exr"))
    assert images.losses(exr, "hdr") == []
    lines = [(b"", b"# made by hand"), (b"", b"EXPOSURE=2")]
    hdr = Picture([light], "hdr", linear=True, carried=lines)
    assert images.losses(hdr, "exr") == ["what only HDR has is lost (comment, EXPOSURE)"]


@pytest.mark.parametrize("name", ["jpeg", "png", "tiff", "webp"])
def test_another_reader_finds_it_all(name):
    data = images.encode(full(), name)
    found = pillow_exif(data)
    assert found[MAKE] == "Make & Co"
    assert found[274] == 1
    assert found.get_ifd(34665)[NOTE] == pictures.MAKER_NOTE
    assert found.get_ifd(34665)[40962] == 48
    assert found.get_ifd(34665)[40963] == 64
    assert found.get_ifd(34853)[2] == (52.0, 31.0, 12.0)
    image = Image.open(io.BytesIO(data))
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or image.tag_v2[700]
    packet = packet.encode() if isinstance(packet, str) else packet
    assert b"dc:title" in packet


@pytest.mark.parametrize("name", ["jpeg", "png", "tiff"])
def test_dots_per_inch_stay(name):
    data = images.encode(full(), name)
    assert images.read(data).dpi == pytest.approx((300, 300), abs=0.01)
    assert Image.open(io.BytesIO(data)).info["dpi"] == pytest.approx((300, 300), abs=0.01)


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_tags_stay_in_their_byte_order(order):
    out = io.BytesIO()
    tifffile.imwrite(
        out, SCENE, byteorder=order, photometric="rgb", metadata=None,
        description="A lamp at night", software="camera 1.0", resolution=(240, 240),
        extratags=[(33432, 2, None, "Someone", True), (65001, 4, 3, (1, 2, 70_000), True),
                   (37724, 7, 5, b"layer", True)],
    )  # fmt: skip
    read = images.read(out.getvalue())
    assert read.notes == ["Photoshop layers were dropped (they hold the dark picture)"]
    data = images.encode(read, "tiff", provenance="llenhance 1 dln")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert file.byteorder == order
        tags = file.pages[0].tags
        assert tags[270].value == "A lamp at night"
        assert tags[33432].value == "Someone"
        assert tags[65001].value == (1, 2, 70_000)
        assert tags[305].value == "llenhance 1 dln"
        assert tags[282].value == (240, 1)
        assert 37724 not in tags
        assert np.array_equal(file.pages[0].asarray(), SCENE)
    jpeg = pillow_exif(images.encode(read, "jpeg"))
    assert jpeg[33432] == "Someone"
    assert 256 not in jpeg or jpeg[256] == 64


@pytest.mark.parametrize("order", ["<", ">"])
def test_tags_of_a_bigtiff_fit_the_classic_one_that_is_written(order):
    out = io.BytesIO()
    tags = [(65001, 16, 1, 5, True), (65002, 17, 2, (-3, 70_000), True),
            (65003, 16, 1, 1 << 40, True), (33432, 2, None, "Someone", True)]  # fmt: skip
    tifffile.imwrite(
        out, SCENE, photometric="rgb", metadata=None, bigtiff=True, byteorder=order, extratags=tags
    )
    read = images.read(out.getvalue())
    for data in (images.encode(read, "tiff"), read.exif):
        block = Block(data)
        assert not block.big
        found = block.tags(block.offset(block.first)).main
        assert all(tag.kind < 13 for tag in found.values())
        assert found[65001] == (4, 1, struct.pack(order + "I", 5))
        assert found[65002] == (9, 2, struct.pack(order + "2i", -3, 70_000))
        assert 65003 not in found
        assert found[33432].data == b"Someone\0"


def test_png_text_time_and_colour_chunks_stay_and_stale_ones_go():
    kept = [
        (b"tEXt", b"Author\0me"),
        (b"tIME", struct.pack(">HBBBBB", 2020, 1, 2, 3, 4, 5)),
        (b"gAMA", struct.pack(">I", 45455)),
        (b"iTXt", b"Title\0\0\0\0\0N\xc3\xa4chte"),
    ]
    data = pictures.with_png_chunks(
        pictures.pillow(SCENE, "PNG"), *kept, (b"bKGD", bytes(6)), (b"sBIT", b"\5\5\5")
    )
    after = pictures.png_chunks(images.encode(images.read(data), "png"))
    assert [part for part in after if part in kept] == [kept[2], kept[0], kept[1], kept[3]]
    assert not {b"bKGD", b"sBIT"} & {kind for kind, _ in after}
    assert [kind for kind, _ in after].index(b"gAMA") < [k for k, _ in after].index(b"IDAT")


def test_png_chunks_that_belong_to_the_original_pixels_are_dropped():
    """A name's fourth letter says whether a chunk may be kept by whoever does not know it."""
    colours = [(b"cICP", b"\x01\x0d\0\1"), (b"mDCV", bytes(24))]
    safe = (b"vpAg", b"\0\0\0\1\0\0\0\1\0")
    data = pictures.with_png_chunks(
        pictures.pillow(SCENE, "PNG"), *colours, safe, (b"iDOT", bytes(28)), (b"cLLI", bytes(8)),
        (b"caBX", b"jumb"), (b"mkBS", b"a dark layer"), (b"mkBS", b"another"),
    )  # fmt: skip
    read = images.read(data)
    assert read.notes == [
        "content credentials were dropped (they are signed for the original)",
        "a chunk mkBS was dropped (it belongs to the original's pixels)",
    ]
    after = pictures.png_chunks(images.encode(read, "png"))
    assert [part for part in after if part[0] not in (b"IHDR", b"IDAT", b"IEND")] == [
        *colours,
        safe,
    ]


def test_png_profiles_as_imagemagick_writes_them_are_understood():
    block = b"Exif\0\0" + pictures.exif(6)
    text = b"\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n"
    resources = pictures.photoshop()
    more = b"\niptc\n%8d\n" % len(resources) + resources.hex().encode() + b"\n"
    data = pictures.with_png_chunks(
        pictures.pillow(SCENE, "PNG"),
        (b"tEXt", b"Raw profile type exif\0" + text),
        (b"tEXt", b"Raw profile type iptc\0" + more),
    )
    read = images.read(data)
    assert read.frames[0].shape == (64, 48, 3)  # turned
    assert pictures.MAKER_NOTE in read.exif
    assert read.iptc == pictures.iptc()
    after = pictures.png_chunks(images.encode(read, "png"))
    assert b"eXIf" in [kind for kind, _ in after]


def test_exif_with_the_prefix_of_jpeg_turns_a_picture_too():
    block = b"Exif\0\0" + pictures.exif(6)
    png = pictures.with_png_chunks(pictures.pillow(SCENE, "PNG"), (b"eXIf", block))
    read = images.read(png)
    assert read.frames[0].shape == (64, 48, 3)
    assert (read.notes, pictures.MAKER_NOTE in read.exif) == ([], True)
    pytest.importorskip("pillow_heif")
    read = images.read(isobmff.with_metadata(pictures.heic(SCENE), block, None, None))
    assert (read.notes, pictures.MAKER_NOTE in read.exif) == ([], True)


@pytest.mark.parametrize("coding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_packet_in_any_coding_turns_a_picture(coding):
    packet = pictures.xmp(6).decode().replace("\ufeff", "").encode(coding)
    data = pictures.pillow(SCENE, "JPEG")
    segment = pictures.jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet)
    read = images.read(data[:20] + segment + data[20:])
    assert read.frames[0].shape == (64, 48, 3)
    assert b'tiff:Orientation="1"' in read.xmp
    assert "Nächte".encode() in read.xmp


def test_gif_keeps_comments_and_xmp():
    data = images.encode(
        Picture([SCENE], "gif", xmp=pictures.xmp(), carried=[(b"comment", b"x" * 300)]), "gif"
    )
    read = images.read(data)
    assert read.xmp == pictures.xmp()
    assert read.carried == [(b"comment", b"x" * 300)]
    assert Image.open(io.BytesIO(data)).info["comment"] == b"x" * 300


# Size, strip, provenance -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["jpeg", "png", "tiff", "webp"])
def test_pixel_dimensions_follow_the_picture(name):
    xmp = pictures.xmp().replace(
        b'tiff:Orientation="1"',
        b'xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:PixelXDimension="64" '
        b'tiff:ImageWidth="64">'
        b"<exif:PixelYDimension>48</exif:PixelYDimension><tiff:Orientation>1</tiff:Orientation",
    )
    read = full()
    read.xmp = xmp
    read.frames = [frame.repeat(2, 0).repeat(2, 1) for frame in read.frames]
    data = images.encode(read, name)
    deeper = pillow_exif(data).get_ifd(34665)
    assert (deeper[40962], deeper[40963]) == (96, 128)
    packet = images.read(data).xmp
    assert b'exif:PixelXDimension="96"' in packet
    assert b'tiff:ImageWidth="96"' in packet
    assert b"<exif:PixelYDimension>128</exif:PixelYDimension>" in packet


@pytest.mark.parametrize("name", list(HOLDERS))
def test_strip_drops_all_metadata(name):
    data = images.encode(full(), name, strip=True, provenance="llenhance 1")
    for mark in (
        pictures.MAKER_NOTE,
        b"xmpmeta",
        b"8BIM",
        b"A lamp",
        b"a comment",
        b"llenhance",
        b"Make & Co",
        b"maker's own",
    ):
        assert mark not in data
    read = images.read(data)
    assert (read.exif, read.xmp, read.iptc) == (None, None, None)


def test_strip_keeps_what_tells_the_meaning_of_the_values():
    png = pictures.with_png_chunks(
        pictures.pillow(SCENE, "PNG"), (b"cICP", b"\x09\x10\0\1"),
        (b"gAMA", struct.pack(">I", 100_000)), (b"tEXt", b"Author\0me"),
    )  # fmt: skip
    after = pictures.png_chunks(images.encode(images.read(png), "png", strip=True, provenance="x"))
    assert [kind for kind, _ in after] == [b"IHDR", b"cICP", b"gAMA", b"IDAT", b"IEND"]

    light = SCENE.astype(np.float32) / 255
    primaries = struct.pack("<8f", 0.7347, 0.2653, 0, 1, 0.0001, -0.077, 0.32168, 0.33767)
    carried = [(b"chromaticities", b"chromaticities\0" + primaries), (b"owner", b"string\0me")]
    exr = images.encode(Picture([light], "exr", linear=True, carried=carried), "exr")
    stripped = images.encode(images.read(exr), "exr", strip=True, provenance="x")
    assert images.read(stripped).icc == images.read(exr).icc
    assert carried[0] in images.read(stripped).carried
    assert b"owner" not in stripped
    assert b"software" not in stripped

    lines = [
        (b"", b"EXPOSURE=2.5"),
        (b"", b"PRIMARIES=.7 .3 .2 .7 .1 .05 .33 .33"),
        (b"", b"VIEW=x"),
    ]
    hdr = images.encode(Picture([light], "hdr", linear=True, carried=lines), "hdr")
    assert images.read(hdr).carried == lines
    stripped = images.encode(images.read(hdr), "hdr", strip=True, provenance="x")
    assert images.read(stripped).carried == lines[:2]


@pytest.mark.parametrize("name", ["jpeg", "png", "tiff", "webp"])
def test_provenance_is_written_and_has_no_time(name):
    tool = "llenhance 1.0 dln alpha=0.8 sha256:0123456789abcdef"
    data = images.encode(full(), name, provenance=tool)
    assert pillow_exif(data)[305] == tool
    packet = images.read(data).xmp
    assert packet.count(tool.encode()) == 1
    assert b"stEvt:when" not in packet
    assert b"camera 1.0" not in images.encode(Picture([SCENE], name), name, provenance=tool)
    bare = images.encode(Picture([SCENE], name), name, provenance=tool)
    assert pillow_exif(bare)[305] == tool


def test_provenance_moves_nothing_in_exif():
    block = pictures.exif()
    after = metadata.with_software(block, "llenhance 1")
    assert after[8 : len(block)] == block[8:]
    assert after[:4] == block[:4]


def test_a_note_of_ours_costs_nobody_his_metadata():
    """With the note, these blocks are too large for a JPEG's segments."""
    tags = tiffblock.Tags()
    note = bytes(range(256)) * 255
    tags.exif[NOTE] = tiffblock.Tag(tiffblock.UNDEFINED, len(note), note)
    exif = tiffblock.build(tags)
    exif += bytes(65_527 - len(exif))
    xmp = pictures.xmp(history=True)
    xmp = xmp.replace(b"<?xpacket end", b" " * (65_500 - len(xmp)) + b"<?xpacket end")
    full = Picture([SCENE], "jpeg", exif=exif, xmp=xmp)
    assert images.losses(full, "jpeg") == []
    read = images.read(images.encode(full, "jpeg", provenance="llenhance 1 dln"))
    assert read.exif == exif
    assert read.xmp == xmp
    # A format without that limit has the note.
    read = images.read(images.encode(full, "png", provenance="llenhance 1 dln"))
    assert b"llenhance 1" in read.exif
    assert b"llenhance 1" in read.xmp


def test_a_number_that_grows_beyond_a_segment_is_named():
    xmp = pictures.xmp().replace(b"tiff:Orientation=", b'tiff:ImageWidth="9" tiff:Orientation=')
    full = Picture([SCENE], "jpeg", xmp=xmp + b" " * (65_504 - len(xmp)))
    assert images.losses(full, "jpeg") == ["XMP is too large and is lost"]
    assert images.read(images.encode(full, "jpeg")).xmp is None


def test_history_is_appended_to_the_one_that_is_there():
    after = metadata.with_history(pictures.xmp(history=True), "a <tool> & more")
    assert after.count(b"xmpMM:History>") == 2
    assert b'stEvt:action="saved"' in after
    assert b"a &lt;tool&gt; &amp; more" in after
    image = Image.open(io.BytesIO(pictures.pillow(SCENE, "JPEG", xmp=after)))
    assert image.info["xmp"] == after
    # An XML parser takes it.
    import xml.etree.ElementTree as ET

    root = ET.fromstring(after.split(b"?>", 1)[1].rsplit(b"<?", 1)[0])
    agents = [e.text for e in root.iter() if e.tag.endswith("softwareAgent")]
    assert agents == ["a <tool> & more"]


@pytest.mark.parametrize(
    "history",
    [b"<xmpMM:History/>", b"<xmpMM:History><rdf:Seq/></xmpMM:History>",
     b"<xmpMM:History></xmpMM:History>"],
)  # fmt: skip
def test_history_goes_into_no_other_list(history):
    keywords = b"<dc:subject><rdf:Seq><rdf:li>lamp</rdf:li></rdf:Seq></dc:subject>"
    packet = pictures.xmp().replace(b"<dc:title>", history + keywords + b"<dc:title>")
    after = metadata.with_history(packet, "llenhance 1")
    import xml.etree.ElementTree as ET

    root = ET.fromstring(after.split(b"?>", 1)[1].rsplit(b"<?", 1)[0])
    (found,) = (e for e in root.iter() if e.tag.endswith("}History"))
    assert [e.text for e in found.iter() if e.tag.endswith("softwareAgent")] == ["llenhance 1"]
    assert keywords in after


# Broken metadata -------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_any_bytes_as_exif_are_survived(block):
    for data in (block, b"II*\0" + block, b"MM\0*\0\0\0\x08" + block):
        assert 1 <= metadata.orientation(data) <= 8
        try:
            metadata.renewed_exif(data, 4, 3)
        except MediaError as error:
            assert "\n" not in str(error)  # noqa: PT017


@given(st.binary(max_size=300), st.integers(0, 600))
def test_any_bytes_as_xmp_are_survived(noise, at):
    packet = pictures.xmp(6)
    metadata.renewed_xmp(packet[:at] + noise + packet[at:], 4, 3)
    metadata.with_history(packet[:at] + noise + packet[at:], "x")
    metadata.xmp_orientation(noise)


def test_hostile_xmp_takes_no_hours():
    hostile = b'xmlns:xmp="http://ns.adobe.com/xap/1.0/"' + b"<xmp:Thumbnails>" * 200_000
    hostile += b'xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"' + b"<xmpMM:History>" * 200_000
    metadata.renewed_xmp(hostile, 4, 3)
    metadata.with_history(hostile, "x")
    prefixes = b"".join(
        b'xmlns:p%d="http://ns.adobe.com/tiff/1.0/" p%d:ImageWidth="1" ' % (n, n)
        for n in range(20_000)
    )
    metadata.renewed_xmp(prefixes, 4, 3)


def test_damaged_exif_is_dropped_and_named():
    data = pictures.pillow(SCENE, "JPEG")
    bad = pictures.jpeg_segment(0xE1, b"Exif\0\0II*\0\xff\xff\0\0")
    read = images.read(data[:20] + bad + data[20:])
    assert read.exif is None
    assert read.notes == ["a damaged EXIF block was dropped"]
    assert read.frames[0].shape == SCENE.shape


def test_a_chain_of_directories_that_bites_its_tail_ends():
    block = Block(b"II*\0\x08\0\0\0" + b"\0\0" + struct.pack("<I", 8))
    assert list(block.directories()) == [8]


def test_exif_that_is_too_large_for_jpeg_is_named():
    tags = tiffblock.Tags()
    tags.main[MAKE] = tiffblock.Tag(tiffblock.UNDEFINED, 70_000, bytes(70_000))
    big = Picture([SCENE], "png", exif=tiffblock.build(tags))
    assert "EXIF is too large and is lost" in images.losses(big, "jpeg")
    assert images.read(images.encode(big, "jpeg")).exif is None
    assert len(images.read(images.encode(big, "png")).exif) > 70_000


@pytest.mark.parametrize("zeros", [1, 2, 3])
def test_zeros_behind_a_packet_do_not_make_it_another(zeros):
    packet = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>stars</x:xmpmeta>"
    assert metadata.as_utf8(packet + bytes(zeros)) == packet
    for coding in ("utf-16-le", "utf-16-be"):
        assert metadata.as_utf8(packet.decode().encode(coding)) == packet


def test_exif_without_a_last_link_is_kept():
    exif = b"II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x0112, 3, 1, 6, 0)
    assert len(exif) == 22
    assert metadata.renewed_exif(exif, 4, 4)[-4] == 1
    assert b"llenhance" in metadata.with_software(exif, "llenhance")


def test_places_of_more_than_a_file_are_refused():
    """A small file may ask for tens of gigabytes."""
    infe = box(b"infe", struct.pack(">BBHHH4s", 2, 0, 0, 1, 0, b"Exif") + b"\0")
    iinf = box(b"iinf", struct.pack(">IH", 0, 1) + infe)
    lengths = struct.pack(">I", 1 << 20) * 60_000
    iloc = box(b"iloc", struct.pack(">IHHHHH", 0, 0x0400, 1, 1, 0, 60_000) + lengths)
    with pytest.raises(MediaError, match="larger than the file"):
        isobmff.parse(box(b"meta", bytes(4) + iinf + iloc) + bytes(1 << 20))
    empty = b"".join(struct.pack(">HHH", n, 0, 60_000) for n in range(9000))
    iloc = box(b"iloc", struct.pack(">IHH", 0, 0, 9000) + empty)
    with pytest.raises(MediaError, match="more parts"):
        isobmff.parse(box(b"meta", bytes(4) + iinf + iloc))


# What a second review found ---------------------------------------------------------------------


def test_a_video_behind_a_gain_map_is_named():
    data = pictures.pillow(SCENE, "JPEG")
    iso = pictures.jpeg_segment(0xE2, b"urn:iso:std:iso:ts:21496:-1\0\0\0\0\0")
    video = b"\0\0\0\x18ftypmp42" + bytes(12)
    gain_map = pictures.pillow(SCENE[..., 0], "JPEG")
    read = images.read(data[:20] + iso + data[20:] + gain_map + video)
    assert read.notes[0] == "a gain map was dropped (it was made for the dark picture)"
    assert re.fullmatch(r"behind the picture, a video was dropped \(\d+ bytes\)", read.notes[1])


def test_exif_with_a_link_to_nowhere_is_kept():
    block = bytearray(pictures.exif())
    at = struct.unpack_from("<I", block, 4)[0]
    link = at + 2 + 12 * struct.unpack_from("<H", block, at)[0]
    struct.pack_into("<I", block, link, 5)  # into the header: of no sensible number of entries
    segment = pictures.jpeg_segment(0xE1, b"Exif\0\0" + bytes(block))
    data = pictures.pillow(SCENE, "JPEG")
    read = images.read(data[:20] + segment + data[20:])
    assert read.notes == []
    kept = Image.open(io.BytesIO(images.encode(read, "jpeg"))).getexif()
    assert kept.get_ifd(0x8825)  # the place
    assert kept[0x0131] == "camera 1.0"


def test_colours_that_png_and_cameras_tell_without_a_profile_are_named():
    data = pictures.pillow(SCENE, "PNG")
    gamma = (b"gAMA", struct.pack(">I", 100_000))
    told = "its colours (gAMA) are taken for sRGB"
    assert images.read(pictures.with_png_chunks(data, gamma)).notes == [told]
    assert images.read(pictures.with_png_chunks(data, gamma, (b"sRGB", b"\0"))).notes == []
    nearly = (b"gAMA", struct.pack(">I", 45450))
    assert images.read(pictures.with_png_chunks(data, nearly)).notes == []
    tags = tiffblock.Tags(interop={1: tiffblock.Tag(2, 4, b"R03\0")})
    segment = pictures.jpeg_segment(0xE1, b"Exif\0\0" + tiffblock.build(tags))
    data = pictures.pillow(SCENE, "JPEG")
    read = images.read(data[:20] + segment + data[20:])
    assert read.notes == ["its colours (Adobe RGB, by its EXIF) are taken for sRGB"]


def test_profiles_that_imagemagick_wrote_as_text():
    def text(name, block):
        return b"tEXt", b"Raw profile type " + name + b"\0\n%s\n%8d\n" % (
            name, len(block)) + block.hex().encode() + b"\n"  # fmt: skip

    packet = pictures.xmp()
    chunks = [text(b"APP1", b"http://ns.adobe.com/xap/1.0/\0" + packet), text(b"app12", b"Ducky")]
    read = images.read(pictures.with_png_chunks(pictures.pillow(SCENE, "PNG"), *chunks))
    assert read.xmp == packet
    assert chunks[1] in pictures.png_chunks(images.encode(read, "png"))


def test_paths_of_photoshop_are_named_where_they_are_lost():
    path = b"8BIM" + struct.pack(">HHI", 2000, 0, 26) + bytes(26)
    picture = images.Picture([SCENE], "jpeg", photoshop=path)
    assert images.losses(picture, "webp") == ["Photoshop's paths are lost"]
    assert images.losses(picture, "png") == []


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (b"urn:mpeg:hevc:2015:auxid:2", "a depth map"),
        (b"urn:com:apple:photo:2018:aux:portraiteffectsmatte", "a matte"),
        (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", None),
    ],
)
def test_what_lies_beside_a_heic_is_named(kind, what):
    box = struct.pack(">I", 12 + len(kind) + 1) + b"auxC" + bytes(4) + kind + b"\0"
    read = images.read(pictures.heic(SCENE, colour=box))
    assert read.notes == ([f"{what} beside the picture was dropped"] if what else [])


def test_how_a_raw_file_is_to_be_developed_does_not_stay():
    packet = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        b'xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/" crs:Exposure2012="+2.00" '
        b'xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="image/dng">'
        b"<crs:ToneCurve><rdf:Seq><rdf:li>0, 0</rdf:li></rdf:Seq></crs:ToneCurve>"
        b"</rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    kept = metadata.without(packet, "http://ns.adobe.com/camera-raw-settings/1.0/")
    assert b"Exposure2012" not in kept
    assert b"ToneCurve" not in kept
    assert b'dc:format="image/dng"' in kept
