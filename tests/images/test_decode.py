"""Decoding of every kind of image file to uint8 RGB."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from featkit.errors import DecodeError
from featkit.images.decode import (
    _MARK,
    MAX_BYTES,
    array_key,
    content_key,
    decode,
    decode_file,
    file_key,
    to_rgb,
)
from featkit.images.intensity import IntensityRange


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """Return an image of four coloured quarters, 24 wide and 16 high; every rotation and flip changes it."""
    pixels = np.zeros((16, 24, 3), dtype=np.uint8)
    pixels[:8, :12], pixels[:8, 12:], pixels[8:, :12], pixels[8:, 12:] = (
        (200, 30, 30),
        (30, 200, 30),
        (30, 30, 200),
        (220, 220, 30),
    )
    return Image.fromarray(pixels)


def near(pixels, image: Image.Image, tolerance: int) -> bool:
    expected = np.asarray(image.convert("RGB"))
    return (
        pixels.shape == expected.shape and np.abs(pixels.astype(int) - expected).max() <= tolerance
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_rgb_is_exact(scene, kind):
    pixels = decode(encoded(scene, kind, lossless=True), "scene")
    assert pixels.dtype == np.uint8
    assert near(pixels, scene, 0)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_images_of_one_channel_become_rgb(scene, mode):
    image = scene.convert(mode)
    assert near(decode(encoded(image), "scene"), image, 0)


def test_palette_images_keep_their_colours(scene):
    assert near(decode(encoded(scene.quantize(4)), "scene"), scene, 3)
    assert near(decode(encoded(scene.quantize(4), "GIF"), "scene"), scene, 3)


def test_cmyk_jpeg_and_tiff_become_rgb(scene):
    ink = scene.convert("CMYK")
    assert near(decode(encoded(ink, "JPEG", quality=100, subsampling=0), "scene"), scene, 6)
    assert near(decode(encoded(ink, "TIFF"), "scene"), scene, 1)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 0, 51), (244, 204, 204)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),
    ],
)
def test_transparency_is_composited_on_white(mode, colour, expected):
    assert decode(encoded(Image.new(mode, (2, 3), colour)), "glass")[2, 1].tolist() == list(
        expected
    )


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_palette_with_transparency_is_composited_on_white(transparency):
    """The PNG chunk tRNS holds one transparent colour, or an alpha value for each palette entry."""
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert decode(encoded(image, transparency=transparency), "glass").tolist() == [
        [[10, 20, 30], [255, 255, 255]]
    ]


def test_rgb_with_a_transparent_colour_is_composited_on_white():
    pixels = decode(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)), "glass")
    assert pixels.tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize(
    ("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)]
)
def test_sixteen_bits_are_scaled_by_257(kind, dtype):
    """White stays white and black stays black, unlike with division by 256 or clipping at 255."""
    levels = np.array([[0, 128, 257, 32768, 65535]], dtype=dtype)
    pixels = decode(encoded(Image.fromarray(levels), kind), "grey")
    assert pixels[..., 0].tolist() == [[0, 0, 1, 128, 255]]
    assert (pixels == pixels[..., :1]).all()


def test_big_endian_sixteen_bits_are_scaled():
    pixels = decode(b"P5 2 1 65535\n" + struct.pack(">HH", 65535, 257), "grey.pgm")
    assert pixels[..., 0].tolist() == [[255, 1]]


@pytest.mark.parametrize("values", [np.array([[0.5]], np.float32), np.array([[70000]], np.int32)])
def test_pixels_of_unknown_range_are_refused(values):
    with pytest.raises(DecodeError, match=r"^odd.tif cannot .* defined white value"):
        decode(encoded(Image.fromarray(values), "TIFF"), "odd.tif")


TURNED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}
"""EXIF orientation -> how a camera that is held so stores the upright scene."""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied(scene, orientation, kind):
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation](np.asarray(scene))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    assert near(decode(encoded(stored, kind, exif=exif, **options), "scene"), scene, 6)


def test_exif_orientation_out_of_range_changes_nothing(scene):
    exif = Image.Exif()
    exif[0x0112] = 99
    assert near(decode(encoded(scene, exif=exif), "scene"), scene, 0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_of_an_animation_is_used(scene, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    first = scene.quantize(4) if kind == "GIF" else scene
    other = Image.new("RGB", scene.size, "black")
    data = encoded(first, kind, save_all=True, append_images=[other], **options)
    assert near(decode(data, "film"), scene, 3)


def test_extension_does_not_matter(scene, tmp_path):
    (tmp_path / "scene.jpg").write_bytes(encoded(scene))
    assert near(decode_file(tmp_path / "scene.jpg"), scene, 0)


def test_pixels_are_read_only(scene):
    for image in (scene, scene.convert("L"), scene.convert("RGBA")):
        assert not to_rgb(image).flags.writeable


def header(width: int, height: int) -> bytes:
    """Return the header of a PNG file of this size, without pixels."""
    size = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d"
        + size
        + struct.pack(">I", zlib.crc32(size))
        + b"\x00\x00\x10\x00IDAT"
    )


@pytest.mark.parametrize("size", [(20_000, 20_000), (100_000_001, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_image_is_refused_from_its_header(size):
    """Above Pillow's limit of 179 megapixels, and below it."""
    with pytest.raises(DecodeError, match=r"^bomb.png cannot .*more than 100 megapixels"):
        decode(header(*size), "bomb.png")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"These are words.\n" * 9, "not one of the formats JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not one of the formats JPEG, PNG"),
        (header(4, 4), ""),
    ],
)
def test_files_that_are_not_images_are_reported_by_name(data, reason):
    with pytest.raises(DecodeError) as caught:
        decode(data, "cats/1.jpg")
    message = str(caught.value)
    assert message.startswith(f"cats/1.jpg cannot be decoded as an image ({reason}")
    assert message.endswith("--on-error skip")
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000"])
def test_truncated_file_is_reported(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(DecodeError, match=r"^cut cannot be decoded as an image"):
        decode(data[: len(data) // 2], "cut")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
def test_damaged_bytes_raise_no_other_error_than_decode_error(scene, kind):
    """Random bit flips give an image or a DecodeError."""
    data = np.frombuffer(encoded(scene, kind), dtype=np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = data.copy()
        damaged[rng.integers(0, min(len(data), 400), 3)] = rng.integers(0, 256, 3)
        with suppress(DecodeError):
            assert decode(damaged.tobytes(), "damaged").dtype == np.uint8


def test_missing_file_is_reported(tmp_path):
    for read in (decode_file, file_key):
        with pytest.raises(DecodeError, match=r"missing.png cannot be read: No such file"):
            read(tmp_path / "missing.png")


def test_lab_tiff_becomes_rgb(scene):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(scene, srgb, lab, outputMode="LAB")
    assert near(decode(encoded(converted, "TIFF"), "scene"), scene, 20)


def test_threads_give_the_same_pixels(scene):
    kinds = [encoded(scene, kind) for kind in ("PNG", "BMP", "GIF", "TIFF")] * 25
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decode(data, "scene"), kinds))
    assert all(
        np.array_equal(pixels, decode(data, "scene"))
        for pixels, data in zip(together, kinds, strict=True)
    )


def test_array_keys_differ_between_shapes():
    flat = np.zeros((2, 6, 3), dtype=np.uint8)
    assert array_key(flat) == array_key(flat.copy())
    assert array_key(flat) != array_key(flat.reshape(3, 4, 3))
    assert array_key(flat) == array_key(np.asfortranarray(flat))


# Metadata -------------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes, checksum: int | None = None) -> bytes:
    """Return a PNG chunk; with another checksum if one is given."""
    right = zlib.crc32(name + body)
    return (
        struct.pack(">I", len(body))
        + name
        + body
        + struct.pack(">I", right if checksum is None else checksum)
    )


def with_chunk(data: bytes, added: bytes) -> bytes:
    """Insert a chunk after the header of a PNG file."""
    return data[:33] + added + data[33:]


@pytest.mark.parametrize(
    "added",
    [
        chunk(b"tEXt", b"Comment\0hello", 0),
        chunk(b"eXIf", b"damaged"),
        chunk(b"eXIf", b"MM\0*\0\0\0\x08", 0),
        chunk(b"tEXt", b"Raw profile type exif\0not hexadecimal\nx\ny\nzz"),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(5 * 10**6))),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(5 * 10**6))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + bytes(10**6)),
        chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(5 * 10**6))),
        chunk(b"iCCP", b"name\0\0damaged"),
        chunk(b"iCCP", b""),
        chunk(b"gAMA", b"\0"),
        chunk(b"pHYs", b"\0\0"),
        chunk(b"tIME", b"", 7),
        chunk(b"zTXt", b"Comment\0\7x"),
        chunk(b"prVt", b"x" * 10**6, 1),
        100 * chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(900_000))),
    ],
)
def test_metadata_of_png_does_not_prevent_reading_the_pixels(scene, added):
    assert near(decode(with_chunk(encoded(scene), added), "scene"), scene, 0)


