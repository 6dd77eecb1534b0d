"""Decoding of every kind of image file to uint8 RGB."""

from __future__ import annotations

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from featkit.errors import DecodeError
from featkit.images.decode import array_key, decode, decode_file, file_key, to_rgb


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
