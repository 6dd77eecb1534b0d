"""Explain predictions: class activation maps for every head, and how faithful they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from featkit.backbones.base import Preprocess
from featkit.backbones.explain import ActivationMapper, resize_maps
from featkit.compression.class_scores import ClassScores, make_class_scores
from featkit.errors import SpecError
from featkit.runs.directory import SavedRun
from featkit.runs.predict import head_probabilities

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Scores = NDArray[np.float64]

FAITHFULNESS_STEPS = 20
"""Steps in which pixels are deleted from an image or inserted into it."""
_BLUR_PIXELS = 10.0
_GREY = 116
"""Mean of ImageNet's images, the baseline of curved scores."""


@dataclass(frozen=True)
class ClassActivationMap:
    """Where in an image the evidence for a class is.

    Attributes:
        image: uint8 ``(h, w, 3)``, resized and cropped as the network sees it.
        heat: float32 ``(h, w)``, signed, as large as the image: positive for the class, negative
            against it, in units of the score.
        label: name of the class that is explained.
        probability: calibrated probability of the class.
        predicted: name of the predicted class; of several labels per image, the most probable.
    """

    image: Pixels
    heat: Floats
    label: str
    probability: float
    predicted: str


class RunExplainer:
    """Class activation maps of a run: of its network and its head together.

    Args:
        run: a fitted run.
        device: where the network runs.

    Raises:
        HeadError: if the head is unknown, such as that of a plug-in.
        SpecError: if the network has no feature maps with more than one position.
        WeightsError: if the weights are not those that the head was fitted with.
    """

    def __init__(self, run: SavedRun, device: str = "cpu") -> None:
        self._run = run
        self._scores: ClassScores = make_class_scores(run.head)
        backbone = run.load_backbone()
        self._mapper = ActivationMapper(backbone, device)
        self._preprocess: Preprocess = backbone.preprocess
        self._baseline = self._grey_maps() if self._scores.is_curved else None
        self._columns = {
            run.classes[label]: column for column, label in enumerate(run.head.classes_)
        }

    def _grey_maps(self) -> tuple[Floats, Floats]:
        """Return the feature maps and the features of an image of one grey."""
        grey = np.full((1, *self._preprocess.crop, 3), _GREY, np.uint8)
        maps, features = self._mapper.maps(grey)
        return maps[0], features[0]

    @property
    def description(self) -> str:
        """Method, score and layer in one line, such as ``Grad-CAM of the logit at layer4``."""
        surrogate = ", a smooth stand-in for its decision" if self._scores.is_surrogate else ""
        path = ", averaged on the way from a grey image" if self._scores.is_curved else ""
        return f"Grad-CAM of the {self._scores.meaning}{surrogate}{path}, at {self._mapper.layer}"

    def prepare(self, image: Pixels) -> Pixels:
        """Resize and crop an image ``(h, w, 3)`` as for the network."""
        return self._preprocess(image)

    def predict(self, pixels: Pixels) -> Scores:
        """Return calibrated probabilities ``(b, k)`` for images resized by ``prepare``."""
        return self.probabilities(self.features(pixels))

    def features(self, pixels: Pixels) -> Floats:
        """Return features ``(b, d)`` of images resized by ``prepare``."""
        return self._mapper.maps(pixels)[1]

    def probabilities(self, features: Floats) -> Scores:
        """Return calibrated probabilities ``(b, k)`` from features ``(b, d)``."""
        return np.asarray(head_probabilities(self._run, features), np.float64)

    def explain(
        self, pixels: Pixels, classes: Sequence[str | None] | None = None
    ) -> list[ClassActivationMap]:
        """Return the class activation map of each image.

        Args:
            pixels: uint8 ``(b, h, w, 3)``, resized by ``prepare``.
            classes: name of the class to explain for each image; None for the predicted one.

        Raises:
            SpecError: if a class was not trained on.
        """
        names = list(self._columns)
        columns = np.zeros(len(pixels), np.int64)

        def gradients(features: Floats) -> Floats:
            predicted = self.probabilities(features).argmax(axis=1)
            for row, best in enumerate(predicted):
                name = classes[row] if classes else None
                columns[row] = best if name is None else self.column(name)
            if self._baseline is None:
                return self._scores.gradients(features, columns)
            return self._scores.mean_gradients(features, columns, self._baseline[1])

        subtracted = None if self._baseline is None else self._baseline[0]
        maps, features = self._mapper.class_activation_maps(pixels, gradients, subtracted)
        probabilities = self.probabilities(features)
        heats = resize_maps(maps, pixels.shape[1:3])
        explained = []
        for row, column in enumerate(columns):
            explained.append(
                ClassActivationMap(
                    image=pixels[row],
                    heat=heats[row],
                    label=names[column],
                    probability=float(probabilities[row, column]),
                    predicted=names[probabilities[row].argmax()],
                )
            )
        return explained

    def faithfulness(self, found: ClassActivationMap) -> Faithfulness:
        """Return the deletion and insertion score of a class activation map of this run."""
        return faithfulness(self.predict, found.image, found.heat, self.column(found.label))

    def column(self, name: str) -> int:
        """Return the column of a class in the probabilities.

        Raises:
            SpecError: if the class was not trained on.
        """
        if name not in self._columns:
            known = ", ".join(list(self._columns)[:10])
            raise SpecError(f"class {name} was not trained on: choose one of {known}")
        return self._columns[name]


