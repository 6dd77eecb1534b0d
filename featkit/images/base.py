"""The value that every source of images becomes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
T = TypeVar("T")

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, none of them in memory yet.

    Attributes:
        name: short name for files and tables, such as ``digits`` or the folder's name.
        ids: one unique name for each image: a relative path where there is one. Length n.
        labels: ``(n,)`` int64, positions in ``classes``. A subset need not contain every class.
        classes: class names, in the order of the training part.
        splits: ``(n,)`` text, ``train``, ``val`` or ``test``.
        split: where ``splits`` comes from: ``own`` (the source says so), or the rule that made them,
            such as ``70/15/15:seed=0``.
        load: position -> uint8 RGB ``(h, w, 3)``. Raises DecodeError. Safe to call from several threads.
        key: position -> SHA-256 (hex) of the image's bytes; equal keys mean equal pixels. Thread-safe too.
    """

    name: str
    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    splits: NDArray[np.str_]
    split: str
    load: Callable[[int], Pixels]
    key: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the positions of one split, in order."""
        return np.flatnonzero(self.splits == split)

    def take(self, rows: NDArray[np.int64]) -> ImageSet:
        """Return the part at ``rows``; classes stay as they are."""
        load, key = self.load, self.key
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            labels=self.labels[rows],
            splits=self.splits[rows],
            load=lambda place: load(int(rows[place])),
            key=lambda place: key(int(rows[place])),
        )


def cache_last_row(read: Callable[[int], T]) -> Callable[[int], T]:
    """Return ``read`` with a memory of one image for each thread, to read it once for all that is made of it."""
    last = threading.local()

    def remembered(row: int) -> T:
        if getattr(last, "row", None) != row:
            last.found, last.row = read(row), row
        found: T = last.found
        return found

    return remembered
