"""Export a classifier to one file: network, head and temperature, from pixels to probabilities."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from featkit.backbones.base import Backbone
from featkit.backbones.batchnorm import fold_batchnorm
from featkit.backbones.engines import open_engine
from featkit.backbones.int8 import can_saturate
from featkit.backbones.onnx_export import silence, write_onnx
from featkit.compression.head_modules import (
    PixelsToScores,
    make_labels_module,
    make_scores_module,
)
from featkit.compression.onnx_reader import (
    ClassifierEngine,
    ExportMetadata,
    add_metadata,
    load_exported,
    to_model_input,
)
from featkit.embeddings import pipeline
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.recipe import Recipe
from featkit.errors import SpecError
from featkit.evaluation import Temperature
from featkit.evaluation.calibration import apply_temperature
from featkit.evaluation.multilabel import LabelCalibration, apply_calibrations
from featkit.extras import require
from featkit.images.base import ImageSet
from featkit.registry import unknown
from featkit.storage import storage_errors

log = logging.getLogger("featkit")

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
"""File name suffix of each format."""

MAX_DIFFERENCE = 1e-3
"""Largest difference between a probability of the original and of the file that is accepted."""

_ROUNDING = 1e-6
"""The threshold of a file is lower by this, as its probabilities are rounded to float32: those
that equal the threshold must not fall below it."""

_INPUT_OUTPUT = ("images", "probabilities")


@dataclass(frozen=True)
class Classifier:
    """A classifier that can be exported.

    Attributes:
        backbone: the network, its weights and its preprocessing.
        precision: ``fp32`` or ``int8``.
        head: the fitted estimator.
        head_spec: spec of the head.
        classes: class names, one per column of the head's probabilities.
        temperature: of the head's scores, or None.
        threshold: confidence below which an image is rejected; 0: never.
        recipe: of the embeddings that the head was fitted on.
        labels: calibration of each label of an image with any number of labels, which are then the
            ``classes``; empty for one label per image.
        thresholds: of the labels; empty likewise.
    """

    backbone: Backbone
    precision: str
    head: Any
    head_spec: str
    classes: tuple[str, ...]
    temperature: Temperature | None
    threshold: float
    recipe: Recipe
    labels: tuple[LabelCalibration | None, ...] = ()
    thresholds: tuple[float, ...] = ()

    @property
    def multilabel(self) -> bool:
        """Whether an image has any number of labels."""
        return bool(self.thresholds)

    def predict_proba(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probabilities ``(n, k)`` of embeddings ``(n, d)``."""
        scores: NDArray[np.float64] = self.head.predict_proba(embeddings)
        if self.multilabel:
            return apply_calibrations(scores, self.labels)
        return apply_temperature(scores, self.temperature) if self.temperature else scores

    def metadata(self) -> ExportMetadata:
        """Return the metadata of the file."""
        return ExportMetadata(
            classes=self.classes,
            preprocess=self.backbone.preprocess,
            precision=self.precision,
            threshold=max(0.0, self.threshold - _ROUNDING),
            head=self.head_spec,
            temperature=asdict(self.temperature) if self.temperature else None,
            recipe=self.recipe.to_dict(),
            thresholds=self._file_thresholds() if self.multilabel else None,
        )

    def _file_thresholds(self) -> tuple[float, ...]:
        return tuple(max(0.0, each - _ROUNDING) for each in self.thresholds)

    def scores_module(self) -> nn.Module:
        """Return the module from embeddings ``(b, d)`` to probabilities ``(b, k)``.

        Raises:
            HeadError: if the head cannot be exported.
        """
        if self.multilabel:
            return make_labels_module(self.head, self.labels)
        return make_scores_module(self.head, self.temperature)


@dataclass(frozen=True)
class ExportAgreement:
    """Comparison of the predictions of an exported file and of the original.

    Attributes:
        n: number of images.
        differing: number of images with different predicted classes. With several labels per image,
            those of which a label differs whose probability is not within 0.001 of its threshold.
        largest: largest absolute difference of two probabilities; NaN if the file gives one.
        rejected_differently: number of images that only one of the two rejects as unknown.
        near_threshold: number of other images with different labels, all of which have a
            probability within 0.001 of their threshold.
        multilabel: whether images have several labels.
    """

    n: int
    differing: int
    largest: float
    rejected_differently: int = 0
    near_threshold: int = 0
    multilabel: bool = False

    @property
    def equal(self) -> bool:
        """Whether classes and rejections are the same, and probabilities within 0.001."""
        same_answers = not self.differing and not self.rejected_differently
        return same_answers and self.largest <= MAX_DIFFERENCE  # False for NaN


