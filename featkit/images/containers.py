"""Image files as containers: what a file is, and its pixels without the metadata beside them.

Pillow refuses an image if metadata such as a comment, a colour profile or EXIF is damaged or large.
These functions write the file again without them, so that only the pixels decide.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")

_SIGNATURES = (
    (rb"\xff\xd8\xff", "JPEG"),
    (re.escape(_PNG), "PNG"),
    (rb"GIF8[79]a", "GIF"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"(II\*\x00|MM\x00\*|II\+\x00|MM\x00\+)", "TIFF"),
    (rb"BM....\x00\x00\x00\x00", "BMP"),
    (rb"(\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51)", "JPEG2000"),
)
"""Beginnings of files by Pillow's name of the format."""

_OTHERS = (
    (rb"version https://git-lfs", "a Git LFS pointer: run git lfs pull"),
    (rb"\s*(<(!doctype )?html|<!--[^\x00]*<html)", "an HTML page"),
    (rb"\s*(<svg|<(\?xml|!--|!doctype svg)[^\x00]*<svg)", "an SVG drawing"),
    (rb"%PDF-", "a PDF document"),
    (rb"%!PS", "a PostScript file"),
    (rb"8BPS", "a Photoshop file"),
    (rb"(\xff\x0a|\x00\x00\x00\x0cJXL )", "a JPEG XL image"),
    (rb".{128}DICM", "a DICOM file"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"(RIFF....AVI |\x1aE\xdf\xa3|.{4}ftyp(isom|iso2|mp4|M4V|qt))", "a video"),
    (rb"\x00+$", "zeros only: it was not copied completely"),
)
_BEGINNING = 4096
_BLOCK, _LARGEST_STREAM = 2**16, 2**30


def image_format(data: bytes) -> str | None:
    """Return Pillow's name of the format that a file begins as; None if it is not an image."""
    for pattern, name in _SIGNATURES:
        if re.match(pattern, data[:64], re.DOTALL):
            return name
    if data[4:8] == b"ftyp":
        size = int.from_bytes(data[:4], "big")
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(size, 256), 4))}
        if brands.intersection(_AVIF_BRANDS):
            return "AVIF"
        if brands.intersection(_HEIF_BRANDS):
            return "HEIF"
    return None


def describe_content(data: bytes) -> str:
    """Return what a file that is not an image seems to be; an empty string if unknown."""
    for pattern, name in _OTHERS:
        if re.match(pattern, data[:_BEGINNING], re.DOTALL | re.IGNORECASE):
            return name
    return ""


def without_metadata(data: bytes, *, keep_exif: bool) -> bytes | None:
    """Return an image file without the parts that do not hold pixels.

    A wrong checksum of the compressed pixels of a PNG file is corrected if the pixels have another
    checksum of their own that is right.

    Args:
        data: all bytes of the file.
        keep_exif: whether to keep EXIF, which says how the image is rotated.

    Returns:
        The file, or None if it has no metadata that could be left out.

    Raises:
        ValueError: if the pixels or what describes them are damaged.
    """
    without = _WITHOUT_METADATA.get(image_format(data) or "")
    return without(data, keep_exif) if without else None


# PNG --------------------------------------------------------------------------------------------


