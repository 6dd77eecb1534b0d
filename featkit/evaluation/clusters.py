"""Intervals and tests for test images that come in groups, such as those of one patient.

Images of one group resemble each other, so that a classifier tends to be right or wrong on all of
them. Intervals that treat the images as independent are then too narrow. These treat the groups as
the random sample: they hold for other groups from the same population.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featkit.errors import DataError
from featkit.evaluation.intervals import Interval, paired_interval, wilson

_RESAMPLED_CELLS = 2**24
"""Largest number of weights of groups that are drawn at once in a bootstrap."""


@dataclass(frozen=True)
class Clusters:
    """The group of each of n images.

    Attributes:
        codes: ``(n,)`` numbers of the groups, 0..count-1.
        count: number of groups.
    """

    codes: NDArray[np.int64]
    count: int

    @classmethod
    def of(cls, groups: ArrayLike | None, n: int) -> Clusters | None:
        """Return the clusters of n images; None for None.

        Raises:
            DataError: if there is not one group for each image.
        """
        if groups is None:
            return None
        names, codes = np.unique(np.asarray(groups), return_inverse=True)
        if codes.shape != (n,):
            raise DataError(f"groups {codes.shape} do not match {n} images: give a group for each")
        return cls(codes.astype(np.int64), len(names))

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Clusters:
        """Return the clusters of some of the images."""
        names, codes = np.unique(self.codes[rows], return_inverse=True)
        return Clusters(codes.astype(np.int64), len(names))

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum of ``values`` ``(n,)`` in each group."""
        return np.bincount(self.codes, values, minlength=self.count).astype(np.float64)

    def effective_fraction(
        self, deviations: NDArray[np.float64], prior: float, level: float = 0.95
    ) -> float:
        """Return the effective number of images, as a fraction of their number, within 0..1.

        As many independent images would give a mean of the same variance. The variance of a mean
        over groups is estimated from the squared sums of the deviations in each group, relative to
        the sum of their squares (the design effect). One artificial group of typical size, in which
        all deviations are the same, is added to both: without it there is no estimate where all
        predictions are correct, and a bad one where almost all are. The design effect is at least
        1, and the result is reduced so that a normal quantile gives the interval of Student's t
        with one degree of freedom less than there are groups.

        Args:
            deviations: ``(n,)`` deviations of the values from their mean.
            prior: variance of a single value, for the artificial group.
            level: confidence level.

        Returns:
            The fraction; 0 for a single group, which tells nothing about others.

        Source: Rao and Scott, "A simple method for the analysis of clustered binary data",
        Biometrics 48 (1992), 577-585; Korn and Graubard, "Confidence intervals for proportions with
        small expected number of positive counts estimated from survey data", Survey Methodology 24
        (1998), 193-201, for the degrees of freedom.
        """
        from scipy.stats import t

        if self.count < 2:
            return 0.0
        sizes = np.bincount(self.codes)
        typical = float(np.sum(sizes.astype(np.float64) ** 2)) / len(self.codes)
        between = self.count / (self.count - 1) * float(np.sum(self.sums(deviations) ** 2))
        within = float(np.sum(deviations**2))
        added = typical * prior
        design_effect = 1.0
        if within + added > 0:
            design_effect = max(1.0, (between + typical * added) / (within + added))
        normal = NormalDist().inv_cdf((1 + level) / 2)
        student = float(t.ppf((1 + level) / 2, self.count - 1))
        return (normal / student) ** 2 / design_effect


def proportion_interval(
    correct: NDArray[np.bool_], clusters: Clusters | None = None, level: float = 0.95
) -> Interval:
    """Return the interval of a proportion: Wilson's, at the effective number of images.

    In simulations with 40 to 150 groups of 10 images (proportions of 0.7 to 0.97, correlations of
    0.3 to 0.6 within groups) it covered the true proportion in 93 to 97 % of cases, and the
    interval for independent images in 35 to 80 %. In harder ones (proportions of 0.97 to 0.99 with
    higher correlations, groups of very different sizes) it covered it in 83 to 93 %.

    Args:
        correct: ``(n,)`` whether each prediction is correct.
        clusters: groups of the images; None for independent images.
        level: confidence level.

    Returns:
        The ends of the interval; 0 and 1 if all images belong to one group.
    """
    n, hits = len(correct), int(np.sum(correct))
    if clusters is None:
        return wilson(hits, n, level)
    share, smoothed = hits / n, (hits + 2) / (n + 4)
    fraction = clusters.effective_fraction(
        np.asarray(correct, np.float64) - share, smoothed * (1 - smoothed), level
    )
    if not fraction:
        return 0.0, 1.0
    return wilson(fraction * hits, fraction * n, level)


