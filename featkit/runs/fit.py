"""One run: a request and a head to a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.base import Embeddings
from featkit.errors import DataError, SpecError
from featkit.evaluation import Temperature, evaluate, fit_temperature
from featkit.evaluation.calibration import apply_temperature, are_probabilities
from featkit.evaluation.metrics import balanced_accuracy, confusion_matrix
from featkit.evaluation.predictions import Predictions
from featkit.evaluation.rejection import reject, rejection_threshold
from featkit.evaluation.report import Report
from featkit.heads import make_head
from featkit.heads.balance import BalancedHead
from featkit.heads.search import Candidate, SearchResult, search, search_correction
from featkit.registry import Spec
from featkit.runs.features import FeatureSet, refuse_seen
from featkit.runs.splits import DataSplits, make_splits, refuse_infinite, train_counts, unseen
from featkit.storage import digest, peak_memory_mb

PACKAGES = ("featkit", "numpy", "scikit-learn", "skops", "torch", "torchvision")
"""Packages whose versions a report names."""

RESULTS_VERSION = "0.1.0"
"""Part of every run id and cell name. Raise it when the same inputs would give other numbers, not with each release:
results that are still right are found again. (Up to version 0.1.0 it was the version of the package.)"""



@dataclass(frozen=True)
class FitConfig:
    """How a head is fitted and judged.

    Attributes:
        tune: whether its settings are chosen on val, from the search space of the head, or of the correction if there
            is one.
        subset: spec of the part of train to fit on, such as ``longtail:if=50``, or None for all of it.
        balance: spec of a correction for classes of unequal size, or None.
        reject: share of val images to call unknown, or None to answer always.
        progress: called after each setting that was tried.
    """

    tune: bool = False
    subset: str | None = None
    balance: str | None = None
    reject: float | None = None
    progress: Callable[[Candidate], None] | None = None


@dataclass(frozen=True)
class Run:
    """A fitted head and what it is worth.

    Attributes:
        id: 12 hex digits over everything that decides the numbers; the same again for the same run.
        source: the vectors it was fitted on.
        head_spec: how the head was asked for.
        head: the fitted estimator.
        report: its worth on the test images.
        predictions: on the test images.
        search: what was tried on val, if anything.
    """

    id: str
    source: FeatureSet
    head_spec: str
    head: Any
    report: Report
    predictions: Predictions
    search: SearchResult | None = None


@dataclass(frozen=True)
class Fitted:
    """A head with all that was chosen for it, judged by nothing yet.

    Attributes:
        source, head_spec, seed, config: what was asked for.
        parts: which rows it was fitted on, and which chose its settings.
        head: the fitted estimator.
        temperature, threshold: chosen on val; None where there is none.
        val_score: balanced accuracy on val, before val joined train; None where there is none.
        search: what was tried on val, if anything.
        seconds: of all this.
    """

    source: FeatureSet
    head_spec: str
    seed: int
    config: FitConfig
    parts: DataSplits
    head: Any
    temperature: Temperature | None
    threshold: float | None
    val_score: float | None
    search: SearchResult | None
    seconds: float


def fit_run(source: FeatureSet, head_spec: str = "linear", *, seed: int = 0, config: FitConfig | None = None) -> Run:
    """Fit a head and judge it on the test vectors, which nothing else has seen.

    The settings (with ``tune``), the temperature and the threshold of rejection are chosen on val, with heads that were
    fitted on the rest of train; then the head is fitted on train and val together.

    Raises:
        SpecError: if the head, an option or a value is unknown.
        DataError: if train has fewer than two classes, or test no image.
    """
    return evaluate_head(fit_head(source, head_spec, seed, config or FitConfig()), source)


def fit_head(source: FeatureSet, head_spec: str, seed: int, config: FitConfig) -> Fitted:
    """Fit a head and choose all there is to choose without a look at test; see ``fit_run``."""
    asked = Spec.parse(head_spec)
    make_head(asked, seed=seed)
    refuse_seen(source)
    parts = _divide(source, seed, config.subset)
    start = time.perf_counter()
    found = _search(asked, parts, seed, config) if config.tune else None
    chosen = found.best.options if found else {}
    balance = chosen.get("correction", config.balance)
    spec = replace(asked, options=chosen) if found and not balance else asked
    scored = (found.scores, np.unique(parts.fit.y)) if found else _score_val(_head(spec, balance, seed), parts)
    temperature, threshold = _on_val(scored, parts.val.y, config.reject)
    head = _head(spec, balance, seed).fit(parts.final.x, parts.final.y)
    return Fitted(
        source=source,
        head_spec=str(asked),
        seed=seed,
        config=config,
        parts=parts,
        head=head,
        temperature=temperature,
        threshold=threshold,
        val_score=_val_score(scored, parts.val),
        search=found,
        seconds=time.perf_counter() - start,
    )


def evaluate_head(fitted: Fitted, source: FeatureSet) -> Run:
    """Evaluate a fitted head on the test images of ``source``: its own, or the same ones perturbed."""
    test, head = source.embeddings.part("test"), fitted.head
    refuse_infinite(test)
    report, predictions, probabilities = evaluate_classifier(
        head,
        test,
        temperature=fitted.temperature,
        train_counts=train_counts(fitted.parts.final),
        warnings=[
            *getattr(head, "warnings_", ()),
            *unseen(test.classes, fitted.parts.test.y, fitted.parts.final.y),
            *_constant(fitted.parts.final),
        ],
        provenance=_provenance(fitted, source),
        fit_seconds=fitted.seconds,
        seed=fitted.seed,
    )
    if fitted.threshold is not None and fitted.config.reject is not None:
        columns = np.asarray(head.classes_)
        rejection = reject(
            probabilities, test.y, columns, share=fitted.config.reject, threshold=fitted.threshold
        )
        report = replace(report, rejection=rejection)
    run_id = _run_id(source, fitted.head_spec, fitted.seed, fitted.config)
    return Run(run_id, source, fitted.head_spec, head, report, predictions, fitted.search)


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
    """Evaluate a classifier on test features: a fitted head, or the classifier of a trained network.

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
    scores = np.asarray(head.predict_proba(test.x), dtype=np.float64)
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
    )
    calibrated = apply_temperature(scores, temperature) if temperature else scores
    predicted = columns[scores.argmax(axis=1)]
    predictions = Predictions(test.ids, test.y, predicted, calibrated.max(axis=1))
    return report, predictions, calibrated


