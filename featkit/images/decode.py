"""Decoding of image files to uint8 RGB."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from featkit.errors import DecodeError, MissingExtraError
from featkit.extras import require
from featkit.images.base import Pixels
from featkit.images.containers import (
    describe_content,
    has_sequential_scan,
    image_format,
    jpeg_size,
    lacks_end,
    lacks_scans,
    with_more_pixels,
    without_metadata,
    zeros_before_end,
)
from featkit.images.intensity import IntensityRange
from featkit.storage import read_file

MAX_PIXELS = 100_000_000
"""Larger images are refused before decoding: a file of a few kB can expand to many GB."""

MAX_BYTES = 2**30
"""Larger files are refused before reading: 100 megapixels of 16-bit RGBA are 0.8 GB."""

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")
"""Raster formats only: for others, such as EPS, Pillow runs external programs."""

_OPENERS: dict[str, Callable[[BytesIO, str], Image.Image]] = {
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}
"""Pillow's readers. ``Image.open`` would hide why they refuse a file, and warn of images of more
than 89 megapixels."""

_BAND_PIXELS = 2**22
"""Pixels converted at once, so that a large image is not copied several times as a whole."""

_LARGE_PIXELS = 2**24
_one_large_image = threading.Lock()
"""Images of more than ``_LARGE_PIXELS`` are decoded one at a time, whatever the number of threads.
"""

_DARK = 64
"""16-bit images of at most this level out of 255 use 14 of their 16 bits or less."""

HEADROOM = 2
"""JPEG files are decoded to at least this many times the size that is needed.

Less changes features: at twice the size, the smallest cosine similarity of ResNet features to those
of images decoded in full was .9995 in our measurements, at the size itself .9966.
"""

_REDUCTIONS = (8, 4, 2)
"""By how much libjpeg can reduce an image while it decodes it."""

OnDark = Callable[[str], None]
"""Called with a warning about a 16-bit image that uses a small part of its range."""

_NO_CODE = b"\xff\x00" * 8
"""Eight bytes of ones in compressed pixels: as many as libjpeg reads ahead. No Huffman code is all
ones (ITU-T T.81, C.2)."""

_MARK = (3, 251, 7, 89)
"""Pixel that is unlikely in an image."""

_Convert = Callable[[Image.Image], NDArray[np.uint8]]

_VIEWS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}
"""View of the upright pixels as they are stored, by EXIF orientation (EXIF 2.3, tag 0x0112)."""


def read_bytes(path: str | Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        DecodeError: if it is missing, cannot be read, is not a regular file or is larger than
            ``MAX_BYTES``.
    """
    try:
        return read_file(path, MAX_BYTES)
    except OSError as error:
        # The file may be intact, so its removal is not advised.
        raise DecodeError(
            f"{path} cannot be read: {error.strerror}; check the path, its permissions and the disk"
        ) from error


def file_key(path: str | Path, intensity: IntensityRange | None = None) -> str:
    """Return ``content_key`` of a file's bytes.

    Raises:
        DecodeError: if it is missing or cannot be read.
    """
    return content_key(read_bytes(path), intensity)


def jpeg_edge(data: bytes) -> int:
    """Return the shorter edge in pixels of a JPEG file as it is stored; 0 for other formats."""
    size = jpeg_size(data)
    return 0 if size is None else min(size)


def reduction(jpeg_edge: int, edge: int | None) -> int:
    """Return by how much a JPEG file is reduced while it is decoded: 1, 2, 4 or 8.

    It is the largest number that leaves ``HEADROOM`` times the size that is needed. So files whose
    shorter edge is less than four times of it are decoded in full.

    Args:
        jpeg_edge: shorter edge of the file in pixels; 0 for another format.
        edge: shorter edge in pixels of the image that is needed; None to decode in full.
    """
    if edge is None:
        return 1
    for factor in _REDUCTIONS:
        if jpeg_edge >= factor * HEADROOM * edge:
            return factor
    return 1


def content_key(data: bytes, intensity: IntensityRange | None = None) -> str:
    """Return the SHA-256 (hex) of an image file's bytes and, if given, of the intensity range.

    The few files that version 0.1 decoded to other pixels have another key, so that features which
    it cached under the SHA-256 of the bytes are not used for them.
    """
    key = hashlib.sha256(data)
    if image_format(data) in ("BMP", "TIFF") and _was_decoded_wrongly(data):
        key.update(b"decoded anew")
    if intensity is not None:
        key.update(f"intensity {intensity}".encode())
    return key.hexdigest()


