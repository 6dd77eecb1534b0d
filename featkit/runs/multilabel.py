"""One experiment on images with several labels each: fit a head, evaluate it on the test set."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.base import Embeddings
from featkit.errors import DataError, SpecError
from featkit.evaluation.display import PredictionTable, html_table
from featkit.evaluation.multilabel import (
    LabelCalibration,
    MultiLabelReport,
    answer_labels,
    apply_calibrations,
    evaluate_labels,
    fit_calibration,
    fit_threshold,
    mean_average_precision_terms,
    precision_without,
)
from featkit.evaluation.predictions import Predictions
from featkit.heads.base import predict_scores
from featkit.heads.multilabel import MultiLabelHead, check_multilabel, multilabel_trials
from featkit.images.multilabel import join_labels, one_label_message
from featkit.registry import Spec
from featkit.runs.features import FeatureSet, refuse_seen
from featkit.runs.fit import (
    FitConfig,
    FittedHead,
    check_head,
    constant_column_warnings,
    run_id,
    run_provenance,
)
from featkit.runs.splits import (
    DataSplits,
    group_facts,
    group_warnings,
    make_splits,
    refuse_infinite,
    without_views,
)
from featkit.storage import peak_memory_mb


class LabelCandidate(NamedTuple):
    """The hyperparameters of one head and its metric on the validation set.

    Attributes:
        options: hyperparameters that differ from the defaults.
        mean_average_precision: on the validation set.
    """

    options: dict[str, Any]
    mean_average_precision: float


@dataclass(frozen=True)
class FittedLabels(FittedHead):
    """A head for several labels per image, not evaluated yet.

    ``temperature``, ``threshold``, ``val_top1`` and ``search`` are None, and ``val_score`` is the
    mean average precision on the validation set.

    Attributes:
        thresholds: of the calibrated probability of each label, with the highest F1 on the
            validation set; 0.5 without one.
        calibrations: of each label, fitted on the validation set; None where there are too few
            images.
        candidates: of the hyperparameter search; empty without one.
    """

    thresholds: tuple[float, ...]
    calibrations: tuple[LabelCalibration | None, ...]
    candidates: tuple[LabelCandidate, ...] = ()


@dataclass(frozen=True)
class LabelFoldPredictions:
    """Out-of-fold predictions of every repeat of a cross-validation.

    Attributes:
        fold_of: ``(repeats, n)`` fold of each image, in the order of ``MultiLabelRun.predictions``.
        predicted: ``(repeats, n, k)`` whether an image was given a label.
        probabilities: ``(repeats, n, k)`` calibrated probabilities.
    """

    fold_of: NDArray[np.int64]
    predicted: NDArray[np.bool_]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class MultiLabelRun(PredictionTable):
    """A head for several labels per image and its evaluation on the test set.

    Attributes:
        id: 12 hex digits over everything that determines the numbers; the same for the same run.
        source: the features it was fitted on.
        head_spec: spec of the head.
        head: the fitted estimator.
        report: its evaluation on the test set.
        predictions: sets of labels on the test set, with the terms of the mean average precision.
        probabilities: ``(n, k)`` calibrated probabilities of the labels of the test images.
        candidates: of the hyperparameter search; empty without one.
        name: name for tables and figures, which decides nothing; empty for a composed one.
        folds: predictions of every repeat of a cross-validation, of which ``predictions`` and
            ``probabilities`` are the first; None for a run with a test set.
    """

    id: str
    source: FeatureSet
    head_spec: str
    head: Any
    report: MultiLabelReport
    predictions: Predictions
    probabilities: NDArray[np.float64]
    candidates: tuple[LabelCandidate, ...] = ()
    name: str = ""
    folds: LabelFoldPredictions | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``results.json``: reproducible, so without times."""
        content = {"run": self.id, **self.report.to_dict()}
        if self.candidates:
            content["search"] = [candidate._asdict() for candidate in self.candidates]
        return content

    def prediction_rows(self) -> list[dict[str, Any]]:
        """Return one row per test image.

        It has the id, the true and the predicted labels, the term of the mean average precision,
        whose mean over the images is its value, the group if there is one, and the probability of
        each label.
        """
        found, rows = self.predictions, []
        for row, image_id in enumerate(found.ids):
            values: dict[str, Any] = {
                "id": image_id,
                "true": str(found.y[row]),
                "predicted": str(found.predicted[row]),
                "score": float(np.asarray(found.scores)[row]),
            }
            if found.groups is not None:
                values["group"] = str(found.groups[row])
            rows.append(values | _probability_columns(self.report.labels, self.probabilities[row]))
        return rows

    def fold_rows(self) -> list[dict[str, Any]]:
        """Return a row per image and repeat: id, labels, probabilities, repeat and fold from 1."""
        if self.folds is None:
            return []
        names, found, rows = self.report.labels, self.folds, []
        for repeat, fold_of in enumerate(found.fold_of):
            for row, image_id in enumerate(self.predictions.ids):
                values: dict[str, Any] = {
                    "repeat": repeat + 1,
                    "fold": int(fold_of[row]) + 1,
                    "id": image_id,
                    "true": str(self.predictions.y[row]),
                    "predicted": found_labels(names, found.predicted[repeat, row]),
                }
                values |= _probability_columns(names, found.probabilities[repeat, row])
                rows.append(values)
        return rows

    def _repr_html_(self) -> str:
        report = self.report
        row = {"run": self.id, "head": self.head_spec, "data": self.source.data, "n": report.n}
        row |= {"mAP": report.mean_average_precision, "95% CI": report.interval95}
        row |= {"micro F1": report.micro_f1, "macro F1": report.macro_f1}
        return html_table([row])


