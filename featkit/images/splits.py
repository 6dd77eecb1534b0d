"""Train, validation and test: who goes where, and whether anyone is in two places."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featkit.errors import SpecError
from featkit.images.base import SPLITS, ImageSet
from featkit.registry import unknown

FRACTIONS = (0.70, 0.15, 0.15)
"""Of train, val and test, where the source has no splits of its own."""


def parse_split(text: str) -> tuple[float, float, float]:
    """Read ``70/15/15`` as fractions of train, val and test that sum to 1.

    Raises:
        SpecError: unless these are three non-negative numbers, and those of train and test positive.
    """
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        raise _bad_split(text) from None
    total = train + val + test
    if not (math.isfinite(total) and train > 0 and val >= 0 and test > 0):
        raise _bad_split(text)
    return train / total, val / total, test / total


def _bad_split(text: str) -> SpecError:
    return SpecError(f"split {text!r}: write three shares TRAIN/VAL/TEST such as 70/15/15, of which only VAL may be 0")


def format_split(fractions: Sequence[float]) -> str:
    """Write fractions as ``parse_split`` reads them, in percent."""
    return "/".join(f"{100 * fraction:g}" for fraction in fractions)


def stratified_split(
    labels: NDArray[np.int64], fractions: Sequence[float] = FRACTIONS, seed: int = 0
) -> NDArray[np.str_]:
    """Return ``(n,)`` text that sends each image to ``train``, ``val`` or ``test``, class by class, at random.

    Of a class of m images each split gets its share of m, rounded down or up; the shares are rounded so that the
    totals are right too. Every class has a train image: where its share is less than one, the totals give way.

    Args:
        labels: ``(n,)``, any integers.
        fractions: of train, val and test; they sum to 1.
        seed: of the random choice.
    """
    rng = np.random.default_rng(seed)
    splits = np.full(len(labels), SPLITS[0])
    owed = np.zeros(len(SPLITS))
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        owed += np.multiply(fractions, len(rows))
        counts = _share(len(rows), fractions, owed)
        owed -= counts
        splits[rows] = np.repeat(SPLITS, counts)
    return splits


def _share(size: int, fractions: Sequence[float], owed: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many of a class go to each split: those that are owed most are rounded up."""
    exact = np.round(np.multiply(fractions, size), 9)
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    claims = np.where(exact > counts, owed - counts, -np.inf)
    if counts[0] == 0:
        claims[0] = np.inf
    # of equal claims that of test comes before that of val: a class that cannot be judged is of less use
    order = np.lexsort((-np.arange(len(claims)), -np.round(claims, 9)))
    counts[order[: size - counts.sum()]] += 1
    return counts


def parse_limit(text: str) -> dict[str, int]:
    """Read ``train=5000,test=1000``: how many images of a split to take at most.

    Raises:
        SpecError: if a split is unknown or named twice, or a number is not a positive whole one.
    """
    limits: dict[str, int] = {}
    for part in text.split(","):
        split, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals or not re.fullmatch("[0-9]*[1-9][0-9]*", number) or split in limits:
            raise SpecError(f"limit {text!r}: write each split once, with a number from 1 up, as train=5000,test=1000")
        if split not in SPLITS:
            raise unknown("split", split, list(SPLITS))
        limits[split] = int(number)
    return limits


def format_limit(limits: Mapping[str, int]) -> str:
    """Write limits as ``parse_limit`` reads them, in the order of the splits."""
    return ",".join(f"{split}={limits[split]}" for split in SPLITS if split in limits)


def limit_rows(images: ImageSet, limits: Mapping[str, int], seed: int = 0) -> NDArray[np.int64]:
    """Return the rows of a stratified part of each split that ``limits`` names, and all rows of the others, in order.

    A limit over a split's size keeps it whole. Every class of a split keeps an image where the limit allows it. With
    one seed the part under a smaller limit lies within that under a larger one, but for the rounding of a few rows.
    """
    kept = [
        _limited(images.rows(split), images.labels, limits.get(split), np.random.default_rng([seed, place]))
        for place, split in enumerate(SPLITS)
    ]
    return np.sort(np.concatenate(kept))


def _limited(
    rows: NDArray[np.int64], labels: NDArray[np.int64], limit: int | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    if limit is None or limit >= len(rows):
        return rows
    classes, sizes = np.unique(labels[rows], return_counts=True)
    counts = _apportion(sizes, limit)
    shuffled = (rng.permutation(rows[labels[rows] == label]) for label in classes)
    return np.concatenate([part[:count] for part, count in zip(shuffled, counts, strict=True)])


def _apportion(sizes: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Share ``total`` out in proportion to ``sizes`` by largest remainder, at least one each where that can be."""
    exact = sizes * total / sizes.sum()
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    if total >= len(sizes):
        for empty in np.flatnonzero(counts == 0):
            counts[np.argmax(counts)] -= 1
            counts[empty] = 1
    return counts
