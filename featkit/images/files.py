"""Image sets from files: entries with path, label and split."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featkit.errors import DataError, DecodeError, visible
from featkit.images.base import SPLITS, FileContent, FileKey, ImageSet, KeyedLoad, Pixels
from featkit.images.decode import content_key, decode, jpeg_edge, read_bytes
from featkit.images.intensity import IntensityRange
from featkit.images.names import look_alike, printable
from featkit.images.remote import RemoteImage

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
        remote: where the file is downloaded from when it is read for the first time; None for a
            local file.
    """

    id: str
    path: str
    label: str
    split: str
    problem: str = ""
    group: str = ""
    remote: RemoteImage | None = None


def from_entries(
    name: str,
    entries: Sequence[ImageEntry],
    classes: Sequence[str] | None = None,
    notes: Iterable[str] = (),
    intensity: IntensityRange | None = None,
    *,
    read: Callable[[int], bytes] | None = None,
    members: Sequence[str] = (),
    multilabel: bool = False,
) -> ImageSet:
    """Return image files as an ImageSet.

    ``split`` is ``own`` if the entries have splits, else ``none``.

    Args:
        name: name of the image set.
        entries: the files.
        classes: class names in order; None for sorted names, those of the training images first.
        notes: what was noticed when the files were listed, one line each.
        intensity: see ``featkit.images.decode.decode``.
        read: function from row number to the bytes of the image; None to read its file.
        members: name of each image in its file; empty if the images are files by themselves.
        multilabel: whether the label of an entry is a set of labels, see
            ``featkit.images.multilabel.join_labels``.
    """
    warn_once = _first_only(_log.warning)
    order = tuple(_classes(entries) if classes is None else classes)
    index_of = {label: index for index, label in enumerate(order)}
    files = [(entry.path, entry.problem) for entry in entries]
    has_groups = any(entry.group for entry in entries)

    def bytes_of(row: int) -> bytes:
        path, problem = files[row]
        if problem:
            raise DecodeError(problem)
        remote = entries[row].remote
        if remote is not None:
            remote.download()
        return read_bytes(path) if read is None else read(row)

    def decoded(row: int, edge: int | None) -> tuple[Pixels, bytes]:
        data, name = bytes_of(row), files[row][0]
        if members:
            name = f"{name}: member {visible(printable(members[row]))!r}"
        return decode(data, name, intensity, warn_once, edge), data

    def decoded_with_key(row: int, edge: int | None) -> tuple[Pixels, str]:
        pixels, data = decoded(row, edge)
        return pixels, content_key(data, intensity)

    def content(row: int) -> FileContent:
        data = bytes_of(row)
        return FileContent(content_key(data, intensity), jpeg_edge(data))

    def load_for(edge: int | None) -> KeyedLoad:
        return KeyedLoad(
            lambda row: decoded(row, edge)[0], lambda row: decoded_with_key(row, edge), load_for
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
            content,
            tuple(members),
        ),
        notes=tuple(notes),
        intensity="none" if intensity is None else str(intensity),
        files=() if members else tuple(entry.path for entry in entries),
        groups=tuple(entry.group for entry in entries) if has_groups else (),
        urls=_urls(entries),
        multilabel=multilabel,
    )


def _urls(entries: Sequence[ImageEntry]) -> tuple[str, ...]:
    """Return the URL of each image, an empty text for a local file; nothing without any URL."""
    urls = tuple(entry.remote.url if entry.remote else "" for entry in entries)
    return urls if any(urls) else ()


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
