"""Which of several classifiers is better, judged on the same test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from featkit.errors import DataError
from featkit.evaluation.intervals import Interval, paired_interval
from featkit.evaluation.predictions import Predictions

LEVEL = 0.05
"""The share of true null hypotheses that ``PairedComparison.significant`` may reject."""


@dataclass(frozen=True)
class PairedComparison:
    """Two classifiers on the same n test images.

    Attributes:
        a, b: their names.
        n: number of test images.
        only_a, only_b: images that one of them alone has right. The others say nothing about the difference.
        difference: top-1 of ``a`` less that of ``b``, a fraction.
        interval95: its score interval, see ``intervals.paired_interval``.
        p: of McNemar's test, see ``mcnemar``.
        p_holm: the same, adjusted for the number of pairs compared, see ``holm``.
    """

    a: str
    b: str
    n: int
    only_a: int
    only_b: int
    difference: float
    interval95: Interval
    p: float
    p_holm: float

    @property
    def significant(self) -> bool:
        """Whether one may be called better: ``p_holm`` is below 0.05."""
        return self.p_holm < LEVEL

    @property
    def sentence(self) -> str:
        """What can be said, in percentage points with their 95 % interval."""
        low, high = (100 * end for end in self.interval95)
        points = 100 * self.difference
        if not self.significant:
            return (
                f"no difference can be claimed between {self.a} and {self.b} "
                f"({points:.1f} points, {low:.1f} to {high:.1f})"
            )
        if points < 0:
            return f"{self.b} is better than {self.a} by {-points:.1f} points ({-high:.1f} to {-low:.1f})"
        return f"{self.a} is better than {self.b} by {points:.1f} points ({low:.1f} to {high:.1f})"

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {**asdict(self), "interval95": list(self.interval95), "sentence": self.sentence}


def compare(runs: Mapping[str, Predictions]) -> tuple[PairedComparison, ...]:
    """Compare every two of several classifiers, image by image.

    Returns:
        One value for each pair, in the order of ``runs``.

    Raises:
        DataError: for fewer than two runs, an id that is there twice, arrays that do not fit their ids, or runs that
            were not judged on the same images with the same true classes.
    """
    if len(runs) < 2:
        raise DataError(f"{len(runs)} runs to compare: give two or more")
    first = next(iter(runs))
    tables = {name: _Table(name, run) for name, run in runs.items()}
    right = {name: table.right_like(tables[first]) for name, table in tables.items()}
    pairs = [_paired(a, b, right[a], right[b]) for a, b in combinations(runs, 2)]
    adjusted = holm([pair.p for pair in pairs])
    return tuple(replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True))


class _Table:
    """One run's predictions, sorted by id."""

    def __init__(self, name: str, run: Predictions) -> None:
        ids, y, predicted = np.asarray(run.ids, dtype=np.str_), np.asarray(run.y), np.asarray(run.predicted)
        if not (ids.ndim == 1 and len(ids) and ids.shape == y.shape == predicted.shape):
            raise DataError(
                f"run {name} has {ids.shape} ids, {y.shape} true and {predicted.shape} predicted classes: expected "
                "(n,) of each, n > 0"
            )
        self.ids, order = np.unique(ids, return_index=True)
        if len(order) < len(ids):
            raise DataError(f"run {name} names {len(ids) - len(order)} images twice: give each image once")
        self.name, self.y = name, y[order]
        self.right: NDArray[np.bool_] = y[order] == predicted[order]

    def right_like(self, other: _Table) -> NDArray[np.bool_]:
        """Return ``(n,)`` which images are right, in the order of their ids, after a look at the other's images."""
        differing = len(np.setxor1d(self.ids, other.ids, assume_unique=True))
        if differing:
            raise DataError(
                f"runs {other.name} and {self.name} were judged on different test images ({len(other.ids)} and "
                f"{len(self.ids)}, {differing} of them in one run only): compare runs with the same data and split"
            )
        relabelled = int(np.sum(self.y != other.y))
        if relabelled:
            raise DataError(
                f"runs {other.name} and {self.name} disagree about the true class of {relabelled} of "
                f"{len(self.ids)} images: compare runs with the same labels"
            )
        return self.right


def _paired(a: str, b: str, right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> PairedComparison:
    n, only_a, only_b = len(right_a), int(np.sum(right_a & ~right_b)), int(np.sum(right_b & ~right_a))
    p = mcnemar(only_a, only_b)
    return PairedComparison(
        a, b, n, only_a, only_b, (only_a - only_b) / n, paired_interval(only_a, only_b, n), p, p_holm=p
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided mid-p value of McNemar's exact test that two classifiers are right equally often.

    Given the images that one alone has right, half should be either's. The exact test adds up the binomial
    probabilities of what was seen and of all that is more extreme; the mid-p value counts half of what was seen.
    With few such images the exact test hardly ever rejects.

    Source: McNemar, Psychometrika 12 (1947), 153-157; Fagerland, Lydersen and Laake, "The McNemar test for binary
    matched-pairs data: mid-p and asymptotic are better than exact conditional", BMC Med. Res. Methodol. 13:91 (2013).
    """
    fewer, both = min(only_a, only_b), only_a + only_b
    return min(1.0, float(2 * binom.cdf(fewer - 1, both, 0.5) + binom.pmf(fewer, both, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted so that the chance of any false claim among all is at most the level.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979), 65-70.
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps * np.asarray(p_values)[order]))
    return [float(p) for p in adjusted]
