"""Image sets from files: entries with path, label and split."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featkit.errors import DataError, DecodeError
from featkit.images.base import SPLITS, FileKey, ImageSet, KeyedLoad
from featkit.images.decode import decode_file, decode_file_with_key, file_content
from featkit.images.intensity import IntensityRange
from featkit.images.names import look_alike

_log = logging.getLogger("featkit")

UNSPLIT = "none"
"""``ImageSet.split`` of a source that defines no splits."""


class ImageEntry(NamedTuple):
    """An image file.

    Attributes:
        id: unique name.
        path: path of the file.
        label: class name.
        split: ``train``, ``val`` or ``test``; empty if the source defines no splits.
        problem: message of the DecodeError that reading it raises; empty to read the file.
        group: group of the image, such as a patient; empty for none.
    """

    id: str
    path: str
    label: str
    split: str
    problem: str = ""
    group: str = ""


def from_entries(
    name: str,
    entries: Sequence[ImageEntry],
    classes: Sequence[str] | None = None,
    notes: Iterable[str] = (),
    intensity: IntensityRange | None = None,
) -> ImageSet:
    """Return image files as an ImageSet.

    ``split`` is ``own`` if the entries have splits, else ``none``.

    Args:
        name: name of the image set.
        entries: the files.
        classes: class names in order; None for sorted names, those of the training images first.
        notes: what was noticed when the files were listed, one line each.
        intensity: see ``featkit.images.decode.decode``.
    """
    warn_once = _first_only(_log.warning)
    order = tuple(_classes(entries) if classes is None else classes)
    index_of = {label: index for index, label in enumerate(order)}
    files = [(entry.path, entry.problem) for entry in entries]
    has_groups = any(entry.group for entry in entries)

    def path_of(row: int) -> str:
        path, problem = files[row]
        if problem:
            raise DecodeError(problem)
        return path

    def load_for(edge: int | None) -> KeyedLoad:
        return KeyedLoad(
            lambda row: decode_file(path_of(row), intensity, warn_once, edge),
            lambda row: decode_file_with_key(path_of(row), intensity, warn_once, edge),
            load_for,
        )

    return ImageSet(
        name=name,
        ids=tuple(entry.id for entry in entries),
        labels=np.array([index_of[entry.label] for entry in entries], dtype=np.int64),
        classes=order,
        splits=np.array([entry.split or SPLITS[0] for entry in entries], dtype=np.str_),
        split="own" if any(entry.split for entry in entries) else UNSPLIT,
        load=load_for(None),
        key=FileKey(
            tuple("" if entry.problem else entry.path for entry in entries),
            lambda row: file_content(path_of(row), intensity),
        ),
        notes=tuple(notes),
        intensity="none" if intensity is None else str(intensity),
        files=tuple(entry.path for entry in entries),
        groups=tuple(entry.group for entry in entries) if has_groups else (),
    )


def _first_only(report: Callable[[str], None]) -> Callable[[str], None]:
    """Return a thread-safe function that reports the first message it gets, and no other."""
    pending = iter([report])

    def report_first(message: str) -> None:
        next(pending, _ignore)(message)

    return report_first


def _ignore(message: str) -> None:
    pass


def _classes(entries: Sequence[ImageEntry]) -> list[str]:
    train = {entry.label for entry in entries if entry.split in ("", SPLITS[0])}
    return sorted(train) + sorted({entry.label for entry in entries} - train)


def images_from_files(
    files: Iterable[str | Path], intensity: IntensityRange | None = None
) -> ImageSet:
    """Return files of unknown class as an ImageSet with one class, whose name is empty."""
    entries = [ImageEntry(str(file), str(file), "", "") for file in files]
    return from_entries("images", entries, intensity=intensity)


def check_labels(where: str, labels: Iterable[str]) -> None:
    """Check that no label is empty, and that no two differ only in ways that cannot be seen.

    Args:
        where: source of the labels for error messages.
        labels: in normal form, see ``featkit.images.names.normal_form``.

    Raises:
        DataError: if one is empty, or two look the same.
    """
    seen: dict[str, str] = {}
    for label in dict.fromkeys(labels):
        other = seen.setdefault(look_alike(label), label)
        if not label:
            raise DataError(f"{where} has a class whose name is empty or invisible: rename it")
        if other != label:
            raise DataError(
                f"{where} has two classes whose names look the same, {other!a} and "
                f"{label!a}: rename one of them"
            )


def note_look_alikes(names: Iterable[str]) -> list[str]:
    """Return a note on image names that look the same, an empty list if there are none."""
    unusual: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if not name.isascii() or " " in name:
            unusual[look_alike(name)].append(name)
    groups = [group for group in unusual.values() if len(group) > 1]
    if not groups:
        return []
    first = " and ".join(ascii(name) for name in groups[0][:2])
    return [
        f"{len(groups)} names stand for several images that differ only in invisible characters, "
        f"spaces or Unicode form, such as {first}"
    ]
