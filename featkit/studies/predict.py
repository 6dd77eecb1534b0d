"""A saved run on new pictures: the same road as the training images took."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featkit.embeddings.extract import embed
from featkit.embeddings.pipeline import Compute
from featkit.errors import WeightsError
from featkit.evaluation.calibration import apply_temperature
from featkit.images.files import image_files
from featkit.studies.rundir import SavedRun


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
    backbone = replace(run.request.load_backbone(), quantized=run.quantized)
    if backbone.digest != run.weights_digest:
        raise WeightsError(
            f"{run.path} was made with weights {run.weights_digest[:12]}, but {backbone.weights} has "
            f"{backbone.digest[:12]}: put the former where featkit looks for weights"
        )
    images = image_files(files)
    network = (backbone, run.request.precision, frozenset(range(len(files))))
    blocks = [batch.outputs[0] for batch in embed(images, [network], compute) if batch.outputs[0]]
    if not blocks:
        return []
    rows = np.concatenate([rows for rows, _ in blocks])
    scores = run.head.predict_proba(np.concatenate([vectors for _, vectors in blocks]))
    scores = apply_temperature(scores, run.temperature) if run.temperature else scores
    names = [run.classes[label] for label in run.head.classes_]
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        Prediction(
            files[row],
            tuple((names[column], float(line[column])) for column in columns),
            unknown=bool(line[columns[0]] < run.threshold),
        )
        for row, line, columns in zip(rows, scores, best, strict=True)
    ]
