"""What a data set contains, and what is wrong with its files, before anything is trained on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from featkit.errors import DecodeError
from featkit.images.base import SPLITS, ImageSet
from featkit.parallel import in_threads
from featkit.storage import available_cores
from featkit.studies.audit import FEW

_MAX_NAMED = 5


@dataclass(frozen=True)
class DataSummary:
    """Counts of a data set.

    Attributes:
        name: of the images.
        n: number of images.
        counts: for each class a row with its name and the number of images of each split.
        split: where the splits come from.
        warnings: problems of the data to check before training, one sentence each.
    """

    name: str
    n: int
    counts: tuple[dict[str, Any], ...]
    split: str
    warnings: tuple[str, ...]


def summarise_data(images: ImageSet) -> DataSummary:
    """Count the images of each class and split; warn of small classes and of missing splits."""
    of_class: dict[int, Counter[str]] = defaultdict(Counter)
    for label, split in zip(images.labels.tolist(), images.splits.tolist(), strict=True):
        of_class[label][split] += 1
    counts = []
    for label, name in enumerate(images.classes):
        counts.append({"class": name, **{split: of_class[label][split] for split in SPLITS}})
    split = "the data's own" if images.split == "own" else images.split
    return DataSummary(
        images.name, len(images), tuple(counts), split, tuple(_warnings(images, counts))
    )


def _warnings(images: ImageSet, counts: list[dict[str, Any]]) -> list[str]:
    warnings = list(images.notes)
    small = [each["class"] for each in counts if 0 < each["train"] + each["val"] < FEW]
    untested = [each["class"] for each in counts if not each["test"]]
    if len(images.classes) < 2:
        warnings.append("There is only one class: a classifier needs two or more.")
    if small:
        warnings.append(
            f"{len(small)} classes have fewer than {FEW} training images: {_named(small)}."
        )
    if untested:
        warnings.append(f"{len(untested)} classes have no test image: {_named(untested)}.")
    return warnings


def _named(names: list[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class FileCheck:
    """What was found when every image of a data set was read.

    Attributes:
        unreadable: name and reason of each image that cannot be decoded.
        shared: pairs of names of byte-identical images in different splits.
        duplicates: number of images that are byte-identical with another one of the same split.
    """

    unreadable: tuple[tuple[str, str], ...]
    shared: tuple[tuple[str, str], ...]
    duplicates: int


def check_files(
    images: ImageSet, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> FileCheck:
    """Decode every image; find those that cannot be read, and identical ones.

    Args:
        images: the images.
        on_progress: called with the number of images done and of all.
    """

    def read(row: int) -> tuple[int, str, str]:
        try:
            _, key = images.load_with_key(row)
        except DecodeError as error:
            return row, "", str(error)
        return row, key, ""

    unreadable, of_key = [], defaultdict(list)
    for row, key, error in in_threads(read, range(len(images)), available_cores()):
        if error:
            unreadable.append((images.ids[row], error))
        else:
            of_key[key].append(row)
        on_progress(row + 1, len(images))
    shared, duplicates = [], 0
    for rows in of_key.values():
        first = rows[0]
        for other in rows[1:]:
            if images.splits[other] == images.splits[first]:
                duplicates += 1
            else:
                shared.append((images.ids[first], images.ids[other]))
    return FileCheck(tuple(unreadable), tuple(shared), duplicates)
