"""Images that are files: folders, CSV tables, plain lists."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featkit.errors import DataError
from featkit.images.base import SPLITS, ImageSet
from featkit.images.decode import decode_file, file_key
from featkit.storage import safe_name

EXTENSIONS = (
    ".bmp",
    ".gif",
    ".jfif",
    ".jp2",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
"""Files of a folder that are images; others are passed over."""

UNSPLIT = "none"
"""``ImageSet.split`` of a source that has no splits of its own, before some are made."""

_ALIASES = {**{split: split for split in SPLITS}, "valid": "val", "validation": "val"}


class ImageEntry(NamedTuple):
    """One image file: its id, where it is, the name of its class, its split (empty where the source has none)."""

    id: str
    path: str
    label: str
    split: str


def from_entries(name: str, entries: Sequence[ImageEntry], classes: Sequence[str] | None = None) -> ImageSet:
    """Return image files as an ImageSet: classes sorted, those of train first, unless they are given.

    ``split`` is ``own`` where the entries have splits, else ``none``.
    """
    order = tuple(_classes(entries) if classes is None else classes)
    position = {label: place for place, label in enumerate(order)}
    paths = [entry.path for entry in entries]
    return ImageSet(
        name=name,
        ids=tuple(entry.id for entry in entries),
        labels=np.array([position[entry.label] for entry in entries], dtype=np.int64),
        classes=order,
        splits=np.array([entry.split or SPLITS[0] for entry in entries], dtype=np.str_),
        split="own" if any(entry.split for entry in entries) else UNSPLIT,
        load=lambda row: decode_file(paths[row]),
        key=lambda row: file_key(paths[row]),
    )


def _classes(entries: Sequence[ImageEntry]) -> list[str]:
    train = {entry.label for entry in entries if entry.split in ("", SPLITS[0])}
    return sorted(train) + sorted({entry.label for entry in entries} - train)


def images_from_files(files: Iterable[str | Path]) -> ImageSet:
    """Return files of unknown class, in order, as an ImageSet with one class that has no name."""
    return from_entries("images", [ImageEntry(str(file), str(file), "", "") for file in files])


def list_image_files(root: Path) -> list[str]:
    """Return the paths of all pictures in a folder and the folders in it, sorted.

    Raises:
        DataError: if there are none.
    """
    found = sorted(path for _, path in _walk(str(root), ""))
    if not found:
        raise DataError(f"{root} holds no pictures (known: {' '.join(EXTENSIONS)})")
    return found


def images_from_folder(root: Path) -> ImageSet:
    """Return the images below ``root/<class>/`` or ``root/{train,val,test}/<class>/``, sorted by id.

    Hidden files, and files whose extension is not in ``EXTENSIONS``, are passed over. A linked folder is followed
    where it is a class, but not inside one, where links may form a circle.

    Raises:
        DataError: if there are no class folders, or one of them holds no images.
    """
    entries = [
        ImageEntry(f"{prefix}{kind.name}/{below}", path, kind.name, split)
        for prefix, base, split in _parts(root)
        for kind in _class_folders(base)
        for below, path in _images(kind)
    ]
    _refuse_undecodable(entries)
    return from_entries(safe_name(root.resolve().name), sorted(entries))


def _parts(root: Path) -> list[tuple[str, str, str]]:
    """Return ``(prefix of ids, folder of class folders, split)`` for each part; one without split if there is none."""
    names = [entry.name for entry in _scan(root) if entry.is_dir()]
    splits = {name: _ALIASES[name.lower()] for name in names if name.lower() in _ALIASES}
    others = [name for name in names if name not in splits]
    if splits and not others:
        return [(f"{name}/", str(root / name), split) for name, split in splits.items()]
    if {"train", "test"} <= set(splits.values()):
        raise DataError(
            f"{root} holds folders of splits ({', '.join(splits)}) beside others ({', '.join(others)}): "
            "move the others away, or the classes of all together one level up"
        )
    return [("", str(root), "")]


def _class_folders(base: str) -> list[os.DirEntry[str]]:
    entries = _scan(base)
    folders = [entry for entry in entries if entry.is_dir()]
    if folders:
        return folders
    if any(_is_image(entry.name) for entry in entries):
        raise DataError(f"{base} holds images but no class folders: sort them into {Path(base, '<class>')}")
    raise DataError(f"{base} holds no images: it should have a folder for each class")


def _images(kind: os.DirEntry[str]) -> list[tuple[str, str]]:
    found = list(_walk(kind.path, ""))
    if not found:
        raise DataError(f"{kind.path} holds no images: fill or remove it (known: {' '.join(EXTENSIONS)})")
    return found


def _walk(base: str, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in _scan(base):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
        elif _is_image(entry.name) and not entry.is_dir():
            yield prefix + entry.name, entry.path


def _scan(base: str | Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, but for hidden names, sorted."""
    try:
        with os.scandir(base) as entries:
            return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{base} cannot be listed: {error.strerror}; check the path and its permissions") from error


def _refuse_undecodable(entries: Iterable[ImageEntry]) -> None:
    for entry in entries:
        try:
            entry.id.encode()
        except UnicodeEncodeError:
            raise DataError(f"the name of {entry.path!a} is not UTF-8: rename it") from None


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def images_from_csv(path: Path) -> ImageSet:
    """Return the images that a CSV file lists: columns ``path,label`` and perhaps ``split``; others are passed over.

    Paths are relative to the file, which is UTF-8, with or without a byte order mark.

    Raises:
        DataError: if a column or a file is missing, a path comes twice, or a split is unknown.
    """
    entries = [_entry(path, line, row) for line, row in _lines(path)]
    if not entries:
        raise DataError(f"{path} lists no images: below the header, give each image a line")
    _refuse_duplicates(path, entries)
    missing = [entry.id for entry in entries if not Path(entry.path).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} files that {path} lists are missing, the first of them {missing[0]!r}: "
            "paths are relative to the CSV file"
        )
    return from_entries(safe_name(path.resolve().parent.name if path.stem == "labels" else path.stem), entries)


def _lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            reader.fieldnames = _columns(path, reader.fieldnames or [])
            return [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it as CSV UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path} is not CSV ({error}): save it as comma-separated UTF-8 text") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check its permissions") from error


def _columns(path: Path, header: Sequence[str]) -> list[str]:
    columns = [column.strip() for column in header]
    for column in ("path", "label"):
        if column not in columns:
            found = ", ".join(columns) or "nothing"
            raise DataError(f"{path} has no column {column!r}: its first line has {found}, not path,label[,split]")
    return columns


def _entry(path: Path, line: int, row: dict[str, str]) -> ImageEntry:
    where = f"line {line} of {path}"
    if None in row or None in row.values():
        raise DataError(f"{where} has another number of cells than the header: put quotes around what holds a comma")
    if not row["path"] or not row["label"].strip():
        raise DataError(f"{where} has no path or no label: every image needs both")
    split = row.get("split")
    if split is not None and split.strip().lower() not in _ALIASES:
        raise DataError(f"{where} has an unknown split {split!r}: known: {', '.join(_ALIASES)}")
    split = "" if split is None else _ALIASES[split.strip().lower()]
    return ImageEntry(row["path"], str(path.parent / row["path"]), row["label"].strip(), split)


def _refuse_duplicates(path: Path, entries: Iterable[ImageEntry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        place = os.path.normpath(entry.path)
        if place in seen:
            raise DataError(f"{path} lists {entry.id!r} twice: an image has one label and one split")
        seen.add(place)