def _was_decoded_wrongly(data: bytes) -> bool:
    try:
        with _open(data) as image:
            if image.width * image.height > MAX_PIXELS:
                return False
            if image.mode.startswith("I;16"):
                return _is_white_zero(image) or _largest_value(image) != 65535
            return _may_lack_alpha(image) and _has_no_alpha(image)
    except Exception:  # whatever is wrong with it, decoding says so
        return False


def array_key(pixels: Pixels) -> str:
    """Return the SHA-256 (hex) of an array's shape and bytes."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def decode_file(
    path: str | Path,
    intensity: IntensityRange | None = None,
    on_dark: OnDark | None = None,
    edge: int | None = None,
) -> Pixels:
    """Return the pixels of an image file as uint8 ``(h, w, 3)``; see ``decode``."""
    return decode(read_bytes(path), str(path), intensity, on_dark, edge)


def decode(
    data: bytes,
    name: str,
    intensity: IntensityRange | None = None,
    on_dark: OnDark | None = None,
    edge: int | None = None,
) -> Pixels:
    """Return the pixels of an encoded image as uint8 RGB ``(h, w, 3)``, rotated as EXIF says.

    The array is read-only. Of an animation, the first frame is returned. Metadata that is damaged
    or large does not prevent reading the pixels. An image of 100 megapixels needs up to 0.9 GB
    beside its file while it is decoded (WebP, AVIF and JPEG 2000: 2 GB), and large images are
    decoded one at a time. Thread-safe.

    Args:
        data: all bytes of the file.
        name: name of the file for error messages.
        intensity: values that become black and white, for grey images of more than 8 bits.
        on_dark: called for a 16-bit image that uses a small part of the range of 16 bits only.
        edge: shorter edge in pixels of the image that is made from the pixels afterwards: JPEG
            files, whatever their kind, are decoded at 1/2, 1/4 or 1/8 of their size if that leaves
            at least ``HEADROOM`` times this edge. None to decode in full.

    Raises:
        DecodeError: if the bytes are not an image, are damaged, or contain more than ``MAX_PIXELS``
            pixels.
    """
    if not data:
        raise _unreadable(name, "the file is empty")
    reason: Exception
    try:
        return _decode_pixels(data, name, intensity, on_dark, edge)
    except MemoryError:
        raise  # not a fault of the file, so it must not be skipped
    except Exception as error:  # Pillow raises almost any exception for a damaged file
        reason = error
    for keep_exif in (True, False):
        if isinstance(reason, _PixelError):
            break
        try:
            pixels_only = without_metadata(data, keep_exif=keep_exif)
            if pixels_only is None:
                break
            return _decode_pixels(pixels_only, name, intensity, on_dark, edge)
        except MemoryError:
            raise
        except Exception as error:
            reason = error
    raise _unreadable(name, _explain(data, reason)) from reason


class _HeldBackEnd(BytesIO):
    """A JPEG file from which the marker of its end is read last.

    libjpeg fills missing pixels with grey where it finds the marker too early, and Pillow ignores
    its warning. Before the marker, this file gives a few bytes more that no code begins with: a
    decoder that has all pixels does not use them. One that has not waits for further bytes, so that
    rows of the image are missing when it reads on.

    Attributes:
        lacks_rows: whether the last row of the image was missing while the first one was there:
            the file ends too early. A decoder of several scans writes no row before the end.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.lacks_rows = False
        self._end = data.rfind(b"\xff\xd9")
        self._image: Image.Image | None = None
        self._is_padded = False

    def hold_back(self, image: Image.Image) -> None:
        """Hold the end back from the decoder of an image, which has been opened from this file."""
        if self._end > 0:
            self._image = image

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes."""
        image = self._image
        if image is None or size is None or size < 0:
            return super().read(size)
        left = self._end - self.tell()
        if left > 0:
            if self.tell() == 0:
                self._mark(image)
            return super().read(min(size, left))
        if not self._is_padded:
            self._is_padded = True
            return _NO_CODE
        self._image = None
        self.lacks_rows = not self._is_marked(image, 0) and self._is_marked(image, image.height - 1)
        return super().read(size)

    @staticmethod
    def _mark(image: Image.Image) -> None:
        """Write pixels to the first and the last row, which the decoder overwrites."""
        bands = len(image.getbands())
        ink = _MARK[:bands] if bands > 1 else _MARK[0]
        for top in (0, image.height - 1):
            image.im.paste(ink, (0, top, image.width, top + 1))

    @staticmethod
    def _is_marked(image: Image.Image, row: int) -> bool:
        found = image.im.getpixel((image.width - 1, row))
        values = found if isinstance(found, tuple) else (found,)
        return tuple(values) == _MARK[: len(values)]


class _PixelError(ValueError):
    """The reason why pixels cannot be used, whatever the metadata."""


def _decode_pixels(
    data: bytes,
    name: str,
    intensity: IntensityRange | None,
    on_dark: OnDark | None,
    edge: int | None,
) -> Pixels:
    with _open(data) as image:
        size = image.width * image.height
        if size > MAX_PIXELS:
            raise _PixelError(f"more than {MAX_PIXELS // 10**6} megapixels")
        factor = _reduce(data, image, edge)
        # The coefficients of a progressive file are held in memory whatever the size.
        if not image.info.get("progressive"):
            size = image.width * image.height
        with _turn_of(size):
            has_16_bits = _has_16_bits(image)
            lacks_rows = _load(image)
            may_lack_pixels = _refuse_cut_off(data, image) or lacks_rows
            if may_lack_pixels and factor == 1:
                _refuse_missing_pixels(data, image, lacks_rows=lacks_rows)
            is_grey = image.mode.startswith("I")
            if has_16_bits and not is_grey and intensity is not None:
                raise _PixelError(
                    "an intensity range applies to grey images, and this one has 16-bit colours"
                )
            pixels = to_rgb(image, intensity)
            if has_16_bits and intensity is None and on_dark is not None:
                level = 255 - int(pixels.min()) if _is_white_zero(image) else int(pixels.max())
                if 0 < level <= _DARK:
                    on_dark(_describe_dark(name, level, is_grey=is_grey))
    if may_lack_pixels and factor > 1:
        # What is missing may be too fine to be seen at a fraction of the size.
        with _open(data) as whole, _turn_of(whole.width * whole.height):
            whole.load()
            _refuse_missing_pixels(data, whole, lacks_rows=lacks_rows)
    return pixels


def _load(image: Image.Image) -> bool:
    """Read the pixels; return whether the decoder waited for more at the end of a JPEG file."""
    file = getattr(image, "fp", None)
    if not isinstance(file, _HeldBackEnd):
        image.load()
        return False
    file.hold_back(image)
    image.load()
    return file.lacks_rows


def _reduce(data: bytes, image: Image.Image, edge: int | None) -> int:
    """Let a JPEG file be decoded at a fraction of its size; return by how much it is reduced."""
    # The sizes differ only in damaged files.
    factor = reduction(min(jpeg_edge(data), *image.size), edge)
    if factor > 1:
        image.draft(image.mode, (image.width // factor, image.height // factor))
    return factor


def _turn_of(size: int) -> AbstractContextManager[object]:
    """Return what is held while an image of so many pixels is decoded, see ``_one_large_image``."""
    return _one_large_image if size > _LARGE_PIXELS else nullcontext()


def _describe_dark(name: str, level: int, *, is_grey: bool) -> str:
    bits = (257 * level - 128).bit_length()
    text = f"{name} has 16 bits but no value above {bits} bits, so it has almost no contrast"
    if is_grey:
        return f"{text}: if the images have {bits} bits, give --intensity-range 0:{2**bits - 1}"
    return f"{text}: if the images have {bits} bits, scale their values to 16 bits"


def _open(data: bytes) -> Image.Image:
    """Open an image with the reader of its format."""
    kind = image_format(data)
    if kind == "HEIF":
        return _open_heif(data)
    if kind == "JPEG" and has_sequential_scan(data):
        return _OPENERS[kind](_HeldBackEnd(data), "")
    if kind in _OPENERS:
        return _OPENERS[kind](BytesIO(data), "")
    return Image.open(BytesIO(data), formats=_FORMATS)


def _open_heif(data: bytes) -> Image.Image:
    try:
        plugin = require("pillow_heif", "heif", "pillow-heif")
    except MissingExtraError as error:
        raise _PixelError(f"it is HEIC, and {error}") from error
    image: Image.Image = plugin.HeifImageFile(BytesIO(data), "")
    return image


def _has_16_bits(image: Image.Image) -> bool:
    """Return whether the stored pixels have 16 bits; before they are loaded."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return False
    arguments = tiles[0][3]  # the stored mode, such as RGB;16B, alone or first of several
    return ";16" in str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _explain(data: bytes, error: Exception) -> str:
    """Return why a file cannot be decoded, in one line."""
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS // 10**6} megapixels"
    if isinstance(error, UnidentifiedImageError):
        formats = f"not one of the formats {', '.join(_FORMATS)}"
        kind = describe_content(data)
        return f"{formats}: it is {kind}" if kind else formats
    return " ".join(str(error).split()) or type(error).__name__


