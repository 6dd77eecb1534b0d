"""Train, validation and test rows of one experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.blocks import is_view
from featkit.embeddings.base import Embeddings
from featkit.errors import DataError
from featkit.images.augment import are_augmented_views, original_id
from featkit.images.base import SPLITS
from featkit.images.groups import hold_out_groups, leak_text
from featkit.images.iterative import iterative_split
from featkit.images.splits import stratified_split
from featkit.images.subsets import parse_subset

VAL_SHARE = 0.2
"""Fraction of train that is held out for validation if the data has no validation split."""


GROUP_LEAK = "group leak"
"""Start of the warning that a group has images in more than one split."""


@dataclass(frozen=True)
class DataSplits:
    """Embeddings of the splits of an experiment; ``fit``, ``val`` and ``test`` share no image.

    Attributes:
        fit: the head is fitted on these while hyperparameters are tuned.
        val: hyperparameters are tuned on these: original images, without augmented views.
        test: the final head is evaluated on these, once.
        final: the final head is fitted on these: all train and validation images.
        own_val: whether the data came with a validation split; otherwise it is a stratified fifth
            of train, drawn with the seed.
    """

    fit: Embeddings
    val: Embeddings
    test: Embeddings
    final: Embeddings
    own_val: bool


def make_splits(embeddings: Embeddings, seed: int, subset: str | None = None) -> DataSplits:
    """Split embeddings for fitting, tuning and testing; augmented views stay with their image.

    Args:
        embeddings: of all images.
        seed: of the held-out validation images and of the subset.
        subset: spec of a subset of train, such as ``longtail:if=50``. The data's own validation
            split does not have the distribution of such a subset, so the final head is then not
            fitted on it.

    Raises:
        SpecError: if the subset is unknown.
        DataError: if train has fewer than two classes, there is no test image, or a feature is not
            finite.
    """
    refuse_infinite(embeddings)
    _refuse_too_few(embeddings)
    if subset:
        embeddings = _take_subset(embeddings, subset, seed)
        _refuse_too_few(embeddings)
    train, val, test = (embeddings.part(name) for name in ("train", "val", "test"))
    if len(val) and subset:
        return DataSplits(train, val, test, train, own_val=True)
    train_and_val = embeddings.take(np.flatnonzero(embeddings.splits != "test"))
    if len(val):
        return DataSplits(train, val, test, train_and_val, own_val=True)
    held_out = _held_out_rows(train, seed)
    is_original = ~are_augmented_views(train.ids)
    return DataSplits(
        fit=train.take(np.flatnonzero(~held_out)),
        val=train.take(np.flatnonzero(held_out & is_original)),
        test=test,
        final=train_and_val,
        own_val=False,
    )


def whole_split(embeddings: Embeddings, seed: int, subset: str | None = None) -> DataSplits:
    """Return all images as training images, a fifth of which is held out for tuning; no test image.

    Args:
        embeddings: of all images, whatever their split.
        seed: of the held-out validation images and of the subset.
        subset: spec of a subset to train on.
    """
    refuse_infinite(embeddings)
    train = replace(embeddings, splits=np.full(len(embeddings), "train"))
    if subset:
        train = _take_subset(train, subset, seed)
    held_out = _held_out_rows(train, seed)
    is_original = ~are_augmented_views(train.ids)
    return DataSplits(
        fit=train.take(np.flatnonzero(~held_out)),
        val=train.take(np.flatnonzero(held_out & is_original)),
        test=train.take(np.array([], np.int64)),
        final=train,
        own_val=False,
    )


def _refuse_too_few(embeddings: Embeddings) -> None:
    """Raise DataError if there are fewer than two classes in train, or no test image."""
    train = embeddings.splits == "train"
    tested = int(np.count_nonzero(embeddings.splits == "test"))
    classes = len(np.unique(embeddings.y[train]))
    if classes < 2 or not tested:
        raise DataError(
            f"too few images: {int(train.sum())} train images of {classes} classes, {tested} test "
            "images; at least two classes in train and one test image are needed"
        )


def train_counts(embeddings: Embeddings) -> NDArray[np.int64]:
    """Return the number of images of each class ``(k,)``, without augmented views."""
    originals = embeddings.y[~are_augmented_views(embeddings.ids)]
    return np.bincount(originals, minlength=len(embeddings.classes))


def without_views(embeddings: Embeddings) -> Embeddings:
    """Return the embeddings of the original images, without augmented views."""
    return embeddings.take(np.flatnonzero(~are_augmented_views(embeddings.ids)))


def untrained_class_warnings(
    classes: Sequence[str], tested: NDArray[np.int64], trained: NDArray[np.int64]
) -> list[str]:
    """Return a warning that names the classes with test images but no train images."""
    names = [classes[label] for label in np.setdiff1d(tested, trained)]
    if not names:
        return []
    return [f"no training image of {', '.join(names)}: every test image of it is misclassified"]


def untested_class_warnings(
    classes: Sequence[str], tested: NDArray[np.int64], trained: NDArray[np.int64]
) -> list[str]:
    """Return a warning that names the classes with train images but no test images."""
    names = [classes[label] for label in np.setdiff1d(trained, tested)]
    if not names:
        return []
    if len(names) <= _NAMED:
        known = "its accuracy is" if len(names) == 1 else "their accuracy is"
        return [f"no test image of {', '.join(names)}: {known} not known"]
    listed = ", ".join(names[:_NAMED])
    return [f"no test image of {len(names)} classes ({listed}, ...): their accuracy is not known"]


_NAMED = 5
"""Classes that a warning names."""


def group_warnings(groups: NDArray[np.str_] | None, splits: NDArray[np.str_]) -> list[str]:
    """Return warnings on groups of images, such as patients, that make the accuracy doubtful.

    Args:
        groups: ``(n,)`` groups of all images; None or empty for none.
        splits: ``(n,)`` their splits.
    """
    if groups is None or not len(groups):
        return []
    found = []
    leak = leak_text(groups.tolist(), splits)
    if leak:
        found.append(
            f"{GROUP_LEAK}: {leak}; --allow-group-leak accepted this, and the accuracy is likely "
            "too high for images of new groups"
        )
    tested = np.unique(groups[splits == "test"])
    if len(tested) == 1:
        found.append(
            f"all test images are of group {tested[0]}: they do not show how other groups differ, "
            "so the intervals are 0 to 100 %"
        )
    return found


def group_facts(groups: NDArray[np.str_] | None, splits: NDArray[np.str_]) -> dict[str, Any]:
    """Return the number of groups of each split, and a leak, for the provenance of a report."""
    if groups is None or not len(groups):
        return {}
    counts = {split: len(np.unique(groups[splits == split])) for split in SPLITS}
    return {"groups": {**counts, "leak": leak_text(groups.tolist(), splits) or None}}


def _take_subset(embeddings: Embeddings, subset: str, seed: int) -> Embeddings:
    """Return the embeddings without train images, and their views, outside the subset."""
    is_train = embeddings.splits == "train"
    is_original = ~are_augmented_views(embeddings.ids)
    originals = np.flatnonzero(is_train & is_original)
    chosen = parse_subset(subset)(embeddings.y[originals], seed, embeddings.classes)
    names = {embeddings.ids[row] for row in originals[chosen]}
    in_subset = np.array([original_id(name) in names for name in embeddings.ids])
    return embeddings.take(np.flatnonzero(~is_train | in_subset))


def _held_out_rows(train: Embeddings, seed: int) -> NDArray[np.bool_]:
    """Return which train rows ``(n,)`` are held out; every class keeps at least one image."""
    sources = [original_id(name) for name in train.ids]
    if train.multilabel:
        # Augmented views stay with their image as the images of a group do.
        groups = sources if train.groups is None else train.groups
        shares = (1 - VAL_SHARE, VAL_SHARE, 0.0)
        drawn = iterative_split(train.targets, shares, seed, groups) == "val"
        return np.asarray(drawn, bool)
    if train.groups is not None:
        return hold_out_groups(train.y, train.groups, VAL_SHARE, seed)
    _, first, image_of_row = np.unique(sources, return_index=True, return_inverse=True)
    order = np.argsort(
        first
    )  # np.unique sorts by name; the split is drawn in the order of the images
    drawn = stratified_split(train.y[first[order]], (1 - VAL_SHARE, VAL_SHARE, 0.0), seed)
    is_val = np.empty(len(first), bool)
    is_val[order] = drawn == "val"
    held_out: NDArray[np.bool_] = is_val[image_of_row]
    return held_out


def refuse_infinite(embeddings: Embeddings) -> None:
    """Refuse features that are not finite.

    Raises:
        DataError: naming the first column and image.
    """
    if is_view(embeddings.x):  # they were checked when the file was opened
        return
    not_finite = ~np.isfinite(embeddings.x)
    if not_finite.any():
        columns = np.flatnonzero(not_finite.any(axis=0))
        image = embeddings.ids[int(np.flatnonzero(not_finite.any(axis=1))[0])]
        raise DataError(
            f"{len(columns)} columns of the features have values that are not finite "
            f"(first column {columns[0]}, image {image}): remove the cache file with "
            "`featkit cache rm`; `featkit extract` then names the layer that they come from"
        )
