"""Cross-validation with several labels per image."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.base import Embeddings
from featkit.errors import SpecError
from featkit.evaluation.clusters import Clusters
from featkit.evaluation.label_folds import precision_fold_interval, score_precision_folds
from featkit.evaluation.multilabel import (
    LabelAnswers,
    MultiLabelReport,
    answer_labels,
    evaluate_labels,
    mean_average_precision_terms,
    precision_without,
)
from featkit.runs.features import FeatureSet, refuse_trained_on
from featkit.runs.fit import FitConfig, run_id
from featkit.runs.folds import hold_out, named_folds
from featkit.runs.multilabel import (
    FittedLabels,
    LabelFoldPredictions,
    MultiLabelRun,
    check_multilabel_config,
    fit_multilabel,
    head_warnings,
    label_predictions,
    label_provenance,
    label_warnings,
)
from featkit.runs.splits import whole_split, without_views
from featkit.storage import digest, peak_memory_mb


@dataclass(frozen=True)
class _CrossValidation:
    """Results of all folds.

    Attributes:
        images: embeddings without augmented views.
        folds: number of folds.
        fold_of: ``(repeats, n)`` fold of each image.
        scores: ``(repeats, n, k)`` before calibration, from the head fitted without the image.
        answers: calibrated probabilities and labels of each repeat.
        final: the head fitted on all images.
        warnings: of the heads of the folds.
        seconds: duration of all fits.
    """

    images: Embeddings
    folds: int
    fold_of: NDArray[np.int64]
    scores: NDArray[np.float64]
    answers: list[LabelAnswers]
    final: FittedLabels
    warnings: list[str]
    seconds: float


def fit_label_folds(
    source: FeatureSet,
    head_spec: str = "linear",
    *,
    folds: int,
    repeats: int = 1,
    seed: int = 0,
    config: FitConfig | None = None,
    on_fold: Callable[[], object] = lambda: None,
) -> MultiLabelRun:
    """Evaluate a head for several labels by cross-validation and fit it on all images.

    As ``runs.folds.fit_folds``: in each fold, hyperparameters, calibrations and thresholds are
    chosen on a fifth of the other images. The report is that of the pooled out-of-fold scores of
    the first repeat; ``report.folds`` has the mean over all repeats.

    Args:
        source: the features.
        head_spec: spec of the head.
        folds: number of folds, two or more.
        repeats: number of random divisions into folds, by iterative stratification.
        seed: of the folds, the held-out validation images and the head.
        config: how heads are fitted.
        on_fold: called after each fold.

    Raises:
        SpecError: if the head, an option or a value is unknown, or test images are perturbed.
        HeadError: if the head cannot give an image several labels.
        DataError: if a label or the groups cannot be divided into folds, or the network was trained
            on an image.
    """
    config = config or FitConfig()
    check_multilabel_config(head_spec, config)
    if source.request.perturb:
        raise SpecError("--perturb changes test images, but --folds tests all: leave out one")
    refuse_trained_on(source, "folds", "`featkit fit` without --folds")
    embeddings = source.embeddings
    images = without_views(embeddings)
    drawn = [named_folds(source, images, folds, seed + repeat) for repeat in range(repeats)]
    fold_of = np.stack(drawn)

    start = time.perf_counter()
    scores = np.zeros((repeats, *images.targets.shape))
    answers: list[LabelAnswers] = []
    warned: Counter[str] = Counter()
    for repeat in range(repeats):
        pooled = LabelAnswers(np.zeros(scores.shape[1:]), np.zeros(scores.shape[1:], bool))
        for fold in range(folds):
            rows = np.flatnonzero(fold_of[repeat] == fold)
            held_out = hold_out(embeddings, {images.ids[row] for row in rows})
            part = replace(source, embeddings=held_out, copies=None)
            fitted = fit_multilabel(part, head_spec, seed, config)
            warned.update([*fitted.head.warnings_, *label_warnings(fitted, images)])
            own = fitted.head.predict_proba(images.x[rows])
            scores[repeat, rows] = own
            given = answer_labels(own, fitted.thresholds, fitted.calibrations)
            pooled.probabilities[rows] = given.probabilities
            pooled.predicted[rows] = given.predicted
            on_fold()
        answers.append(pooled)
    final = fit_multilabel(source, head_spec, seed, config, whole_split(embeddings, seed))
    seconds = time.perf_counter() - start
    lines = [f"in {count} of {folds * repeats} folds: {text}" for text, count in warned.items()]
    found = _CrossValidation(images, folds, fold_of, scores, answers, final, lines, seconds)
    report = _report(source, found)
    assert report.folds is not None
    return MultiLabelRun(
        id=digest([run_id(final, source), report.folds.assignment])[:12],
        source=source,
        head_spec=final.head_spec,
        head=final.head,
        report=report,
        predictions=label_predictions(images, scores[0], answers[0].predicted),
        probabilities=answers[0].probabilities,
        candidates=final.candidates,
        folds=LabelFoldPredictions(
            fold_of,
            np.stack([each.predicted for each in answers]),
            np.stack([each.probabilities for each in answers]),
        ),
    )


def _report(source: FeatureSet, found: _CrossValidation) -> MultiLabelReport:
    """Return the report of the pooled predictions, with the thresholds of the final head."""
    images, final, folds = found.images, found.final, found.folds
    targets, repeats = images.targets, len(found.fold_of)
    report = evaluate_labels(
        found.scores[0],
        targets,
        images.label_names,
        thresholds=final.thresholds,
        calibrations=final.calibrations,
        train_counts=without_views(final.splits.final).targets.sum(axis=0).tolist(),
        answers=found.answers[0],
        groups=images.groups,
        warnings=[*head_warnings(final, images), *found.warnings],
        provenance=label_provenance(final, source, {"folds": folds, "repeats": repeats}),
        cost={
            "fit_seconds": found.seconds,
            "predict_seconds": 0.0,
            "peak_memory_mb": peak_memory_mb(),
        },
    )
    if source.copies and source.copies.ids:
        copied = np.array([name in source.copies.ids for name in images.ids])
        without = precision_without(found.scores[0], targets, copied, images.groups)
        report = replace(report, without_copies=without)
    clusters = Clusters.of(images.groups, len(images))
    assignment = digest([*images.ids, *map(str, found.fold_of.ravel().tolist())])
    scored = score_precision_folds(
        found.scores, targets, found.fold_of, folds, clusters, assignment=assignment
    )
    terms = mean_average_precision_terms(targets, found.scores[0])[None]
    first = precision_fold_interval(terms, targets, found.fold_of[:1], folds, clusters)
    return replace(report, interval95=first, folds=scored)
