"""One experiment: fit a head on features, evaluate it on the test set."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import has_fit_parameter

from featkit.blocks import row_blocks
from featkit.embeddings.base import Embeddings
from featkit.errors import DataError, SpecError
from featkit.evaluation import Temperature, evaluate, fit_temperature
from featkit.evaluation.calibration import apply_temperature, are_probabilities
from featkit.evaluation.costs import CostMatrix, score_costs
from featkit.evaluation.display import PredictionTable, html_table
from featkit.evaluation.metrics import balanced_accuracy, confusion_matrix
from featkit.evaluation.predictions import Predictions
from featkit.evaluation.report import Report
from featkit.evaluation.scoring import accuracy_without, reject, rejection_threshold
from featkit.evaluation.unknown import UnknownImages, score_unknown
from featkit.heads import HEADS, make_head
from featkit.heads.balance import BalancedHead, check_correction
from featkit.heads.base import fit_with_groups, predict_scores
from featkit.heads.search import Candidate, SearchResult, search, search_correction
from featkit.images.augment import has_augmented_views
from featkit.images.subsets import parse_subset
from featkit.registry import Spec
from featkit.runs.features import FeatureSet, refuse_seen
from featkit.runs.splits import (
    DataSplits,
    group_facts,
    group_warnings,
    make_splits,
    refuse_infinite,
    train_counts,
    untested_class_warnings,
    untrained_class_warnings,
)
from featkit.storage import digest, peak_memory_mb

PACKAGES = ("featkit", "numpy", "scikit-learn", "skops", "torch", "torchvision")
"""Packages whose versions a report records."""

RESULTS_VERSION = "0.4.0"
"""Part of every run id and cell name: results that are still valid are found after an update.

Increase it when the same inputs would give other numbers, not with each release. In 0.1.0 it
was the version of the package."""


@dataclass(frozen=True)
class FitConfig:
    """Configuration of fitting and evaluating a head.

    Attributes:
        tune: whether to tune hyperparameters on the validation set: those of the correction if
            there is one, else those of the head.
        subset: spec of the subset of train to fit on, such as ``longtail:if=50``; None for all of
            it.
        balance: spec of a correction for class imbalance, or None.
        reject: fraction of validation images to reject as unknown, or None to never reject.
        costs: cost of each predicted class for each true class, which the evaluation reports; it
            decides nothing.
        progress: called after each candidate that was evaluated.
    """

    tune: bool = False
    subset: str | None = None
    balance: str | None = None
    reject: float | None = None
    costs: CostMatrix | None = None
    progress: Callable[[Candidate], None] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the options for a report; rejection and costs are recorded with their results."""
        return {"tuned": self.tune, "subset": self.subset, "balance": self.balance}


@dataclass(frozen=True)
class FoldPredictions:
    """Out-of-fold predictions of every repeat of a cross-validation.

    Attributes:
        fold_of: ``(repeats, n)`` fold of each image, in the order of ``Run.predictions``.
        predicted: ``(repeats, n)`` predicted classes.
        confidence: ``(repeats, n)`` probability of the predicted class.
    """

    fold_of: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]


