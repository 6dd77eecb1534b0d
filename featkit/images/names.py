"""Names of files and folders: image endings, splits, folders of other programs, look-alikes."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib.util import find_spec

# Image files ------------------------------------------------------------------------------------

_ALWAYS_READ = (
    ".apng",
    ".bmp",
    ".gif",
    ".j2k",
    ".jfif",
    ".jp2",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".mpo",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
_AVIF = (".avif",)
HEIF = (".heic", ".heif", ".hif")
"""Endings of images that need the extra ``heif``."""

# fmt: off
_OTHER_IMAGES = frozenset((
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcm", ".dng", ".eps", ".erf", ".exr", ".hdr",
    ".ico", ".iiq", ".j2c", ".jpf", ".jpx", ".jxl", ".jxr", ".mrw", ".nef", ".nrw", ".orf",
    ".pcx", ".pef", ".psd", ".raf", ".raw", ".rw2", ".sr2", ".srw", ".svg", ".svgz",
    ".tga", ".wdp", ".x3f", ".xcf",
))
# fmt: on
"""Endings of images that featkit does not read."""

_SYSTEM_FILES = frozenset(("desktop.ini", "ehthumbs.db", "thumbs.db", "icon\r", "picasa.ini"))
"""Files that file managers put into folders of images, lower case."""


@cache
def image_endings() -> tuple[str, ...]:
    """Return the endings of the image files that this installation reads, sorted, lower case."""
    from PIL import features

    endings = [*_ALWAYS_READ]
    if features.check("avif"):
        endings += _AVIF
    if find_spec("pillow_heif"):
        endings += HEIF
    return tuple(sorted(endings))


def is_image(name: str) -> bool:
    """Return whether a file is read as an image, by its ending."""
    return name.lower().endswith(image_endings())


def is_system_file(name: str) -> bool:
    """Return whether a file manager made a file: it is ignored without a word."""
    return name.lower() in _SYSTEM_FILES


def ending(name: str) -> str:
    """Return the ending of a file name, lower case with its dot, or ``without ending``."""
    stem, dot, last = name.rpartition(".")
    if not dot or not stem:
        return "without ending"
    return f".{last.lower()}" if re.fullmatch("[A-Za-z0-9_~-]{1,12}", last) else "other"


def unread_images(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the counts of endings that belong to images which this installation does not read."""
    known = _OTHER_IMAGES.union(_AVIF, HEIF)
    return {name: number for name, number in counts.items() if name in known}


# Folders ----------------------------------------------------------------------------------------

_FOREIGN = frozenset(
    (
        "#recycle",
        "#snapshot",
        "$extend",
        "$recycle.bin",
        "@__thumb",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@sharebin",
        "@tmp",
        "__macosx",
        "__pycache__",
        "dfsrprivate",
        "lost+found",
        "lost.dir",
        "msocache",
        "network trash folder",
        "recycle.bin",
        "system volume information",
        "temporary items",
        "thevolumesettingsfolder",
        "~snapshot",
    )
)
"""Folders of operating systems, network storage and archives, lower case."""

_FOREIGN_PATTERN = re.compile(r"found\.\d{3}|RECYCLE[RD]|FOUND\.\d{3}")


def is_foreign(name: str) -> bool:
    """Return whether a folder belongs to the system: thumbnails, deleted files, archive metadata.

    Such folders of Synology and QNAP storage, macOS, Windows and Linux are never classes.
    """
    return name.lower() in _FOREIGN or bool(_FOREIGN_PATTERN.fullmatch(name))


# Splits -----------------------------------------------------------------------------------------

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "devel": "val",
    "development": "val",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "eval": "eval",
    "evaluation": "eval",
    "holdout": "test",
    "pred": "unlabelled",
    "predict": "unlabelled",
    "prediction": "unlabelled",
    "unlabeled": "unlabelled",
    "unlabelled": "unlabelled",
}
"""Words in names of splits. ``eval`` is a validation split beside a test split, else a test split.
"""

