"""Evaluate probabilities of several labels per image: average precision, F1 and calibration.

In all functions ``scores (n, k)`` are probabilities of k labels, whose rows do not sum to 1, and
``targets (n, k)`` zeros and ones. Intervals use the delta method: a metric is close to a mean over
images of its linear terms, so that all tests and intervals for means over images apply to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featkit.errors import DataError
from featkit.evaluation.calibration import calibration_error, equal_mass_bins
from featkit.evaluation.clusters import Clusters
from featkit.evaluation.compare import PairedComparison, compare, holm
from featkit.evaluation.folds import FoldPrecisions
from featkit.evaluation.intervals import Interval, wilson
from featkit.evaluation.metrics import MEAN_AVERAGE_PRECISION
from featkit.evaluation.predictions import Predictions
from featkit.evaluation.report import Headline, Report, read_fields, to_json_value

Floats = NDArray[np.float64]
Targets = NDArray[np.uint8]

SMOOTHING = 1e-3
"""Added to a probability and its complement before their logarithms are taken: scores of knn are
0 or 1 for most images."""


@dataclass(frozen=True)
class LabelCalibration:
    """Platt scaling of one label: ``sigmoid(slope * logit + intercept)``.

    Attributes:
        slope: factor of the logit, above 0: the order of the images does not change.
        intercept: added to it.
    """

    slope: float
    intercept: float


@dataclass(frozen=True)
class LabelMetrics:
    """Metrics of one label on the test images.

    Attributes:
        name: of the label.
        n: number of test images with the label.
        train: number of training images with it.
        average_precision: None without test images that have the label.
        interval95: of ``average_precision``.
        threshold: probability from which on an image is said to have the label.
        precision: None if no image is said to have the label.
        recall: None without test images that have it.
        f1: None if there is nothing to find and nothing was found.
        f1_interval95: of ``f1``.
        ece: expected calibration error of the scores of the head, 15 bins of equal mass.
        ece_calibrated: the same of the calibrated probabilities; None if they are not calibrated.
        calibration: fitted on the validation set; None if there it has too few images.
    """

    name: str
    n: int
    train: int
    average_precision: float | None
    interval95: Interval | None
    threshold: float
    precision: float | None
    recall: float | None
    f1: float | None
    f1_interval95: Interval | None
    ece: float
    ece_calibrated: float | None = None
    calibration: LabelCalibration | None = None


@dataclass(frozen=True)
class PrecisionWithout:
    """Metric on the test images that are not copies or near copies of training images.

    Attributes:
        copies: number of test images that are left out.
        n: number of the others.
        mean_average_precision: on them; None if none of them has a label.
        interval95: of it.
    """

    copies: int
    n: int
    mean_average_precision: float | None
    interval95: Interval | None


@dataclass(frozen=True)
class MultiLabelReport:
    """Metrics of a classifier with several labels per image on n test images.

    Attributes:
        n: number of test images.
        mean_average_precision: mean of the average precision over the labels that test images have.
        interval95: of it, over test images.
        micro_f1: F1 over all pairs of image and label, at the threshold of each label.
        micro_interval95: of it.
        macro_f1: mean F1 over the labels that test images have.
        macro_interval95: of it.
        per_label: metrics of each label.
        log_loss, ece: mean over labels of the binary log loss in nats and of the expected
            calibration error of the scores of the head.
        log_loss_calibrated, ece_calibrated: the same with the calibration of each label; None
            without validation images.
        test_groups: number of groups of the test images, which all intervals resample in place of
            images; None if the images count as independent.
        without_copies: without test images that are copies of training images; None if there are
            none or they were not searched.
        folds: mean average precision over the folds of a cross-validation; all other numbers
            describe the pooled out-of-fold predictions of the first repeat, and thresholds and
            calibrations of the labels are those of the final head. None for a test set.
        warnings, provenance, cost: as in ``Report``.
    """

    n: int
    mean_average_precision: float
    interval95: Interval
    micro_f1: float
    micro_interval95: Interval
    macro_f1: float
    macro_interval95: Interval
    per_label: tuple[LabelMetrics, ...]
    log_loss: float
    ece: float
    log_loss_calibrated: float | None = None
    ece_calibrated: float | None = None
    test_groups: int | None = None
    without_copies: PrecisionWithout | None = None
    folds: FoldPrecisions | None = None
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)

    @property
    def headline(self) -> Headline:
        """The mean average precision with its interval; of folds, the mean over all repeats."""
        shown = self.folds or self
        return Headline(MEAN_AVERAGE_PRECISION, shown.mean_average_precision, shown.interval95)

    @property
    def second(self) -> Headline:
        """The macro F1 with its interval."""
        return Headline("macro F1", self.macro_f1, self.macro_interval95)

    @property
    def decision_cost(self) -> None:
        """None: costs are for images with one label each."""
        return

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the columns of the scores."""
        return tuple(label.name for label in self.per_label)

    def __str__(self) -> str:
        return multilabel_summary(self)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields except for ``cost`` as values that JSON can hold."""
        values: dict[str, Any] = to_json_value(self)
        del values["cost"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MultiLabelReport:
        """Return the report of which ``to_dict`` returned the values; other keys are ignored.

        Raises:
            DataError: if a required key is missing or a value is invalid.
        """
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        try:
            for name in ("interval95", "micro_interval95", "macro_interval95", "warnings"):
                known[name] = tuple(known[name])
            known["per_label"] = tuple(_label_from_dict(row) for row in known["per_label"])
            if known.get("without_copies") is not None:
                known["without_copies"] = read_fields(PrecisionWithout, known["without_copies"])
            if known.get("folds") is not None:
                known["folds"] = read_fields(FoldPrecisions, known["folds"])
            return cls(**known)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"not a report ({type(error).__name__}: {error}): fit the run again"
            ) from error


def _label_from_dict(values: Mapping[str, Any]) -> LabelMetrics:
    found: LabelMetrics = read_fields(LabelMetrics, values)
    if found.calibration is None:
        return found
    calibration: LabelCalibration = read_fields(LabelCalibration, values["calibration"])
    return LabelMetrics(**{**vars(found), "calibration": calibration})


def read_report(values: Mapping[str, Any]) -> Report | MultiLabelReport:
    """Return the report of which ``to_dict`` of one of the two kinds returned the values.

    Raises:
        DataError: if a required key is missing or a value is invalid.
    """
    if "mean_average_precision" in values:
        return MultiLabelReport.from_dict(values)
    return Report.from_dict(values)


# Average precision --------------------------------------------------------------------------------


def average_precision(target: Targets, score: Floats) -> float:
    """Return the average precision of one label: the mean precision at its images, by rank.

    Images of equal score count as retrieved together, as in scikit-learn's
    ``average_precision_score``.

    Args:
        target: ``(n,)`` zeros and ones, at least a one.
        score: ``(n,)`` higher for images that are more likely to have the label.
    """
    return _PrecisionCurve(target, score).value


def average_precision_terms(target: Targets, score: Floats) -> Floats:
    """Return the linear terms ``(n,)`` of the average precision, whose mean is its value.

    An image's term is the average precision plus n times its derivative with respect to the weight
    of the image (the infinitesimal jackknife of Jaeckel, 1972; Efron, "The jackknife, the bootstrap
    and other resampling plans", 1982, chapter 6).
    """
    curve = _PrecisionCurve(target, score)
    return curve.value + len(target) * curve.derivatives()


class _PrecisionCurve:
    """Precision at every image, for one label; images of equal score are retrieved together."""

    def __init__(self, target: Targets, score: Floats) -> None:
        # Minus the level: ``np.unique`` sorts ascending, and retrieval starts at the highest score.
        _, level = np.unique(-score, return_inverse=True)
        self.target, self.level = target.astype(np.float64), level.reshape(-1)
        self.positives = float(self.target.sum())
        self.hits = np.bincount(self.level, self.target)
        self.retrieved = np.cumsum(np.bincount(self.level)).astype(np.float64)
        self.precision = np.cumsum(self.hits) / self.retrieved
        self.value = float((self.hits * self.precision).sum() / self.positives)

    def derivatives(self) -> Floats:
        """Return the derivative of the value with respect to the weight of each image ``(n,)``."""
        own = self.target * (self.precision[self.level] - self.value)
        # An image changes the precision at its own level and at all later ones.
        later_gain = _reversed_cumsum(self.hits / self.retrieved)
        later_loss = _reversed_cumsum(self.hits * self.precision / self.retrieved)
        changed = self.target * later_gain[self.level] - later_loss[self.level]
        derivatives: Floats = (own + changed) / self.positives
        return derivatives


def _reversed_cumsum(values: Floats) -> Floats:
    return values[::-1].cumsum()[::-1]


def mean_average_precision_terms(targets: Targets, scores: Floats) -> Floats:
    """Return the linear terms ``(n,)`` of the mean average precision, whose mean is its value.

    Raises:
        DataError: if no image has a label.
    """
    present = np.flatnonzero(targets.any(axis=0))
    if not len(present):
        raise DataError("no test image has a label: the average precision needs some")
    total = np.zeros(len(targets))
    for column in present:
        total += average_precision_terms(targets[:, column], scores[:, column])
    return total / len(present)


def compare_precision(runs: Mapping[str, Predictions]) -> tuple[PairedComparison, ...]:
    """Compare every two of several classifiers by mean average precision, with Holm correction.

    Interval and p-value are those of ``effects`` for the terms of each image.

    Args:
        runs: predictions by name, all with scores.

    Raises:
        DataError: as ``compare``.
    """
    # SciPy takes a second to import, and most commands compare nothing.
    from featkit.evaluation.effects import effects, score_cells

    compared = []
    for pair in compare(runs):
        cells = score_cells([({"run": name}, runs[name]) for name in (pair.a, pair.b)])
        (effect,) = effects(cells, "run", [(pair.a, pair.b)])
        compared.append(
            replace(
                pair,
                difference=effect.difference,
                interval95=effect.interval95,
                p=effect.p,
                metric=MEAN_AVERAGE_PRECISION,
            )
        )
    corrected = holm([pair.p for pair in compared])
    return tuple(replace(pair, p_holm=p) for pair, p in zip(compared, corrected, strict=True))


# Thresholds and calibration -----------------------------------------------------------------------


def fit_calibration(target: Targets, score: Floats) -> LabelCalibration | None:
    """Fit Platt scaling of one label on images that the head was not fitted on.

    Returns:
        None if the images all have the label or none has it, or those with it do not have higher
        scores than the others.

    Source: Platt, "Probabilistic outputs for support vector machines", 1999, with its smoothed
        targets.
    """
    from scipy.optimize import minimize

    positives = int(target.sum())
    negatives = len(target) - positives
    if not positives or not negatives:
        return None
    logits = _logits(score)
    high, low = (positives + 1) / (positives + 2), 1 / (negatives + 2)
    wanted = np.where(target == 1, high, low)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        linear = parameters[0] * logits + parameters[1]
        residual = _sigmoid(linear) - wanted
        value = float(np.mean(np.logaddexp(0, linear) - wanted * linear))
        return value, np.array([np.mean(residual * logits), np.mean(residual)])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS")
    slope, intercept = (float(value) for value in found.x)
    return LabelCalibration(slope, intercept) if slope > 0 else None


def apply_calibrations(scores: Floats, calibrations: Sequence[LabelCalibration | None]) -> Floats:
    """Return calibrated probabilities ``(n, k)``; labels without a calibration keep theirs."""
    calibrated = scores.astype(np.float64)
    for column, each in enumerate(calibrations):
        if each is not None:
            logits = _logits(calibrated[:, column])
            calibrated[:, column] = _sigmoid(each.slope * logits + each.intercept)
    return calibrated


def _logits(score: Floats) -> Floats:
    logits: Floats = np.log(score + SMOOTHING) - np.log(1 - score + SMOOTHING)
    return logits


def _sigmoid(logits: Floats) -> Floats:
    # Not SciPy's: exported classifiers predict without it.
    values: Floats = 0.5 * (1 + np.tanh(0.5 * logits))
    return values


def fit_threshold(target: Targets, score: Floats) -> float:
    """Return the threshold with the highest F1 on these images: 0.5 if none has the label.

    It lies in the middle between two scores. Of thresholds with equal F1 it is the highest one.
    """
    positives = int(target.sum())
    if not positives:
        return 0.5
    levels, level_of = np.unique(score, return_inverse=True)
    hits = _reversed_cumsum(np.bincount(level_of.reshape(-1), target).astype(np.float64))
    found = _reversed_cumsum(np.bincount(level_of.reshape(-1)).astype(np.float64))
    f1 = 2 * hits / (found + positives)
    best = int(np.flatnonzero(f1 == f1.max())[-1])
    below = levels[best - 1] if best else 0.0
    return float((levels[best] + below) / 2)


# Evaluation ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelAnswers:
    """Answers of several heads, each on its own images, ``(n, k)`` each.

    Attributes:
        probabilities: calibrated probabilities of the labels.
        predicted: whether the images were given the labels.
    """

    probabilities: Floats
    predicted: NDArray[np.bool_]


def evaluate_labels(
    scores: Floats,
    targets: Targets,
    names: Sequence[str],
    *,
    thresholds: Sequence[float],
    calibrations: Sequence[LabelCalibration | None],
    train_counts: Sequence[int],
    answers: LabelAnswers | None = None,
    groups: ArrayLike | None = None,
    warnings: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
    cost: Mapping[str, float] | None = None,
) -> MultiLabelReport:
    """Evaluate the probabilities of a head on test images.

    Args:
        scores: ``(n, k)`` of the head, before calibration.
        targets: ``(n, k)`` zeros and ones.
        names: of the k labels.
        thresholds: of the calibrated probabilities, chosen on other images.
        calibrations: of each label, fitted on other images.
        train_counts: training images with each label.
        answers: probabilities and labels in place of those that follow from ``scores``,
            ``thresholds`` and ``calibrations``, which are then only recorded.
        groups: ``(n,)`` groups of the images; None for independent images.
        warnings: recorded as they are.
        provenance: recorded as it is.
        cost: recorded as it is.

    Raises:
        DataError: if there is no image, or none has a label.
    """
    n = len(targets)
    if not n:
        raise DataError("no test images: metrics need some")
    clusters = Clusters.of(groups, n)
    if answers is None:
        answers = answer_labels(scores, thresholds, calibrations)
    calibrated, predicted = answers.probabilities, answers.predicted
    counts = _Counts(targets.astype(np.float64), predicted.astype(np.float64))
    rows = []
    for column, name in enumerate(names):
        rows.append(
            _label_metrics(
                name,
                targets[:, column],
                scores[:, column],
                calibrated[:, column],
                counts.column(column),
                threshold=float(thresholds[column]),
                calibration=calibrations[column],
                train=int(train_counts[column]),
                clusters=clusters,
            )
        )
    present = np.flatnonzero(targets.any(axis=0)).tolist()
    terms = mean_average_precision_terms(targets, scores)
    macro = np.mean([counts.column(column).f1_terms() for column in present], axis=0)
    micro = counts.micro().f1_terms()
    is_calibrated = any(each is not None for each in calibrations)
    errors = [row.ece if row.ece_calibrated is None else row.ece_calibrated for row in rows]
    return MultiLabelReport(
        n=n,
        mean_average_precision=float(np.mean(terms)),
        interval95=metric_interval(terms, effective_positives(targets), clusters),
        micro_f1=float(np.mean(micro)),
        micro_interval95=metric_interval(micro, n, clusters),
        macro_f1=float(np.mean(macro)),
        macro_interval95=metric_interval(macro, n, clusters),
        per_label=tuple(rows),
        log_loss=_log_loss(targets, scores),
        ece=float(np.mean([row.ece for row in rows])),
        log_loss_calibrated=_log_loss(targets, calibrated) if is_calibrated else None,
        ece_calibrated=float(np.mean(errors)) if is_calibrated else None,
        test_groups=None if clusters is None else clusters.count,
        warnings=tuple(warnings),
        provenance=provenance or {},
        cost=cost or {},
    )


def answer_labels(
    scores: Floats,
    thresholds: Sequence[float],
    calibrations: Sequence[LabelCalibration | None],
) -> LabelAnswers:
    """Return the calibrated probabilities of scores ``(n, k)``, and the labels that they reach."""
    probabilities = apply_calibrations(scores, calibrations)
    return LabelAnswers(probabilities, probabilities >= np.asarray(thresholds))


def precision_without(
    scores: Floats, targets: Targets, copied: NDArray[np.bool_], groups: ArrayLike | None = None
) -> PrecisionWithout:
    """Return the mean average precision without some images; arguments as ``evaluate_labels``."""
    kept = ~copied
    n, own = int(kept.sum()), targets[kept]
    if not own.any():
        return PrecisionWithout(int(copied.sum()), n, None, None)
    terms = mean_average_precision_terms(own, scores[kept])
    clusters = None if groups is None else Clusters.of(np.asarray(groups)[kept], n)
    interval = metric_interval(terms, effective_positives(own), clusters)
    return PrecisionWithout(int(copied.sum()), n, float(np.mean(terms)), interval)


def effective_positives(targets: Targets) -> float:
    """Return the number of independent images whose mean varies as that over labels does."""
    positives = targets.sum(axis=0).astype(np.float64)
    positives = positives[positives > 0]
    return len(positives) ** 2 / float(np.sum(1 / positives))


@dataclass(frozen=True)
class _Counts:
    """Targets and predictions of some labels, ``(n, k)`` zeros and ones."""

    targets: Floats
    predicted: Floats

    def column(self, column: int) -> _Counts:
        own = slice(column, column + 1)
        return _Counts(self.targets[:, own], self.predicted[:, own])

    def micro(self) -> _Counts:
        return self

    @property
    def hits(self) -> Floats:
        """Labels of each image that were found, ``(n,)``."""
        found: Floats = (self.targets * self.predicted).sum(axis=1)
        return found

    def f1_terms(self) -> Floats:
        """Return the linear terms ``(n,)`` of F1, a ratio of two sums; its mean is F1.

        0 for all images if there is nothing to find and nothing was found.
        """
        above = 2 * self.hits
        below = (self.targets + self.predicted).sum(axis=1)
        if not below.sum():
            return np.zeros(len(above))
        ratio = above.sum() / below.sum()
        terms: Floats = ratio + (above - ratio * below) / below.mean()
        return terms


def _label_metrics(
    name: str,
    target: Targets,
    score: Floats,
    calibrated: Floats,
    counts: _Counts,
    *,
    threshold: float,
    calibration: LabelCalibration | None,
    train: int,
    clusters: Clusters | None,
) -> LabelMetrics:
    n, found, hits = int(target.sum()), int(counts.predicted.sum()), int(counts.hits.sum())
    precision_terms = average_precision_terms(target, score) if n else None
    f1_terms = counts.f1_terms() if n + found else None
    effective = (n + found) / 2
    interval95: Interval | None = None
    if precision_terms is not None:
        interval95 = metric_interval(precision_terms, n, clusters)
    return LabelMetrics(
        name=name,
        n=n,
        train=train,
        average_precision=None if precision_terms is None else float(np.mean(precision_terms)),
        interval95=interval95,
        threshold=threshold,
        precision=hits / found if found else None,
        recall=hits / n if n else None,
        f1=None if f1_terms is None else float(np.mean(f1_terms)),
        f1_interval95=None if f1_terms is None else metric_interval(f1_terms, effective, clusters),
        ece=_calibration_error(target, score),
        ece_calibrated=None if calibration is None else _calibration_error(target, calibrated),
        calibration=calibration,
    )


def metric_interval(
    terms: Floats, effective: float, clusters: Clusters | None, added: float = 0.0
) -> Interval:
    """Return the 95 % interval of a metric from its linear terms ``(n,)``.

    It is the normal interval of their mean, widened to contain the Wilson interval of the same
    proportion of ``effective`` images: the terms have no variance if all predictions are right, and
    too little with few images of a label. With groups, whole groups are resampled, and there are as
    many effective images fewer as there are fewer groups than images.

    Args:
        terms: of the metric.
        effective: number of images that decide the metric, such as those that have a label.
        clusters: groups of the images.
        added: variance from other sources than the images.
    """
    value = min(1.0, max(0.0, float(np.mean(terms))))
    units = len(terms) if clusters is None else clusters.count
    if units < 2:
        return 0.0, 1.0
    own = terms_variance(terms, clusters)
    effective *= units / len(terms)
    if own > 0:
        effective *= own / (own + added)
    half = NormalDist().inv_cdf(0.975) * (own + added) ** 0.5
    floor, ceiling = wilson(value * effective, effective)
    return max(0.0, min(value - half, floor)), min(1.0, max(value + half, ceiling))


def terms_variance(terms: Floats, clusters: Clusters | None) -> float:
    """Return the variance of the mean of terms ``(n,)`` over images, or over groups of images."""
    deviations = terms - terms.mean()
    if clusters is not None:
        deviations = clusters.sums(deviations)
    units = len(deviations)
    return units / (units - 1) * float(np.sum(deviations**2)) / len(terms) ** 2


def _calibration_error(target: Targets, score: Floats) -> float:
    """Return the expected calibration error of the probability of one label."""
    return calibration_error(equal_mass_bins(score, target == 1))


def _log_loss(targets: Targets, scores: Floats) -> float:
    clipped = np.clip(scores, np.finfo(np.float64).eps, 1 - np.finfo(np.float64).eps)
    likelihood = np.where(targets == 1, clipped, 1 - clipped)
    return float(-np.log(likelihood).mean())


def multilabel_summary(report: MultiLabelReport) -> str:
    """Return the main metrics in one line, in percent, with 95 % intervals in parentheses."""
    parts = [
        f"mAP {_percent(report.mean_average_precision, report.interval95)}",
        f"micro F1 {_percent(report.micro_f1, report.micro_interval95)}",
        f"macro F1 {_percent(report.macro_f1, report.macro_interval95)}",
        f"log loss {report.log_loss:.3f}, ECE {_percent(report.ece)}",
    ]
    if report.log_loss_calibrated is not None and report.ece_calibrated is not None:
        parts.append(
            f"calibrated {report.log_loss_calibrated:.3f}, ECE {_percent(report.ece_calibrated)}"
        )
    parts.append(f"n = {report.n}, {len(report.per_label)} labels")
    text = ", ".join(parts)
    if report.folds is not None:
        text += f"; {_folds_text(report.folds)}"
    if report.test_groups is not None:
        text += f"; images of {report.test_groups} groups, which the intervals resample"
    without = report.without_copies
    if without is None:
        return text
    if without.mean_average_precision is None:
        return f"{text}; no labelled test image is left without {without.copies} copies"
    value = _percent(without.mean_average_precision, without.interval95)
    return f"{text}; without {without.copies} copies: mAP {value}, n = {without.n}"


def _folds_text(folds: FoldPrecisions) -> str:
    text = f"out-of-fold predictions of {folds.folds} folds"
    if folds.repeats == 1:
        return text
    value = _percent(folds.mean_average_precision, folds.interval95)
    return f"{text}; over {folds.repeats} repeats: mAP {value}"


def _percent(share: float, interval: Interval | None = None) -> str:
    interval_text = f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
    return f"{100 * share:.1f} %{interval_text}"
