"""Decoding of image files to uint8 RGB."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from featkit.errors import DecodeError
from featkit.images.base import Pixels

MAX_PIXELS = 100_000_000
"""Larger images are refused before decoding: a file of a few kB can expand to many GB."""

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000")
"""Raster formats only: for others, such as EPS, Pillow runs external programs."""

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that turns the stored pixels upright, by EXIF orientation (EXIF 2.3, tag 0x0112).
"""


def read_bytes(path: str | Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        DecodeError: if it is missing or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DecodeError(f"{path} cannot be read: {error.strerror}; fix or remove it") from error


def file_key(path: str | Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes.

    Raises:
        DecodeError: if it is missing or cannot be read.
    """
    return hashlib.sha256(read_bytes(path)).hexdigest()


def array_key(pixels: Pixels) -> str:
    """Return the SHA-256 (hex) of an array's shape and bytes."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def decode_file(path: str | Path) -> Pixels:
    """Return the pixels of an image file as uint8 ``(h, w, 3)``; see ``decode``."""
    return decode(read_bytes(path), str(path))


def decode(data: bytes, name: str) -> Pixels:
    """Return the pixels of an encoded image as uint8 RGB ``(h, w, 3)``, rotated as EXIF says.

    The array is read-only.

    Of an animation, the first frame is returned. Thread-safe.

    Args:
        data: all bytes of the file.
        name: name of the file for error messages.

    Raises:
        DecodeError: if the bytes are not an image, are damaged, or contain more than ``MAX_PIXELS``
            pixels.
    """
    if not data:
        raise _unreadable(name, "the file is empty")
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            return to_rgb(_apply_orientation(image))
    except MemoryError:
        raise  # not a fault of the file, so it must not be skipped
    except Image.DecompressionBombError as error:
        raise _unreadable(name, f"more than {MAX_PIXELS // 10**6} megapixels") from error
    except UnidentifiedImageError as error:
        raise _unreadable(name, f"not one of the formats {', '.join(_FORMATS)}") from error
    except Exception as error:  # Pillow raises almost any exception for a damaged file
        raise _unreadable(name, " ".join(str(error).split()) or type(error).__name__) from error


def to_rgb(image: Image.Image) -> Pixels:
    """Return an image of any mode as uint8 RGB ``(h, w, 3)``, read-only.

    Transparent pixels are composited on white; 16-bit grey is divided by 257, so that white stays
    white.

    Raises:
        ValueError: if the mode does not define which value is white.
    """
    if image.mode.startswith("I"):
        image = _to_8_bits(image)
    elif image.mode == "F":
        raise ValueError(
            "floating-point pixels have no defined white value: save the image with 8 or 16 bits"
        )
    elif image.has_transparency_data:
        image = _composite_on_white(image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _apply_orientation(image: Image.Image) -> Image.Image:
    transpose = _ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if transpose is None else image.transpose(transpose)


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            "32-bit pixels have no defined white value: save the image with 8 or 16 bits"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _composite_on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)


def _unreadable(name: str, reason: str) -> DecodeError:
    return DecodeError(
        f"{name} cannot be decoded as an image ({reason}): fix or remove it, or skip such files "
        "with --on-error skip"
    )
