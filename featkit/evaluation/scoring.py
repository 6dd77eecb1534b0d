"""Evaluation of scores against true classes: reports, class groups and selective accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featkit.arguments import (
    ARRAY,
    GROUPS,
    SEED,
    checked,
    instance,
    mapping,
    one_of,
    sequence,
    text,
)
from featkit.errors import DataError, SpecError
from featkit.evaluation import metrics
from featkit.evaluation.calibration import (
    Temperature,
    apply_temperature,
    are_probabilities,
    calibration_error,
    nll,
    reliability_bins,
)
from featkit.evaluation.clusters import (
    Clusters,
    clustered_balanced_interval,
    proportion_interval,
)
from featkit.evaluation.intervals import Interval, balanced_interval
from featkit.evaluation.report import (
    AccuracyWithout,
    ClassMetrics,
    ConfusedPair,
    GroupAccuracy,
    Rejection,
    Report,
)

MANY, FEW = 100, 20
"""Many-shot classes have more than 100 training images, few-shot classes fewer than 20, medium-shot
classes all others.
"""
_IMBALANCE = MANY / FEW
"""Ratio of the largest to the smallest class from which a training set is imbalanced: with a
smaller one, all classes can be of similar size on both sides of a group limit."""
_MAX_CONFUSED_PAIRS = 10


@checked(
    scores=ARRAY,
    y=ARRAY,
    classes=sequence(one_of(text("cat"), Integral), least=1),
    columns=ARRAY,
    temperature=instance(Temperature),
    train_counts=ARRAY,
    warnings=sequence(text("a warning")),
    provenance=mapping(),
    cost=mapping(),
    seed=SEED,
    groups=GROUPS,
)
def evaluate(
    scores: ArrayLike,
    y: ArrayLike,
    classes: Sequence[str],
    *,
    columns: ArrayLike | None = None,
    temperature: Temperature | None = None,
    train_counts: ArrayLike | None = None,
    warnings: Iterable[str] = (),
    provenance: Mapping[str, Any] | None = None,
    cost: Mapping[str, float] | None = None,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> Report:
    """Evaluate scores against the true classes.

    Args:
        scores: ``(n, m)``, higher is more probable, on any monotone scale. Of equal scores the
            first is predicted; for top-5, ties count as misses (see ``metrics.top_k``).
        y: ``(n,)`` integers, indices into ``classes``.
        classes: k class names.
        columns: ``(m,)`` the class of each column, such as ``classes_`` of a head; 0..k-1 if None.
            Images of a class without a column count as misses.
        temperature: result of ``fit_temperature`` on the validation scores of the same head.
        train_counts: ``(k,)`` number of training images of each class.
        warnings: lines for the reader of the report.
        provenance: recipe, head, seed and versions.
        cost: seconds and megabytes.
        seed: of the bootstrap of ``balanced_interval95``.
        groups: ``(n,)`` group of each image, such as its patient, which the intervals resample in
            place of single images; None if the images are independent.

    Raises:
        DataError: if there is no row, shapes do not match, a label or column is not a class, a
            score is NaN, or a temperature is given for scores that are not probabilities.
    """
    table, truth, named = _validated(scores, y, len(classes), columns)
    predicted = metrics.predict(table, named)
    counts = metrics.confusion_matrix(truth, predicted, len(classes))
    totals = counts.sum(axis=1)
    per_class = metrics.per_class(counts)
    correct, n = predicted == truth, len(truth)
    clusters = Clusters.of(groups, n)
    return Report(
        n=n,
        top1=int(correct.sum()) / n,
        top5=metrics.top_k(table, truth, named, 5) if len(classes) > 5 else None,
        balanced_accuracy=float(np.nanmean(per_class.recall)),
        macro_f1=float(np.nanmean(per_class.f1)),
        interval95=proportion_interval(correct, clusters),
        balanced_interval95=_balanced_interval(counts, correct, truth, clusters, seed),
        per_class=_class_metrics(
            classes, totals, per_class, _recall_intervals(correct, truth, clusters)
        ),
        confusion=counts,
        confused=_confused_pairs(counts, list(map(str, classes))),
        groups=(
            None
            if train_counts is None
            else group_accuracies(correct, truth, len(classes), train_counts, clusters)
        ),
        test_groups=None if clusters is None else clusters.count,
        **_calibration_metrics(table, truth, named, temperature, clusters),
        warnings=tuple(warnings),
        provenance=dict(provenance or {}),
        cost=dict(cost or {}),
    )


def _balanced_interval(
    counts: metrics.Labels,
    correct: NDArray[np.bool_],
    y: metrics.Labels,
    clusters: Clusters | None,
    seed: int,
) -> Interval:
    if clusters is None:
        return balanced_interval(np.diag(counts), counts.sum(axis=1), seed=seed)
    return clustered_balanced_interval(correct, y, clusters, seed=seed)


def _recall_intervals(
    correct: NDArray[np.bool_], y: metrics.Labels, clusters: Clusters | None
) -> dict[int, Interval]:
    """Return the interval of the recall of each class that has test images, over their groups.

    Without groups it follows from the counts, so nothing is returned.
    """
    if clusters is None:
        return {}
    intervals = {}
    for label in np.unique(y).tolist():
        own = y == label
        intervals[label] = proportion_interval(correct[own], clusters.take(own))
    return intervals


def _calibration_metrics(
    scores: metrics.Scores,
    y: metrics.Labels,
    columns: metrics.Labels,
    temperature: Temperature | None,
    clusters: Clusters | None,
) -> dict[str, Any]:
    """Return the fields of a report that need probabilities; none without probabilities."""
    if not are_probabilities(scores):
        if temperature is not None:
            raise DataError(
                "a temperature needs probabilities as scores: rows must be non-negative and sum to "
                "1"
            )
        return {}
    bins = reliability_bins(scores, y, columns, clusters=clusters)
    uncalibrated = {
        "nll": nll(scores, y, columns),
        "ece": calibration_error(bins),
        "reliability": bins,
    }
    if temperature is None:
        return uncalibrated
    calibrated = apply_temperature(scores, temperature)
    bins = reliability_bins(calibrated, y, columns, clusters=clusters)
    return uncalibrated | {
        "temperature": temperature,
        "nll_calibrated": nll(calibrated, y, columns),
        "ece_calibrated": calibration_error(bins),
        "reliability_calibrated": bins,
    }


def _confused_pairs(confusion: metrics.Labels, classes: Sequence[str]) -> tuple[ConfusedPair, ...]:
    totals = confusion.sum(axis=1)
    pairs = []
    for true, predicted in metrics.most_confused(confusion, classes)[:_MAX_CONFUSED_PAIRS]:
        count = int(confusion[true, predicted])
        pairs.append(
            ConfusedPair(classes[true], classes[predicted], count, float(count / totals[true]))
        )
    return tuple(pairs)


def _validated(
    scores: ArrayLike, y: ArrayLike, k: int, columns: ArrayLike | None
) -> tuple[metrics.Scores, metrics.Labels, metrics.Labels]:
    table, truth = np.asarray(scores, dtype=np.float64), np.asarray(y)
    named = np.arange(k) if columns is None else np.asarray(columns)
    if not truth.size or not named.size:
        raise DataError(
            f"nothing to evaluate in scores {table.shape}: a report needs at least one test image "
            "and one class"
        )
    if table.shape != (*truth.shape, len(named)) or truth.ndim != 1:
        raise DataError(
            f"scores {table.shape} do not match y {truth.shape}: expected (n, {len(named)}) "
            "scores, (n,) labels"
        )
    _check_classes(truth, named, k)
    if np.isnan(table).any():
        row = int(np.flatnonzero(np.isnan(table).any(axis=1))[0])
        raise DataError(
            f"the scores of row {row} contain NaN: check the features for NaN, and that the head "
            "is fitted"
        )
    return table, truth.astype(np.int64), named.astype(np.int64)


def _check_classes(truth: NDArray[Any], named: NDArray[Any], k: int) -> None:
    """Raise DataError unless labels and columns are classes 0..k-1 and no class has two columns."""
    for kind, values in (("label", truth), ("column", named)):
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= k:
            raise DataError(
                f"a {kind} is not one of the {k} classes: {kind}s must be integers in 0..{k - 1}"
            )
    if len(np.unique(named)) < len(named):
        raise DataError(
            "two columns of scores belong to the same class: give one column for each class"
        )


def _class_metrics(
    classes: Sequence[str],
    totals: metrics.Labels,
    values: metrics.PerClass,
    recall_intervals: Mapping[int, Interval],
) -> tuple[ClassMetrics, ...]:
    rows: list[ClassMetrics] = []
    for name, n, *numbers in zip(map(str, classes), totals.tolist(), *values, strict=True):
        precision, recall, f1 = (None if math.isnan(each) else float(each) for each in numbers)
        interval = recall_intervals.get(len(rows))
        rows.append(ClassMetrics(name, n, precision, recall, f1, interval))
    return tuple(rows)


def group_accuracies(
    correct: NDArray[np.bool_],
    y: NDArray[np.int64],
    k: int,
    train_counts: ArrayLike,
    clusters: Clusters | None = None,
) -> tuple[GroupAccuracy, ...] | None:
    """Return the accuracy on many-, medium- and few-shot classes.

    Returns None if the training set is not imbalanced.

    Imbalanced means that the largest class has at least 5 times the training images of the
    smallest, and that not all classes are in one group. Otherwise a group limit would separate
    classes of, say, 98 and 102 images.

    Args:
        correct: ``(n,)`` whether each prediction is correct.
        y: ``(n,)`` true classes.
        k: number of classes.
        train_counts: ``(k,)`` number of training images of each class; classes without any are
            few-shot classes.
        clusters: groups of the images, for the intervals; None for independent images.

    Returns:
        One row for each group that has test images.

    Raises:
        DataError: if ``train_counts`` are not k non-negative integers.

    Source: Liu et al., "Large-scale long-tailed recognition in an open world", CVPR 2019, section
        5.
    """
    counts = np.asarray(train_counts)
    if counts.shape != (k,) or counts.dtype.kind not in "iu" or counts.min() < 0:
        raise DataError(
            f"train_counts {counts.shape} of {counts.dtype}: give the number of training images of "
            f"each of the {k} classes"
        )
    groups = {
        "many": counts > MANY,
        "medium": (counts >= FEW) & (counts <= MANY),
        "few": counts < FEW,
    }
    group_count = sum(bool(members.any()) for members in groups.values())
    if counts.max() < _IMBALANCE * counts.min() or group_count < 2:
        return None
    rows = []
    for name, members in groups.items():
        own = members[y]
        if own.any():
            tested, n, hits = len(np.unique(y[own])), int(own.sum()), int(correct[own].sum())
            interval = proportion_interval(correct[own], clusters and clusters.take(own))
            rows.append(GroupAccuracy(name, tested, n, hits / n, interval))
    return tuple(rows)


def accuracy_without(
    correct: NDArray[np.bool_], copied: NDArray[np.bool_], groups: ArrayLike | None = None
) -> AccuracyWithout:
    """Return the top-1 accuracy on the test images that are not copies of training images.

    Args:
        correct: ``(n,)`` whether each test image is predicted correctly.
        copied: ``(n,)`` whether it is a copy.
        groups: ``(n,)`` group of each image, as for ``evaluate``.
    """
    kept, clusters = correct[~copied], Clusters.of(groups, len(correct))
    hits, n = int(kept.sum()), len(kept)
    return AccuracyWithout(
        copies=int(copied.sum()),
        n=n,
        top1=hits / n if n else None,
        interval95=proportion_interval(kept, clusters and clusters.take(~copied)) if n else None,
    )


def rejection_threshold(scores: metrics.Scores, share: float) -> float:
    """Return the confidence threshold that rejects at most a fraction of the validation images.

    Args:
        scores: ``(n, m)`` scores of images on which nothing was fitted, such as the validation set.
        share: fraction of the images to reject, at least 0 and below 1.

    Raises:
        SpecError: if the share is not in 0..1.
        DataError: if there is no image.
    """
    if not 0 <= share < 1:
        raise SpecError(
            f"cannot reject a share of {share:g} of the images: give a number from 0 to below 1"
        )
    if not len(scores):
        raise DataError("no val images to choose a rejection threshold on: leave out --reject")
    confidence = np.sort(scores.max(axis=1))
    return float(confidence[int(share * len(confidence))])


def reject(
    scores: metrics.Scores,
    y: metrics.Labels,
    columns: metrics.Labels,
    *,
    share: float,
    threshold: float | NDArray[np.float64],
    groups: ArrayLike | None = None,
) -> Rejection:
    """Return coverage and selective accuracy on test images whose confidence reaches a threshold.

    Args:
        scores: ``(n, m)`` probabilities.
        y: ``(n,)`` true classes.
        columns: ``(m,)`` the class of each column.
        share: fraction of validation images that the threshold rejects, for the result.
        threshold: from ``rejection_threshold``; of out-of-fold scores ``(n,)``, that of the fold of
            each image, whose mean the result has.
        groups: ``(n,)`` group of each image, as for ``evaluate``.
    """
    accepted = scores.max(axis=1) >= threshold
    correct = metrics.predict(scores, columns) == y
    clusters = Clusters.of(groups, len(y))
    answered, interval = int(accepted.sum()), None
    if answered:
        interval = proportion_interval(correct[accepted], clusters and clusters.take(accepted))
    return Rejection(
        share=share,
        threshold=float(np.mean(threshold)),
        answered=answered,
        coverage=answered / len(y),
        top1=int(correct[accepted].sum()) / answered if answered else None,
        interval95=interval,
        coverage_interval95=proportion_interval(accepted, clusters),
    )