def clustered_balanced_interval(
    correct: NDArray[np.bool_],
    y: NDArray[np.int64],
    clusters: Clusters,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return an interval of balanced accuracy: bootstrap over groups, widened as without groups.

    Whole groups are drawn with replacement. See ``intervals.balanced_interval`` for why the
    percentile bootstrap is widened to the Wilson interval, here at the effective number of images
    in their groups.

    Args:
        correct: ``(n,)`` whether each prediction is correct.
        y: ``(n,)`` true classes.
        clusters: groups of the images.
        level: confidence level.
        resamples: number of bootstrap resamples.
        seed: of the resamples.

    Source: Field and Welsh, "Bootstrapping clustered data", J. R. Stat. Soc. B 69 (2007), 369-390.
    """
    if clusters.count < 2:
        return 0.0, 1.0
    _, codes = np.unique(y, return_inverse=True)
    totals = np.bincount(codes).astype(np.float64)
    recall = np.bincount(codes, correct) / totals
    cells = clusters.codes * len(totals) + codes
    shape = (clusters.count, len(totals))
    counts = np.bincount(cells, minlength=shape[0] * shape[1])
    per_group = counts.reshape(shape).astype(np.float64)
    hits = np.bincount(cells, correct, minlength=shape[0] * shape[1])
    per_hit = hits.reshape(shape).astype(np.float64)
    means = _resampled_recall(per_hit, per_group, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])

    n, share = len(y), float(recall.mean())
    weights = n / (len(totals) * totals[codes])
    smoothed = (share * n + 2) / (n + 4)
    fraction = clusters.effective_fraction(
        (correct - recall[codes]) * weights,
        smoothed * (1 - smoothed) * float(np.mean(weights**2)),
        level,
    )
    effective = fraction * len(totals) ** 2 / float(np.sum(1 / totals))
    floor, ceiling = wilson(min(share, 1.0) * effective, effective, level)
    return min(float(low), floor), max(float(high), ceiling)


def _resampled_recall(
    hits: NDArray[np.float64], totals: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Return the mean recall in each resample of groups, of ``(groups, classes)`` counts."""
    rng = np.random.default_rng(seed)
    groups = len(hits)
    block = max(1, _RESAMPLED_CELLS // groups)
    means = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=size).astype(np.float64)
        found, correct = drawn @ totals, drawn @ hits
        recall = np.divide(correct, found, out=np.zeros_like(correct), where=found > 0)
        means.append(recall.sum(axis=1) / (found > 0).sum(axis=1))
    return np.concatenate(means)


def resampled_means(
    values: NDArray[np.float64],
    clusters: Clusters | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the mean of values in each bootstrap resample of the images, or of their groups.

    Args:
        values: ``(n,)``.
        clusters: groups of the images; None for independent images.
        resamples: number of resamples.
        seed: of the resamples.

    Returns:
        ``(resamples,)`` means.

    Source: Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7 (1979), 1-26;
    of groups Field and Welsh (2007), see ``clustered_balanced_interval``.
    """
    if clusters is not None:
        sums, sizes = clusters.sums(values), np.bincount(clusters.codes).astype(np.float64)
        return _resampled_recall(sums[:, None], sizes[:, None], resamples, seed)
    # Resampling images is one draw over their distinct values, so memory grows with these only.
    distinct, counts = np.unique(values, return_counts=True)
    n, rng = len(values), np.random.default_rng(seed)
    block = max(1, _RESAMPLED_CELLS // len(distinct))
    means = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        means.append(rng.multinomial(n, counts / n, size=size) @ distinct / n)
    return np.concatenate(means)


def clustered_difference(
    correct_a: NDArray[np.bool_], correct_b: NDArray[np.bool_], clusters: Clusters
) -> tuple[Interval, float]:
    """Return the 95 % interval and the p-value of the difference between two accuracies.

    The interval is ``intervals.paired_interval`` at the effective number of images. The p-value is
    that of ``sign_flip_p`` on the differences of the groups. Where every image is a group of its
    own, it is McNemar's.

    Args:
        correct_a: ``(n,)`` whether each prediction of the first classifier is correct.
        correct_b: the same of the second.
        clusters: groups of the images.

    Returns:
        The interval of the accuracy of the first minus that of the second, and the p-value.
    """
    n = len(correct_a)
    only_a = int(np.sum(correct_a & ~correct_b))
    only_b = int(np.sum(correct_b & ~correct_a))
    differences = correct_a.astype(np.float64) - correct_b
    p = sign_flip_p(np.rint(clusters.sums(differences)).astype(np.int64))
    prior = (only_a + only_b + 1) / (n + 2)
    fraction = clusters.effective_fraction(differences - differences.mean(), prior)
    if not fraction:
        return (-1.0, 1.0), 1.0
    return paired_interval(fraction * only_a, fraction * only_b, fraction * n), p


def sign_flip_p(sums: NDArray[np.int64]) -> float:
    """Return the two-sided mid-p value of a sum whose terms have random signs.

    If two classifiers are equally good, exchanging them in a group is as likely as not. The sum of
    the groups' differences is compared with its distribution over all exchanges, which is computed
    exactly. Half of the probability of the observed value counts, as in ``compare.mcnemar``, which
    this equals if all terms are 1 or -1.

    Args:
        sums: ``(groups,)`` of each group, the images that the first classifier alone predicts
            correctly minus those that the second alone predicts correctly.

    Source: Fisher, "The design of experiments" (1935), section 21; Hemerik and Goeman, "Exact
    testing with random permutations", TEST 27 (2018), 811-825.
    """
    from scipy.stats import binom

    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    observed, largest = abs(int(sums.sum())), int(np.sum(sizes * counts))
    length = 2 * largest + 1
    transform = np.ones(largest + 1, np.complex128)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        spread = np.zeros(length)
        spread[: 2 * size * count + 1 : 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        transform *= np.fft.rfft(spread)
    # The distribution of a sum of independent terms is the convolution of their distributions.
    probabilities = np.fft.irfft(transform, length)
    distance = np.abs(np.arange(length) - largest)
    more = float(np.clip(probabilities[distance > observed], 0, None).sum())
    equal = float(np.clip(probabilities[distance == observed], 0, None).sum())
    return min(1.0, more + equal / 2)