def export(
    classifier: Classifier,
    path: Path,
    images: ImageSet | None,
    *,
    to: str = "onnx",
    compute: Compute | None = None,
) -> ExportAgreement | None:
    """Export a classifier; the file is only kept if it gives the same answers as the original.

    These are the predicted classes, the rejections, and the probabilities to within 0.001.

    Args:
        classifier: network, head, temperature.
        path: the file; its folder is created if needed.
        images: images on which the predictions are compared; None to compare none.
        to: ``onnx``, or ``torch`` for a program of torch.export (not for int8).
        compute: how the images are read.

    Returns:
        The comparison; None without images.

    Raises:
        SpecError: if the format is unknown or cannot hold this classifier, or an answer differs.
        HeadError: if the head cannot be exported.
        MissingExtraError: if ONNX, ONNX Script or ONNX Runtime is not installed.
        StorageError: if the file cannot be written.
    """
    if to not in SUFFIXES:
        raise unknown("format", to, list(SUFFIXES))
    # The folder of the target, so that the checked file can be published by a rename.
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with (
        storage_errors(path),
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder,
    ):
        file = Path(folder, path.name)
        if to == "onnx":
            _write_onnx_classifier(classifier, file)
            engine = load_exported(file).engine
        else:
            _write_torch_program(classifier, file)
            engine = _open_torch_program(file)
        agreement = None
        if images is not None:
            agreement = compare(classifier, engine, images, compute or Compute(device="cpu"))
        if agreement is not None and not agreement.equal:
            raise SpecError(
                f"the {to} file differs from the run and was not kept: of {agreement.n} images, "
                f"{agreement.differing} are predicted as another class or with other labels, "
                f"{agreement.rejected_differently} are rejected by only one of the two, and "
                f"probabilities differ by up to {agreement.largest:.1g} (accepted: "
                f"{MAX_DIFFERENCE:g}); try another --format or head"
            )
        file.replace(path)
    return agreement


def compare(
    classifier: Classifier, engine: ClassifierEngine, images: ImageSet, compute: Compute
) -> ExportAgreement:
    """Compare the predictions of a classifier and of an exported file, each from the pixels on."""
    _, expected, found = predict_with_both(classifier, engine, images, compute)
    if classifier.multilabel:
        return _compare_labels(classifier, expected, found)
    differing = expected.argmax(axis=1) != found.argmax(axis=1)
    rejected = expected.max(axis=1) < classifier.threshold
    rejected_by_file = found.max(axis=1) < classifier.metadata().threshold
    return ExportAgreement(
        n=len(found),
        differing=int(differing.sum()),
        largest=float(np.abs(expected - found).max()),
        rejected_differently=int((rejected != rejected_by_file).sum()),
    )


def _compare_labels(
    classifier: Classifier, expected: NDArray[np.float64], found: NDArray[np.float32]
) -> ExportAgreement:
    """Compare the probabilities ``(n, k)`` of labels, and which of them reach their threshold."""
    thresholds = np.asarray(classifier.thresholds)
    other = (expected >= thresholds) != (found >= np.asarray(classifier.metadata().thresholds))
    clear = other & (np.abs(expected - thresholds) > MAX_DIFFERENCE)
    differing = clear.any(axis=1)
    return ExportAgreement(
        n=len(found),
        differing=int(differing.sum()),
        largest=float(np.abs(expected - found).max()),
        near_threshold=int((other.any(axis=1) & ~differing).sum()),
        multilabel=True,
    )


