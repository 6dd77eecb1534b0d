"""Classifiers that stay open: a run or an exported file that classifies images as they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import RunError
from featkit.images.base import Pixels
from featkit.images.intensity import IntensityRange
from featkit.runs.directory import SavedRun, load_run
from featkit.runs.predict import (
    Prediction,
    head_probabilities,
    intensity_of,
    label_predictions,
    top_classes,
)
from featkit.storage import available_cores

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Answer:
    """The prediction of a classifier for one image.

    Attributes:
        prediction: the most probable classes, and whether the image is rejected.
        features: ``(d,)`` features of the image; None for an exported file, which has none.
        milliseconds: time from decoded pixels to probabilities.
    """

    prediction: Prediction
    features: NDArray[np.float32] | None
    milliseconds: float


class OpenClassifier:
    """A classifier whose network is loaded once; may be called from several threads.

    Attributes:
        path: the run directory or the exported file.
        run: the run; None for an exported file.
        multilabel: whether it gives an image any number of labels, which ``classes`` names.
        title: head and network in a few words.
        classes: names of the classes that it can predict.
        intensity: range of grey values with which its images have to be decoded.
        edge: shorter edge in pixels for which large JPEG files have to be decoded, see
            ``images.decode.decode``; None for those that were decoded in full.
    """

    def __init__(
        self,
        path: Path,
        title: str,
        classes: tuple[str, ...],
        *,
        prepare: Callable[[Pixels], Pixels],
        forward: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
        probabilities: Callable[[NDArray[np.float32]], Floats],
        threshold: float,
        thresholds: Sequence[float] | None = None,
        intensity: IntensityRange | None,
        edge: int | None,
        run: SavedRun | None = None,
    ) -> None:
        self.path = path
        self.title = title
        self.classes = classes
        self.run = run
        self.intensity = intensity
        self.edge = edge
        self._prepare = prepare
        self._forward = forward
        self._probabilities = probabilities
        self._threshold = threshold
        self._thresholds = thresholds
        self.multilabel = thresholds is not None
        self._lock = threading.Lock()

    def classify(self, pixels: Pixels, name: str = "", *, top: int = 5) -> Answer:
        """Classify one image.

        Args:
            pixels: uint8 ``(h, w, 3)``, of any size.
            name: of the image, for the prediction.
            top: number of classes to return.

        Raises:
            RunError: if network and head do not fit together.
        """
        # One image at a time: each forward pass uses all cores, and memory stays bounded.
        with self._lock:
            start = time.perf_counter()
            outputs = self._forward(self._prepare(pixels)[None])
            scores = self._probabilities(outputs)
            milliseconds = 1000 * (time.perf_counter() - start)
        if self._thresholds is None:
            (prediction,) = top_classes([name], scores, self.classes, self._threshold, top=top)
        else:
            (prediction,) = label_predictions(
                [name], scores, self.classes, self._thresholds, top=top
            )
        return Answer(prediction, outputs[0] if self.run else None, milliseconds)


def open_classifier(path: Path, device: str = "auto") -> OpenClassifier:
    """Open a run directory, or a file that ``featkit export`` wrote (``.onnx``).

    Args:
        path: the directory or the file.
        device: where the network of a run works.

    Raises:
        RunError: if it is missing or was changed.
        WeightsError: if the weights are not those that the head was fitted with.
        MissingExtraError: if its runtime is not installed.
    """
    return (
        _open_exported(path)
        if path.suffix == ".onnx"
        else _open_run(load_run(path, multilabel=True), device)
    )


def _open_run(run: SavedRun, device: str) -> OpenClassifier:
    from featkit.backbones.devices import INT8
    from featkit.backbones.engines import Workload, open_engine

    backbone = run.load_backbone()
    precision = run.request.precision
    engine = open_engine(
        backbone,
        precision=precision,
        device=device,
        engine="auto",
        workload=Workload(threads=available_cores()),
    )
    if precision in INT8:
        from featkit.backbones.int8 import check_on_this_machine

        noise = np.random.default_rng(0)
        size = (*backbone.preprocess.crop, 3)

        def load_pixels(most: int) -> NDArray[np.uint8]:
            """Return noise: it checks the arithmetic of this processor before the first image."""
            return noise.integers(0, 256, (min(most, 4), *size)).astype(np.uint8)

        check_on_this_machine(engine, backbone, precision, load_pixels)
    return OpenClassifier(
        run.path,
        f"{run.head_spec} on {backbone.name}",
        tuple(run.classes[label] for label in run.head.classes_),
        prepare=backbone.preprocess.for_precision(precision),
        forward=engine,
        probabilities=lambda features: head_probabilities(run, features),
        threshold=run.threshold,
        thresholds=[rule.threshold for rule in run.labels] if run.multilabel else None,
        intensity=intensity_of(run.recipe.intensity),
        edge=backbone.preprocess.edge if run.request.decode == "scaled" else None,
        run=run,
    )


def _open_exported(path: Path) -> OpenClassifier:
    from featkit.compression.onnx_reader import load_exported

    if not path.is_file():
        raise RunError(f"{path} does not exist: give the file that `featkit export` wrote")
    exported = load_exported(path)
    metadata = exported.metadata
    return OpenClassifier(
        path,
        f"{metadata.head}, exported",
        metadata.classes,
        prepare=metadata.prepare,
        forward=exported.engine,
        probabilities=lambda scores: scores,
        threshold=metadata.threshold,
        thresholds=metadata.thresholds,
        intensity=intensity_of(metadata.recipe.get("intensity", "none")),
        edge=metadata.preprocess.edge if metadata.recipe.get("decode") == "scaled" else None,
    )