_ANY_NAME = frozenset(
    [
        "data",
        "dataset",
        "folder",
        "image",
        "images",
        "img",
        "imgs",
        "photo",
        "photos",
        "picture",
        "pictures",
        "sample",
        "samples",
        "set",
        "split",
    ]
)
"""Words beside them that say nothing."""

_JOINED = re.compile(f"({'|'.join(_SPLIT_WORDS)})({'|'.join(_ANY_NAME)})")


def split_of(name: str, names: Iterable[str]) -> str | None:
    """Return the split that a value of a table stands for, given all values; None if unknown.

    Args:
        name: such as ``train``, ``Training`` or ``dev``.
        names: all values of the table, among them ``name``.
    """
    word = name.strip().lower()
    split = _SPLIT_WORDS.get(word)
    if split == "eval":
        return _split_of_eval({_SPLIT_WORDS.get(other.strip().lower()) for other in names})
    return None if split == "unlabelled" else split


def _split_of_eval(others: set[str | None]) -> str:
    return "val" if "test" in others and "val" not in others else "test"


def split_folders(names: Iterable[str]) -> dict[str, str]:
    """Return the splits that folders stand for, by folder name; empty if one is no split.

    Known are the usual names (``train``, ``training``, ``val``, ``valid``, ``validation``, ``dev``,
    ``test``, ``testing``, ``eval``), the same with words such as ``images`` or ``set``, and names
    with one common word, such as ``seg_train`` and ``seg_test``. The split of folders such as
    ``seg_pred`` beside them is ``unlabelled``.
    """
    parsed = {name: _parse_split(name) for name in names}
    found: dict[str, str] = {}
    rests: set[tuple[str, ...]] = set()
    for name, parts in parsed.items():
        if parts is None:
            return {}
        found[name], rest = parts
        rests.add(rest)
    if len(rests) != 1:
        return {}
    splits: set[str | None] = set(found.values())
    plain = rests == {()} and "unlabelled" not in splits
    if not plain and not ("train" in splits and splits & {"val", "test", "eval"}):
        return {}
    evaluated = _split_of_eval(splits)
    return {name: evaluated if split == "eval" else split for name, split in found.items()}


def plain_splits(names: Collection[str]) -> dict[str, str]:
    """Return the folders among others whose whole name is one of the usual names of a split."""
    found = {name: split_of(name, names) for name in names}
    return {name: split for name, split in found.items() if split is not None}


def _parse_split(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return split and the other words of a name; None unless it has exactly one split."""
    words = re.findall("[^\\W\\d_]+", name.lower())
    splits: list[str] = []
    rest: list[str] = []
    for word in words:
        joined = _JOINED.fullmatch(word)
        word = joined[1] if joined else word
        if word in _SPLIT_WORDS:
            splits.append(_SPLIT_WORDS[word])
        elif word not in _ANY_NAME:
            rest.append(word)
    if splits == ["train", "val"]:
        splits = ["train"]
    return (splits[0], tuple(rest)) if len(splits) == 1 else None


# Look-alikes ------------------------------------------------------------------------------------

_JOINERS = "\u200c\u200d"
"""Zero-width joiner and non-joiner: part of the spelling in some scripts, and of emoji."""


def normal_form(text: str) -> str:
    """Return a label in its normal form.

    That is Unicode NFC, without invisible characters and without spaces at the ends. Bytes that are
    not UTF-8 are written as escapes.
    """
    if text.isascii() and text.isprintable():
        return text.strip()
    visible = []
    for letter in unicodedata.normalize("NFC", printable(text)):
        if letter in _JOINERS or unicodedata.category(letter) != "Cf":
            visible.append(letter)
    return unicodedata.normalize("NFC", "".join(visible)).strip()


def look_alike(text: str) -> str:
    """Return a key that is the same for names that look the same.

    Compared to ``normal_form``, joiners and variation selectors are removed, and spaces of any kind
    and number are one space.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    visible = []
    for letter in normal_form(text):
        if letter not in _JOINERS and not 0xFE00 <= ord(letter) <= 0xFE0F:
            visible.append(letter)
    return " ".join("".join(visible).split())


def printable(name: str) -> str:
    r"""Return a file name as text that can be encoded: ``caf\xe9`` for bytes that are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    return name