@dataclass(frozen=True)
class Run(PredictionTable):
    """A fitted head and its evaluation on the test set.

    Attributes:
        id: 12 hex digits over everything that determines the numbers; the same for the same run.
        source: the features it was fitted on.
        head_spec: spec of the head.
        head: the fitted estimator.
        report: its evaluation on the test set.
        predictions: on the test set.
        search: the hyperparameter search on the validation set, if there was one.
        name: name for tables and figures, which decides nothing; empty for a composed one.
        folds: predictions of every repeat of a cross-validation, of which ``predictions`` are the
            first; None for a run with a test set.
    """

    id: str
    source: FeatureSet
    head_spec: str
    head: Any
    report: Report
    predictions: Predictions
    search: SearchResult | None = None
    name: str = ""
    folds: FoldPredictions | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``results.json``: reproducible, so without times."""
        content = {"run": self.id, **self.report.to_dict()}
        if self.search:
            content["search"] = [candidate._asdict() for candidate in self.search.candidates]
        return content

    def prediction_rows(self) -> list[dict[str, Any]]:
        """Return one row per test image: id, true and predicted class, confidence, group if any."""
        classes, found = self.source.embeddings.classes, self.predictions
        confidence = (
            np.full(len(found.ids), np.nan) if found.confidence is None else found.confidence
        )
        rows = []
        for row, image_id in enumerate(found.ids):
            values = {
                "id": image_id,
                "true": classes[found.y[row]],
                "predicted": classes[found.predicted[row]],
                "confidence": float(confidence[row]),
            }
            if found.groups is not None:
                values["group"] = str(found.groups[row])
            rows.append(values)
        return rows

    def fold_rows(self) -> list[dict[str, Any]]:
        """Return a row per image and repeat: id, classes, confidence, repeat and fold from 1."""
        if self.folds is None:
            return []
        classes, found = self.source.embeddings.classes, self.folds
        rows = []
        for repeat, fold_of in enumerate(found.fold_of):
            for row, image_id in enumerate(self.predictions.ids):
                rows.append(
                    {
                        "repeat": repeat + 1,
                        "fold": int(fold_of[row]) + 1,
                        "id": image_id,
                        "true": classes[self.predictions.y[row]],
                        "predicted": classes[found.predicted[repeat, row]],
                        "confidence": float(found.confidence[repeat, row]),
                    }
                )
        return rows

    def _repr_html_(self) -> str:
        report = self.report
        row = {"run": self.id, "head": self.head_spec, "data": self.source.data, "n": report.n}
        row |= {"top-1": report.overall.top1, "95% CI": report.overall.interval95}
        row |= {
            "balanced accuracy": report.balanced_accuracy,
            "balanced 95% CI": report.balanced_interval95,
        }
        return html_table([row])


@dataclass(frozen=True)
class FittedHead:
    """A head fitted on train and validation images, not evaluated yet.

    Attributes:
        source, head_spec, seed, config: the arguments it was fitted with.
        splits: the rows it was fitted on, and those its hyperparameters were tuned on.
        head: the fitted estimator.
        temperature, threshold: fitted on the validation set; None if there is none.
        val_score, val_top1: balanced and top-1 accuracy on the validation set of a head fitted on
            train only; None if there is no validation set.
        search: the hyperparameter search, if there was one.
        seconds: duration of fitting, with the search.
    """

    source: FeatureSet
    head_spec: str
    seed: int
    config: FitConfig
    splits: DataSplits
    head: Any
    temperature: Temperature | None
    threshold: float | None
    val_score: float | None
    val_top1: float | None
    search: SearchResult | None
    seconds: float


def fit_run(
    source: FeatureSet,
    head_spec: str = "linear",
    *,
    seed: int = 0,
    config: FitConfig | None = None,
) -> Run:
    """Fit a head and evaluate it on the test set, which nothing else uses.

    Hyperparameters (with ``tune``), temperature and rejection threshold are fitted on the
    validation set with a head fitted on the rest of train; then the final head is fitted on train
    and validation images.

    Raises:
        SpecError: if the head, an option or a value is unknown.
        DataError: if train has fewer than two classes, or there are no test images.
    """
    return evaluate_head(fit_head(source, head_spec, seed, config or FitConfig()), source)


def check_head(head_spec: str, config: FitConfig) -> None:
    """Check a head and its configuration as far as that is possible without features.

    Raises:
        SpecError: if the head, the correction, the subset, an option or a value is unknown, or the
            hyperparameters of the head are both given and to be tuned.
        InapplicableError: if the head does not support the correction.
    """
    _check_specs(head_spec, config.balance, config.subset, tune=config.tune)


@lru_cache(maxsize=1024)  # a grid checks each cell three times: twice in its plan, and when it runs
def _check_specs(head_spec: str, balance: str | None, subset: str | None, *, tune: bool) -> None:
    spec = Spec.parse(head_spec)
    make_head(spec)
    if balance:
        check_correction(head_spec, balance)
    elif tune and spec.options:
        raise SpecError(
            f"--tune chooses the options of {spec.name}: give {spec.name} without options"
        )
    if subset:
        parse_subset(subset)


def splits_of(source: FeatureSet, seed: int, subset: str | None) -> DataSplits:
    """Return the rows that a head is fitted and evaluated on.

    Raises:
        DataError: if test images were used for training the network, or there are too few images.
    """
    refuse_seen(source)
    try:
        return make_splits(source.embeddings, seed, subset)
    except DataError as error:
        raise DataError(f"{source.path}: {error}") from error


def fit_head(
    source: FeatureSet,
    head_spec: str,
    seed: int,
    config: FitConfig,
    splits: DataSplits | None = None,
) -> FittedHead:
    """Fit a head, its temperature and threshold without the test set; see ``fit_run``.

    Args:
        source: the features.
        head_spec: spec of the head.
        seed: of the held-out validation images and of the head.
        config: how it is fitted.
        splits: rows to use in place of those that ``splits_of`` returns.
    """
    spec = Spec.parse(head_spec)
    check_head(head_spec, config)  # before any other work
    if splits is None:
        splits = splits_of(source, seed, config.subset)
    start = time.perf_counter()
    found: SearchResult | None = None
    final_spec, correction = spec, config.balance
    scored: _ValidationScores | None
    if config.tune:
        found = _tune(spec, splits, seed, config)
        if config.balance:
            correction = found.best.options.get("correction", config.balance)
        else:
            final_spec = replace(spec, options=found.best.options)
        scored = _ValidationScores(found.scores, np.unique(splits.fit.y))
    else:
        scored = _score_validation(_make_head(final_spec, correction, seed), splits)

    temperature: Temperature | None = None
    threshold: float | None = None
    val_score: float | None = None
    val_top1: float | None = None
    if scored is not None:
        val_score = scored.balanced_accuracy(splits.val)
        val_top1 = float(np.mean(scored.predicted == splits.val.y))
        temperature = scored.fit_temperature(splits.val.y)
        if config.reject is not None:
            calibrated = scored.scores
            if temperature:
                calibrated = apply_temperature(calibrated, temperature)
            threshold = rejection_threshold(calibrated, config.reject)
    elif config.reject is not None:
        raise DataError(
            "no validation images to choose the rejection threshold on: leave out --reject"
        )

    final = splits.final
    head = fit_with_groups(
        _make_head(final_spec, correction, seed), final.x, final.y, final.inner_groups
    )
    return FittedHead(
        source=source,
        head_spec=str(spec),
        seed=seed,
        config=config,
        splits=splits,
        head=head,
        temperature=temperature,
        threshold=threshold,
        val_score=val_score,
        val_top1=val_top1,
        search=found,
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True)
class _ValidationScores:
    """Scores ``(n, m)`` on the validation set of a head fitted on train, and its column labels."""

    scores: NDArray[np.float64]
    columns: NDArray[np.int64]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Predicted classes ``(n,)``."""
        best: NDArray[np.int64] = self.columns[self.scores.argmax(axis=1)]
        return best

    def balanced_accuracy(self, val: Embeddings) -> float:
        return balanced_accuracy(confusion_matrix(val.y, self.predicted, len(val.classes)))

    def fit_temperature(self, y: NDArray[np.int64]) -> Temperature | None:
        """Return None for scores that are not probabilities, as those of a plug-in may be."""
        if not are_probabilities(self.scores) or not np.isin(y, self.columns).any():
            return None
        return fit_temperature(self.scores, y, self.columns)


