"""Classify image files with a saved run or an exported classifier."""

from __future__ import annotations

import filecmp
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featkit.deprecation import warn_deprecated
from featkit.embeddings import pipeline
from featkit.embeddings.extract import embed
from featkit.embeddings.pipeline import Compute, FeatureBatch, Features, PipelineTarget, Rows
from featkit.errors import DataError, RunError
from featkit.evaluation.calibration import apply_temperature
from featkit.evaluation.multilabel import apply_calibrations
from featkit.images.base import ImageSet
from featkit.images.files import images_from_files
from featkit.images.folder import list_image_files
from featkit.images.intensity import IntensityRange
from featkit.images.multilabel import join_labels
from featkit.storage import csv_text, digest, safe_name, storage_errors

if TYPE_CHECKING:
    from featkit.compression.onnx_reader import ExportedClassifier
    from featkit.runs.directory import SavedRun

log = logging.getLogger(__name__)


UNKNOWN = "unknown"
"""Answer for a rejected image."""


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image file.

    Attributes:
        path: path of the image.
        top: the most probable classes with their probabilities, best first.
        rejected: whether the probability of the first is below the rejection threshold of the run.
        probabilities: probability of every class; empty unless they were asked for.
        labels: of an image with any number of labels, those whose probability reaches their
            threshold, the most probable first; None for a run with one label per image.
    """

    path: str
    top: tuple[tuple[str, float], ...]
    rejected: bool = False
    probabilities: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None

    @property
    def predicted(self) -> str:
        """Name of the most probable class; all labels of an image with several, ``bus;car``."""
        return self.top[0][0] if self.labels is None else join_labels(self.labels)

    @property
    def most_probable(self) -> str:
        """Name of the most probable class or label."""
        return self.top[0][0]

    @property
    def confidence(self) -> float:
        """Probability of the most probable class or label."""
        return self.top[0][1]

    @property
    def answer(self) -> str:
        """Name of the predicted class, or ``unknown`` for a rejected image."""
        return UNKNOWN if self.rejected else self.predicted

    @property
    def file(self) -> str:
        """Return the path; deprecated, use ``path``."""
        warn_deprecated("Prediction.file", "Prediction.path", since="0.4", removed="0.6")
        return self.path

    @property
    def unknown(self) -> bool:
        """Return whether the image is rejected; deprecated, use ``rejected``."""
        warn_deprecated("Prediction.unknown", "Prediction.rejected", since="0.4", removed="0.6")
        return self.rejected

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction in the schema of JSON and, in the same order, of CSV.

        That is ``path``, ``predicted``, ``confidence``, ``rejected``, then ``top2``,
        ``confidence2`` and so on, and ``probabilities`` by class if they were asked for. With
        several labels per image, ``path``, ``predicted``, which are all labels that reach their
        threshold, and the probabilities of all labels.
        """
        if self.labels is not None:
            return {
                "path": self.path,
                "predicted": self.predicted,
                "probabilities": dict(self.probabilities),
            }
        row: dict[str, Any] = {
            "path": self.path,
            "predicted": self.predicted,
            "confidence": self.confidence,
            "rejected": self.rejected,
        }
        for place, (name, confidence) in enumerate(self.top[1:], start=2):
            row |= {f"top{place}": name, f"confidence{place}": confidence}
        if self.probabilities:
            row["probabilities"] = dict(self.probabilities)
        return row


