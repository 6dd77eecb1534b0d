"""Inspect a run with several labels per image: labels missed and wrongly added, and calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.base import Embeddings
from featkit.embeddings.pipeline import Compute
from featkit.errors import RunError
from featkit.evaluation.calibration import ReliabilityBin
from featkit.evaluation.label_errors import (
    cooccurrence,
    label_confusion,
    label_reliability,
    largest_errors,
    pooled_reliability,
)
from featkit.evaluation.multilabel import MultiLabelReport
from featkit.evaluation.predictions import Predictions
from featkit.runs.directory import SavedRun
from featkit.runs.features import leaks
from featkit.runs.multilabel import LabelCandidate
from featkit.runs.results import LabelPredictions, read_any_run, read_label_predictions
from featkit.studies.inspect import (
    MAX_SHOWN,
    EmbeddingMap,
    ImageReader,
    InspectedImage,
    Track,
    as_tested,
    available_features,
    available_images,
    explanation_of,
    map_embeddings,
    open_explainer,
    read_search,
    split_counts,
    with_pictures,
    with_similar,
)

_LABEL_BINS = 10


@dataclass(frozen=True)
class LabelInspection:
    """Everything that the report of a run with several labels per image shows.

    Attributes:
        run: the run.
        report: its evaluation.
        search: candidates of the hyperparameter search; empty if there was none.
        data: name of the images.
        missed: images with a label that they were not given, the lowest probabilities first.
        added: images with a label that they do not have, the highest probabilities first.
        n_missed, n_added: number of such pairs of image and label.
        confusion: ``(k + 1, k + 1)`` confusion matrix of labels, see ``label_confusion``.
        true_pairs, predicted_pairs: ``(k, k)`` number of test images that have both of two labels,
            and of those that were given both; on the diagonal, one.
        reliability: bins of the calibrated probabilities of all labels together.
        label_reliability: bins of the probabilities of each label.
        embedding_map: None if the features are not available.
        counts: number of images by label and split; empty if the features are not available.
        images: number of images by split; likewise.
        shared: number of test images that are train or val images too, byte for byte; None if the
            features are not available.
        explanation: how the class activation maps were computed; empty if there are none.
        notes: what is missing and why, one sentence each.
    """

    run: SavedRun
    report: MultiLabelReport
    search: tuple[LabelCandidate, ...]
    data: str
    missed: tuple[InspectedImage, ...]
    added: tuple[InspectedImage, ...]
    n_missed: int
    n_added: int
    confusion: NDArray[np.int64]
    true_pairs: NDArray[np.int64]
    predicted_pairs: NDArray[np.int64]
    reliability: tuple[ReliabilityBin, ...]
    label_reliability: tuple[tuple[ReliabilityBin, ...], ...]
    embedding_map: EmbeddingMap | None
    counts: dict[str, dict[str, int]]
    images: dict[str, int]
    shared: int | None
    explanation: str
    notes: tuple[str, ...]


def inspect_labels(
    run: SavedRun,
    *,
    cache: Path,
    compute: Compute,
    projection: str = "tsne",
    seed: int = 0,
    heat_maps: bool = True,
    track: Track = iter,
    report_iteration: Callable[[int, int], None] | None = None,
) -> LabelInspection:
    """Collect what the report of a run with several labels per image shows.

    Images and features are optional: what is missing is said in ``notes``.

    Args:
        run: a saved run with several labels per image.
        cache: folder of the embeddings cache.
        compute: device and batch size, where features have to be extracted.
        projection: method of the embedding map, see ``evaluation.projection.project``.
        seed: of the projection.
        heat_maps: whether class activation maps are computed.
        track: wraps the batches of class activation maps, for a progress bar.
        report_iteration: called with the iterations of the projection, see ``project``.

    Raises:
        RunError: if the results or the predictions of the run are missing or damaged.
    """
    _, report, predictions = read_any_run(run.path)
    if not isinstance(report, MultiLabelReport):
        raise RunError(f"{run.path} has the card of a run with several labels, and other results")
    found = read_label_predictions(run.path, predictions)
    folded = report.folds is not None
    notes: list[str] = []
    features = available_features(run, cache, compute, notes)
    if features and folded:
        features = as_tested(features)
    images = available_images(run, predictions, notes)
    read = ImageReader(images)
    explainer = open_explainer(run, images, compute, notes) if heat_maps else None
    missed, added = _errors(predictions, found, report.labels)
    shown = with_pictures([*missed, *added], read, explainer, track, notes)
    if features and not folded:
        shown = with_similar(shown, features.embeddings, read)
    if run.recipe.precision != "fp32":
        notes.append(
            f"There is no comparison of {run.recipe.precision} with float32 features: reports with "
            "several labels per image have none."
        )
    embedding_map = None
    if features:
        embedding_map = map_embeddings(
            features,
            _whole_predictions(predictions),
            read,
            notes,
            method=projection,
            seed=seed,
            report_iteration=report_iteration,
        )
    groups = None if predictions.groups is None else predictions.groups.tolist()
    return LabelInspection(
        run=run,
        report=report,
        search=read_search(run, LabelCandidate),
        data=features.data if features else Path(run.request.data).name,
        missed=tuple(shown[: len(missed)]),
        added=tuple(shown[len(missed) :]),
        n_missed=int((found.targets > found.predicted).sum()),
        n_added=int((found.predicted > found.targets).sum()),
        confusion=label_confusion(found.targets, found.predicted),
        true_pairs=cooccurrence(found.targets),
        predicted_pairs=cooccurrence(found.predicted),
        reliability=pooled_reliability(found.targets, found.probabilities, groups),
        label_reliability=label_reliability(
            found.targets, found.probabilities, groups, bins=_LABEL_BINS
        ),
        embedding_map=embedding_map,
        counts=_counts(features.embeddings, folded=folded) if features else {},
        images=split_counts(features.embeddings.splits, folded=folded) if features else {},
        shared=len(leaks(features)) if features and not folded else None,
        explanation=explanation_of(explainer, folded=folded),
        notes=tuple(notes),
    )


def _errors(
    predictions: Predictions, found: LabelPredictions, names: Sequence[str]
) -> tuple[list[InspectedImage], list[InspectedImage]]:
    """Return the labels that were missed and those that were wrongly added, the worst of each."""
    kinds = []
    for wrong, highest in (
        (found.targets > found.predicted, False),
        (found.predicted > found.targets, True),
    ):
        errors = largest_errors(wrong, found.probabilities, highest=highest, count=MAX_SHOWN // 2)
        inspected = []
        for error in errors:
            inspected.append(
                InspectedImage(
                    id=predictions.ids[error.row],
                    true=str(predictions.y[error.row]),
                    predicted=str(predictions.predicted[error.row]),
                    confidence=error.probability,
                    label=names[error.column],
                )
            )
        kinds.append(inspected)
    return kinds[0], kinds[1]


def _whole_predictions(predictions: Predictions) -> list[InspectedImage]:
    """Return all test images with their sets of labels, for the embedding map."""
    rows = zip(predictions.ids, predictions.y.tolist(), predictions.predicted.tolist(), strict=True)
    return [InspectedImage(name, true, given, float("nan")) for name, true, given in rows]


def _counts(embeddings: Embeddings, *, folded: bool) -> dict[str, dict[str, int]]:
    """Return the number of images with each label in each split, or in all if there are folds."""
    targets = embeddings.targets
    counts = {}
    for column, name in enumerate(embeddings.label_names):
        counts[name] = split_counts(embeddings.splits[targets[:, column] == 1], folded=folded)
    return counts