def _refuse_cut_off(data: bytes, image: Image.Image) -> bool:
    """Refuse a JPEG file that was cut off; return whether its last pixels may be missing.

    These are found by ``_refuse_missing_pixels``, which decodes it again.
    """
    if image.format not in ("JPEG", "MPO"):
        return False
    if lacks_end(data):
        raise _PixelError("truncated: the end of the JPEG data is missing")
    if image.info.get("progressive") and lacks_scans(data):
        raise _PixelError("truncated: the last scans of the progressive JPEG file are missing")
    return zeros_before_end(data) is not None or _ends_grey(image)


def _ends_grey(image: Image.Image) -> bool:
    """Return whether the last pixel is medium grey, as missing pixels are."""
    last = image.getpixel((image.width - 1, image.height - 1))
    values = last if isinstance(last, tuple) else (last,)
    return {127, 128}.issuperset(values)


def _refuse_missing_pixels(data: bytes, image: Image.Image, *, lacks_rows: bool) -> None:
    """Refuse a JPEG file in which pixels are missing.

    libjpeg only warns if the end of the image comes too early, and Pillow ignores that. Where the
    last pixel is medium grey, as missing ones are, or the decoder waited for more, the file is
    decoded again with more data before the end, which changes the pixels unless they were complete.

    Args:
        data: the file.
        image: its image, decoded in full.
        lacks_rows: whether the decoder waited for more pixels at the end of the file.
    """
    zeros = zeros_before_end(data)
    if zeros:
        _refuse_zeros(data, image, *zeros)
    may_lack = lacks_rows or _ends_grey(image)
    if may_lack and not _has_same_pixels(image, with_more_pixels(data)):
        raise _PixelError("truncated: the JPEG data ends before the last pixel")