def _divide(source: FeatureSet, seed: int, subset: str | None) -> DataSplits:
    try:
        return make_splits(source.embeddings, seed, subset)
    except DataError as error:
        raise DataError(f"{source.path}: {error}") from error


def _head(spec: Spec, balance: str | None, seed: int) -> Any:
    """Return the unfitted head, within the correction if there is one."""
    return BalancedHead(head=str(spec), correction=balance, seed=seed) if balance else make_head(spec, seed=seed)


def _settings(config: FitConfig) -> dict[str, Any]:
    return {"tuned": config.tune, "subset": config.subset, "balance": config.balance}


def _search(asked: Spec, parts: DataSplits, seed: int, config: FitConfig) -> SearchResult:
    """Try the search space of the correction, if there is one, or else of the head, on val."""
    fit, val = parts.fit, parts.val
    if config.balance:
        head = BalancedHead(head=str(asked), correction=config.balance, seed=seed)
        return search_correction(head, fit.x, fit.y, val.x, val.y, progress=config.progress)
    if asked.options:
        raise SpecError(f"--tune chooses the options of {asked.name} on val: write {asked.name} alone, without options")
    return search(asked.name, fit.x, fit.y, val.x, val.y, seed=seed, progress=config.progress)


Scored = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Scores ``(n, m)``, and the class of each column ``(m,)``."""


def _score_val(head: Any, parts: DataSplits) -> Scored | None:
    """Return what a head that was fitted without val says about val; None where that cannot be."""
    if not len(parts.val) or len(np.unique(parts.fit.y)) < 2:
        return None
    head.fit(parts.fit.x, parts.fit.y)
    return np.asarray(head.predict_proba(parts.val.x), dtype=np.float64), np.asarray(head.classes_)


def _on_val(
    scored: Scored | None, y: NDArray[np.int64], share: float | None
) -> tuple[Temperature | None, float | None]:
    """Return the temperature, and the confidence below which an image is unknown, that suit the scores of val."""
    if scored is None:
        if share is not None:
            raise DataError("there are no val images to choose a confidence on: leave out --reject")
        return None, None
    scores, columns = scored
    # A plug-in's scores need not be probabilities; then there is nothing to calibrate.
    fitting = are_probabilities(scores) and np.isin(y, columns).any()
    temperature = fit_temperature(scores, y, columns) if fitting else None
    shown = apply_temperature(scores, temperature) if temperature else scores
    return temperature, None if share is None else rejection_threshold(shown, share)


def _val_score(scored: Scored | None, val: Embeddings) -> float | None:
    if scored is None:
        return None
    scores, columns = scored
    return balanced_accuracy(confusion_matrix(val.y, columns[scores.argmax(axis=1)], len(val.classes)))


def _constant(embeddings: Embeddings) -> list[str]:
    """Say how many columns tell nothing."""
    columns = np.flatnonzero((embeddings.x == embeddings.x[0]).all(axis=0))
    if len(columns) == embeddings.x.shape[1]:
        raise DataError("all vectors are the same: the network tells the images nothing apart; choose another layer")
    named = ", ".join(map(str, columns[:5])) + (", ..." if len(columns) > 5 else "")
    return [f"{len(columns)} of {embeddings.x.shape[1]} columns are constant ({named})"] if len(columns) else []


def _run_id(source: FeatureSet, head_spec: str, seed: int, config: FitConfig) -> str:
    embeddings = source.embeddings
    chosen = [head_spec, str(seed), *map(str, _settings(config).values()), str(config.reject), RESULTS_VERSION]
    return digest([embeddings.recipe.fingerprint, *embeddings.splits.tolist(), *chosen])[:12]


def _provenance(fitted: Fitted, source: FeatureSet) -> dict[str, Any]:
    parts = fitted.parts
    return {
        "request": source.request.to_dict(),
        "fingerprint": source.embeddings.recipe.fingerprint,
        "weights": source.weights,
        "head": fitted.head_spec,
        "head_options": fitted.head.get_params(),
        "seed": fitted.seed,
        "n_train": len(parts.final),
        "n_val": len(parts.val),
        "val": "own" if parts.own_val else f"{len(parts.val)} images of train",
        "val_balanced_accuracy": fitted.val_score,
        "versions": {name: version(name) for name in PACKAGES},
        **_settings(fitted.config),
    }
