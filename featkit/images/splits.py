"""Stratified splits into train, val and test, and limits on their size."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featkit.errors import SpecError
from featkit.images.base import SPLITS, ImageSet
from featkit.images.iterative import iterative_split
from featkit.images.multilabel import targets_of
from featkit.registry import unknown

FRACTIONS = (0.70, 0.15, 0.15)
"""Default fractions of train, val and test for a source that defines no splits."""

TEST_ON_VAL = "val"
"""In place of fractions: test on the val images of a source without test images."""

_SPLIT_TOLERANCE = 0.0011
"""Relative error of the sum of fractions: 33.3/33.3/33.3 is a sum of 100."""


def parse_split(text: str) -> tuple[float, float, float]:
    """Parse ``70/15/15`` or ``0.7/0.15/0.15`` as fractions of train, val and test.

    Returns:
        The fractions, which sum to 1. ``33.3/33.3/33.3`` counts as a sum of 100.

    Raises:
        SpecError: unless these are three numbers that sum to 100, 10 or 1, positive for train and
            test and non-negative for val.
    """
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        raise _bad_split(text) from None
    total = train + val + test
    if not (math.isfinite(total) and train > 0 and val >= 0 and test > 0):
        raise _bad_split(text)
    if not any(math.isclose(total, whole, rel_tol=_SPLIT_TOLERANCE) for whole in (1, 10, 100)):
        raise SpecError(f"split {text!r} sums to {total:g}: write percentages that sum to 100")
    return train / total, val / total, test / total


def _bad_split(text: str) -> SpecError:
    return SpecError(f"split {text!r}: write TRAIN/VAL/TEST such as 70/15/15; only VAL may be 0")


def format_split(fractions: Sequence[float]) -> str:
    """Return fractions in percent, as ``parse_split`` accepts them."""
    return "/".join(f"{100 * fraction:g}" for fraction in fractions)


def stratified_split(
    labels: NDArray[np.int64], fractions: Sequence[float] = FRACTIONS, seed: int = 0
) -> NDArray[np.str_]:
    """Return a random stratified split, ``(n,)`` strings ``train``, ``val`` or ``test``.

    Each split gets its fraction of every class, rounded down or up so that the totals are right
    too. Every class has at least one training image, even if the totals then deviate.

    Args:
        labels: ``(n,)``, any integers.
        fractions: of train, val and test, summing to 1.
        seed: of the random assignment.
    """
    rng = np.random.default_rng(seed)
    splits = np.full(len(labels), SPLITS[0])
    # Images that each split should have received so far, minus those that it has.
    owed = np.zeros(len(SPLITS))
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        owed += np.multiply(fractions, len(rows))
        counts = _class_counts(len(rows), fractions, owed)
        owed -= counts
        splits[rows] = np.repeat(SPLITS, counts)
    return splits


def _class_counts(
    size: int, fractions: Sequence[float], owed: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the number of images of one class in each split.

    The splits with the largest deficit are rounded up.
    """
    exact = np.round(np.multiply(fractions, size), 9)
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    priority = np.where(exact > counts, owed - counts, -np.inf)
    if counts[0] == 0:
        priority[0] = np.inf
    # At equal priority, test comes before val: a class without test images cannot be evaluated.
    order = np.lexsort((-np.arange(len(priority)), -np.round(priority, 9)))
    counts[order[: size - counts.sum()]] += 1
    return counts


def parse_limit(text: str) -> dict[str, int]:
    """Parse ``train=5000,test=1000``, the largest number of images of each split.

    Raises:
        SpecError: if a split is unknown or occurs twice, or a number is not a positive integer.
    """
    limits: dict[str, int] = {}
    for part in text.split(","):
        split, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals or not re.fullmatch("[0-9]*[1-9][0-9]*", number) or split in limits:
            raise SpecError(
                f"limit {text!r}: write each split once with a positive number, such as "
                "train=5000,test=1000"
            )
        if split not in SPLITS:
            raise unknown("split", split, list(SPLITS))
        limits[split] = int(number)
    return limits


def format_limit(limits: Mapping[str, int]) -> str:
    """Return limits as ``parse_limit`` accepts them, in the order of the splits."""
    return ",".join(f"{split}={limits[split]}" for split in SPLITS if split in limits)


def limit_rows(images: ImageSet, limits: Mapping[str, int], seed: int = 0) -> NDArray[np.int64]:
    """Return the rows of a stratified sample of each limited split, and all other rows.

    A limit above the size of a split keeps all of it. Every class keeps an image if the limit
    allows it. With the same seed, the sample of a smaller limit is a subset of that of a larger
    one, except for rounding, and unless images have several labels: each label then keeps its
    share of the sample, by ``iterative_split``.
    """
    kept = []
    for index, split in enumerate(SPLITS):
        if images.multilabel:
            kept.append(_multilabel_sample(images, split, limits.get(split), seed))
            continue
        rng = np.random.default_rng([seed, index])
        kept.append(_stratified_sample(images.rows(split), images.labels, limits.get(split), rng))
    return np.sort(np.concatenate(kept))


def _multilabel_sample(
    images: ImageSet, split: str, limit: int | None, seed: int
) -> NDArray[np.int64]:
    rows = images.rows(split)
    if limit is None or limit >= len(rows):
        return rows
    share = limit / len(rows)
    drawn = iterative_split(targets_of(images)[rows], (share, 1 - share, 0), seed)
    kept: NDArray[np.int64] = rows[drawn == SPLITS[0]]
    return kept


def _stratified_sample(
    rows: NDArray[np.int64], labels: NDArray[np.int64], limit: int | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    if limit is None or limit >= len(rows):
        return rows
    classes, sizes = np.unique(labels[rows], return_counts=True)
    counts = _apportion(sizes, limit)
    shuffled = (rng.permutation(rows[labels[rows] == label]) for label in classes)
    return np.concatenate([part[:count] for part, count in zip(shuffled, counts, strict=True)])


def _apportion(sizes: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Distribute ``total`` in proportion to ``sizes`` by the largest-remainder method.

    Every size gets at least one, if possible.
    """
    exact = sizes * total / sizes.sum()
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    if total >= len(sizes):
        for empty in np.flatnonzero(counts == 0):
            counts[np.argmax(counts)] -= 1
            counts[empty] = 1
    return counts
