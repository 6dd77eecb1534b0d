"""Evaluation of scores against true classes: reports, class groups and selective accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featkit.arguments import ARRAY, SEED, checked, instance, mapping, one_of, sequence, text
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
from featkit.evaluation.intervals import balanced_interval, wilson
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

    Raises:
        DataError: if there is no row, shapes do not match, a label or column is not a class, a
            score is NaN, or a temperature is given for scores that are not probabilities.
    """
    table, truth, named = _validated(scores, y, len(classes), columns)
    counts = metrics.confusion_matrix(truth, metrics.predict(table, named), len(classes))
    hits, totals = np.diag(counts), counts.sum(axis=1)
    correct, n = int(hits.sum()), len(truth)
    return Report(
        n=n,
        top1=correct / n,
        top5=metrics.top_k(table, truth, named, 5) if len(classes) > 5 else None,
        balanced_accuracy=metrics.balanced_accuracy(counts),
        macro_f1=metrics.macro_f1(counts),
        interval95=wilson(correct, n),
        balanced_interval95=balanced_interval(hits, totals, seed=seed),
        per_class=_class_metrics(classes, totals, metrics.per_class(counts)),
        confusion=counts,
        confused=_confused_pairs(counts, list(map(str, classes))),
        groups=None if train_counts is None else group_accuracies(hits, totals, train_counts),
        **_calibration_metrics(table, truth, named, temperature),
        warnings=tuple(warnings),
        provenance=dict(provenance or {}),
        cost=dict(cost or {}),
    )


def _calibration_metrics(
    scores: metrics.Scores,
    y: metrics.Labels,
    columns: metrics.Labels,
    temperature: Temperature | None,
) -> dict[str, Any]:
    """Return the fields of a report that need probabilities; none without probabilities."""
    if not are_probabilities(scores):
        if temperature is not None:
            raise DataError(
                "a temperature needs probabilities as scores: rows must be non-negative and sum to "
                "1"
            )
        return {}
    bins = reliability_bins(scores, y, columns)
    uncalibrated = {
        "nll": nll(scores, y, columns),
        "ece": calibration_error(bins),
        "reliability": bins,
    }
    if temperature is None:
        return uncalibrated
    calibrated = apply_temperature(scores, temperature)
    bins = reliability_bins(calibrated, y, columns)
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
    classes: Sequence[str], totals: metrics.Labels, values: metrics.PerClass
) -> tuple[ClassMetrics, ...]:
    rows = []
    for name, n, *numbers in zip(map(str, classes), totals.tolist(), *values, strict=True):
        rows.append(
            ClassMetrics(
                name, n, *(None if math.isnan(number) else float(number) for number in numbers)
            )
        )
    return tuple(rows)


def group_accuracies(
    hits: NDArray[np.int64], totals: NDArray[np.int64], train_counts: ArrayLike
) -> tuple[GroupAccuracy, ...] | None:
    """Return the accuracy on many-, medium- and few-shot classes.

    Returns None if the training set is not imbalanced.

    Imbalanced means that the largest class has at least 5 times the training images of the
    smallest, and that not all classes are in one group. Otherwise a group limit would separate
    classes of, say, 98 and 102 images.

    Args:
        hits: ``(k,)`` number of correct predictions in each class.
        totals: ``(k,)`` number of test images of each class.
        train_counts: ``(k,)`` number of training images of each class; classes without any are
            few-shot classes.

    Returns:
        One row for each group that has test images.

    Raises:
        DataError: if ``train_counts`` are not k non-negative integers.

    Source: Liu et al., "Large-scale long-tailed recognition in an open world", CVPR 2019, section
        5.
    """
    counts = np.asarray(train_counts)
    if counts.shape != hits.shape or counts.dtype.kind not in "iu" or counts.min() < 0:
        raise DataError(
            f"train_counts {counts.shape} of {counts.dtype}: give the number of training images of "
            f"each of the {len(hits)} classes"
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
        tested = members & (totals > 0)
        if tested.any():
            correct, n = int(hits[tested].sum()), int(totals[tested].sum())
            rows.append(GroupAccuracy(name, int(tested.sum()), n, correct / n, wilson(correct, n)))
    return tuple(rows)


def accuracy_without(correct: NDArray[np.bool_], copied: NDArray[np.bool_]) -> AccuracyWithout:
    """Return the top-1 accuracy on the test images that are not copies of training images.

    Args:
        correct: ``(n,)`` whether each test image is predicted correctly.
        copied: ``(n,)`` whether it is a copy.
    """
    kept = correct[~copied]
    hits, n = int(kept.sum()), len(kept)
    return AccuracyWithout(
        copies=int(copied.sum()),
        n=n,
        top1=hits / n if n else None,
        interval95=wilson(hits, n) if n else None,
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
    threshold: float,
) -> Rejection:
    """Return coverage and selective accuracy on test images whose confidence reaches a threshold.

    Args:
        scores: ``(n, m)`` probabilities.
        y: ``(n,)`` true classes.
        columns: ``(m,)`` the class of each column.
        share: fraction of validation images that the threshold rejects, for the result.
        threshold: from ``rejection_threshold``.
    """
    accepted = scores.max(axis=1) >= threshold
    predicted = metrics.predict(scores, columns)
    answered = int(accepted.sum())
    correct = int((predicted == y)[accepted].sum())
    return Rejection(
        share=share,
        threshold=threshold,
        answered=answered,
        coverage=answered / len(y),
        top1=correct / answered if answered else None,
        interval95=wilson(correct, answered) if answered else None,
        coverage_interval95=wilson(answered, len(y)),
    )
