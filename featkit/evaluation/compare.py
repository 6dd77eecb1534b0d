"""Paired tests between classifiers that were evaluated on the same test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError
from featkit.evaluation.clusters import Clusters, clustered_difference
from featkit.evaluation.intervals import Interval, paired_interval
from featkit.evaluation.metrics import TOP1
from featkit.evaluation.predictions import Predictions

LEVEL = 0.05
"""Significance level of ``HolmTest.significant``: family-wise error rate over all pairs."""


class HolmTest:
    """Base class of tests whose p-value is corrected for their number by Holm's method.

    It is no dataclass, so that the order of the fields is that of the derived classes.
    """

    p_holm: float

    @property
    def significant(self) -> bool:
        """Whether ``p_holm`` is below 0.05."""
        return self.p_holm < LEVEL


@dataclass(frozen=True)
class PairedComparison(HolmTest):
    """Comparison of two classifiers on the same n test images.

    Attributes:
        a, b: names of the classifiers.
        n: number of test images.
        only_a, only_b: number of images that one of the two alone predicts correctly.
        difference: top-1 of ``a`` minus top-1 of ``b``, a fraction.
        interval95: its 95 % score interval, see ``intervals.paired_interval``; with groups
            ``clusters.clustered_difference``.
        p: p-value of McNemar's test, see ``mcnemar``; with groups that of exchanging the two
            classifiers in whole groups, see ``clusters.sign_flip_p``.
        p_holm: p-value after Holm correction for the number of pairs, see ``holm``.
        comparisons: number of pairs that ``p_holm`` is corrected for.
        groups: number of groups of the test images, which interval and test resample; None if the
            images count as independent.
        metric: what ``difference``, interval and p-value are about: top-1 accuracy, or the mean
            average precision of images with several labels, see ``multilabel.compare_precision``; a
            prediction is then correct if all its labels are.
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
    comparisons: int = 1
    groups: int | None = None
    metric: str = TOP1

    @property
    def sentence(self) -> str:
        """The comparison in one line, see ``format_comparison``, with the number of groups."""
        text = format_comparison(
            self.a,
            self.b,
            self.difference,
            self.interval95,
            p=self.p,
            p_holm=self.p_holm,
            comparisons=self.comparisons,
        )
        if self.groups is None:
            return text
        return f"{text}; interval and test over {self.groups} groups of images"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the sentence as values that JSON can hold."""
        values = {**asdict(self), "interval95": list(self.interval95), "sentence": self.sentence}
        if self.groups is None:
            del values["groups"]
        if self.metric == TOP1:
            del values["metric"]
        return values


def format_comparison(
    a: str,
    b: str,
    difference: float,
    interval95: Interval,
    *,
    p: float,
    p_holm: float,
    comparisons: int = 1,
) -> str:
    """Return a comparison of two classifiers in one line, the better one first.

    The interval is not adjusted for the number of comparisons, so it may exclude zero where the
    difference is not significant. With several comparisons it is called unadjusted, and both
    p-values are printed. The interval of a single comparison may exclude zero in borderline cases,
    because McNemar's test is exact and the interval is not.

    Args:
        a: name of the first classifier, or of what differs.
        b: name of the second one.
        difference: metric of ``a`` minus metric of ``b``, a fraction; printed in percentage points.
        interval95: its 95 % confidence interval.
        p: p-value of no difference.
        p_holm: p-value after Holm correction.
        comparisons: number of comparisons that ``p_holm`` is corrected for.

    >>> format_comparison("svm", "knn", 0.03, (0.008, 0.059), p=0.012, p_holm=0.012)
    'svm - knn: +3.0 points (95% CI 0.8 to 5.9), p = 0.012; significant'
    """
    if difference < 0:
        a, b, difference, interval95 = b, a, -difference, (-interval95[1], -interval95[0])
    low, high = (100 * end for end in interval95)
    ends = f"95% CI {low:z.1f} to {high:z.1f}"
    compared = f"{a} - {b}: +{100 * difference:.1f} points"
    text = format_test(compared, ends, p=p, p_holm=p_holm, comparisons=comparisons)
    if comparisons == 1 and p_holm >= LEVEL and low > 0:
        text += " by the exact test (the interval is approximate)"
    return text


def format_test(compared: str, ends: str, *, p: float, p_holm: float, comparisons: int) -> str:
    """Return a difference with its interval, p-value and verdict in one line.

    Args:
        compared: what is compared, with the difference.
        ends: the 95 % interval in words; it is called unadjusted with several comparisons.
        p: as for ``format_comparison``.
        p_holm: the same.
        comparisons: the same.
    """
    verdict = "significant" if p_holm < LEVEL else "not significant"
    if comparisons == 1:
        return f"{compared} ({ends}), {format_p_value(p)}; {verdict}"
    return (
        f"{compared} (unadjusted {ends}), unadjusted {format_p_value(p)}; {verdict} "
        f"after Holm correction over {comparisons} pairs ({format_p_value(p_holm)})"
    )


def format_p_value(p: float) -> str:
    """Return ``p = 0.012``, or ``p < 0.001`` for a smaller value."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def compare(
    runs: Mapping[str, Predictions], reference: str | None = None
) -> tuple[PairedComparison, ...]:
    """Compare every two of several classifiers image by image, with Holm correction over all pairs.

    Args:
        runs: predictions by name.
        reference: name of the only run that the others are compared with; None for all pairs.

    Returns:
        One comparison for each pair, in the order of ``runs``.

    Raises:
        DataError: for fewer than two runs, an id that occurs twice, arrays of different lengths, or
            runs that were not evaluated on the same images with the same true classes.
    """
    if len(runs) < 2:
        raise DataError(f"cannot compare {len(runs)} runs: give two or more")
    first = next(iter(runs))
    tables = {name: _SortedPredictions(name, run) for name, run in runs.items()}
    correct = {name: table.correct_like(tables[first]) for name, table in tables.items()}
    names = list(combinations(runs, 2))
    if reference is not None:
        names = [(reference, name) for name in runs if name != reference]
    # Groups are a property of the images, so those of one run hold for all.
    grouped = [table.clusters for table in tables.values() if table.clusters is not None]
    clusters = grouped[0] if grouped else None
    pairs = [_compare_pair(a, b, correct[a], correct[b], clusters) for a, b in names]
    corrected = holm([pair.p for pair in pairs])
    return tuple(
        replace(pair, p_holm=p, comparisons=len(pairs))
        for pair, p in zip(pairs, corrected, strict=True)
    )