def _score_validation(head: Any, splits: DataSplits) -> _ValidationScores | None:
    """Fit a head on train and score the validation set; None if one of the two is too small."""
    fit, val = splits.fit, splits.val
    if not len(val) or len(np.unique(fit.y)) < 2:
        return None
    fit_with_groups(head, fit.x, fit.y, fit.inner_groups)
    scores = predict_scores(head, val.x)
    return _ValidationScores(scores, np.asarray(head.classes_))


def _make_head(spec: Spec, correction: str | None, seed: int) -> Any:
    """Return an unfitted head, wrapped in the correction if there is one."""
    if correction:
        return BalancedHead(head=str(spec), correction=correction, seed=seed)
    return make_head(spec, seed=seed)


def _tune(spec: Spec, splits: DataSplits, seed: int, config: FitConfig) -> SearchResult:
    """Tune the hyperparameters of the correction if there is one, else those of the head."""
    fit, val = splits.fit, splits.val
    if config.balance:
        head = BalancedHead(head=str(spec), correction=config.balance, seed=seed)
        return search_correction(
            head, fit.x, fit.y, val.x, val.y, groups=fit.inner_groups, progress=config.progress
        )
    return search(
        spec.name,
        fit.x,
        fit.y,
        val.x,
        val.y,
        seed=seed,
        groups=fit.inner_groups,
        progress=config.progress,
    )