def test_orientation_is_applied_beside_other_metadata_that_is_damaged(scene):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(np.asarray(scene))))
    data = with_chunk(encoded(stored, exif=exif), chunk(b"tEXt", b"Comment\0x", 0))
    assert near(decode(data, "scene"), scene, 0)


def pixel_chunk(data: bytes) -> tuple[int, int]:
    """Return where the content of the chunk IDAT of a PNG file starts and ends."""
    start = data.index(b"IDAT") + 4
    return start, start + struct.unpack(">I", data[start - 8 : start - 4])[0]


def test_a_wrong_checksum_beside_right_pixels_does_not_matter(scene):
    data = encoded(scene)
    _, end = pixel_chunk(data)
    assert near(decode(data[:end] + bytes(4) + data[end + 4 :], "scene"), scene, 0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"IDAT", "wrong checksum of the pixels"),
        (b"IHDR", "wrong checksum of the chunk IHDR"),
        (b"PLTE", "wrong checksum of the chunk PLTE"),
    ],
)
def test_a_damaged_chunk_that_decides_pixels_is_named(scene, name, reason):
    data = bytearray(encoded(scene.quantize(4)))
    data[data.index(name) + 9] ^= 16
    with pytest.raises(DecodeError, match=reason):
        decode(bytes(data), "scene")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "PNG"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_does_not_prevent_reading_the_pixels(scene, kind):
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    exif = Image.Exif()
    exif[0x010F] = "maker" * 9
    data = encoded(scene, kind, exif=exif, **options)
    pixels = decode(data, "scene")
    start, end = data.index(exif.tobytes()[6:14]), data.index(b"makermaker") + 45
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(start, end, 6)
        damaged[places] = rng.integers(0, 256, 6)
        assert decode(damaged.tobytes(), "scene").size == pixels.size


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize(
    ("place", "value"), [(2, 0), (2, 5), (2, 12), (2, 99), (4, 2**31), (8, 2**32 - 1)]
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_tags_of_tiff_do_not_prevent_reading_the_pixels(scene, compression, place, value):
    text = {
        270: "about" * 9,
        271: "maker",
        305: "software",
        306: "2020:01:01",
        315: "artist",
        700: b"<x/>",
    }
    options = {"icc_profile": b"icc" * 100, "dpi": (72, 72)}
    data = encoded(scene, "TIFF", compression=compression, tiffinfo=text, **options)
    (first,) = struct.unpack("<I", data[4:8])
    (number,) = struct.unpack_from("<H", data, first)
    for at in range(first + 2, first + 2 + 12 * number, 12):
        if struct.unpack_from("<H", data, at)[0] in {*text, 282, 283, 296, 34675}:
            damaged = bytearray(data)
            struct.pack_into("<H" if place == 2 else "<I", damaged, at + place, value)
            assert near(decode(bytes(damaged), "scene"), scene, 0)


def riff(data: bytes, name: bytes, body: bytes, flag: int) -> bytes:
    """Add a chunk to a WebP file that has the chunk VP8X."""
    added = data + name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    added = added[:20] + bytes((added[20] | flag,)) + added[21:]
    return added[:4] + struct.pack("<I", len(added) - 8) + added[8:]


@pytest.mark.parametrize("body", [b"", b"damaged", b"Exif\0\0MM\0*" + bytes(20), bytes(10**6)])
@pytest.mark.parametrize(("name", "flag"), [(b"EXIF", 8), (b"XMP ", 4), (b"ICCP", 32)])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_metadata_of_webp_does_not_prevent_reading_the_pixels(scene, body, name, flag):
    data = encoded(scene, "WEBP", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    assert data[12:16] == b"VP8X"
    assert near(decode(riff(data, name, body, flag), "scene"), scene, 0)


# Truncated files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((190, 130), Image.Resampling.BICUBIC)


JPEGS = [
    {"subsampling": 0},
    {"subsampling": 2},
    {"restart_marker_rows": 1},
    {"restart_marker_blocks": 3},
    {"progressive": True},
    {"progressive": True, "restart_marker_rows": 1},
    {"mode": "L"},
    {"mode": "CMYK"},
]


@pytest.mark.parametrize("options", JPEGS, ids=str)
@pytest.mark.parametrize("rest", [b"\xff\xd9", b"\xff\xd9next", bytes(100_000), b""], ids=len)
def test_a_jpeg_file_that_was_cut_off_is_refused(photo, options, rest):
    """Pillow reads it if an end of image or enough other bytes follow; the rest is grey."""
    options = {"mode": "RGB", "quality": 80, **options}
    data = encoded(photo.convert(options.pop("mode")), "JPEG", **options)
    start = data.index(b"\xff\xda") + 14
    for part in (0.1, 0.3, 0.5, 0.7):
        with pytest.raises(DecodeError, match="truncated"):
            decode(data[: start + int(part * (len(data) - start))] + rest, "cut")


@pytest.mark.parametrize("options", [*JPEGS[:4], *JPEGS[6:]], ids=str)
@pytest.mark.parametrize("edge", [None, 16])
def test_a_jpeg_file_without_its_last_block_is_refused(photo, options, edge):
    """Its last pixels are not grey: libjpeg completes the block in which the data end."""
    options = {"mode": "RGB", "quality": 95, **options}
    data = encoded(photo.convert(options.pop("mode")), "JPEG", **options)
    for lost in (120, 70, 40):
        cut = data[: -2 - lost].rstrip(b"\xff") + b"\xff\xd9"
        with pytest.raises(DecodeError, match="truncated"):
            decode(cut, "cut", edge=edge)


@pytest.mark.parametrize("options", JPEGS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 40), (190, 130), (33, 17)])
@pytest.mark.parametrize("rest", [b"", b"\0", b"trailer \xff\xd9"], ids=len)
def test_pixels_of_a_complete_jpeg_file_are_those_of_pillow(photo, options, size, rest):
    options = {"mode": "RGB", "quality": 80, **options}
    data = encoded(photo.resize(size).convert(options.pop("mode")), "JPEG", **options)
    with Image.open(BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(data + rest, "whole"), expected)