def _refuse_zeros(data: bytes, image: Image.Image, start: int, stop: int) -> None:
    """Refuse a JPEG file whose last pixels are zeros of a file that was not copied completely.

    Zeros that are not pixels are padding. An encoder writes as many as the pixels need: without the
    last ones, pixels are missing. Zeros of a lost part are more than that, or fewer, which leaves
    grey pixels.

    Args:
        data: the file.
        image: its decoded image.
        start: position of the first zero.
        stop: position of the end of the image, after the last zero.
    """
    if _has_same_pixels(image, data[:start] + data[stop:]):
        return
    if _has_same_pixels(image, data[: stop - 16] + data[stop:]):
        raise _PixelError("truncated: the last pixels in the JPEG file are zeros")


def _has_same_pixels(image: Image.Image, jpeg: bytes) -> bool:
    with JpegImagePlugin.jpeg_factory(BytesIO(jpeg), "") as other:
        other.load()
        for band, same in zip(_bands(image), _bands(other), strict=True):
            if not np.array_equal(np.asarray(band), np.asarray(same)):
                return False
    return True


# Pixels -----------------------------------------------------------------------------------------


def to_rgb(image: Image.Image, intensity: IntensityRange | None = None) -> Pixels:
    """Return an image of any mode as uint8 RGB ``(h, w, 3)``, rotated as EXIF says, read-only.

    - Transparent pixels are composited on white. An alpha channel that is 0 everywhere is ignored
      in BMP and in TIFF files that do not say what their fourth channel is.
    - Grey of 16 bits is divided by 257 and rounded, so that white stays white; of 12 bits, by
      4095 / 255. TIFF files in which 0 is white are inverted. With ``intensity``, that range
      becomes 0 to 255.
    - Of colours of 16 bits, the upper 8 bits are used.

    Raises:
        ValueError: if the mode does not define which value is white.
    """
    convert = _converter(image, intensity)
    view = _VIEWS.get(_orientation(image))
    small = image.width * image.height <= _BAND_PIXELS
    if small and view is None and image.mode == "RGB" and not image.has_transparency_data:
        return np.asarray(image)
    turned = view is not None and _orientation(image) >= 5
    shape = (image.width, image.height) if turned else (image.height, image.width)
    upright: Pixels = np.empty((*shape, 3), np.uint8)
    stored = upright if view is None else view(upright)
    top = 0
    for band in _bands(image):
        stored[top : top + band.height] = convert(band)
        top += band.height
    upright.flags.writeable = False
    return upright