def evaluate_head(fitted: FittedHead, source: FeatureSet) -> Run:
    """Evaluate a head on the test images of ``source``: its own, or perturbed copies of them."""
    test, head, final = source.embeddings.part("test"), fitted.head, fitted.splits.final
    refuse_infinite(test)
    report, predictions, probabilities = evaluate_classifier(
        head,
        test,
        temperature=fitted.temperature,
        train_counts=train_counts(final),
        warnings=[
            *head_warnings(fitted, test),
            *group_warnings(source.embeddings.groups, source.embeddings.splits),
        ],
        provenance=run_provenance(
            fitted, source, group_facts(source.embeddings.groups, source.embeddings.splits)
        ),
        fit_seconds=fitted.seconds,
        seed=fitted.seed,
    )
    if fitted.threshold is not None and fitted.config.reject is not None:
        columns = np.asarray(head.classes_)
        rejection = reject(
            probabilities,
            test.y,
            columns,
            share=fitted.config.reject,
            threshold=fitted.threshold,
            groups=test.groups,
        )
        report = replace(report, rejection=rejection)
    if source.unknown is not None:
        report = replace(
            report, unknown=_score_unknown(fitted, source.unknown, probabilities, test)
        )
    report = report_costs(report, fitted.config.costs, head, predictions, probabilities)
    if source.copies and source.copies.ids:
        copied = np.array([name in source.copies.ids for name in test.ids])
        without = accuracy_without(predictions.correct, copied, test.groups)
        report = replace(report, without_copies=without)
    return Run(
        id=run_id(fitted, source),
        source=source,
        head_spec=fitted.head_spec,
        head=head,
        report=report,
        predictions=predictions,
        search=fitted.search,
    )


def report_costs(
    report: Report,
    costs: CostMatrix | None,
    head: Any,
    predictions: Predictions,
    probabilities: NDArray[np.float64],
) -> Report:
    """Return a report with the mean cost of an image; the report itself without costs.

    Args:
        report: of a classifier on the test images.
        costs: cost of each predicted class for each true class, or None.
        head: the classifier.
        predictions: on the test images.
        probabilities: ``(n, m)`` its scores on the test images after temperature scaling.
    """
    if costs is None:
        return report
    found = score_costs(
        probabilities,
        predictions.y,
        predicted=predictions.predicted,
        columns=np.asarray(head.classes_),
        matrix=costs,
        groups=predictions.groups,
    )
    return replace(report, decision_cost=found)


def _score_unknown(
    fitted: FittedHead, unknown: FeatureSet, known: NDArray[np.float64], test: Embeddings
) -> UnknownImages:
    """Return how well a head rejects unknown images; ``known`` are its test scores ``(n, m)``."""
    refuse_infinite(unknown.embeddings)
    scores = predict_scores(fitted.head, unknown.embeddings.x)
    if fitted.temperature:
        scores = apply_temperature(scores, fitted.temperature)
    return score_unknown(
        known.max(axis=1),
        scores.max(axis=1),
        data=unknown.data,
        threshold=fitted.threshold,
        groups=test.groups,
    )


def head_warnings(fitted: FittedHead, test: Embeddings) -> list[str]:
    """Return what a reader must know about a fitted head and its training images."""
    final = fitted.splits.final
    return [
        *fit_warnings(fitted, test),
        *untested_class_warnings(test.classes, test.y, final.y),
        *constant_column_warnings(final),
    ]


def fit_warnings(fitted: FittedHead, test: Embeddings) -> list[str]:
    """Return the warnings of a fitted head, and the classes that it was not trained on."""
    return [
        *getattr(fitted.head, "warnings_", ()),
        *untrained_class_warnings(test.classes, test.y, fitted.splits.final.y),
    ]


def evaluate_classifier(
    head: Any,
    test: Embeddings,
    *,
    temperature: Temperature | None,
    train_counts: NDArray[np.int64],
    warnings: Sequence[str],
    provenance: Mapping[str, Any],
    fit_seconds: float,
    seed: int,
) -> tuple[Report, Predictions, NDArray[np.float64]]:
    """Evaluate a fitted head, or the classifier of a trained network, on test features.

    Args:
        head: the classifier.
        test: test features.
        temperature: of its scores, or None.
        train_counts: ``(k,)`` training images per class.
        warnings: for the report.
        provenance: for the report.
        fit_seconds: duration of fitting or training.
        seed: of the bootstrap.

    Returns:
        The report, the predictions, and the scores ``(n, m)`` after temperature scaling.
    """
    start = time.perf_counter()
    scores = predict_scores(head, test.x)
    predict_seconds = time.perf_counter() - start
    columns = np.asarray(head.classes_)
    report = evaluate(
        scores,
        test.y,
        test.classes,
        columns=columns,
        temperature=temperature,
        train_counts=train_counts,
        warnings=warnings,
        provenance=provenance,
        cost={
            "fit_seconds": fit_seconds,
            "predict_seconds": predict_seconds,
            "peak_memory_mb": peak_memory_mb(),
        },
        seed=seed,
        groups=test.groups,
    )
    calibrated = apply_temperature(scores, temperature) if temperature else scores
    predicted = columns[scores.argmax(axis=1)]
    confidence = calibrated.max(axis=1)
    predictions = Predictions(test.ids, test.y, predicted, confidence, test.groups)
    return report, predictions, calibrated


