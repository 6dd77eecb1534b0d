"""Metrics over folds: their intervals, and the comparison of classifiers on the same folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.evaluation.clusters import Clusters, proportion_interval
from featkit.evaluation.compare import HolmTest, format_comparison, holm
from featkit.evaluation.intervals import Interval, wilson


@dataclass(frozen=True)
class FoldScores:
    """Top-1 accuracy in each fold of a cross-validation.

    Attributes:
        folds: number of folds.
        repeats: number of random divisions into folds.
        accuracies: ``repeats * folds`` accuracies, by repeat, then by fold.
        sizes: number of images in each of these folds.
        intervals95: interval of each of these accuracies, over its images or groups.
        top1: mean over all repeats of the accuracy on the pooled out-of-fold predictions.
        interval95: of ``top1``, see ``fold_interval``.
        assignment: digest of the fold of every image in every repeat. Runs of equal digests have
            the same folds.
    """

    folds: int
    repeats: int
    accuracies: tuple[float, ...]
    sizes: tuple[int, ...]
    intervals95: tuple[Interval, ...]
    top1: float
    interval95: Interval
    assignment: str

    @property
    def values(self) -> tuple[float, ...]:
        """The metric in each fold: ``accuracies``."""
        return self.accuracies

    @property
    def units(self) -> float:
        """Number of images that decide the metric of one repeat."""
        return sum(self.sizes) // self.repeats


@dataclass(frozen=True)
class FoldPrecisions:
    """Mean average precision in each fold of a cross-validation with several labels per image.

    Attributes:
        folds: number of folds.
        repeats: number of random divisions into folds.
        precisions: ``repeats * folds`` mean average precisions, by repeat, then by fold, each over
            the labels that images of the fold have.
        sizes: number of images in each of these folds.
        intervals95: interval of each of these precisions, over its images or groups.
        mean_average_precision: mean over all repeats of that of the pooled out-of-fold scores.
        interval95: of ``mean_average_precision``, see ``evaluation.label_folds``.
        effective: number of images that decide it, ``k ** 2 / sum(1 / n)`` for ``k`` labels of
            ``n`` images.
        assignment: digest of the fold of every image in every repeat. Runs of equal digests have
            the same folds.
    """

    folds: int
    repeats: int
    precisions: tuple[float, ...]
    sizes: tuple[int, ...]
    intervals95: tuple[Interval, ...]
    mean_average_precision: float
    interval95: Interval
    effective: float
    assignment: str

    @property
    def values(self) -> tuple[float, ...]:
        """The metric in each fold: ``precisions``."""
        return self.precisions

    @property
    def units(self) -> float:
        """Number of images that decide the metric of one repeat."""
        return self.effective


def fold_interval(
    correct: NDArray[np.bool_],
    fold_of: NDArray[np.int64],
    folds: int,
    clusters: Clusters | None = None,
) -> Interval:
    """Return the 95 % interval of the accuracy on pooled out-of-fold predictions.

    It is Wilson's interval at an effective number of images. The predictions of an image in several
    repeats count as one, and images of a group as a group (see ``Clusters.effective_fraction``).
    The classifiers of the folds differ in their training images: where the accuracies of the folds
    vary by more than the sampling of test images explains, the excess is added to the variance,
    times ``1 / (folds * repeats) + 1 / (folds - 1)`` as in the corrected resampled t-test, because
    the training sets of the folds overlap.

    Args:
        correct: ``(repeats, n)`` whether each prediction is correct.
        fold_of: ``(repeats, n)`` fold of each image.
        folds: number of folds.
        clusters: groups of the images; None for independent images.

    Source: Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52 (2003),
    239-281; Bates, Hastie and Tibshirani, "Cross-validation: what does it estimate and how well
    does it do it?", JASA 119 (2024), 1434-1445, on why the spread over images alone is too small.
    """
    repeats, n = correct.shape
    share = float(correct.mean())
    smoothed = (share * n + 2) / (n + 4)
    single = smoothed * (1 - smoothed)
    fraction = 1.0
    if clusters is not None:
        means = correct.mean(axis=0)
        fraction = clusters.effective_fraction(means - means.mean(), single)
        if not fraction:
            return 0.0, 1.0
    accuracies = fold_accuracies(correct, fold_of, folds)
    expected = single / (fraction * n / folds)
    excess = max(0.0, float(np.var(accuracies, ddof=1)) - expected)
    added = excess * (1 / (folds * repeats) + 1 / (folds - 1))
    variance = single / (fraction * n)
    effective = fraction * n * variance / (variance + added)
    return wilson(share * effective, effective)


def fold_accuracies(
    correct: NDArray[np.bool_], fold_of: NDArray[np.int64], folds: int
) -> NDArray[np.float64]:
    """Return the accuracy in each fold ``(repeats * folds,)``, by repeat, then by fold."""
    found = []
    for own_correct, own_folds in zip(correct, fold_of, strict=True):
        sizes = np.bincount(own_folds, minlength=folds)
        found.append(np.bincount(own_folds, own_correct, minlength=folds) / sizes)
    return np.concatenate(found)


def score_folds(
    correct: NDArray[np.bool_],
    fold_of: NDArray[np.int64],
    folds: int,
    clusters: Clusters | None = None,
    *,
    assignment: str,
) -> FoldScores:
    """Return the accuracy in each fold and over all folds, with intervals.

    Args:
        correct: ``(repeats, n)`` whether each prediction is correct.
        fold_of: ``(repeats, n)`` fold of each image.
        folds: number of folds.
        clusters: groups of the images; None for independent images.
        assignment: digest of the folds, see ``FoldScores``.
    """
    sizes: list[int] = []
    intervals: list[Interval] = []
    for own_correct, own_folds in zip(correct, fold_of, strict=True):
        for fold in range(folds):
            inside = own_folds == fold
            sizes.append(int(inside.sum()))
            own_clusters = clusters and clusters.take(inside)
            intervals.append(proportion_interval(own_correct[inside], own_clusters))
    return FoldScores(
        folds=folds,
        repeats=len(correct),
        accuracies=tuple(fold_accuracies(correct, fold_of, folds).tolist()),
        sizes=tuple(sizes),
        intervals95=tuple(intervals),
        top1=float(correct.mean()),
        interval95=fold_interval(correct, fold_of, folds, clusters),
        assignment=assignment,
    )


@dataclass(frozen=True)
class FoldComparison(HolmTest):
    """Corrected resampled t-test of two classifiers on the same folds.

    Attributes:
        a, b: names of the classifiers.
        folds, repeats: as in ``FoldScores``.
        difference: mean over the folds of the metric of ``a`` minus that of ``b``: accuracy, or
            mean average precision with several labels per image.
        interval95: its 95 % interval.
        p: p-value of no difference.
        p_holm: p-value after Holm correction for the number of pairs.
        comparisons: number of pairs that ``p_holm`` is corrected for.
    """

    a: str
    b: str
    folds: int
    repeats: int
    difference: float
    interval95: Interval
    p: float
    p_holm: float
    comparisons: int = 1

    @property
    def sentence(self) -> str:
        """The comparison in one line."""
        text = format_comparison(
            self.a,
            self.b,
            self.difference,
            self.interval95,
            p=self.p,
            p_holm=self.p_holm,
            comparisons=self.comparisons,
        )
        times = "" if self.repeats == 1 else f" x {self.repeats} repeats"
        return f"{text}; corrected t-test over {self.folds} folds{times}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the sentence as values that JSON can hold."""
        return {**asdict(self), "interval95": list(self.interval95), "sentence": self.sentence}


