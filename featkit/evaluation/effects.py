"""Means, differences and ratios of accuracies over the cells of a grid, with confidence intervals.

A cell is one classifier evaluated on test images. Two values of an axis are compared over matched
cells: cells that agree on every other axis. Test images and seeds are random samples, and the
intervals cover both. The values of all other axes are fixed: nothing is inferred about values that
the grid does not contain.

This is the only place where featkit computes such a number. CSV files, summaries, reports and the
command line print what ``effects``, ``average`` and ``mean_ratio`` return, so the same comparison
has the same interval everywhere.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.evaluation.clusters import Clusters, clustered_difference
from featkit.evaluation.compare import HolmTest, format_comparison, holm, mcnemar
from featkit.evaluation.intervals import Interval, paired_interval
from featkit.evaluation.metrics import BALANCED_ACCURACY, MEAN_AVERAGE_PRECISION, TOP1
from featkit.evaluation.predictions import Predictions

SEED = "seed"
"""The axis of repetitions: results are averaged over it, and its effect is not reported."""
METRICS = (TOP1, BALANCED_ACCURACY, MEAN_AVERAGE_PRECISION)

_Floats = NDArray[np.float64]
_PRIOR_IMAGES = 1.0
"""Number of images like those of all classes that are added to each class in its variance."""
_MIN_SEEDS = 3
"""Fewest seeds from which the variance over seeds of a mean is estimated."""


@dataclass(frozen=True)
class CellScores:
    """Scores of one cell of a grid on its n test images.

    Attributes:
        place: value of the cell on each axis.
        images: ``(n,)`` image numbers, ascending; the same number is the same image in every cell.
        scores: ``(n,)`` values whose mean is the metric: 0 for a wrong prediction, the weight of
            the image for a correct one.
        weights: ``(n,)`` weights of the images, of mean 1: 1 for top-1, and for balanced accuracy
            ``n / (classes * images of its class)``.
        strata: ``(n,)`` numbers of the strata, within which the metric is a mean: the true classes
            for balanced accuracy, 0 for top-1. The same class has the same number in every cell.
        units: ``(n,)`` numbers of the groups of the images, which are the sampled units in place of
            the images; the same number is the same group in every cell. None without groups.
        linear: whether the scores are the linear terms of another metric than an accuracy.
    """

    place: Mapping[str, Hashable]
    images: NDArray[np.int64]
    scores: _Floats
    weights: _Floats
    strata: NDArray[np.int64]
    units: NDArray[np.int64] | None = None
    linear: bool = False

    def errors(self) -> CellScores:
        """Return the same cell with the error rate in place of top-1 accuracy."""
        return replace(self, scores=1 - self.scores)


@dataclass(frozen=True)
class Effect(HolmTest):
    """Difference of a metric between two values of an axis, over their matched cells.

    Attributes:
        axis: name of the axis.
        a, b: the two values.
        cells: number of matched pairs of cells.
        seeds: number of seeds among them.
        n: number of distinct test images.
        difference: metric of ``a`` minus metric of ``b``, a fraction.
        interval95: 95 % confidence interval of the difference, see ``effects``.
        p: p-value of the null hypothesis that there is no difference.
        p_holm: p-value after Holm correction, see ``adjusted``.
        comparisons: number of comparisons in the family that ``p_holm`` is corrected for.
    """

    axis: str
    a: Hashable
    b: Hashable
    cells: int
    seeds: int
    n: int
    difference: float
    interval95: Interval
    p: float
    p_holm: float
    comparisons: int = 1

    def better_first(self) -> Effect:
        """Return the same comparison with the value of the higher metric as ``a``."""
        if self.difference >= 0:
            return self
        low, high = self.interval95
        return replace(
            self, a=self.b, b=self.a, difference=-self.difference, interval95=(-high, -low)
        )

    def sentence(self, a: str | None = None, b: str | None = None) -> str:
        """Return the comparison in one line, see ``format_comparison``.

        Args:
            a: name to print instead of the value ``a``.
            b: name to print instead of the value ``b``.
        """
        return format_comparison(
            str(self.a) if a is None else a,
            str(self.b) if b is None else b,
            self.difference,
            self.interval95,
            p=self.p,
            p_holm=self.p_holm,
            comparisons=self.comparisons,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return {**asdict(self), "interval95": list(self.interval95)}


@dataclass(frozen=True)
class Average:
    """Mean over cells of a metric, or of ratios of metrics.

    Attributes:
        value: the mean; a fraction, but a ratio may exceed 1.
        interval95: its 95 % confidence interval over test images and seeds.
        cells: number of cells.
        seeds: number of seeds among them.
        n: number of distinct test images.
        groups: number of their groups, which the interval resamples; None without groups.
    """

    value: float
    interval95: Interval
    cells: int
    seeds: int
    n: int
    groups: int | None = None


def score_cells(
    cells: Iterable[tuple[Mapping[str, Hashable], Predictions]], metric: str = TOP1
) -> list[CellScores]:
    """Return the scores of cells, given the value of each cell on every axis and its predictions.

    Two cells share an image if its id, its true class and the cells' values on the axis ``data``
    are the same.

    Args:
        cells: axis values and predictions; the order of the cells and of the images does not
            matter.
        metric: one of ``METRICS``; predictions with scores of their own keep these.
    """
    numbers: dict[Hashable, int] = {}
    classes: dict[Hashable, int] = {}
    group_numbers: dict[Hashable, int] = {}
    scored = []
    for place, predictions in cells:
        y, data = np.asarray(predictions.y), place.get("data")
        images = np.empty(len(y), np.int64)
        for row, (name, label) in enumerate(zip(predictions.ids, y.tolist(), strict=True)):
            images[row] = numbers.setdefault((data, name, label), len(numbers))
        weights, strata = np.ones(len(y)), np.zeros(len(y), np.int64)
        if metric == BALANCED_ACCURACY:
            weights = _balanced_weights(y)
            labels, codes = np.unique(y, return_inverse=True)
            found = [classes.setdefault((data, label), len(classes)) for label in labels.tolist()]
            strata = np.array(found, np.int64)[codes]
        order = np.argsort(images)
        scores = predictions.scores
        if scores is None:
            scores = np.where(predictions.correct, weights, 0.0)
        units = None
        if predictions.groups is not None:
            named = ((data, group) for group in predictions.groups.tolist())
            units = np.array(
                [group_numbers.setdefault(name, len(group_numbers)) for name in named], np.int64
            )[order]
        scored.append(
            CellScores(
                place,
                images[order],
                scores[order],
                weights[order],
                strata[order],
                units,
                linear=predictions.scores is not None,
            )
        )
    return scored


def _balanced_weights(y: NDArray[Any]) -> _Floats:
    """Return ``(n,)`` weights under which the mean over images is the mean recall over classes."""
    _, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    weights: _Floats = len(y) / (len(counts) * counts[codes])
    return weights


def effects(
    cells: Sequence[CellScores], axis: str, pairs: Iterable[tuple[Hashable, Hashable]]
) -> list[Effect]:
    """Compare values of an axis pairwise on the same test images, averaged over all matched cells.

    The question that a grid asks is which value of the axis is better, not which is better with
    seed 0. So the difference is a mean over matched cells, and its interval covers other test
    images and other seeds. The interval of a single seed answers another question: it is wider,
    because nothing is averaged, and yet covers too little, because it contains no variation between
    seeds.

    Images and seeds are crossed samples. The variance of the mean is the variance over images,
    after averaging the cells of each image, plus, with several seeds, the variance over seeds,
    minus their interaction, which both contain; Satterthwaite's approximation gives the degrees of
    freedom of the sum, in which half of the interaction counts as estimated from few seeds. Two
    images are added to the observed ones, half an image each way (Agresti and Min), so that the
    interval has a width even if no image distinguishes the two values. A single pair of cells has
    the interval and the p-value of ``compare``.

    In simulations with 3 seeds these intervals covered the true value in 95 to 97 % of cases if the
    seeds differ by chance only, and in 89 to 96 % if they differ more than the test images explain,
    as three seeds do not tell how much. With 5 seeds it was 93 to 97 %.
    A bootstrap over images and seeds (Owen, "The pigeonhole bootstrap", Ann. Appl. Stat. 1 (2007),
    386-411) covered it in 80 to 98 %, because three seeds drawn with replacement have two thirds of
    their variance. It also needs memory for 2,000 resamples of n images; this needs memory for the
    scores alone.

    Args:
        cells: scores from ``score_cells``.
        axis: name of the axis.
        pairs: pairs ``(a, b)`` of values on it.

    Returns:
        One effect for each pair that has matched cells on the same images, with ``p_holm`` equal to
        ``p``.

    Source: Cameron, Gelbach and Miller, "Robust inference with multiway clustering", J. Bus. Econ.
    Stat. 29 (2011), 238-249; Satterthwaite, "An approximate distribution of
    estimates of variance components", Biometrics Bulletin 2 (1946), 110-114; Agresti and Min,
    "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine
    24 (2005), 729-740.
    """
    by_value: dict[Hashable, dict[frozenset[tuple[str, Hashable]], CellScores]] = {}
    for cell in cells:
        others = frozenset(item for item in cell.place.items() if item[0] != axis)
        by_value.setdefault(cell.place[axis], {})[others] = cell
    found = []
    for a, b in pairs:
        cells_a, cells_b = by_value.get(a, {}), by_value.get(b, {})
        matched = []
        # Iterate in the order of the cells, not over a set: sums of floats depend on the order.
        for others, cell_a in cells_a.items():
            cell_b = cells_b.get(others)
            if cell_b is not None and np.array_equal(cell_a.images, cell_b.images):
                matched.append((cell_a, cell_b))
        if matched:
            found.append(_effect(axis, a, b, matched))
    return found


def _effect(
    axis: str, a: Hashable, b: Hashable, matched: Sequence[tuple[CellScores, CellScores]]
) -> Effect:
    cells_a = [cell_a for cell_a, _ in matched]
    differences = [cell_a.scores - cell_b.scores for cell_a, cell_b in matched]
    mean = _MeanEstimate.of(differences, cells_a)
    is_accuracy = np.all(cells_a[0].weights == 1) and not cells_a[0].linear
    if len(matched) == 1 and is_accuracy:
        only_a, only_b = int(np.sum(differences[0] > 0)), int(np.sum(differences[0] < 0))
        clusters = Clusters.of(cells_a[0].units, mean.n)
        if clusters is None:
            interval, p = paired_interval(only_a, only_b, mean.n), mcnemar(only_a, only_b)
        else:
            correct_a, correct_b = (cell.scores > 0 for cell in matched[0])
            interval, p = clustered_difference(correct_a, correct_b, clusters)
    else:
        interval, p = mean.with_images(2, total=0.0, squares=1.0)
    return Effect(axis, a, b, len(matched), mean.seeds, mean.n, mean.value, interval, p, p_holm=p)


def adjusted(compared: Sequence[Effect]) -> list[Effect]:
    """Return a family of comparisons with Holm-corrected p-values.

    The probability of any false rejection is at most 5 %.
    """
    corrected = holm([effect.p for effect in compared])
    return [
        replace(effect, p_holm=p, comparisons=len(compared))
        for effect, p in zip(compared, corrected, strict=True)
    ]


def average(cells: Sequence[CellScores]) -> Average:
    """Return the mean metric of cells, with an interval over images and seeds as in ``effects``.

    Four images are added, two of them correct (Agresti and Coull, "Approximate is better than
    'exact' for interval estimation of binomial proportions", The American Statistician 52 (1998),
    119-126). For balanced accuracy they are added to the effective number of images, ``k**2 /
    sum(1 / n)`` for ``k`` classes of ``n`` images.

    With two seeds the interval covers other test images only. The variance over seeds would be
    estimated from one difference: two seeds of 92.6 % and 85.3 % would give 63 to 100 %.
    """
    mean = _MeanEstimate.of([cell.scores for cell in cells], cells)
    if mean.seeds < _MIN_SEEDS:
        mean = mean.over_images()
    # A mean over cells and classes may vary less from image to image than a single prediction, and
    # so do the added images. 1 / effective**2, a single image, keeps the ratio finite.
    single = mean.value * (1 - mean.value) / mean.effective
    one_image = 1 / mean.effective**2
    design_effect = min(1.0, (mean.image_variance + one_image) / (single + one_image))
    (low, high), _ = mean.with_images(4, total=2.0, squares=1 + design_effect)
    value = min(1.0, mean.value)
    interval = max(0.0, low), min(1.0, high)
    return Average(value, interval, len(cells), mean.seeds, mean.n, mean.groups)


def average_accuracies(hits: Sequence[float], totals: Sequence[int]) -> Average:
    """Return the mean over seeds of accuracies of which only the counts are known.

    The images of the seeds are taken to be the same, with the same predictions. This gives the
    widest interval.

    Args:
        hits: number of correct predictions, for each seed; may be fractional if the number of test
            images is an effective one.
        totals: number of test images, for each seed.
    """
    cells = []
    for seed, (correct, n) in enumerate(zip(hits, totals, strict=True)):
        images = np.arange(n)
        right = np.clip(correct - images, 0.0, 1.0)
        same = np.zeros(n, np.int64)
        cells.append(CellScores({SEED: seed}, images, right, np.ones(n), same))
    return average(cells)


def mean_ratio(groups: Sequence[Sequence[tuple[CellScores, CellScores]]]) -> Average | None:
    """Return a mean of ratios of metrics on the same images, with its 95 % interval.

    For each group of matched cells ``(numerator, denominator)`` the ratio ``R`` is the mean of the
    numerators over the mean of the denominators. One group of (perturbed, clean) accuracies gives 1
    minus the relative drop; one group of (own, baseline) errors for each corruption gives the mean
    corruption error.

    The delta method replaces each ratio by its linear part ``(numerator - R * denominator) /
    mean(denominator)``, a mean over cells and images whose variance is that of ``effects``. With
    one seed it agrees with a percentile bootstrap over images, but it also covers seeds, has no
    random draw, and needs memory for the scores alone. As in ``effects``, two images are added,
    half an image correct in the numerator only and half in the denominator only, so that the
    interval has a width where the cells agree on every image.

    Args:
        groups: matched cells of each ratio; every pair on the same images.

    Returns:
        The mean over groups, or None if there is no group or a denominator is 0.

    Source: Oehlert, "A note on the delta method", The American Statistician 46 (1992), 27-29;
    Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
    perturbations", ICLR 2019, section 4, for the mean corruption error.
    """
    pairs = sum(len(group) for group in groups)
    rows: list[_Floats] = []
    cells: list[CellScores] = []
    ratios, squares = [], 0.0
    for group in groups:
        denominator = float(np.mean([below.scores.mean() for _, below in group]))
        if denominator == 0:
            return None
        ratio = float(np.mean([above.scores.mean() for above, _ in group])) / denominator
        ratios.append(ratio)
        # The mean over all rows must give each group, not each pair, the same weight.
        scale = pairs / (len(groups) * len(group) * denominator)
        for above, below in group:
            rows.append(scale * (above.scores - ratio * below.scores))
            cells.append(above)
            squares += scale**2 * (1 + ratio**2) / 2
    if not groups:
        return None
    linear = _MeanEstimate.of(rows, cells)
    if linear.seeds < _MIN_SEEDS:
        linear = linear.over_images()
    # An added image counts in every cell alike, so its square is that of a mean over cells, not a
    # sum.
    (low, high), _ = linear.with_images(2, total=0.0, squares=squares / pairs)
    value = float(np.mean(ratios))
    interval = value + low, value + high
    return Average(value, interval, pairs, linear.seeds, linear.n, linear.groups)


@dataclass(frozen=True)
class _MeanEstimate:
    """Mean over cells of the mean over images, with its variance.

    Attributes:
        value: the mean.
        seeds: number of seeds.
        n: number of distinct images.
        effective: effective number of images: that of a plain mean of as many independent values
            with the same variance. It is ``n`` if all images have the same weight in the mean.
        image_variance: variance of the mean over test images.
        seed_variance: variance of the mean over seeds beyond what the test images and their
            interaction with the seeds explain; 0 with one seed.
        estimated_variance: the part of the variance that is estimated from few seeds, for the
            degrees of freedom: that over seeds with half of the interaction.
        groups: number of groups of images, which then take the place of images in all variances;
            None without groups.
    """

    value: float
    seeds: int
    n: int
    effective: float
    image_variance: float
    seed_variance: float
    estimated_variance: float
    groups: int | None = None

    @classmethod
    def of(cls, rows: Sequence[_Floats], cells: Sequence[CellScores]) -> _MeanEstimate:
        """Estimate the mean of ``rows``, one ``(n,)`` array of values for each cell."""
        seeds = _codes([cell.place.get(SEED) for cell in cells])
        places_without_seed = []
        for cell in cells:
            items = cell.place.items()
            places_without_seed.append(frozenset(item for item in items if item[0] != SEED))
        settings = _codes(places_without_seed)
        means = np.array([row.mean() for row in rows])
        seed_count = int(seeds.max()) + 1

        n = len(np.unique(np.concatenate([cell.images for cell in cells])))
        images = np.unique(np.concatenate(_sampled_units(cells)), return_inverse=True)[1]
        shares = np.concatenate([cell.weights / (len(rows) * len(cell.images)) for cell in cells])
        weights = np.bincount(images, shares).astype(np.float64)
        image_variance, contributions = _variance_over_images(rows, cells, images, weights)

        # Each seed's contribution, relative to the mean of the same setting over seeds.
        setting_means = np.bincount(settings, means) / np.bincount(settings)
        per_seed = np.bincount(seeds, means - setting_means[settings]) / len(rows)
        seed_variance = estimated_variance = 0.0
        if seed_count > 1:
            # The means of two seeds differ without any effect of the seeds, because an image may be
            # predicted correctly with one of them only, or be a test image with one of them only.
            # The variance over images contains both already.
            of_rows = np.repeat(seeds, [len(row) for row in rows])
            per_image = np.bincount(images, contributions)
            interaction = other_images = 0.0
            for seed in range(seed_count):
                own = of_rows == seed
                size = len(weights)
                contribution = np.bincount(images[own], contributions[own], minlength=size)
                interaction += float(np.sum((contribution - per_image / seed_count) ** 2))
                weight = np.bincount(images[own], shares[own], minlength=size) / weights
                other_images += float(np.sum((per_image * (weight - 1 / seed_count)) ** 2))
            observed = float(np.sum(per_seed**2))
            correction = seed_count / (seed_count - 1)
            seed_variance = max(0.0, observed - interaction) * correction
            # Half of the interaction: without it the interval is too narrow where the seeds differ,
            # with all of it too wide where they do not.
            explained = (interaction + other_images) / 2
            estimated_variance = max(0.0, observed - explained) * correction
        return cls(
            value=float(means.mean()),
            seeds=seed_count,
            n=n,
            groups=len(weights) if _has_groups(cells) else None,
            effective=1 / float(np.sum(weights**2)),
            image_variance=image_variance,
            seed_variance=seed_variance,
            estimated_variance=estimated_variance,
        )

    def over_images(self) -> _MeanEstimate:
        """Return the same mean for the given seeds, without the variance over seeds."""
        return replace(self, seed_variance=0.0, estimated_variance=0.0)

    def with_images(self, added: int, total: float, squares: float) -> tuple[Interval, float]:
        """Return the 95 % interval and the p-value of a mean of zero, with artificial images.

        Args:
            added: number of artificial images.
            total: sum of their values.
            squares: sum of the squares of their values.
        """
        from scipy.stats import t  # takes a second, and most commands average nothing

        n = self.effective + added
        centre = (self.effective * self.value + total) / n
        extra = (squares + self.effective * self.value**2 - n * centre**2) / n**2
        variance = (self.effective / n) ** 2 * self.image_variance + extra + self.seed_variance
        # Satterthwaite: only the variance over seeds is estimated from few values.
        freedom = inf
        if self.estimated_variance:
            freedom = (self.seeds - 1) * (variance / self.estimated_variance) ** 2
        if self.groups is not None:
            freedom = min(freedom, max(1, self.groups - 1))
        half = float(t.ppf(0.975, freedom)) * sqrt(variance)
        p = float(2 * t.sf(abs(centre) / sqrt(variance), freedom))
        return (centre - half, centre + half), p


def _variance_over_images(
    rows: Sequence[_Floats],
    cells: Sequence[CellScores],
    images: NDArray[np.int64],
    weights: _Floats,
) -> tuple[float, _Floats]:
    """Return the variance of a mean over cells and images, for other images of the same strata.

    The values of an image deviate from the mean of its stratum (class) in the same cell, not from
    the grand mean: a class of low accuracy is no sampling error, and neither are differences
    between seeds or settings. A stratum of few images may have no variance by chance, and one of a
    single image has none by construction. The variance of each stratum is therefore that of its
    images together with ``_PRIOR_IMAGES`` images that are distributed like the images of all
    strata.

    Args:
        rows: one ``(n,)`` array of values for each cell.
        cells: the cells.
        images: number of the image, or of its group, of each value of all rows, 0..m-1. Groups are
            not divided into strata, since one may have images of several.
        weights: ``(m,)`` weight of each image or group in the mean; they sum to 1.

    Returns:
        The variance, and the contribution of each value of all rows to the deviation of the mean.
    """
    grouped = _has_groups(cells)
    strata = np.unique(np.concatenate([cell.strata for cell in cells]), return_inverse=True)[1]
    sizes = [len(row) for row in rows]
    count = int(strata.max()) + 1
    # The mean of each stratum in each cell, by one number for each such pair.
    pairs = np.repeat(np.arange(len(rows)), sizes) * count + strata
    values = np.concatenate(rows)
    shares = np.concatenate([cell.weights / (len(rows) * len(cell.images)) for cell in cells])
    pair_weights = np.bincount(pairs, shares, minlength=len(rows) * count)
    contributions = values / (len(rows) * np.repeat(sizes, sizes))
    pair_sums = np.bincount(pairs, contributions, minlength=len(rows) * count)
    pair_means = np.divide(
        pair_sums, pair_weights, out=np.zeros_like(pair_sums), where=pair_weights > 0
    )
    contributions -= shares * pair_means[pairs]
    per_image = np.bincount(images, contributions)

    stratum_of = np.zeros(len(weights), np.int64)
    if not grouped:  # a group may have images of several classes
        stratum_of[images] = strata
    n = np.bincount(stratum_of)
    squares = np.bincount(stratum_of, per_image**2).astype(np.float64)
    weight_squares = np.bincount(stratum_of, weights**2)
    stratum_weights = pair_weights.reshape(len(rows), count).sum(axis=0)
    stratum_sums = pair_sums.reshape(len(rows), count).sum(axis=0)
    if grouped:
        stratum_weights, stratum_sums = stratum_weights.sum(), stratum_sums.sum(keepdims=True)
    means = stratum_sums / stratum_weights
    prior_mean = means.mean()
    prior_variance = float(np.mean(squares / weight_squares) + means.var())
    own_share = n / (n + _PRIOR_IMAGES)
    smoothing = (1 - own_share) * (prior_variance + own_share * (means - prior_mean) ** 2)
    if count > 1 or grouped:
        # The mean of a few images is closer to them than the true mean. For a single stratum the
        # images that ``average`` and ``effects`` add take the place of this factor.
        squares = squares * n / np.maximum(n - 1, 1)
    variance = float(np.sum(own_share * squares + weight_squares * smoothing))
    return variance, contributions


def _has_groups(cells: Sequence[CellScores]) -> bool:
    return any(cell.units is not None for cell in cells)


def _sampled_units(cells: Sequence[CellScores]) -> list[NDArray[np.int64]]:
    """Return the numbers of the groups of each cell's images; those of the images without groups.

    Cells of different data sets may have groups or none: their numbers are then distinct.
    """
    first_image = 1 + max(
        (int(cell.units.max()) for cell in cells if cell.units is not None), default=-1
    )
    units = []
    for cell in cells:
        units.append(cell.images + first_image if cell.units is None else cell.units)
    return units


def _codes(values: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return the number of each value, in the order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values])