def test_an_image_of_the_colour_that_marks_missing_rows_is_read():
    for mode, colour in (("RGB", _MARK[:3]), ("L", _MARK[0])):
        data = encoded(Image.new(mode, (40, 30), colour), "JPEG", quality=100, subsampling=0)
        assert near(decode(data, "flat"), Image.new(mode, (40, 30), colour).convert("RGB"), 2)
    split = Image.new("L", (40, 32), 200)
    split.paste(_MARK[0], (0, 16, 40, 32))
    data = encoded(split, "JPEG", quality=100)
    assert decode(data, "split")[-1, -1].tolist() == [_MARK[0]] * 3


@pytest.mark.parametrize("options", [*JPEGS[:4], *JPEGS[6:]], ids=str)
@pytest.mark.parametrize("zeros", [600, 5_000, 100_000])
def test_a_jpeg_file_whose_last_part_is_zeros_is_refused(photo, options, zeros):
    options = {"mode": "RGB", "quality": 80, **options}
    data = encoded(photo.convert(options.pop("mode")), "JPEG", **options)
    start = data.rindex(b"\xff\xda") + 14
    for part in (0.1, 0.4, 0.7):
        cut = start + int(part * (len(data) - start))
        with pytest.raises(DecodeError, match="truncated"):
            decode(data[:cut] + bytes(zeros) + b"\xff\xd9", "cut")


