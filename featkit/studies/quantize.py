"""Quantize a saved run: export its int8 network and its head to one file, and evaluate the file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.base import QuantizedNetwork
from featkit.backbones.quantization import QuantizationConfig
from featkit.compression.export import export, predict_with_both
from featkit.compression.onnx_reader import load_exported
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.evaluation import PairedComparison, Predictions, compare
from featkit.evaluation.metrics import TOP1
from featkit.evaluation.multilabel import compare_precision, mean_average_precision_terms
from featkit.images.base import ImageSet
from featkit.images.multilabel import targets_of
from featkit.runs.directory import SavedRun
from featkit.runs.export import classifier_of, run_test_images
from featkit.runs.names import network_name

_CHECKED_IMAGES = 256


@dataclass(frozen=True)
class QuantizedRun:
    """Metric of a run before and after quantization.

    Attributes:
        before: top-1 accuracy of the run on its test images; with several labels per image, the
            mean average precision.
        after: the same of the int8 file.
        paired: the second minus the first.
    """

    before: float
    after: float
    paired: PairedComparison

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON can hold them, by the name of the metric."""
        name = "top1" if self.paired.metric == TOP1 else "mean_average_precision"
        return {
            name: self.after,
            f"{name}_of_run": self.before,
            "difference": self.paired.to_dict(),
        }


def quantized_name(
    request: Request, config: QuantizationConfig, run: SavedRun | None = None
) -> str:
    """Return the name of an int8 network that was given none, such as ``ResNet-18, int8``.

    Args:
        request: the network before quantization.
        config: how it was quantized.
        run: the run that it belongs to, if any; its name comes before that of its network.
    """
    options = config.extras.removeprefix(", ")
    if config.method != "minmax":
        options = f"{config.method}{config.extras}"
    before = run.name if run else ""
    name = f"{before or network_name(request.backbone, weights=request.weights)}, int8"
    return f"{name} ({options})" if options else name


def quantize_run(
    run: SavedRun, network: QuantizedNetwork, path: Path, compute: Compute
) -> QuantizedRun:
    """Export a run with an int8 network to one ONNX file, and evaluate it on test images.

    Args:
        run: the run; its images must still exist. Its head is used unchanged.
        network: its network in int8.
        path: the file.
        compute: how images are read.

    Raises:
        DataError: if the images came from Python, or there are no test images.
        HeadError: if the head cannot be exported.
        SpecError: if the file predicts other classes than the int8 network and the head.
    """
    classifier = classifier_of(run)
    int8_backbone = replace(classifier.backbone, quantized=network)
    int8_classifier = replace(classifier, backbone=int8_backbone, precision="int8")
    export(int8_classifier, path, run_test_images(run, _CHECKED_IMAGES), compute=compute)
    images, file = run_test_images(run), load_exported(path)
    rows, before, after = predict_with_both(
        classifier, file.engine, images, compute, prepare=file.metadata.prepare
    )
    ids = [images.ids[row] for row in rows]
    if run.multilabel:
        return _compare_precision(images.take(rows), before, np.asarray(after, np.float64))
    # The head may lack classes of the images: compare names, not positions.
    classes = np.array(classifier.classes)
    y = np.array(images.classes)[images.labels[rows]]
    int8_predictions = Predictions(ids, y, classes[after.argmax(axis=1)])
    run_predictions = Predictions(ids, y, classes[before.argmax(axis=1)])
    (paired,) = compare({"int8": int8_predictions, "run": run_predictions})
    return QuantizedRun(
        before=float(run_predictions.correct.mean()),
        after=float(int8_predictions.correct.mean()),
        paired=paired,
    )


def _compare_precision(
    images: ImageSet, before: NDArray[np.float64], after: NDArray[np.float64]
) -> QuantizedRun:
    """Compare probabilities ``(n, k)`` of labels by the mean average precision."""
    targets = targets_of(images)
    found, means = {}, []
    for name, scores in (("int8", after), ("run", before)):
        terms = mean_average_precision_terms(targets, scores)
        # The sets of labels only say that both are about the same images.
        found[name] = Predictions(images.ids, images.labels, images.labels, scores=terms)
        means.append(float(terms.mean()))
    (paired,) = compare_precision(found)
    return QuantizedRun(before=means[1], after=means[0], paired=paired)