def _probability_columns(
    names: Sequence[str], probabilities: NDArray[np.float64]
) -> dict[str, float]:
    """Return the probability of each label by the name of its column."""
    return {f"p({name})": float(value) for name, value in zip(names, probabilities, strict=True)}


def check_multilabel_config(head_spec: str, config: FitConfig) -> None:
    """Check that a head and its configuration can be used for several labels per image.

    Raises:
        HeadError: if the head cannot give an image several labels.
        SpecError: if an option is unknown, or needs one label per image.
    """
    check_multilabel(head_spec)
    options = {"--subset": config.subset, "--balance": config.balance, "--reject": config.reject}
    for name, value in options.items():
        if value is not None:
            raise SpecError(one_label_message(name))
    check_head(head_spec, config)


def fit_labels(
    source: FeatureSet,
    head_spec: str = "linear",
    *,
    seed: int = 0,
    config: FitConfig | None = None,
) -> MultiLabelRun:
    """Fit a head on images with several labels, and evaluate it on the test set.

    Hyperparameters (with ``tune``, by mean average precision), the calibration and the threshold
    of each label are fitted on the validation set with a head fitted on the rest of train; then the
    final head is fitted on train and validation images.

    Raises:
        SpecError: if the head, an option or a value is unknown, or needs one label per image.
        HeadError: if the head cannot give an image several labels.
        DataError: if a label has no train images, or there are no test images.
    """
    return evaluate_multilabel(
        fit_multilabel(source, head_spec, seed, config or FitConfig()), source
    )


def fit_multilabel(
    source: FeatureSet,
    head_spec: str,
    seed: int,
    config: FitConfig,
    splits: DataSplits | None = None,
) -> FittedLabels:
    """Fit a head, calibrations and thresholds without the test set; see ``fit_labels``.

    Args:
        source: the features.
        head_spec: spec of the head.
        seed: of the held-out validation images and of the head.
        config: how it is fitted.
        splits: rows to use in place of those that ``make_splits`` returns.
    """
    check_multilabel_config(head_spec, config)
    spec = Spec.parse(head_spec)
    if splits is None:
        refuse_seen(source)
    try:
        splits = splits or make_splits(source.embeddings, seed)
        _check_labels(splits.fit)
    except DataError as error:
        raise DataError(f"{source.path}: {error}") from error
    start = time.perf_counter()
    fit, val = splits.fit, splits.val
    candidates: tuple[LabelCandidate, ...] = ()
    if config.tune:
        candidates = _tune(spec.name, splits, seed, config.progress)
        best = max(candidates, key=lambda each: each.mean_average_precision)
        spec = replace(spec, options=best.options)
    k = len(source.embeddings.label_names)
    thresholds: tuple[float, ...] = (0.5,) * k
    calibrations: tuple[LabelCalibration | None, ...] = (None,) * k
    val_score = None
    if len(val) and val.targets.any():
        head = MultiLabelHead(head=str(spec), seed=seed).fit(fit.x, fit.targets, fit.inner_groups)
        scores = predict_scores(head, val.x)
        val_score = float(np.mean(mean_average_precision_terms(val.targets, scores)))
        calibrations, thresholds = _calibrate(val.targets, scores)
    head = MultiLabelHead(head=str(spec), seed=seed)
    head.fit(splits.final.x, splits.final.targets, splits.final.inner_groups)
    return FittedLabels(
        source=source,
        head_spec=head_spec,
        seed=seed,
        config=config,
        splits=splits,
        head=head,
        temperature=None,
        threshold=None,
        val_score=val_score,
        val_top1=None,
        search=None,
        seconds=time.perf_counter() - start,
        thresholds=thresholds,
        calibrations=calibrations,
        candidates=candidates,
    )


def _check_labels(train: Embeddings) -> None:
    """Raise DataError unless some training images have each label, and others do not have it."""
    counts = train.targets.sum(axis=0)
    for name, count in zip(train.label_names, counts.tolist(), strict=True):
        if count in (0, len(train)):
            having = "all" if count else "none"
            raise DataError(
                f"{having} of {len(train)} images to fit on have label {name!r}: add train images "
                f"{'without' if count else 'with'} it, or remove the label"
            )


