"""Mean average precision over folds, with an interval that accounts for the folds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featkit.evaluation.clusters import Clusters
from featkit.evaluation.folds import FoldPrecisions
from featkit.evaluation.intervals import Interval
from featkit.evaluation.multilabel import (
    Floats,
    Targets,
    effective_positives,
    mean_average_precision_terms,
    metric_interval,
    terms_variance,
)


def score_precision_folds(
    scores: Floats,
    targets: Targets,
    fold_of: NDArray[np.int64],
    folds: int,
    clusters: Clusters | None = None,
    *,
    assignment: str,
) -> FoldPrecisions:
    """Return the mean average precision in each fold and over all folds, with intervals.

    Args:
        scores: ``(repeats, n, k)`` out-of-fold scores, before calibration.
        targets: ``(n, k)`` zeros and ones; every fold has images with labels.
        fold_of: ``(repeats, n)`` fold of each image.
        folds: number of folds.
        clusters: groups of the images; None for independent images.
        assignment: digest of the folds, see ``FoldPrecisions``.
    """
    precisions: list[float] = []
    sizes: list[int] = []
    intervals: list[Interval] = []
    for own_scores, own_folds in zip(scores, fold_of, strict=True):
        for fold in range(folds):
            inside = own_folds == fold
            own_targets = targets[inside]
            terms = mean_average_precision_terms(own_targets, own_scores[inside])
            own_clusters = clusters and clusters.take(inside)
            precisions.append(float(terms.mean()))
            sizes.append(int(inside.sum()))
            effective = effective_positives(own_targets)
            intervals.append(metric_interval(terms, effective, own_clusters))
    pooled = np.stack([mean_average_precision_terms(targets, each) for each in scores])
    return FoldPrecisions(
        folds=folds,
        repeats=len(scores),
        precisions=tuple(precisions),
        sizes=tuple(sizes),
        intervals95=tuple(intervals),
        mean_average_precision=float(pooled.mean()),
        interval95=precision_fold_interval(pooled, targets, fold_of, folds, clusters),
        effective=effective_positives(targets),
        assignment=assignment,
    )


def precision_fold_interval(
    terms: Floats,
    targets: Targets,
    fold_of: NDArray[np.int64],
    folds: int,
    clusters: Clusters | None = None,
) -> Interval:
    """Return the 95 % interval of the mean average precision of pooled out-of-fold scores.

    It is that of the mean of the linear terms, of which those of an image in several repeats count
    as one. As in ``folds.fold_interval``, the heads of the folds differ in their training images:
    where the mean terms of the folds vary by more than the sampling of images explains, the excess
    is added to the variance, times ``1 / (folds * repeats) + 1 / (folds - 1)``.

    Args:
        terms: ``(repeats, n)`` linear terms of the pooled scores.
        targets: ``(n, k)`` zeros and ones.
        fold_of: ``(repeats, n)`` fold of each image.
        folds: number of folds.
        clusters: groups of the images; None for independent images.

    Source: see ``folds.fold_interval``.
    """
    repeats = len(terms)
    if clusters is not None and clusters.count < 2:
        return 0.0, 1.0
    means = []
    for own_terms, own_folds in zip(terms, fold_of, strict=True):
        sizes = np.bincount(own_folds, minlength=folds)
        means.append(np.bincount(own_folds, own_terms, minlength=folds) / sizes)
    single = float(np.mean([terms_variance(each, clusters) for each in terms]))
    excess = max(0.0, float(np.var(np.concatenate(means), ddof=1)) - folds * single)
    added = excess * (1 / (folds * repeats) + 1 / (folds - 1))
    return metric_interval(terms.mean(axis=0), effective_positives(targets), clusters, added)