def prediction_rows(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return the rows of a table of predictions: ``to_dict`` with a column for each probability.

    The columns of the probabilities of all classes are named ``p(CLASS)``.
    """
    rows = []
    for prediction in predictions:
        row = prediction.to_dict()
        for name, value in row.pop("probabilities", {}).items():
            row[f"p({name})"] = value
        rows.append(row)
    return rows


def predictions_csv(predictions: Sequence[Prediction]) -> str:
    """Return predictions as CSV, probabilities with six decimals."""
    rows = []
    for row in prediction_rows(predictions):
        rows.append({name: _csv_value(value) for name, value in row.items()})
    return csv_text(rows, list(rows[0]) if rows else _COLUMNS)


_COLUMNS = ("path", "predicted", "confidence", "rejected")


def _csv_value(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6f}" if isinstance(value, float) else value


def image_names(files: Sequence[str | Path]) -> list[str]:
    """Return the names of image files, with folders replaced by the images below them.

    What is passed over in a folder is logged.

    Raises:
        DataError: if there is none.
    """
    names: list[str] = []
    for file in files:
        if not Path(file).is_dir():
            names.append(str(file))
            continue
        found, passed_over = list_image_files(Path(file))
        names += found
        if passed_over:
            log.info("%s: %s", file, passed_over)
    if not names:
        raise DataError("no image to classify: give at least one image file")
    return names


def sort_into(predictions: Sequence[Prediction], folder: Path) -> dict[str, int]:
    """Copy image files into one subfolder for each predicted class; nothing is moved.

    Rejected images go to ``unknown``. Files of the same name get a number, and a file that is
    there already with the same content is not copied again. Class names become names of folders
    by ``storage.safe_name``.

    Args:
        predictions: of image files.
        folder: made if it does not exist.

    Returns:
        The number of images by subfolder.

    Raises:
        DataError: if an image lies in the folder itself, where it would be found again.
        StorageError: if a file cannot be written.
    """
    target = folder.resolve()
    for prediction in predictions:
        if prediction.labels is not None:
            raise DataError(
                "an image with several labels belongs into several folders: leave out --sort-into"
            )
        if target in Path(prediction.path).resolve().parents:
            raise DataError(
                f"{prediction.path} lies in {folder}, where the copies go: choose another folder"
            )
    labels = {prediction.predicted for prediction in predictions}
    counts: dict[str, int] = {}
    with storage_errors(folder):
        folder_of = _class_folders(labels, folder)
        for prediction in predictions:
            name = UNKNOWN if prediction.rejected else folder_of[prediction.predicted]
            (folder / name).mkdir(parents=True, exist_ok=True)
            _copy_beside(Path(prediction.path), folder / name)
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def _class_folders(labels: Iterable[str], folder: Path) -> dict[str, str]:
    """Return the name of a folder for each class, inside of ``folder``.

    Different classes never share one, also where ``Cat`` and ``cat`` are the same name, and none
    has that of rejected images.
    """
    names = {UNKNOWN: UNKNOWN}
    if folder.exists():
        names |= {path.name.casefold(): path.name for path in folder.iterdir()}
    found = {}
    for label in sorted(labels):
        name = safe_name(label)
        taken = names.setdefault(name.casefold(), name)
        is_own_name = name == label == taken and name != UNKNOWN
        found[label] = name if is_own_name else f"{name}-{digest([label])[:6]}"
    return found


def _copy_beside(source: Path, folder: Path) -> None:
    """Copy a file under its own name, or with a number if another file has that name."""
    name, number = source.name, 1
    while (folder / name).exists():
        if filecmp.cmp(source, folder / name, shallow=False):
            return
        number += 1
        name = f"{source.stem}-{number}{source.suffix}"
    partial_copy = folder / f".{name}.partial"
    try:
        shutil.copy2(source, partial_copy)
        partial_copy.replace(folder / name)
    finally:
        partial_copy.unlink(missing_ok=True)


def predict(
    run: SavedRun,
    files: list[str],
    compute: Compute,
    *,
    top: int = 5,
    all_probabilities: bool = False,
) -> list[Prediction]:
    """Classify image files with a saved run.

    Args:
        run: the run.
        files: paths of the images.
        compute: device and batch size, and whether files that cannot be read are skipped.
        top: number of classes per image.
        all_probabilities: whether each prediction has the probability of every class too.

    Raises:
        WeightsError: if the backbone's weights are not those that the head was fitted with.
        DecodeError: if a file cannot be read, unless such files are skipped.
        RunError: if network and head do not fit together.
    """
    rows, features = embed_images(run, unlabelled_images(run, files), compute)
    if not len(rows):
        return []
    scores = head_probabilities(run, features)
    names = [run.classes[label] for label in run.head.classes_]
    kept = [files[row] for row in rows]
    if run.multilabel:
        thresholds = [rule.threshold for rule in run.labels]
        return label_predictions(kept, scores, names, thresholds, top=top)
    return top_classes(
        kept, scores, names, run.threshold, top=top, all_probabilities=all_probabilities
    )


def unlabelled_images(run: SavedRun, files: Iterable[str]) -> ImageSet:
    """Return image files without labels, read as the images were that a run was fitted on."""
    return images_from_files(files, intensity_of(run.recipe.intensity))


def embed_images(run: SavedRun, images: ImageSet, compute: Compute) -> tuple[Rows, Features]:
    """Extract features with the network of a run; nothing is cached.

    Returns:
        Rows of ``images`` that could be read ``(n,)``, and their features ``(n, d)``.

    Raises:
        WeightsError: if the backbone's weights are not those that the head was fitted with.
        DecodeError: if an image cannot be read, unless such images are skipped.
    """
    backbone = run.load_backbone()
    if run.request.decode == "scaled":
        images = images.decoded_for(backbone.preprocess.edge)
    network = (backbone, run.request.precision, frozenset(range(len(images))))
    return gathered(embed(images, [network], compute))


def head_probabilities(
    run: SavedRun, features: NDArray[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Return the calibrated probabilities ``(n, k)`` of the head of a run.

    Args:
        run: the run.
        features: ``(n, d)`` features of its network.

    Raises:
        RunError: if the head was fitted on another number of features.
    """
    expected = getattr(run.head, "n_features_in_", features.shape[1])
    if features.shape[1] != expected:
        raise RunError(
            f"{run.path} has a head for {expected} features, but its network gives "
            f"{features.shape[1]}: fit it again with `featkit fit`"
        )
    scores: NDArray[np.float64] = run.head.predict_proba(features)
    if run.multilabel:
        return apply_calibrations(scores, [rule.calibration for rule in run.labels])
    return apply_temperature(scores, run.temperature) if run.temperature else scores


def predict_exported(
    exported: ExportedClassifier,
    files: list[str],
    compute: Compute,
    *,
    top: int = 5,
    all_probabilities: bool = False,
) -> list[Prediction]:
    """Classify image files with an exported classifier, as ``predict`` does with a run.

    Raises:
        DecodeError: if a file cannot be read.
    """
    metadata = exported.metadata
    target = PipelineTarget(metadata.prepare, exported.engine, frozenset(range(len(files))))
    images = images_from_files(files, intensity_of(metadata.recipe.get("intensity", "none")))
    if metadata.recipe.get("decode") == "scaled":
        images = images.decoded_for(metadata.preprocess.edge)
    rows, scores = gathered(pipeline.run(images.load, [target], compute, on_cpu=True))
    if not len(rows):
        return []
    kept = [files[row] for row in rows]
    if metadata.thresholds is not None:
        return label_predictions(kept, scores, metadata.classes, metadata.thresholds, top=top)
    return top_classes(
        kept,
        scores,
        metadata.classes,
        metadata.threshold,
        top=top,
        all_probabilities=all_probabilities,
    )


def intensity_of(recorded: str) -> IntensityRange | None:
    """Return the intensity range of the images that a head was fitted on."""
    return None if recorded == "none" else IntensityRange.parse(recorded)


def gathered(batches: Iterable[FeatureBatch]) -> tuple[Rows, Features]:
    """Concatenate the batches of a single network: row numbers ``(n,)``, outputs ``(n, d)``."""
    blocks = [batch.outputs[0] for batch in batches if batch.outputs[0]]
    if not blocks:
        return np.empty(0, np.int64), np.empty((0, 0), np.float32)
    return np.concatenate([rows for rows, _ in blocks]), np.concatenate(
        [features for _, features in blocks]
    )


def top_classes(
    files: Sequence[str],
    scores: NDArray[np.floating[Any]],
    names: Sequence[str],
    threshold: float,
    *,
    top: int,
    all_probabilities: bool = False,
) -> list[Prediction]:
    """Return the ``top`` classes of each file, by scores ``(n, k)`` with one name per column."""
    predictions = []
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    for file, row, columns in zip(files, scores, best, strict=True):
        classes = tuple((names[column], float(row[column])) for column in columns)
        rejected = bool(row[columns[0]] < threshold)
        every = dict(zip(names, map(float, row), strict=True)) if all_probabilities else {}
        predictions.append(Prediction(file, classes, rejected, every))
    return predictions


def label_predictions(
    files: Sequence[str],
    scores: NDArray[np.floating[Any]],
    names: Sequence[str],
    thresholds: Sequence[float],
    *,
    top: int,
) -> list[Prediction]:
    """Return the labels of each file whose probability ``(n, k)`` reaches their threshold."""
    predictions = []
    best = np.argsort(-scores, axis=1, kind="stable")
    for file, row, columns in zip(files, scores, best, strict=True):
        classes = tuple((names[column], float(row[column])) for column in columns[:top])
        found = tuple(names[column] for column in columns if row[column] >= thresholds[column])
        every = dict(zip(names, map(float, row), strict=True))
        predictions.append(Prediction(file, classes, False, every, found))
    return predictions