def corrected_t_test(
    differences: NDArray[np.float64], folds: int, n: float
) -> tuple[Interval, float]:
    """Return the 95 % interval and the p-value of a mean difference over folds.

    The variance of the mean of ``J`` differences is ``(1 / J + 1 / (folds - 1))`` times their
    variance: the second term is the number of test images over that of training images, and stands
    for the correlation of folds whose training sets overlap. Without it, repeating the folds would
    make any difference significant.

    Few folds may have equal differences by chance. The variance of the differences is therefore at
    least ``s * (1 - s) / m``, which is that of ``m = n / folds`` images per fold of which a share
    ``s`` is predicted correctly by the better classifier alone: no smaller share gives this mean.
    ``s = (abs(mean) * n + 1) / (n + 2)``, so that it is not 0 for equal classifiers.

    Args:
        differences: ``(J,)`` difference in each fold of each repeat.
        folds: number of folds.
        n: number of images in all folds of one repeat; of a mean average precision, the effective
            number.

    Source: Nadeau and Bengio (2003), see ``fold_interval``, section 3.2; Bouckaert and Frank,
    "Evaluating the replicability of significance tests for comparing learning algorithms", PAKDD
    2004, for repeated folds.
    """
    from scipy.stats import t  # takes a second, and most commands compare nothing

    count, mean = len(differences), float(differences.mean())
    share = (abs(mean) * n + 1) / (n + 2)
    least = share * (1 - share) / (n / folds)
    variance = max(float(np.var(differences, ddof=1)), least)
    error = sqrt((1 / count + 1 / (folds - 1)) * variance)
    half = float(t.ppf(0.975, count - 1)) * error
    interval = max(-1.0, mean - half), min(1.0, mean + half)
    return interval, float(2 * t.sf(abs(mean) / error, count - 1))


def compare_folds(
    runs: Mapping[str, FoldScores | FoldPrecisions],
) -> tuple[FoldComparison, ...]:
    """Compare every two classifiers on the same folds by the corrected resampled t-test.

    Two classifiers on different folds are left out: the test is about their differences in each
    fold, which then has other images.

    Args:
        runs: scores by name.

    Returns:
        The comparisons, with Holm correction over all of them.
    """
    pairs = []
    for a, b in combinations(runs, 2):
        first, second = runs[a], runs[b]
        if first.assignment != second.assignment:
            continue
        differences = np.subtract(first.values, second.values)
        interval, p = corrected_t_test(differences, first.folds, first.units)
        mean = float(differences.mean())
        pairs.append(FoldComparison(a, b, first.folds, first.repeats, mean, interval, p, p_holm=p))
    corrected = holm([pair.p for pair in pairs])
    return tuple(
        replace(pair, p_holm=p, comparisons=len(pairs))
        for pair, p in zip(pairs, corrected, strict=True)
    )
