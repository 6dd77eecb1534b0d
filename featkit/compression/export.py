"""A classifier as one file that needs no featkit: network, head and temperature, from pixels to probabilities."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from featkit.backbones.onnx_export import silence, write_onnx
from featkit.compression.exported import ClassifierEngine, ExportMetadata, as_input, open_exported, stamp
from featkit.compression.modules import PixelsToScores, scores_module
from featkit.embeddings import pipeline
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.recipe import Recipe
from featkit.errors import SpecError, StorageError
from featkit.evaluation import Temperature
from featkit.evaluation.calibration import apply_temperature
from featkit.extras import require
from featkit.images.base import ImageSet
from featkit.registry import unknown

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
"""How the file of each format ends."""

_NAMES = ("images", "probabilities")


@dataclass(frozen=True)
class Classifier:
    """All that a file has to hold.

    Attributes:
        backbone: the network, its weights and its preprocessing.
        precision: ``fp32`` or ``int8``.
        head: the fitted estimator.
        head_spec: how it was asked for.
        classes: names of the head's columns.
        temperature: of its scores, if there is one.
        threshold: confidence below which an image is unknown.
        recipe: what decided the vectors that the head was fitted on.
    """

    backbone: Backbone
    precision: str
    head: Any
    head_spec: str
    classes: tuple[str, ...]
    temperature: Temperature | None
    threshold: float
    recipe: Recipe

    def scores(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probabilities ``(n, k)`` of vectors ``(n, d)``."""
        scores: NDArray[np.float64] = self.head.predict_proba(vectors)
        return apply_temperature(scores, self.temperature) if self.temperature else scores

    def about(self) -> ExportMetadata:
        """Return what the file says of itself."""
        return ExportMetadata(
            classes=self.classes,
            preprocess=self.backbone.preprocess,
            precision=self.precision,
            threshold=self.threshold,
            head=self.head_spec,
            temperature=asdict(self.temperature) if self.temperature else None,
            recipe=asdict(self.recipe),
        )


@dataclass(frozen=True)
class ExportAgreement:
    """How an exported file answers, beside the original.

    Attributes:
        n: number of images that both saw.
        differing: how many of them get another class.
        largest: largest difference between two probabilities.
    """

    n: int
    differing: int
    largest: float


def export(
    classifier: Classifier, path: Path, images: ImageSet, *, to: str = "onnx", compute: Compute | None = None
) -> ExportAgreement:
    """Write a classifier into a file, and publish it if it answers as the original does.

    Args:
        classifier: network, head, temperature.
        path: the file.
        images: real images to check it on.
        to: ``onnx``, or ``torch`` for a program of torch.export (not for int8).
        compute: how the check is done.

    Raises:
        SpecError: if the format is unknown or cannot hold this classifier, or an image gets another class.
        HeadError: if the head cannot be expressed.
        MissingExtraError: if ONNX, ONNX Script or ONNX Runtime is not installed.
        StorageError: if the file cannot be written.
    """
    if to not in SUFFIXES:
        raise unknown("format", to, list(SUFFIXES))
    write, opened = (_write_onnx, open_exported) if to == "onnx" else (_write_torch, _open_torch)
    with _room_for(path) as new:
        write(classifier, new)
        found = compare(classifier, opened(new), images, compute or Compute(device="cpu"))
        if found.differing:
            raise SpecError(
                f"the {to} file gives {found.differing} of {found.n} images another class than the run does (largest "
                f"difference of probabilities {found.largest:.1g}) and was not kept: try another --format"
            )
    return found