@pytest.mark.parametrize("zeros", [0, 1000])
def test_a_flat_picture_whose_compressed_pixels_are_zeros_is_read(zeros):
    data = encoded(Image.new("L", (2000, 1000), 77), "JPEG", optimize=True)
    assert bytes(600) in data
    padded = data[:-2] + bytes(zeros) + data[-2:]
    assert (decode(padded, "flat") == 77).all()


@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_zeros_after_the_last_compressed_pixel_are_padding(photo, options):
    options = {"mode": "RGB", "quality": 80, **options}
    data = encoded(photo.convert(options.pop("mode")), "JPEG", **options)
    padded = data[:-2] + bytes(1000) + data[-2:]
    assert np.array_equal(decode(padded, "photo"), decode(data, "photo"))


@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_a_complete_jpeg_file_that_ends_grey_is_read(photo, options):
    options = {"mode": "RGB", "quality": 80, **options}
    grey = Image.new("RGB", (150, 90), (128, 128, 128))
    grey.paste(photo.resize((60, 40)))
    data = encoded(grey.convert(options.pop("mode")), "JPEG", **options)
    for rest in (b"", b"trailer", bytes(1000), data):
        assert decode(data + rest, "grey").shape == (90, 150, 3)


# More than 8 bits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_a_grey_tiff_file_in_which_0_is_white_is_inverted(compression):
    levels = Image.fromarray(np.array([[0, 257, 65535]], np.uint16))
    data = encoded(levels, "TIFF", compression=compression, tiffinfo={262: 0})
    assert decode(data, "xray.tif")[0, :, 0].tolist() == [255, 254, 0]
    assert content_key(data) != content_key(data + b"x")
    eight = encoded(Image.fromarray(np.array([[0, 255]], np.uint8)), "TIFF", tiffinfo={262: 0})
    assert decode(eight, "scan.tif").shape == (1, 2, 3)


