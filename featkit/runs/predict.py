"""Classify image files with a saved run or an exported classifier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings import pipeline
from featkit.embeddings.extract import embed
from featkit.embeddings.pipeline import Compute, FeatureBatch, Features, PipelineTarget, Rows
from featkit.errors import RunError
from featkit.evaluation.calibration import apply_temperature
from featkit.images.files import images_from_files
from featkit.images.intensity import IntensityRange
from featkit.runs.directory import SavedRun

if TYPE_CHECKING:
    from featkit.compression.onnx_reader import ExportedClassifier


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image file.

    Attributes:
        file: path of the image.
        top: the most probable classes with their probabilities, best first.
        unknown: whether the probability of the first is below the rejection threshold of the run.
    """

    file: str
    top: tuple[tuple[str, float], ...]
    unknown: bool = False

    @property
    def answer(self) -> str:
        """Name of the predicted class, or ``unknown``."""
        return "unknown" if self.unknown else self.top[0][0]

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON can represent it."""
        top = [{"class": name, "probability": value} for name, value in self.top]
        return {"file": self.file, "answer": self.answer, "top": top}


def predict(run: SavedRun, files: list[str], compute: Compute, *, top: int = 5) -> list[Prediction]:
    """Classify image files with a saved run.

    Args:
        run: the run.
        files: paths of the images.
        compute: device and batch size, and whether files that cannot be read are skipped.
        top: number of classes per image.

    Raises:
        WeightsError: if the backbone's weights are not those that the head was fitted with.
        DecodeError: if a file cannot be read, unless such files are skipped.
        RunError: if network and head do not fit together.
    """
    network = (run.load_backbone(), run.request.precision, frozenset(range(len(files))))
    images = images_from_files(files, _intensity(run.recipe.intensity))
    rows, features = gathered(embed(images, [network], compute))
    if not len(rows):
        return []
    expected = getattr(run.head, "n_features_in_", features.shape[1])
    if features.shape[1] != expected:
        raise RunError(
            f"{run.path} has a head for {expected} features, but its network gives "
            f"{features.shape[1]}: fit it again with `featkit fit`"
        )
    scores = run.head.predict_proba(features)
    if run.temperature:
        scores = apply_temperature(scores, run.temperature)
    names = [run.classes[label] for label in run.head.classes_]
    return _top_classes([files[row] for row in rows], scores, names, run.threshold, top)


def predict_exported(
    exported: ExportedClassifier, files: list[str], compute: Compute, *, top: int = 5
) -> list[Prediction]:
    """Classify image files with an exported classifier, as ``predict`` does with a run.

    Raises:
        DecodeError: if a file cannot be read.
    """
    metadata = exported.metadata
    target = PipelineTarget(metadata.prepare, exported.engine, frozenset(range(len(files))))
    images = images_from_files(files, _intensity(metadata.recipe.get("intensity", "none")))
    rows, scores = gathered(pipeline.run(images.load, [target], compute, on_cpu=True))
    if not len(rows):
        return []
    names = [files[row] for row in rows]
    return _top_classes(names, scores, metadata.classes, metadata.threshold, top)


def _intensity(recorded: str) -> IntensityRange | None:
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


def _top_classes(
    files: Sequence[str],
    scores: NDArray[np.floating[Any]],
    names: Sequence[str],
    threshold: float,
    top: int,
) -> list[Prediction]:
    """Return the ``top`` classes of each file, by scores ``(n, k)`` with one name per column."""
    predictions = []
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    for file, row, columns in zip(files, scores, best, strict=True):
        classes = tuple((names[column], float(row[column])) for column in columns)
        predictions.append(Prediction(file, classes, unknown=bool(row[columns[0]] < threshold)))
    return predictions
