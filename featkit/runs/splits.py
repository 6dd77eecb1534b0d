"""Which rows a head is fitted on, which choose its settings, and which judge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.base import Embeddings
from featkit.errors import DataError
from featkit.images.augment import is_augmented_view, original_id
from featkit.images.splits import stratified_split
from featkit.images.subsets import parse_subset

VAL_SHARE = 0.2
"""Share of train that serves as val where the data has none of its own."""


@dataclass(frozen=True)
class DataSplits:
    """Rows of one file of vectors, no image in two of the first three parts.

    Attributes:
        fit: what heads are fitted on while settings are chosen.
        val: what chooses them: images as they are, without augmented views.
        test: what judges the head, once.
        final: what the head with the chosen settings is fitted on: all of train and val.
        own_val: whether the data came with a val part; otherwise it is a fifth of train, stratified, by seed.
    """

    fit: Embeddings
    val: Embeddings
    test: Embeddings
    final: Embeddings
    own_val: bool


def make_splits(embeddings: Embeddings, seed: int, subset: str | None = None) -> DataSplits:
    """Divide vectors into the parts of the protocol; the views of an image go where the image goes.

    Args:
        embeddings: the vectors.
        seed: of what is drawn.
        subset: spec of a part of train, such as ``longtail:if=50``. A val part of the data's own is not like that part,
            and so chooses only; otherwise the head is fitted on it at last.

    Raises:
        SpecError: if the subset is unknown.
        DataError: if train has fewer than two classes, there is no test image, or a number is not finite.
    """
    refuse_infinite(embeddings)
    if subset:
        embeddings = _narrowed(embeddings, subset, seed)
    train, test = embeddings.part("train"), embeddings.part("test")
    if len(np.unique(train.y)) < 2 or not len(test):
        raise DataError(f"too few images: {len(train)} to train on, {len(test)} to test on")
    val = embeddings.part("val")
    final = embeddings.take(np.flatnonzero(embeddings.splits != "test"))
    if len(val):
        return DataSplits(train, val, test, train if subset else final, own_val=True)
    held_out = _held_out(train, seed)
    clean = np.array([not is_augmented_view(name) for name in train.ids])
    return DataSplits(
        train.take(np.flatnonzero(~held_out)), train.take(np.flatnonzero(held_out & clean)), test, final, own_val=False
    )


def train_counts(embeddings: Embeddings) -> NDArray[np.int64]:
    """Return ``(k,)`` how many images of each class there are, augmented views not counted."""
    return np.bincount(without_views(embeddings).y, minlength=len(embeddings.classes))


def without_views(embeddings: Embeddings) -> Embeddings:
    """Return the vectors of the images as they are."""
    return embeddings.take(np.array([row for row, name in enumerate(embeddings.ids) if not is_augmented_view(name)], np.int64))


def unseen(classes: Sequence[str], tested: NDArray[np.int64], seen: NDArray[np.int64]) -> list[str]:
    """Say which classes are tested ``(n,)`` and were never seen ``(m,)``."""
    names = [classes[label] for label in np.setdiff1d(tested, seen)]
    return [f"no training image of {', '.join(names)}: every test image of it is a miss"] if names else []


def _narrowed(embeddings: Embeddings, subset: str, seed: int) -> Embeddings:
    """Return the vectors without the train images that a subset leaves out, and without their views."""
    train = embeddings.splits == "train"
    clean = np.flatnonzero(train & [not is_augmented_view(name) for name in embeddings.ids])
    chosen = parse_subset(subset)(embeddings.y[clean], seed, embeddings.classes)
    names = {embeddings.ids[row] for row in clean[chosen]}
    kept = ~train | [original_id(name) in names for name in embeddings.ids]
    return embeddings.take(np.flatnonzero(kept))


def _held_out(train: Embeddings, seed: int) -> NDArray[np.bool_]:
    """Return ``(n,)`` which train rows are of an image that serves as val; no class loses its last image."""
    sources = [original_id(name) for name in train.ids]
    names, first, of = np.unique(sources, return_index=True, return_inverse=True)
    order = np.argsort(first)  # the split is that of the images in their own order
    chosen = np.empty(len(names), bool)
    chosen[order] = stratified_split(train.y[first[order]], (1 - VAL_SHARE, VAL_SHARE, 0.0), seed) == "val"
    held_out: NDArray[np.bool_] = chosen[of]
    return held_out


def refuse_infinite(embeddings: Embeddings) -> None:
    """Refuse vectors with a number that is not finite.

    Raises:
        DataError: naming the first column and image.
    """
    wrong = ~np.isfinite(embeddings.x)
    if wrong.any():
        columns = np.flatnonzero(wrong.any(axis=0))
        image = embeddings.ids[int(np.flatnonzero(wrong.any(axis=1))[0])]
        raise DataError(
            f"{len(columns)} columns of the vectors hold numbers that are not finite (first column {columns[0]}, "
            f"image {image}): extract them again with --precision fp32"
        )