def test_the_key_of_a_file_that_was_decoded_wrongly_before_is_another():
    """Its features in older cache files are not used; those of all other files are."""
    from hashlib import sha256

    levels = Image.fromarray(np.array([[0, 257, 65535]], np.uint16))
    for image, options, same in [
        (levels, {"tiffinfo": {262: 0}}, False),
        (levels, {}, True),
        (Image.new("RGB", (2, 2)), {}, True),
        (Image.new("RGBA", (2, 2)), {}, True),
    ]:
        data = encoded(image, "TIFF", **options)
        assert (content_key(data) == sha256(data).hexdigest()) is same
    for data, same in [(bmp(0), False), (bmp(200), True), (b"BM damaged", True), (b"", True)]:
        assert (content_key(data) == sha256(data).hexdigest()) is same


def bmp(alpha: int) -> bytes:
    """Return a BMP file of one pixel with a mask for the alpha channel."""
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    about = struct.pack("<IiiHHIIiiII", 108, 1, 1, 1, 32, 3, 4, 0, 0, 0, 0) + masks + bytes(52)
    pixel = bytes((30, 20, 10, alpha))
    head = b"BM" + struct.pack("<IHHI", 14 + len(about) + 4, 0, 0, 14 + len(about))
    return head + about + pixel


def test_an_alpha_channel_of_zeros_is_no_alpha_channel_in_bmp():
    assert decode(bmp(0), "a.bmp").tolist() == [[[10, 20, 30]]]
    assert decode(bmp(255), "a.bmp").tolist() == [[[10, 20, 30]]]
    assert decode(bmp(51), "a.bmp").tolist() == [[[206, 208, 210]]]