def _png_without_metadata(data: bytes, keep_exif: bool) -> bytes:
    parts = [_PNG]
    pixels: list[bytes] = []
    repaired = False
    for name, body, is_right in _png_chunks(data):
        if name == b"IDAT":
            pixels.append(body)
            repaired = repaired or not is_right
        elif name in (b"IHDR", b"PLTE", b"tRNS") and not is_right:
            raise ValueError(f"wrong checksum of the chunk {name.decode()}")
        elif name not in (b"IHDR", b"PLTE", b"tRNS") and not (
            name == b"eXIf" and keep_exif and is_right
        ):
            continue
        parts.append(_png_chunk(name, body))
    if repaired and not _is_complete_stream(pixels):
        raise ValueError("wrong checksum of the pixels (chunk IDAT)")
    return b"".join([*parts, _png_chunk(b"IEND", b"")])


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield name and content of each chunk before IEND, and whether its checksum is right."""
    at = len(_PNG)
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        checksum = data[at + 8 + length : at + 12 + length]
        if name == b"IEND":
            return
        yield name, body, checksum == struct.pack(">I", zlib.crc32(name + body))
        at += 12 + length


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _is_complete_stream(parts: list[bytes]) -> bool:
    """Return whether compressed data ends with the right checksum (Adler-32)."""
    stream, size = zlib.decompressobj(), 0
    try:
        for part in [*parts, b""]:
            rest = part
            while size < _LARGEST_STREAM:
                block = stream.decompress(rest, _BLOCK)
                size += len(block)
                rest = stream.unconsumed_tail
                if not rest and len(block) < _BLOCK:
                    break
    except zlib.error:
        return False
    return stream.eof


# JPEG -------------------------------------------------------------------------------------------


def _jpeg_without_metadata(data: bytes, keep_exif: bool) -> bytes:
    parts = [data[:2]]
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xDA:
            parts.append(data[start:])
            break
        # APP0 and APP14 describe the colour space.
        is_metadata = 0xE0 <= marker <= 0xEF and marker not in (0xE0, 0xEE)
        is_exif = marker == 0xE1 and data[start + 4 : start + 8] == b"Exif"
        if marker != 0xFE and (not is_metadata or (is_exif and keep_exif)):
            parts.append(data[start:end])
    return b"".join(parts)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment up to the end of the image.

    The compressed pixels after a start of scan are skipped.
    """
    at = 2
    while True:
        found = _MARKER.search(data, at)
        if found is None:
            return
        at = found.start()
        marker = data[at + 1]
        if marker == 0xD9:
            yield marker, at, at + 2
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at, at + 2 + length
        at += 2 + max(length, 2)


_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the segment with the size of the image (ITU-T T.81, table B.1)."""


def has_sequential_scan(data: bytes) -> bool:
    """Return whether a JPEG file is sequential and Huffman-coded, as most are; not progressive."""
    for marker, _, _ in _jpeg_segments(data):
        if marker in _FRAMES:
            return marker in (0xC0, 0xC1)
        if marker == 0xDA:
            return False
    return False


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels of a JPEG file as it is stored; None if it is none.

    Only the header is searched, which takes microseconds. A thumbnail image in the metadata is
    passed over.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    for marker, start, _ in _jpeg_segments(data):
        if marker in _FRAMES:
            height, width = struct.unpack(">HH", data[start + 5 : start + 9].ljust(4, b"\0"))
            return width, height
        if marker == 0xDA:
            return None
    return None


_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
"""Markers of segments and of the end: not those inside compressed pixels (00, D0 to D7)."""

_USUAL_TRAILER = 64
"""Bytes after the end of an image that are common, such as padding."""

_SUSPICIOUS_ZEROS = 512

_FILLER = bytes((97 * number + 31) % 251 for number in range(3000))
_MORE_PIXELS = b"".join(_FILLER + bytes((0xFF, 0xD0 + number)) for number in range(8)) + _FILLER


def lacks_end(data: bytes) -> bool:
    """Return whether the end of the image is missing in a JPEG file.

    Pillow reads such a file if enough other bytes follow, such as the zeros of a file that was not
    copied completely.
    """
    # Nearly all files end with the marker; only the others are searched from the start, because a
    # thumbnail image in the metadata has an end too.
    if data.rfind(b"\xff\xd9") >= len(data) - _USUAL_TRAILER:
        return False
    return _end_of_image(data) is None


def with_more_pixels(data: bytes) -> bytes:
    """Return a JPEG file with arbitrary compressed pixels inserted before the end of the image.

    A decoder ignores them if the image is complete.
    """
    end = _end_of_image(data)
    return data if end is None else data[:end] + _MORE_PIXELS + data[end:]


def zeros_before_end(data: bytes) -> tuple[int, int] | None:
    """Return start and stop of the zeros before the end of the image in a JPEG file.

    None if there are fewer than ``_SUSPICIOUS_ZEROS``. A file that was not copied completely may
    have them in place of compressed pixels. A flat area may consist of zeros too.
    """
    if bytes(_SUSPICIOUS_ZEROS) not in data:
        return None
    stop = _end_of_image(data)
    if stop is None:
        return None
    start = len(data[:stop].rstrip(b"\0"))
    return (start, stop) if stop - start >= _SUSPICIOUS_ZEROS else None


def _end_of_image(data: bytes) -> int | None:
    for marker, start, _ in _jpeg_segments(data):
        if marker == 0xD9:
            return start
    return None


def lacks_scans(data: bytes) -> bool:
    """Return whether the last scans of a progressive JPEG file are missing.

    Every coefficient of the first component is sent in several scans, the last of which has bit 0.
    """
    first: int | None = None
    low_bits = dict.fromkeys(range(64), -1)
    for marker, start, end in _jpeg_segments(data):
        body = data[start + 4 : end]
        if marker == 0xC2 and len(body) > 6:
            first = body[6]
        elif marker == 0xDA and first is not None and len(body) > 3:
            components = body[1 : 1 + 2 * body[0] : 2]
            if first in components:
                low, high, bits = body[-3:]
                low_bits.update(dict.fromkeys(range(low, min(high, 63) + 1), bits & 15))
    return first is not None and any(low_bits.values())


# WebP -------------------------------------------------------------------------------------------

_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04


def _webp_without_metadata(data: bytes, keep_exif: bool) -> bytes:
    kept: list[tuple[bytes, bytes]] = []
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack("<4sI", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        is_exif = name == b"EXIF" and keep_exif
        if name == b"VP8X" and body:
            flags = body[0] & ~(_WEBP_METADATA_FLAGS if not keep_exif else 0x20 | 0x04)
            kept.append((name, bytes((flags,)) + body[1:]))
        elif name in _WEBP_PIXELS or is_exif:
            kept.append((name, body))
        at += 8 + length + length % 2
    parts = [b"WEBP"]
    for name, body in kept:
        parts.append(struct.pack("<4sI", name, len(body)) + body + b"\0" * (len(body) % 2))
    content = b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(content)) + content


# AVIF and HEIC ------------------------------------------------------------------------------------

_ITEM_INFO = re.compile(rb"(infe[\x02\x03].{3}(?:.{2}|.{4}).{2})(Exif|mime)", re.DOTALL)
"""Description of an item: box type, version and flags, number, protection, and the item's type."""