def _tune(
    name: str, splits: DataSplits, seed: int, progress: Callable[[Any], None] | None
) -> tuple[LabelCandidate, ...]:
    """Evaluate all candidates of the search space of a head on the validation set."""
    fit, val = splits.fit, splits.val
    if not len(val) or not val.targets.any():
        raise DataError("no validation images with labels to tune on: leave out --tune")
    found = []
    targets = val.targets
    trials = multilabel_trials(name, fit.x, fit.targets, val.x, seed, groups=fit.inner_groups)
    for options, scores in trials:
        value = float(np.mean(mean_average_precision_terms(targets, scores)))
        found.append(LabelCandidate(options, value))
        if progress:
            progress(found[-1])
    return tuple(found)


def _calibrate(
    targets: NDArray[np.uint8], scores: NDArray[np.float64]
) -> tuple[tuple[LabelCalibration | None, ...], tuple[float, ...]]:
    """Return the calibration of each label, and its threshold for calibrated probabilities."""
    columns = range(targets.shape[1])
    calibrations = [fit_calibration(targets[:, each], scores[:, each]) for each in columns]
    calibrated = apply_calibrations(scores, calibrations)
    thresholds = [fit_threshold(targets[:, each], calibrated[:, each]) for each in columns]
    return tuple(calibrations), tuple(thresholds)


def evaluate_multilabel(fitted: FittedLabels, source: FeatureSet) -> MultiLabelRun:
    """Evaluate a head on the test images of ``source``: its own, or perturbed copies of them."""
    test, final = source.embeddings.part("test"), fitted.splits.final
    refuse_infinite(test)
    start = time.perf_counter()
    scores = predict_scores(fitted.head, test.x)
    seconds = time.perf_counter() - start
    names, targets = test.label_names, test.targets
    report = evaluate_labels(
        scores,
        targets,
        names,
        thresholds=fitted.thresholds,
        calibrations=fitted.calibrations,
        train_counts=without_views(final).targets.sum(axis=0).tolist(),
        groups=test.groups,
        warnings=[
            *head_warnings(fitted, test),
            *group_warnings(source.embeddings.groups, source.embeddings.splits),
        ],
        provenance=label_provenance(
            fitted, source, group_facts(source.embeddings.groups, source.embeddings.splits)
        ),
        cost={
            "fit_seconds": fitted.seconds,
            "predict_seconds": seconds,
            "peak_memory_mb": peak_memory_mb(),
        },
    )
    if source.copies and source.copies.ids:
        copied = np.array([name in source.copies.ids for name in test.ids])
        without = precision_without(scores, targets, copied, test.groups)
        report = replace(report, without_copies=without)
    answers = answer_labels(scores, fitted.thresholds, fitted.calibrations)
    return MultiLabelRun(
        id=run_id(fitted, source),
        source=source,
        head_spec=fitted.head_spec,
        head=fitted.head,
        report=report,
        predictions=label_predictions(test, scores, answers.predicted),
        probabilities=answers.probabilities,
        candidates=fitted.candidates,
    )


def label_predictions(
    test: Embeddings, scores: NDArray[np.float64], predicted: NDArray[np.bool_]
) -> Predictions:
    """Return the sets of labels of images with the terms of the mean average precision.

    Args:
        test: the images.
        scores: ``(n, k)``, before calibration.
        predicted: ``(n, k)`` whether an image was given a label.
    """
    names = test.label_names
    return Predictions(
        test.ids,
        np.array([test.classes[label] for label in test.y], np.str_),
        np.array([found_labels(names, row) for row in predicted], np.str_),
        groups=test.groups,
        scores=mean_average_precision_terms(test.targets, scores),
    )


def found_labels(names: tuple[str, ...], found: NDArray[np.bool_]) -> str:
    """Return the labels whose place in ``found`` is true as one text, such as ``bus;car``."""
    return join_labels(name for name, is_found in zip(names, found, strict=True) if is_found)


def head_warnings(fitted: FittedLabels, test: Embeddings) -> list[str]:
    """Return what a reader must know about a fitted head and its images."""
    constant = constant_column_warnings(fitted.splits.final)
    return [*fitted.head.warnings_, *constant, *label_warnings(fitted, test)]


def label_warnings(fitted: FittedLabels, test: Embeddings) -> list[str]:
    """Return which labels lack test images or validation images."""
    names, found = test.label_names, []
    untested = [name for name, n in zip(names, test.targets.sum(axis=0), strict=True) if n == 0]
    if untested:
        found.append(f"no test image has label {', '.join(untested)}: it has no average precision")
    if fitted.val_score is None:
        found.append("no validation images: all thresholds are 0.5, and nothing is calibrated")
    else:
        pairs = zip(names, fitted.calibrations, strict=True)
        raw = [name for name, calibration in pairs if calibration is None]
        if raw:
            found.append(
                f"too few validation images to calibrate the probabilities of {', '.join(raw)}"
            )
    return found


def label_provenance(
    fitted: FittedLabels, source: FeatureSet, evaluated: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a report records about how a head was fitted, and ``evaluated``: on what."""
    facts = run_provenance(fitted, source, evaluated)
    del facts["val_balanced_accuracy"], facts["val_top1"]
    return {**facts, "val_mean_average_precision": fitted.val_score}