@dataclass(frozen=True)
class Faithfulness:
    """How the probability of a class changes as pixels are deleted or inserted in order of a map.

    Attributes:
        deletion: area under the probability as the most important pixels are replaced by the mean
            colour first; lower is better.
        insertion: area under the probability as the most important pixels of a blurred image are
            sharpened first; higher is better.
    """

    deletion: float
    insertion: float


def faithfulness(
    predict: Callable[[Pixels], Scores],
    image: Pixels,
    heat: NDArray[np.floating[Any]],
    column: int,
    *,
    steps: int = FAITHFULNESS_STEPS,
) -> Faithfulness:
    """Return the deletion and insertion scores of a map.

    Args:
        predict: from uint8 ``(b, h, w, 3)`` to probabilities ``(b, k)``.
        image: uint8 ``(h, w, 3)``.
        heat: ``(h, w)``; pixels with larger values come first.
        column: column of the class in the probabilities.
        steps: number of steps.

    References:
        Petsiuk, Das and Saenko, "RISE: randomized input sampling for explanation of black-box
        models", BMVC 2018.
    """
    probabilities = predict(masked_images(image, heat, steps))[:, column]
    return curve_areas(probabilities)


def masked_images(image: Pixels, heat: NDArray[np.floating[Any]], steps: int) -> Pixels:
    """Return the images of ``faithfulness``: ``steps + 1`` deleted, then as many inserted ones.

    Args:
        image: uint8 ``(h, w, 3)``.
        heat: ``(h, w)``; pixels with larger values come first.
        steps: number of steps.

    Returns:
        uint8 ``(2 * (steps + 1), h, w, 3)``.
    """
    order = np.argsort(-heat, axis=None, kind="stable")
    rank = np.empty(heat.shape, np.int64)
    rank.flat[order] = np.arange(heat.size)
    mean_colour = np.broadcast_to(image.mean(axis=(0, 1)).round().astype(np.uint8), image.shape)
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(_BLUR_PIXELS)))
    deleted, inserted = [], []
    for count in np.linspace(0, heat.size, steps + 1).round():
        first = (rank < count)[:, :, None]
        deleted.append(np.where(first, mean_colour, image))
        inserted.append(np.where(first, image, blurred))
    return np.stack([*deleted, *inserted])


def curve_areas(probabilities: Scores) -> Faithfulness:
    """Return the areas under the probabilities of a class in the images of ``masked_images``."""
    deleted, inserted = np.split(probabilities, 2)
    step = 1 / (len(deleted) - 1)
    return Faithfulness(
        deletion=float(np.trapezoid(deleted, dx=step)),
        insertion=float(np.trapezoid(inserted, dx=step)),
    )