class _SortedPredictions:
    """Predictions of one run, sorted by image id."""

    def __init__(self, name: str, run: Predictions) -> None:
        ids = np.asarray(run.ids, dtype=np.str_)
        y, predicted = np.asarray(run.y), np.asarray(run.predicted)
        if not (ids.ndim == 1 and len(ids) and ids.shape == y.shape == predicted.shape):
            raise DataError(
                f"run {name} has {ids.shape} ids, {y.shape} true and {predicted.shape} predicted "
                "classes: expected (n,) of each, n > 0"
            )
        self.ids, order = np.unique(ids, return_index=True)
        if len(order) < len(ids):
            raise DataError(
                f"run {name} lists {len(ids) - len(order)} images twice: give each image once"
            )
        self.name, self.y = name, y[order]
        self.correct: NDArray[np.bool_] = y[order] == predicted[order]
        self.groups: NDArray[np.str_] | None = None
        if run.groups is not None:
            self.groups = np.asarray(run.groups, np.str_)[order]

    @property
    def clusters(self) -> Clusters | None:
        """The groups of the sorted images."""
        return Clusters.of(self.groups, len(self.ids))

    def correct_like(self, other: _SortedPredictions) -> NDArray[np.bool_]:
        """Return whether each prediction is correct, ``(n,)``.

        Raises:
            DataError: unless both runs have the same images and true classes.
        """
        differing = len(np.setxor1d(self.ids, other.ids, assume_unique=True))
        if differing:
            raise DataError(
                f"runs {other.name} and {self.name} were evaluated on different test images "
                f"({len(other.ids)} and {len(self.ids)}, {differing} of them in one run only): "
                "compare runs with the same data and split"
            )
        relabelled = int(np.sum(self.y != other.y))
        if relabelled:
            raise DataError(
                f"runs {other.name} and {self.name} have different true classes for {relabelled} "
                f"of {len(self.ids)} images: compare runs with the same labels"
            )
        if _differ(self.groups, other.groups):
            raise DataError(
                f"runs {other.name} and {self.name} have different groups of test images: repeat "
                "one of them with the --group of the other"
            )
        return self.correct


def _differ(a: NDArray[np.str_] | None, b: NDArray[np.str_] | None) -> bool:
    """Return whether both runs have groups, and other ones."""
    return a is not None and b is not None and not np.array_equal(a, b)


def _compare_pair(
    a: str,
    b: str,
    correct_a: NDArray[np.bool_],
    correct_b: NDArray[np.bool_],
    clusters: Clusters | None,
) -> PairedComparison:
    n = len(correct_a)
    only_a, only_b = int(np.sum(correct_a & ~correct_b)), int(np.sum(correct_b & ~correct_a))
    if clusters is None:
        interval, p = paired_interval(only_a, only_b, n), mcnemar(only_a, only_b)
    else:
        interval, p = clustered_difference(correct_a, correct_b, clusters)
    return PairedComparison(
        a,
        b,
        n,
        only_a,
        only_b,
        (only_a - only_b) / n,
        interval,
        p,
        p_holm=p,
        groups=None if clusters is None else clusters.count,
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided mid-p value of McNemar's exact test of equal accuracies.

    Under the null hypothesis, half of the images that only one classifier predicts correctly belong
    to each. The exact test sums the binomial probabilities of the observed count and of all more
    extreme ones; the mid-p value counts half of the observed one. The exact test is too
    conservative with few such images. For equal counts both sides contain the observed one, and the
    mid-p value is 1 minus half its probability; without any such image it is 1.

    Args:
        only_a: number of images that the first classifier alone predicts correctly.
        only_b: number of images that the second alone predicts correctly.

    Source: McNemar, Psychometrika 12 (1947), 153-157; Fagerland, Lydersen and Laake, "The McNemar
    test for binary matched-pairs data: mid-p and asymptotic are better than exact conditional", BMC
    Med. Res. Methodol. 13:91 (2013).
    """
    fewer, both = min(only_a, only_b), only_a + only_b
    if both == 0:
        return 1.0
    from scipy.stats import binom  # takes a second, and most commands compare nothing

    observed = float(binom.pmf(fewer, both, 0.5))
    if only_a == only_b:
        return 1 - observed / 2
    return float(2 * binom.cdf(fewer - 1, both, 0.5)) + observed


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm-corrected p-values, which control the family-wise error rate.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6
        (1979), 65-70.
    """
    order = np.argsort(p_values, kind="stable")
    remaining = np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(remaining * np.asarray(p_values)[order]))
    return [float(p) for p in corrected]