def test_an_alpha_channel_of_zeros_in_png_is_transparent():
    image = Image.new("RGBA", (1, 1), (10, 20, 30, 0))
    assert decode(encoded(image), "a.png").tolist() == [[[255, 255, 255]]]
    assert decode(encoded(image, "TIFF"), "a.tif").tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (np.array([[0, 2048, 4095, 9999]], np.uint16), "PNG", [0, 128, 255, 255]),
        (np.array([[0, 2048, 4095, 9999]], np.uint16), "TIFF", [0, 128, 255, 255]),
        (np.array([[-9, 0, 4095, 70_000]], np.int32), "TIFF", [0, 0, 255, 255]),
        (np.array([[-0.5, 0, 2047.5, 4095]], np.float32), "TIFF", [0, 0, 128, 255]),
    ],
)
def test_an_intensity_range_is_applied_to_more_than_8_bits(values, kind, expected):
    data = encoded(Image.fromarray(values), kind)
    assert decode(data, "x", IntensityRange.parse("0:4095"))[0, :, 0].tolist() == expected
    assert content_key(data, IntensityRange(0, 4095)) != content_key(data)
    assert content_key(data, IntensityRange(0, 4095)) != content_key(data, IntensityRange(0, 4096))


def test_an_intensity_range_does_not_change_8_bits(scene):
    assert near(decode(encoded(scene), "x", IntensityRange(0, 9)), scene, 0)


def test_an_intensity_range_does_not_apply_to_colours_of_16_bits():
    body = zlib.compress(bytes(7))
    size = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    assert decode(data, "x").tolist() == [[[0, 0, 0]]]
    with pytest.raises(DecodeError, match="16-bit colours"):
        decode(data, "x", IntensityRange(0, 9))


def test_pixels_that_are_not_numbers_are_refused():
    data = encoded(Image.fromarray(np.array([[0, np.nan]], np.float32)), "TIFF")
    with pytest.raises(DecodeError, match="NaN"):
        decode(data, "x.tif", IntensityRange(0, 1))


@pytest.mark.parametrize(
    ("largest", "suggestion"),
    [(1023, "0:1023"), (4095, "0:4095"), (16383, "0:16383"), (30_000, None), (0, None)],
)
@pytest.mark.parametrize(("kind", "inverted"), [("PNG", False), ("TIFF", False), ("TIFF", True)])
def test_16_bit_images_that_use_few_bits_are_reported(largest, suggestion, kind, inverted):
    options = {"tiffinfo": {262: 0}} if inverted else {}
    data = encoded(Image.fromarray(np.array([[0, largest]], np.uint16)), kind, **options)
    reported: list[str] = []
    decode(data, "dark", on_dark=reported.append)
    assert len(reported) == (suggestion is not None)
    assert all(text.endswith(f"--intensity-range {suggestion}") for text in reported)
    decode(data, "dark", IntensityRange(0, 4095), reported.append)
    assert len(reported) == (suggestion is not None)


# Other kinds of files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>404", "an HTML page"),
        (b'<?xml version="1.0"?><svg xmlns="x">', "an SVG drawing"),
        (b"\n<!-- saved page --> <html>", "an HTML page"),
        (b"<!-- drawn --><!DOCTYPE svg PUBLIC><svg>", "an SVG drawing"),
        (b"%PDF-1.7", "a PDF document"),
        (bytes(5000), "zeros only"),
        (b"\0\0\0\x18ftypmp42" + bytes(12), "a video"),
    ],
)
def test_what_a_file_is_instead_is_said(data, reason):
    with pytest.raises(DecodeError, match=f"not one of the formats .*: it is {reason}"):
        decode(data, "x.jpg")


@pytest.mark.parametrize("text", [b"<!-- -->", b"<!--", b"<?xml", b" "])
def test_long_text_is_refused(text):
    with pytest.raises(DecodeError):
        decode(text * 10_000, "x.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000", "AVIF"])
def test_a_damaged_file_of_a_known_format_is_not_called_another_format(scene, kind):
    data = encoded(scene, kind)
    with pytest.raises(DecodeError, match="cannot be decoded") as caught:
        decode(data[:16] + bytes(len(data) - 16), "x.jpg")
    assert "not one of" not in str(caught.value)


def test_avif_is_read(scene):
    assert near(
        decode(encoded(scene, "AVIF", quality=100, subsampling="4:4:4"), "scene"), scene, 40
    )