@contextmanager
def _room_for(path: Path) -> Iterator[Path]:
    """Give a file beside ``path`` to write, which takes its place if all goes well."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            new = Path(scratch, path.name)
            yield new
            new.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error


def compare(classifier: Classifier, engine: ClassifierEngine, images: ImageSet, compute: Compute) -> ExportAgreement:
    """Show images to the original, and to what is to take its place; each takes its own road from the pixels on."""
    _, expected, found = answers(classifier, engine, images, compute)
    differing = int((expected.argmax(axis=1) != found.argmax(axis=1)).sum())
    return ExportAgreement(len(found), differing, float(np.abs(expected - found).max()))


def answers(
    classifier: Classifier,
    engine: ClassifierEngine,
    images: ImageSet,
    compute: Compute,
    *,
    prepare: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]:
    """Return the rows ``(n,)`` of images, and their probabilities ``(n, k)`` from a classifier and from an engine.

    ``prepare`` resizes and crops for the engine, if not as for the classifier.
    """
    own = classifier.about().prepare
    original = open_engine(classifier.backbone, precision=classifier.precision, device="cpu")
    rows = frozenset(range(len(images)))
    targets = [pipeline.PipelineTarget(own, original, rows), pipeline.PipelineTarget(prepare or own, engine, rows)]
    seen, expected, found = [], [], []
    for batch in pipeline.run(images.load, targets, compute, on_cpu=True):
        (these, vectors), (_, scores) = (output for output in batch.outputs if output)
        seen.append(these)
        expected.append(classifier.scores(vectors))
        found.append(scores)
    return np.concatenate(seen), np.concatenate(expected), np.concatenate(found)


def _module(classifier: Classifier) -> PixelsToScores:
    backbone = classifier.backbone
    scores = scores_module(classifier.head, classifier.temperature)
    return PixelsToScores(fold_batchnorm(backbone.build()), backbone.preprocess, scores).eval()


def _example(backbone: Backbone) -> torch.Tensor:
    return torch.zeros((2, 3, *backbone.preprocess.crop))


def _write_onnx(classifier: Classifier, path: Path) -> None:
    if classifier.precision == "int8":
        _write_int8(classifier, path)
    else:
        write_onnx(_module(classifier), _example(classifier.backbone), path, names=_NAMES, title="the classifier")
    path.write_bytes(stamp(path.read_bytes(), classifier.about()))


class _ToBytes(nn.Module):
    """Pixels ``(b, 3, h, w)`` in 0..1 as an int8 network takes them: uint8 ``(b, h, w, 3)``."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _write_int8(classifier: Classifier, path: Path) -> None:
    """Join three graphs: to bytes, the network in eight bits, the head."""
    backbone, onnx = classifier.backbone, require("onnx.compose", "int8")
    network = require("onnx", "int8").load_model_from_string(backbone.read_quantized())
    width = network.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    head = scores_module(classifier.head, classifier.temperature)
    to_bytes = _graph(_ToBytes(), _example(backbone), ("images", "bytes"))
    to_scores = _graph(head, torch.zeros((2, width)), ("features", "probabilities"))
    try:
        joined = onnx.merge_models(to_bytes, network, io_map=[("bytes", "pixels")])
        joined = onnx.merge_models(joined, to_scores, io_map=[("vectors", "features")])
    except ValueError as error:
        raise SpecError(f"{backbone.name} was quantized with another version of ONNX ({error}): do it again") from error
    path.write_bytes(joined.SerializeToString())


def _graph(module: nn.Module, example: torch.Tensor, names: tuple[str, str]) -> Any:
    """Return a module as an ONNX model; what is inside it has names of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "part.onnx")
        write_onnx(module.eval(), example, path, names=names, title=names[1])
        model = require("onnx", "int8").load_model(path)
    prefix = f"{names[1]}/"
    return require("onnx.compose", "int8").add_prefix(model, prefix, rename_inputs=False, rename_outputs=False)


def _write_torch(classifier: Classifier, path: Path) -> None:
    if classifier.precision == "int8":
        raise SpecError("an int8 network is one of ONNX Runtime: use --format onnx")
    images = {0: torch.export.Dim("images")}
    with silence():
        program = torch.export.export(_module(classifier), (_example(classifier.backbone),), dynamic_shapes=(images,))
        torch.export.save(program, path, extra_files={"featkit.json": json.dumps(classifier.about().to_properties())})


def _open_torch(path: Path) -> ClassifierEngine:
    with silence():
        forward = torch.export.load(path).module()

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            scores: NDArray[np.float32] = forward(torch.from_numpy(as_input(pixels))).numpy()
        return scores

    return run
