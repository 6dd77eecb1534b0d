"""Iterative stratification: random splits and folds of images with several labels each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featkit.images.base import SPLITS


def iterative_split(
    targets: NDArray[np.uint8],
    fractions: Sequence[float],
    seed: int = 0,
    groups: Sequence[str] | NDArray[np.str_] | None = None,
) -> NDArray[np.str_]:
    """Return a random split with each label in the given fractions, ``(n,)`` names of splits.

    The rarest label is distributed first: each of its images goes to the split that still needs
    most images of this label. Every label has at least one image in train. Without groups the
    splits have the exact sizes that the fractions give, rounded.

    Args:
        targets: ``(n, k)`` zeros and ones, whether an image has a label.
        fractions: of train, val and test, summing to 1.
        seed: of the random order.
        groups: ``(n,)`` groups of images that no split separates; None for independent images.

    Source: Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", ECML PKDD
    2011, algorithm 1.
    """
    return np.array(SPLITS)[_distribute(targets, fractions, seed, groups, train_first=True)]


def iterative_folds(
    targets: NDArray[np.uint8],
    folds: int,
    seed: int = 0,
    groups: Sequence[str] | NDArray[np.str_] | None = None,
) -> NDArray[np.int64]:
    """Return a random fold of each image ``(n,)``, 0..folds-1, with a like share of each label.

    Args:
        targets: ``(n, k)`` zeros and ones, whether an image has a label.
        folds: number of folds.
        seed: of the random order.
        groups: ``(n,)`` groups of images that no fold separates; None for independent images.

    Source: as ``iterative_split``.
    """
    return _distribute(targets, [1 / folds] * folds, seed, groups, train_first=False)


def _distribute(
    targets: NDArray[np.uint8],
    fractions: Sequence[float],
    seed: int,
    groups: Sequence[str] | NDArray[np.str_] | None,
    *,
    train_first: bool,
) -> NDArray[np.int64]:
    """Return the number of the part of each image ``(n,)``; see ``_Distribution``."""
    units = np.arange(len(targets))
    if groups is not None and len(groups):
        units = np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes = np.bincount(units)
    counts = np.zeros((len(sizes), targets.shape[1]), np.int64)
    np.add.at(counts, units, targets)
    assigned = _Distribution(counts, sizes, fractions, seed, train_first=train_first).assign()
    return assigned[units]


class _Distribution:
    """Assignment of units, images or groups of images, to splits.

    Args:
        counts: ``(units, k)`` images of each label in each unit.
        sizes: ``(units,)`` images of each unit.
        fractions: of the splits.
        seed: of the random order.
        train_first: whether the first split must have an image of every label.
    """

    def __init__(
        self,
        counts: NDArray[np.int64],
        sizes: NDArray[np.int64],
        fractions: Sequence[float],
        seed: int,
        *,
        train_first: bool,
    ) -> None:
        self.counts, self.sizes = counts, sizes
        self.rng = np.random.default_rng(seed)
        shares = np.asarray(fractions, np.float64)
        self.used = shares > 0
        # Images that each split still needs: of each label (k, splits), and of any (splits,).
        self.needed = np.outer(counts.sum(axis=0), shares)
        self.room = _rounded(shares * sizes.sum())
        self.split_of = np.full(len(sizes), -1)
        self.in_train = np.full(counts.shape[1], not train_first)

    def assign(self) -> NDArray[np.int64]:
        """Return the number of the split of each unit ``(units,)``."""
        order = self.rng.permutation(len(self.sizes))
        # Large groups first: nothing could make up for one that is assigned last.
        order = order[np.argsort(-self.sizes[order], kind="stable")]
        left = self.counts.sum(axis=0)
        while left.any():
            label = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
            for unit in order[(self.split_of[order] < 0) & (self.counts[order, label] > 0)]:
                self._put(int(unit), self._choose(label))
                left -= self.counts[unit]
        for unit in order[self.split_of[order] < 0]:
            self._put(int(unit), self._best(self.room, self.used))
        return self.split_of

    def _choose(self, label: int) -> int:
        if not self.in_train[label]:  # a label without train images cannot be learned
            return 0
        open_splits = self.used & (self.room > 0)
        if not open_splits.any():
            open_splits = self.used
        needed = np.round(self.needed[label], 9)
        most = open_splits & (needed == needed[open_splits].max())
        return self._best(self.room, most)

    def _best(self, values: NDArray[np.float64], allowed: NDArray[np.bool_]) -> int:
        """Return the allowed split with the largest value, one at random among equal ones."""
        equal = np.flatnonzero(allowed & (values == values[allowed].max()))
        return int(equal[0] if len(equal) == 1 else self.rng.choice(equal))

    def _put(self, unit: int, split: int) -> None:
        self.split_of[unit] = split
        self.needed[:, split] -= self.counts[unit]
        self.room[split] -= self.sizes[unit]
        if split == 0:
            self.in_train |= self.counts[unit] > 0


def _rounded(sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return whole numbers with the same sum, by the largest-remainder method."""
    whole = np.floor(np.round(sizes, 9))
    missing = round(float(sizes.sum() - whole.sum()))
    whole[np.argsort(whole - sizes, kind="stable")[:missing]] += 1
    return whole
