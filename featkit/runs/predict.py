"""A saved run on new pictures: the same road as the training images took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings import pipeline
from featkit.embeddings.extract import embed
from featkit.embeddings.pipeline import Compute, FeatureBatch, PipelineTarget, Rows, Vectors
from featkit.evaluation.calibration import apply_temperature
from featkit.images.files import images_from_files
from featkit.runs.directory import SavedRun

if TYPE_CHECKING:
    from featkit.compression.onnx_reader import ExportedClassifier


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one picture, best first, with their probabilities.

    ``unknown`` says that the first is below the confidence that the run asks for.
    """

    file: str
    top: tuple[tuple[str, float], ...]
    unknown: bool = False

    @property
    def answer(self) -> str:
        """Name of the class, or ``unknown``."""
        return "unknown" if self.unknown else self.top[0][0]

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON can hold it."""
        top = [{"class": name, "probability": value} for name, value in self.top]
        return {"file": self.file, "answer": self.answer, "top": top}


def predict(run: SavedRun, files: list[str], compute: Compute, *, top: int = 5) -> list[Prediction]:
    """Classify picture files; those that cannot be read are left out where ``compute`` says to skip them.

    Raises:
        WeightsError: if the backbone's weights are not those that the head was fitted on.
        DecodeError: if a file cannot be read.
    """
    network = (run.load_backbone(), run.request.precision, frozenset(range(len(files))))
    rows, vectors = gathered(embed(images_from_files(files), [network], compute))
    if not len(rows):
        return []
    scores = run.head.predict_proba(vectors)
    scores = apply_temperature(scores, run.temperature) if run.temperature else scores
    names = [run.classes[label] for label in run.head.classes_]
    return _best([files[row] for row in rows], scores, names, run.threshold, top)


def predict_exported(exported: ExportedClassifier, files: list[str], compute: Compute, *, top: int = 5) -> list[Prediction]:
    """Classify picture files with an exported classifier, as ``predict`` does with a run.

    Raises:
        DecodeError: if a file cannot be read.
    """
    metadata = exported.metadata
    target = PipelineTarget(metadata.prepare, exported.engine, frozenset(range(len(files))))
    rows, scores = gathered(pipeline.run(images_from_files(files).load, [target], compute, on_cpu=True))
    return _best([files[row] for row in rows], scores, metadata.classes, metadata.threshold, top) if len(rows) else []


def gathered(batches: Iterable[FeatureBatch]) -> tuple[Rows, Vectors]:
    """Return the rows of all batches, and what the only network made of them; both empty where there is none."""
    blocks = [batch.outputs[0] for batch in batches if batch.outputs[0]]
    if not blocks:
        return np.empty(0, np.int64), np.empty((0, 0), np.float32)
    return np.concatenate([rows for rows, _ in blocks]), np.concatenate([vectors for _, vectors in blocks])


def _best(
    files: Sequence[str], scores: NDArray[np.floating[Any]], names: Sequence[str], threshold: float, top: int
) -> list[Prediction]:
    """Return the ``top`` classes of each file, by scores ``(n, k)`` with the names of their columns."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        Prediction(
            file,
            tuple((names[column], float(line[column])) for column in columns),
            unknown=bool(line[columns[0]] < threshold),
        )
        for file, line, columns in zip(files, scores, best, strict=True)
    ]
