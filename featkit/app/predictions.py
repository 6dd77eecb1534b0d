"""Predictions of several models for several images, as the page Try shows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featkit.app.models import Evidence, Model
from featkit.app.uploads import DecodedImage, GivenImage, read_given
from featkit.images.base import Pixels
from featkit.images.intensity import IntensityRange
from featkit.runs.classifier import Answer
from featkit.runs.predict import prediction_rows
from featkit.storage import csv_text


@dataclass
class ClassifiedImage:
    """An image with the predictions of several models.

    Attributes:
        image: the image.
        decoded: its thumbnail, or why it cannot be read.
        answers: prediction by model.
        evidence: heat map and similar images by model, for images that were shown.
    """

    image: GivenImage
    decoded: DecodedImage
    answers: dict[str, Answer] = field(default_factory=dict)
    evidence: dict[str, Evidence] = field(default_factory=dict)

    def disagrees(self, models: Iterable[str]) -> bool:
        """Return whether the models predict different classes."""
        return (
            len({self.answers[key].prediction.answer for key in models if key in self.answers}) > 1
        )

    def confidence(self, models: Iterable[str]) -> float:
        """Return the lowest probability that a model gives its own prediction; 1 without one."""
        found = [self.answers[key].prediction.confidence for key in models if key in self.answers]
        return min(found, default=1.0)


class SessionPredictions:
    """The images of one session with their predictions; each is computed once."""

    def __init__(self) -> None:
        self._classified: dict[str, ClassifiedImage] = {}

    def classify(
        self, images: Sequence[GivenImage], models: Mapping[str, Model]
    ) -> Iterator[ClassifiedImage]:
        """Classify images with models, one image after the other; known predictions are kept.

        Images that are no longer given are forgotten.
        """
        wanted = {image.key for image in images}
        self._classified = {key: each for key, each in self._classified.items() if key in wanted}
        for image in images:
            yield self._classify(image, models)

    def _classify(self, image: GivenImage, models: Mapping[str, Model]) -> ClassifiedImage:
        classified = self._classified.get(image.key)
        if classified and (classified.decoded.error or models.keys() <= classified.answers.keys()):
            return classified
        # In full: its size is shown.
        intensity = next((model.intensity for model in models.values()), None)
        pixels, decoded = read_given(image, intensity)
        classified = classified or self._classified.setdefault(
            image.key, ClassifiedImage(image, decoded)
        )
        if pixels is None:
            return classified
        read: dict[tuple[IntensityRange | None, int | None], Pixels | None]
        read = {(intensity, None): pixels}
        missing = {key: models[key] for key in models if key not in classified.answers}
        for key, model in missing.items():
            decoding = (model.intensity, model.edge)
            if decoding not in read:
                read[decoding], _ = read_given(image, *decoding)
            pixels = read[decoding]
            if pixels is not None:
                classified.answers[key] = model.classify(pixels, image.name)
        return classified

    def explain(self, classified: ClassifiedImage, models: Mapping[str, Model]) -> None:
        """Add the heat maps and similar training images that are missing for an image."""
        missing = [
            key for key in models if key in classified.answers and key not in classified.evidence
        ]
        for key in missing:
            pixels, _ = read_given(classified.image, models[key].intensity, models[key].edge)
            if pixels is not None:
                classified.evidence[key] = models[key].evidence(pixels, classified.answers[key])


def in_order(classified: Iterable[ClassifiedImage], models: Sequence[str]) -> list[ClassifiedImage]:
    """Return the readable images: those on which models disagree first, then the least certain."""
    readable = [each for each in classified if not each.decoded.error]
    return sorted(readable, key=lambda each: (not each.disagrees(models), each.confidence(models)))


def predictions_csv(classified: Iterable[ClassifiedImage], titles: Mapping[str, str]) -> str:
    """Return the predictions as CSV, one line per image and model; errors have a line too.

    Args:
        classified: the images.
        titles: names of the models, by their keys.
    """
    rows: list[dict[str, Any]] = []
    for each in classified:
        if each.decoded.error:
            rows.append({"path": each.image.name, "error": each.decoded.error})
        for key, title in titles.items():
            if key in each.answers:
                answer = each.answers[key]
                (row,) = prediction_rows([answer.prediction])
                row |= {"true": each.image.true, "milliseconds": answer.milliseconds}
                rows.append({"model": title, **_rounded(row)})
    return csv_text(rows)


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with numbers as text of six decimals."""
    return {
        name: f"{value:.6f}" if isinstance(value, float) else value for name, value in row.items()
    }