def predict_with_both(
    classifier: Classifier,
    engine: ClassifierEngine,
    images: ImageSet,
    compute: Compute,
    *,
    prepare: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]:
    """Return rows ``(n,)`` of images, and probabilities ``(n, k)`` of classifier and engine.

    Args:
        classifier: the original.
        engine: the exported file.
        images: images; they are decoded once for both.
        compute: how they are read.
        prepare: resize and crop for the engine; None: as for the classifier.
    """
    own_prepare = classifier.metadata().prepare
    original = open_engine(classifier.backbone, precision=classifier.precision, device="cpu")
    rows = frozenset(range(len(images)))
    targets = [
        pipeline.PipelineTarget(own_prepare, original, rows),
        pipeline.PipelineTarget(prepare or own_prepare, engine, rows),
    ]
    seen, expected, found = [], [], []
    for batch in pipeline.run(images.load, targets, compute, on_cpu=True):
        (batch_rows, embeddings), (_, scores) = (output for output in batch.outputs if output)
        seen.append(batch_rows)
        expected.append(classifier.predict_proba(embeddings))
        found.append(scores)
    return np.concatenate(seen), np.concatenate(expected), np.concatenate(found)


def _pixels_to_scores(classifier: Classifier) -> PixelsToScores:
    backbone = classifier.backbone
    scores = classifier.scores_module()
    network = fold_batchnorm(backbone.build())
    return PixelsToScores(network, backbone.preprocess, scores).eval()


def _example_images(backbone: Backbone) -> torch.Tensor:
    # Two images: a batch of one would make the tracer treat the batch size as a constant.
    return torch.zeros((2, 3, *backbone.preprocess.crop))


def _write_onnx_classifier(classifier: Classifier, path: Path) -> None:
    if classifier.precision == "int8":
        _write_int8_classifier(classifier, path)
    else:
        module, example = _pixels_to_scores(classifier), _example_images(classifier.backbone)
        write_onnx(module, example, path, names=_INPUT_OUTPUT, title="the classifier")
    path.write_bytes(add_metadata(path.read_bytes(), classifier.metadata()))


class _ToBytes(nn.Module):
    """Convert pixels ``(b, 3, h, w)`` in 0..1 to uint8 ``(b, h, w, 3)`` for an int8 network."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _write_int8_classifier(classifier: Classifier, path: Path) -> None:
    """Join three ONNX graphs: conversion to bytes, the int8 network, the head."""
    backbone = classifier.backbone
    compose = require("onnx.compose", "int8")
    network = require("onnx", "int8").load_model_from_string(backbone.read_quantized())
    if can_saturate(network):
        log.warning(
            "%s has 8-bit weights, with which other programs get wrong probabilities on x86 "
            "processors without VNNI: set session.x64quantprecision=1 in ONNX Runtime, or quantize "
            "it again with 7 bits",
            backbone.name,
        )
    width = network.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    head = classifier.scores_module()
    to_bytes = _module_to_onnx(_ToBytes(), _example_images(backbone), ("images", "bytes"))
    to_scores = _module_to_onnx(head, torch.zeros((2, width)), ("features", "probabilities"))
    try:
        joined = compose.merge_models(to_bytes, network, io_map=[("bytes", "pixels")])
        joined = compose.merge_models(joined, to_scores, io_map=[("vectors", "features")])
    except ValueError as error:
        raise SpecError(
            f"{backbone.name} was quantized with another version of ONNX ({error}): "
            "quantize it again"
        ) from error
    path.write_bytes(joined.SerializeToString())


def _module_to_onnx(module: nn.Module, example: torch.Tensor, names: tuple[str, str]) -> Any:
    """Return a module as an ONNX model, with the output's name as prefix of all inner names."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "part.onnx")
        write_onnx(module.eval(), example, path, names=names, title=names[1])
        model = require("onnx", "int8").load_model(path)
    prefix = f"{names[1]}/"
    compose = require("onnx.compose", "int8")
    return compose.add_prefix(model, prefix, rename_inputs=False, rename_outputs=False)


def _write_torch_program(classifier: Classifier, path: Path) -> None:
    if classifier.precision == "int8":
        raise SpecError("an int8 network runs in ONNX Runtime only: use --format onnx")
    dynamic_batch = ({0: torch.export.Dim("images")},)
    metadata = json.dumps(classifier.metadata().to_properties())
    with silence():
        program = torch.export.export(
            _pixels_to_scores(classifier),
            (_example_images(classifier.backbone),),
            dynamic_shapes=dynamic_batch,
        )
        torch.export.save(program, path, extra_files={"featkit.json": metadata})


def _open_torch_program(path: Path) -> ClassifierEngine:
    with silence():
        forward = torch.export.load(path).module()

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            scores: NDArray[np.float32] = forward(torch.from_numpy(to_model_input(pixels))).numpy()
        return scores

    return run