def test_heic_needs_an_extra_or_is_read(scene):
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    try:
        from pillow_heif import from_pillow
    except ImportError:
        with pytest.raises(DecodeError, match=r"pip install 'featkit\[heif\]'"):
            decode(data, "x.heic")
        return
    stream = BytesIO()
    from_pillow(scene).save(stream, quality=-1)
    assert near(decode(stream.getvalue(), "scene"), scene, 12)
    with pytest.raises(DecodeError):
        decode(data, "x.heic")


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(200 * 10**9)
    assert MAX_BYTES < 200 * 10**9
    for read in (decode_file, file_key):
        with pytest.raises(DecodeError, match=r"x.png cannot be read: 200,000 MB are more than"):
            read(tmp_path / "x.png")


MEMORY = """
import struct, sys, zlib
from featkit.images.decode import decode
from featkit.storage import peak_memory_mb
width, height, kind, size = 11000, 9000, *map(int, sys.argv[1:])
bits, mode = (8, kind) if kind else (16, 0)
header = struct.pack(">IIBBBBB", width, height, bits, mode, 0, 0, 0)
packed = zlib.compress(bytes(1 + width * size) * 100, 1)
stream = zlib.compressobj(1)
body = b"".join(stream.compress(bytes(1 + width * size)) for _ in range(height)) + stream.flush()
def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
data = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
before = peak_memory_mb()
assert decode(data, "x").shape == (height, width, 3)
print(peak_memory_mb() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), [(0, 2), (2, 3), (6, 4)])
def test_99_megapixels_are_decoded_within_the_stated_memory(kind, size):
    """PNG of 16-bit grey, RGB and RGBA."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(kind), str(size)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 900
    assert not done.stderr


# name -> shape and mean colour to within 2, or words of the error
UNUSUAL = {
    "bomb_20000x20000.png": "more than 100 megapixels",
    "cmyk.jpg": ((90, 120, 3), (129, 150, 109)),
    "empty.jpg": "the file is empty",
    "exif_rotated.jpg": ((120, 90, 3), (129, 150, 109)),
    "gif_palette_named.jpg": ((202, 250, 3), (125, 115, 109)),
    "grey.jpg": ((90, 120, 3), (139, 139, 139)),
    "grey16.png": ((90, 120, 3), (138, 138, 138)),
    "name with space, comma & ünïcode.jpg": ((90, 120, 3), (129, 150, 109)),
    "not_found_placeholder.gif": ((300, 300, 3), (242, 242, 242)),
    "one_pixel.png": ((1, 1, 3), (122, 140, 98)),
    "png_rgba_named.jpg": ((150, 200, 3), (126, 101, 87)),
    "text_named.jpg": "not one of the formats JPEG",
    "thin.png": ((3, 2000, 3), (123, 146, 102)),
    "truncated.jpg": "truncated",
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_file_is_read_or_reported(real_data, name):
    expected = UNUSUAL[name]
    if isinstance(expected, str):
        with pytest.raises(DecodeError, match=expected) as caught:
            decode_file(real_data / "odd" / name)
        assert name in str(caught.value)
    else:
        pixels = decode_file(real_data / "odd" / name)
        assert pixels.shape == expected[0]
        assert np.abs(pixels.mean(axis=(0, 1)) - expected[1]).max() < 2


@pytest.mark.realdata
def test_every_unusual_file_is_in_the_table(real_data):
    assert {file.name for file in (real_data / "odd").iterdir()} == set(UNUSUAL)


@pytest.mark.realdata
def test_all_formats_of_one_photo_give_similar_pixels(real_data):
    """The same photo is stored as CMYK, as 16-bit grey, and rotated by EXIF."""
    photo = decode_file(real_data / "odd" / "name with space, comma & ünïcode.jpg").astype(int)
    turned = decode_file(real_data / "odd" / "exif_rotated.jpg")
    assert np.abs(np.rot90(photo, -1) - turned).mean() < 2
    assert np.abs(photo - decode_file(real_data / "odd" / "cmyk.jpg")).mean() < 6
    grey = photo @ (0.299, 0.587, 0.114)
    assert np.abs(grey - decode_file(real_data / "odd" / "grey16.png")[..., 0]).mean() < 3
