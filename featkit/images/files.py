"""Image sets from files: class folders, CSV tables and lists of paths."""

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
"""Extensions of image files; other files of a folder are ignored."""

UNSPLIT = "none"
"""``ImageSet.split`` of a source that defines no splits."""

_SPLIT_NAMES = {**{split: split for split in SPLITS}, "valid": "val", "validation": "val"}


class ImageEntry(NamedTuple):
    """An image file.

    Attributes:
        id: unique name.
        path: path of the file.
        label: class name.
        split: ``train``, ``val`` or ``test``; empty if the source defines no splits.
    """

    id: str
    path: str
    label: str
    split: str


def from_entries(
    name: str, entries: Sequence[ImageEntry], classes: Sequence[str] | None = None
) -> ImageSet:
    """Return image files as an ImageSet.

    ``split`` is ``own`` if the entries have splits, else ``none``.

    Args:
        name: name of the image set.
        entries: the files.
        classes: class names in order; None for sorted names, those of the training images first.
    """
    order = tuple(_classes(entries) if classes is None else classes)
    index_of = {label: index for index, label in enumerate(order)}
    paths = [entry.path for entry in entries]
    return ImageSet(
        name=name,
        ids=tuple(entry.id for entry in entries),
        labels=np.array([index_of[entry.label] for entry in entries], dtype=np.int64),
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
    """Return files of unknown class as an ImageSet with one class, whose name is empty."""
    return from_entries("images", [ImageEntry(str(file), str(file), "", "") for file in files])


def list_image_files(root: Path) -> list[str]:
    """Return the paths of all images in a folder and its subfolders, sorted.

    Raises:
        DataError: if there are none.
    """
    found = sorted(path for _, path in _walk(str(root), ""))
    if not found:
        raise DataError(f"{root} contains no images (known extensions: {' '.join(EXTENSIONS)})")
    return found


def images_from_folder(root: Path) -> ImageSet:
    """Return the images of a folder with one subfolder for each class, sorted by id.

    The class folders are in ``root``, or in split folders ``train``, ``val`` and ``test`` in it.
    Hidden files, and files whose extension is not in ``EXTENSIONS``, are ignored. A symbolic link
    to a folder is followed if it is a class folder, but not inside one, where links may be cyclic.

    Raises:
        DataError: if there are no class folders, or one of them contains no images.
    """
    entries = []
    for prefix, base, split in _parts(root):
        for kind in _class_folders(base):
            for below, path in _images(kind):
                entries.append(ImageEntry(f"{prefix}{kind.name}/{below}", path, kind.name, split))
    _check_names(entries)
    return from_entries(safe_name(root.resolve().name), sorted(entries))


def _parts(root: Path) -> list[tuple[str, str, str]]:
    """Return ``(prefix of ids, folder of class folders, split)`` of each split.

    A folder without split folders is a single part with an empty split.
    """
    splits: dict[str, str] = {}
    others: list[str] = []
    for entry in _scan(root):
        if entry.is_dir() and entry.name.lower() in _SPLIT_NAMES:
            splits[entry.name] = _SPLIT_NAMES[entry.name.lower()]
        elif entry.is_dir():
            others.append(entry.name)
    if splits and not others:
        return [(f"{name}/", str(root / name), split) for name, split in splits.items()]
    if {"train", "test"} <= set(splits.values()):
        raise DataError(
            f"{root} contains split folders ({', '.join(splits)}) next to other folders "
            f"({', '.join(others)}): move the other folders away, or move the class folders of all "
            "splits one level up"
        )
    return [("", str(root), "")]


def _class_folders(base: str) -> list[os.DirEntry[str]]:
    entries = _scan(base)
    folders = [entry for entry in entries if entry.is_dir()]
    if folders:
        return folders
    if any(_is_image(entry.name) for entry in entries):
        raise DataError(
            f"{base} contains images but no class folders: sort them into {Path(base, '<class>')}"
        )
    raise DataError(f"{base} contains no images: expected a folder for each class")


def _images(kind: os.DirEntry[str]) -> list[tuple[str, str]]:
    found = list(_walk(kind.path, ""))
    if not found:
        raise DataError(
            f"{kind.path} contains no images: add some or remove it (known extensions: "
            f"{' '.join(EXTENSIONS)})"
        )
    return found


def _walk(base: str, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in _scan(base):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
        elif _is_image(entry.name) and not entry.is_dir():
            yield prefix + entry.name, entry.path


def _scan(base: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder except for hidden ones, sorted by name."""
    try:
        with os.scandir(base) as entries:
            return sorted(
                (entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name
            )
    except OSError as error:
        raise DataError(
            f"{base} cannot be listed: {error.strerror}; check the path and its permissions"
        ) from error


def _check_names(entries: Iterable[ImageEntry]) -> None:
    for entry in entries:
        try:
            entry.id.encode()
        except UnicodeEncodeError:
            raise DataError(f"the name of {entry.path!a} is not UTF-8: rename it") from None


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def images_from_csv(path: Path) -> ImageSet:
    """Return the images listed in a CSV file with columns ``path,label`` and optionally ``split``.

    Other columns are ignored. Paths are relative to the CSV file, which is UTF-8, with or without a
    byte order mark.

    Raises:
        DataError: if a column or a file is missing, a path occurs twice, or a split is unknown.
    """
    entries = [_entry(path, line, row) for line, row in _lines(path)]
    if not entries:
        raise DataError(f"{path} lists no images: add a line for each image below the header")
    _check_duplicates(path, entries)
    missing = [entry.id for entry in entries if not Path(entry.path).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} files listed in {path} are missing, the first is {missing[0]!r}: "
            "paths are relative to the CSV file"
        )
    return from_entries(
        safe_name(path.resolve().parent.name if path.stem == "labels" else path.stem), entries
    )


def _lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            reader.fieldnames = _columns(path, reader.fieldnames or [])
            return [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it as CSV UTF-8") from error
    except csv.Error as error:
        raise DataError(
            f"{path} is not CSV ({error}): save it as comma-separated UTF-8 text"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; check its permissions"
        ) from error


def _columns(path: Path, header: Sequence[str]) -> list[str]:
    columns = [column.strip() for column in header]
    for column in ("path", "label"):
        if column not in columns:
            found = ", ".join(columns) or "no columns"
            raise DataError(
                f"{path} has no column {column!r}: expected path,label[,split], found {found}"
            )
    return columns


def _entry(path: Path, line: int, row: dict[str, str]) -> ImageEntry:
    where = f"line {line} of {path}"
    if None in row or None in row.values():
        raise DataError(
            f"{where} has not as many values as the header: put quotes around values that contain "
            "a comma"
        )
    if not row["path"] or not row["label"].strip():
        raise DataError(f"{where} has an empty path or label: every image needs both")
    split = row.get("split")
    if split is not None and split.strip().lower() not in _SPLIT_NAMES:
        raise DataError(f"{where} has an unknown split {split!r}: known: {', '.join(_SPLIT_NAMES)}")
    split = "" if split is None else _SPLIT_NAMES[split.strip().lower()]
    return ImageEntry(row["path"], str(path.parent / row["path"]), row["label"].strip(), split)


def _check_duplicates(path: Path, entries: Iterable[ImageEntry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        path_key = os.path.normpath(entry.path)
        if path_key in seen:
            raise DataError(f"{path} lists {entry.id!r} twice: list each image once")
        seen.add(path_key)
