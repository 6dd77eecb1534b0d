"""Scores and the truth to a Report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from featkit.errors import DataError
from featkit.evaluation import metrics
from featkit.evaluation.calibration import (
    Temperature,
    apply_temperature,
    are_probabilities,
    calibration_error,
    nll,
    reliability_bins,
)
from featkit.evaluation.groups import group_rows
from featkit.evaluation.intervals import balanced_interval, wilson
from featkit.evaluation.report import ClassMetrics, ConfusedPair, Report

_PAIRS = 10


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
    """Judge scores against the truth.

    Args:
        scores: ``(n, m)``, higher is likelier; any monotone scale. Of equal scores the first is predicted, and among
            the first five a tie counts as a miss (see ``metrics.top_k``).
        y: ``(n,)`` whole numbers, positions in ``classes``.
        classes: k class names.
        columns: ``(m,)`` the class of each column, such as a head's ``classes_``; 0..k-1 if None. A class without a
            column is missed whenever it is the true one.
        temperature: what ``fit_temperature`` gave for the same head's scores on val.
        train_counts: ``(k,)`` training images of each class.
        warnings: lines that a reader must know.
        provenance: what made the scores.
        cost: seconds and megabytes.
        seed: of the bootstrap.

    Raises:
        DataError: if there is no row, a shape does not fit, a label or column is not a class, a score is NaN, or there
            is a temperature for scores that are not probabilities.
    """
    table, truth, named = _checked(scores, y, len(classes), columns)
    counts = metrics.confusion_matrix(truth, metrics.predict(table, named), len(classes))
    hits, totals = np.diag(counts), counts.sum(axis=1)
    right, n = int(hits.sum()), len(truth)
    return Report(
        n=n,
        top1=right / n,
        top5=metrics.top_k(table, truth, named, 5) if len(classes) > 5 else None,
        balanced_accuracy=metrics.balanced_accuracy(counts),
        macro_f1=metrics.macro_f1(counts),
        interval95=wilson(right, n),
        balanced_interval95=balanced_interval(hits, totals, seed=seed),
        per_class=_rows(classes, totals, metrics.per_class(counts)),
        confusion=counts,
        confused=_mistakes(counts, list(map(str, classes))),
        groups=None if train_counts is None else group_rows(hits, totals, train_counts),
        **_calibration(table, truth, named, temperature),
        warnings=tuple(warnings),
        provenance=dict(provenance or {}),
        cost=dict(cost or {}),
    )


def _calibration(
    scores: metrics.Scores, y: metrics.Labels, columns: metrics.Labels, temperature: Temperature | None
) -> dict[str, Any]:
    """Return the report's values that need probabilities, none of them where the scores are something else."""
    if not are_probabilities(scores):
        if temperature is not None:
            raise DataError("a temperature was given, but the scores are not probabilities: rows must sum to 1")
        return {}
    bins = reliability_bins(scores, y, columns)
    plain = {"nll": nll(scores, y, columns), "ece": calibration_error(bins), "reliability": bins}
    if temperature is None:
        return plain
    mended = apply_temperature(scores, temperature)
    bins = reliability_bins(mended, y, columns)
    return plain | {
        "temperature": temperature,
        "nll_calibrated": nll(mended, y, columns),
        "ece_calibrated": calibration_error(bins),
        "reliability_calibrated": bins,
    }


def _mistakes(confusion: metrics.Labels, classes: Sequence[str]) -> tuple[ConfusedPair, ...]:
    totals = confusion.sum(axis=1)
    return tuple(
        ConfusedPair(
            classes[true], classes[predicted], int(count := confusion[true, predicted]), float(count / totals[true])
        )
        for true, predicted in metrics.most_confused(confusion, classes)[:_PAIRS]
    )


def _checked(
    scores: ArrayLike, y: ArrayLike, k: int, columns: ArrayLike | None
) -> tuple[metrics.Scores, metrics.Labels, metrics.Labels]:
    table, truth = np.asarray(scores, dtype=np.float64), np.asarray(y)
    named = np.arange(k) if columns is None else np.asarray(columns)
    if not truth.size or not named.size:
        raise DataError(
            f"nothing to judge in scores {table.shape}: a report needs at least one test image and one class"
        )
    if table.shape != (*truth.shape, len(named)) or truth.ndim != 1:
        raise DataError(
            f"scores {table.shape} do not fit y {truth.shape}: expected (n, {len(named)}) scores, (n,) labels"
        )
    for what, values in (("label", truth), ("column", named)):
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= k:
            raise DataError(f"a {what} is not one of the {k} classes: {what}s must be whole numbers in 0..{k - 1}")
    if len(np.unique(named)) < len(named):
        raise DataError("two columns of scores are about the same class: give one column for each class")
    if np.isnan(table).any():
        row = int(np.flatnonzero(np.isnan(table).any(axis=1))[0])
        raise DataError(f"the scores of row {row} hold NaN: look for NaN in the vectors or an unfitted head")
    return table, truth.astype(np.int64), named.astype(np.int64)


def _rows(classes: Sequence[str], totals: metrics.Labels, values: metrics.PerClass) -> tuple[ClassMetrics, ...]:
    columns = [[None if math.isnan(value) else value for value in part.tolist()] for part in values]
    return tuple(ClassMetrics(*row) for row in zip(map(str, classes), totals.tolist(), *columns, strict=True))