def _bands(image: Image.Image) -> Iterator[Image.Image]:
    """Yield an image in parts of at most ``_BAND_PIXELS`` from top to bottom."""
    rows = max(1, _BAND_PIXELS // image.width)
    if rows >= image.height:
        yield image
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _converter(image: Image.Image, intensity: IntensityRange | None) -> _Convert:
    """Return the function that converts a part of an image to uint8 ``(h, w, 3)``."""
    if image.mode.startswith("I") or image.mode == "F":
        to_8_bits = _to_8_bits(image, intensity)
        return lambda part: np.repeat(to_8_bits(np.asarray(part))[..., None], 3, axis=2)
    if image.has_transparency_data and not (_may_lack_alpha(image) and _has_no_alpha(image)):
        return _composite_on_white
    return lambda part: np.asarray(part if part.mode == "RGB" else part.convert("RGB"))


def _to_8_bits(
    image: Image.Image, intensity: IntensityRange | None
) -> Callable[[NDArray[Any]], NDArray[np.uint8]]:
    """Return the function from grey values of more than 8 bits to 8 bits."""
    inverted = _is_white_zero(image)
    white = _largest_value(image)
    if intensity is not None:
        return lambda values: intensity(white - values if inverted else values)
    if image.mode == "F":
        raise _PixelError(
            "floating-point pixels have no defined white value: give --intensity-range, or save "
            "the image with 8 or 16 bits"
        )
    if image.mode == "I" and not _is_within(image, white):
        raise _PixelError(
            "signed and 32-bit pixels have no defined white value: give --intensity-range, or save "
            "the image with 8 or 16 bits"
        )

    def scale(values: NDArray[Any]) -> NDArray[np.uint8]:
        levels = values.astype(np.int32)
        if inverted:
            levels = white - levels
        return ((2 * 255 * levels + white) // (2 * white)).astype(np.uint8)

    return scale


def _is_within(image: Image.Image, largest: int) -> bool:
    low, high = np.asarray(image.getextrema(), np.int64).tolist()
    return bool(low >= 0 and high <= largest)


def _is_white_zero(image: Image.Image) -> bool:
    """Return whether 0 is white in a grey TIFF file of more than 8 bits; Pillow ignores that."""
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def _largest_value(image: Image.Image) -> int:
    """Return the value of white in an integer grey image of more than 8 bits."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None and tuple(tags.get(TiffImagePlugin.BITSPERSAMPLE, ())) == (12,):
        return 4095
    return 65535


def _may_lack_alpha(image: Image.Image) -> bool:
    """Return whether a fourth channel of zeros means that there is no alpha channel.

    In BMP files it is often unused, and TIFF files may not say what it is.
    """
    if image.mode != "RGBA":
        return False
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        known = set(tags.get(TiffImagePlugin.EXTRASAMPLES, ()))
        return not known.intersection((1, 2))
    return image.format in ("BMP", "DIB")


def _has_no_alpha(image: Image.Image) -> bool:
    return image.getchannel("A").getextrema() == (0, 0)


def _composite_on_white(part: Image.Image) -> NDArray[np.uint8]:
    rgba = part.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 if there is none, or if EXIF is damaged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # Pillow raises almost any exception for damaged EXIF
        return 1
    return found if isinstance(found, int) else 1


def _unreadable(name: str, reason: str) -> DecodeError:
    return DecodeError(
        f"{name} cannot be decoded as an image ({reason})",
        fixes=["fix or remove it", "skip such files with --on-error skip"],
    )