def _heif_without_metadata(data: bytes, keep_exif: bool) -> bytes:
    """Give items of metadata an unknown type: decoders ignore these."""

    def rename(found: re.Match[bytes]) -> bytes:
        keep = found[2] == b"Exif" and keep_exif
        return found[0] if keep else found[1] + b"skip"

    end = data.find(b"mdat")
    return _ITEM_INFO.sub(rename, data[:end]) + data[end:] if end > 0 else data


# TIFF ---------------------------------------------------------------------------------------------

_TIFF_PIXELS = frozenset(
    (256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325)
    + (332, 338, 339, 347, 512, 513, 514, 515, 519, 520, 521, 529, 530, 531, 532)
)
"""Tags that decide the pixels (TIFF 6.0, part 3, and its technical notes)."""
_TIFF_ORIENTATION = 274


def _tiff_without_metadata(data: bytes, keep_exif: bool) -> bytes | None:
    """Keep the tags of the first image that decide its pixels."""
    order = "<" if data[:2] == b"II" else ">"
    magic, offset = struct.unpack(f"{order}2xHI", data[:8])
    if magic != 42:  # BigTIFF
        return None
    (number,) = struct.unpack_from(f"{order}H", data, offset)
    kept = []
    for at in range(offset + 2, offset + 2 + 12 * number, 12):
        (tag,) = struct.unpack_from(f"{order}H", data, at)
        if tag in _TIFF_PIXELS or (tag == _TIFF_ORIENTATION and keep_exif):
            kept.append(data[at : at + 12])
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:offset] + directory + data[offset + len(directory) :]


_WITHOUT_METADATA: dict[str, Callable[[bytes, bool], bytes | None]] = {
    "AVIF": _heif_without_metadata,
    "HEIF": _heif_without_metadata,
    "JPEG": _jpeg_without_metadata,
    "PNG": _png_without_metadata,
    "TIFF": _tiff_without_metadata,
    "WEBP": _webp_without_metadata,
}
