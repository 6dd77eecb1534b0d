"""Several labels per image: sets of labels as classes, and the 0/1 targets of each label.

The class of an image with several labels is its set of labels, written as one text with a
semicolon between the sorted labels: ``bus;car``. So everything that shows or counts classes works
with such images too, and cache files need no other layout. Heads and metrics use the targets: a
matrix with a row for each image and a column for each label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError
from featkit.images.base import ImageSet
from featkit.images.names import normal_form

SEPARATOR = ";"
"""Separates the labels of an image."""

NO_LABELS = "(none)"
"""Class of an image that has none of the labels."""


def join_labels(labels: Iterable[str]) -> str:
    """Return the class of an image with these labels, in any order.

    >>> join_labels(["car", "bus"])
    'bus;car'
    """
    return SEPARATOR.join(sorted(labels)) or NO_LABELS


def split_labels(name: str) -> tuple[str, ...]:
    """Return the labels of a class, sorted; none for ``NO_LABELS``.

    >>> split_labels("bus;car")
    ('bus', 'car')
    """
    return () if name == NO_LABELS else tuple(name.split(SEPARATOR))


def parse_labels(cell: str, where: str) -> tuple[str, ...]:
    """Return the labels in a cell such as ``car; bus``, in normal form and in their order.

    The cell ``(none)`` is that of an image without labels.

    Args:
        cell: labels with semicolons between them.
        where: line and file, for the error messages.

    Raises:
        DataError: if a label is empty or occurs twice.
    """
    labels: list[str] = []
    for part in cell.split(SEPARATOR):
        label = normal_form(part)
        if not label:
            raise DataError(
                f"{where} has an empty label in {cell!r}: write one semicolon between two labels"
            )
        if label in labels:
            raise DataError(f"{where} repeats label {label!r}: write each label once")
        labels.append(label)
    if NO_LABELS in labels and len(labels) > 1:
        raise DataError(f"{where} has {cell!r}: {NO_LABELS} is for an image without labels, alone")
    return tuple(label for label in labels if label != NO_LABELS)


def label_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the sorted labels that occur in classes, which are sets of labels."""
    found: set[str] = set()
    for name in classes:
        found.update(split_labels(name))
    return tuple(sorted(found))


def label_sets(classes: Sequence[str]) -> NDArray[np.uint8]:
    """Return which labels belong to which class, ``(classes, labels)`` zeros and ones."""
    names = label_names(classes)
    column_of = {name: column for column, name in enumerate(names)}
    sets = np.zeros((len(classes), len(names)), np.uint8)
    for row, name in enumerate(classes):
        sets[row, [column_of[label] for label in split_labels(name)]] = 1
    return sets


def targets_of(images: ImageSet) -> NDArray[np.uint8]:
    """Return which labels each image has, ``(n, labels)`` zeros and ones."""
    targets: NDArray[np.uint8] = label_sets(images.classes)[images.labels]
    return targets


def refuse_multilabel(images: ImageSet, what: str) -> None:
    """Raise DataError if images have several labels, which ``what`` cannot handle."""
    if images.multilabel:
        raise DataError(multilabel_message(images.name, what))


def one_label_message(option: str) -> str:
    """Return the error message for an option that images with several labels do not have."""
    return f"{option} needs one label per image, and these images have several: leave it out"


def multilabel_message(name: str, what: str) -> str:
    """Return the error message for images or a run with several labels per image."""
    return (
        f"{name} has several labels per image, and {what} needs one: use `featkit fit`, `predict`, "
        "`report`, `export`, `compare` or `ablate`, or list one label for each image"
    )