def constant_column_warnings(embeddings: Embeddings) -> list[str]:
    """Return a warning that names feature columns with a single value.

    Raises:
        DataError: if all columns are constant.
    """
    first, dim = embeddings.x[0], embeddings.x.shape[1]
    constant = np.ones(dim, bool)
    for _, block in row_blocks(embeddings.x):
        constant &= (block == first).all(axis=0)
    columns = np.flatnonzero(constant)
    if len(columns) == dim:
        raise DataError(
            "all images have the same features, so no head can be fitted: choose another --layer"
        )
    if not len(columns):
        return []
    named = ", ".join(map(str, columns[:5])) + (", ..." if len(columns) > 5 else "")
    return [f"{len(columns)} of {dim} columns are constant ({named})"]


def run_id(fitted: FittedHead, source: FeatureSet) -> str:
    """Return 12 hex digits over everything that determines the numbers of a run."""
    config, embeddings = fitted.config, source.embeddings
    chosen = [
        fitted.head_spec,
        str(fitted.seed),
        *map(str, config.to_dict().values()),
        str(config.reject),
    ]
    parts = [embeddings.recipe.fingerprint, *embeddings.splits.tolist(), *chosen, RESULTS_VERSION]
    groups = [] if embeddings.groups is None else embeddings.groups.tolist()
    parts += group_parts(fitted.head_spec, groups, has_views=has_augmented_views(embeddings.ids))
    if embeddings.multilabel:
        parts += ["multilabel"]
    if source.unknown is not None:
        parts += ["unknown", source.unknown.embeddings.recipe.fingerprint]
    if config.costs is not None:
        parts += ["costs", *map(str, config.costs.values.ravel().tolist())]
    return digest(parts)[:12]


def group_parts(head_spec: str, groups: Sequence[str], *, has_views: bool) -> list[str]:
    """Return what groups and views add to the id of a run and to the name of a cell.

    Heads whose ``fit`` accepts groups were fitted without them up to version 0.4.0, so that their
    runs have other numbers now, also those on augmented views, which are groups since then.

    Args:
        head_spec: spec of the head.
        groups: of all images; empty for none.
        has_views: whether there are augmented views of images.
    """
    if not groups and not has_views:
        return []
    used = has_fit_parameter(HEADS.get(Spec.parse(head_spec).name), "groups")
    if not groups:
        return ["grouped views"] if used else []
    return ["groups", *groups, *(["grouped calibration"] if used else [])]


def package_versions() -> dict[str, str]:
    """Return the versions of ``PACKAGES``, which results record."""
    return dict(_package_versions())


@cache
def _package_versions() -> tuple[tuple[str, str], ...]:
    return tuple((name, version(name)) for name in PACKAGES)


def run_provenance(
    fitted: FittedHead, source: FeatureSet, evaluated: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a report records about how a head was fitted, and ``evaluated``: on what."""
    splits = fitted.splits
    notes = {"images": list(source.image_notes)} if source.image_notes else {}
    return {
        **notes,
        "request": source.request.to_dict(),
        "fingerprint": source.embeddings.recipe.fingerprint,
        "weights": source.weights,
        "head": fitted.head_spec,
        "head_options": fitted.head.get_params(),
        "seed": fitted.seed,
        "n_train": len(splits.final),
        "n_val": len(splits.val),
        "val": "own" if splits.own_val else f"{len(splits.val)} images of train",
        "val_balanced_accuracy": fitted.val_score,
        "val_top1": fitted.val_top1,
        **evaluated,
        "versions": package_versions(),
        **fitted.config.to_dict(),
    }
