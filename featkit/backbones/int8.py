"""Networks in eight bits: exported to ONNX, quantized on a few images, run by ONNX Runtime."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from featkit.backbones.base import Backbone
from featkit.backbones.engines.openvino import open_openvino
from featkit.backbones.onnx_files import need, open_session, quiet, write_onnx
from featkit.backbones.rounding import correct_biases, layers_with_weights
from featkit.errors import SpecError, WeightsError
from featkit.registry import unknown

if TYPE_CHECKING:
    from featkit.backbones.engines.torch import Engine

METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile", "dynamic": ""}
"""Ways to calibrate, with ONNX Runtime's names for them."""

_BATCH, _HISTOGRAM_BATCH = 16, 4


def open_quantized(backbone: Backbone, precision: str, device: str) -> Engine:
    """Return what runs ``backbone.quantized``, ONNX Runtime or OpenVINO: see ``open_engine``.

    The file is read into memory and checked against its digest; it cannot name other files.

    Raises:
        SpecError: if the network was not quantized, or the device is not a CPU.
        WeightsError: if the file is gone or another one.
        MissingExtraError: if ONNX Runtime, or OpenVINO, is not installed.
    """
    if device != "cpu":
        raise SpecError(f"int8 runs on a CPU, not on {device}: use --device cpu or another --precision")
    data, title = read_quantized(backbone), f"the int8 network of {backbone.name}"
    session = open_session(data, title)

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = session.run(None, {"pixels": pixels})[0]
        return vectors

    return open_openvino(data, backbone.preprocess.crop, title, run) if precision == "int8-openvino" else run


@dataclass(frozen=True)
class QuantizationConfig:
    """How a network becomes one of eight bits.

    Attributes:
        method: where the range of an activation comes from: ``minmax``, the least and greatest value seen; ``entropy``
            or ``percentile`` (99.999 %), of the values seen; ``dynamic``: each image by itself, while the network runs.
        keep: layers that stay in float32, as ``featkit models --layers`` names them; a block stands for all in it.
        bias_correction: whether biases make up for the mean of what rounding the weights does (not with ``dynamic``).
    """

    method: str = "minmax"
    keep: tuple[str, ...] = ()
    bias_correction: bool = False

    def keeps(self, layer: str) -> bool:
        """Return whether a layer stays in float32."""
        return any(_inside(layer, each) for each in self.keep)

    @property
    def identity(self) -> str:
        """Return text that decides the names of quantized networks: it must never change."""
        # The repr that this class had in featkit 0.1, where it was called Scheme: names of networks contain its digest.
        return f"Scheme(method={self.method!r}, keep={self.keep!r}, bias_correction={self.bias_correction!r})"

    @property
    def extras(self) -> str:
        """What is done beside the method, for people, to be put behind it."""
        corrected = ", biases corrected" if self.bias_correction else ""
        return corrected + (f", {', '.join(self.keep)} in float32" if self.keep else "")


def quantize(backbone: Backbone, pixels: Sequence[NDArray[np.uint8]], path: Path, scheme: QuantizationConfig | None = None) -> None:
    """Write a backbone in eight bits: weights per output channel, activations by what was seen.

    Static quantization (Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-
    only inference", CVPR 2018), by ONNX Runtime, of the network with its BatchNorm folded in.

    Args:
        backbone: the network, its weights and its preprocessing.
        pixels: images to calibrate on, uint8 ``(h, w, 3)`` as ``backbone.preprocess`` gives them.
        path: the ONNX file, from uint8 ``(b, h, w, 3)`` to float32 ``(b, d)``.
        scheme: how; None for the defaults.

    Raises:
        SpecError: if the network cannot be exported to ONNX, or the method or a layer is unknown.
        MissingExtraError: if ONNX, ONNX Script or ONNX Runtime is not installed.
    """
    tools = need("onnxruntime.quantization")
    scheme = scheme or QuantizationConfig()
    if scheme.method not in METHODS:
        raise unknown("calibration", scheme.method, list(METHODS))
    if scheme.bias_correction and scheme.method == "dynamic":
        raise SpecError("dynamic looks at no images, and bias correction needs their mean: use another method")
    histogram = scheme.method in ("entropy", "percentile")
    size = _HISTOGRAM_BATCH if histogram else _BATCH
    batches = [np.stack(pixels[first : first + size]) for first in range(0, len(pixels), size)]
    with tempfile.TemporaryDirectory() as scratch, quiet():
        exported = Path(scratch, "float.onnx")
        example = torch.zeros((2, *backbone.preprocess.crop, 3), dtype=torch.uint8)
        network = _FromBytes(backbone).eval()
        if scheme.bias_correction:
            network.correct_biases(batches, scheme)
        write_onnx(network, example, exported, names=("pixels", "vectors"), title=backbone.name)
        kept = _nodes(exported, scheme.keep)
        if scheme.method == "dynamic":
            # ONNX Runtime has no dynamic convolution with signed weights.
            tools.quantize_dynamic(exported, path, nodes_to_exclude=kept, weight_type=tools.QuantType.QUInt8)
            return
        tools.quantize_static(
            exported,
            path,
            _reader(tools, batches),
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            calibrate_method=getattr(tools.CalibrationMethod, METHODS[scheme.method]),
            nodes_to_exclude=kept,
            # One batch at a time: the values of all layers for all images would fill the memory.
            extra_options={"CalibStridedMinMax": 1} if histogram else {},
        )


class _FromBytes(nn.Module):
    """A network with its normalisation before it, on uint8 ``(b, h, w, 3)``."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        from featkit.backbones.engines.torch import fold_batchnorm

        self.network = fold_batchnorm(backbone.build())
        self.preprocess = backbone.preprocess

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        batch: torch.Tensor = self.preprocess.normalise(pixels.permute(0, 3, 1, 2).to(torch.float32))
        return batch

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.network(self.prepare(pixels))
        return vectors

    def correct_biases(self, batches: Sequence[NDArray[np.uint8]], scheme: QuantizationConfig) -> None:
        """Correct the biases of the layers that are not kept in float32."""
        named = layers_with_weights(self.network)
        rounded = [part for name, part in named.items() if not scheme.keeps(layer_of(name))]
        correct_biases(self.network, rounded, (self.prepare(torch.from_numpy(batch)) for batch in batches))


def _nodes(path: Path, layers: Sequence[str]) -> list[str]:
    """Return the names of the nodes in an exported network that belong to some layers.

    Raises:
        SpecError: if a layer is not there.
    """
    nodes = {
        layer_of(name): node.name
        for node in need("onnx").load_model(path).graph.node
        for name in node.input
        if name.endswith(".weight")
    }
    for layer in layers:
        if not any(_inside(name, layer) for name in nodes):
            raise unknown("layer with weights", layer, list(nodes))
    return [node for name, node in nodes.items() if any(_inside(name, layer) for layer in layers)]


def layer_of(weight: str) -> str:
    """Return the layer that a weight of an exported network belongs to: ``layer1.0.conv1``."""
    return weight.removeprefix("network.").removeprefix("features.").removesuffix(".weight")


def _inside(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def _reader(tools: ModuleType, batches: Sequence[NDArray[np.uint8]]) -> Any:
    """Return batches in the form that ONNX Runtime's calibration asks for."""

    class Reader(tools.CalibrationDataReader):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            self.remaining: Iterator[NDArray[np.uint8]] = iter(batches)

        def __len__(self) -> int:
            return len(batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.remaining = iter(batches[start_index:end_index])

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self.remaining, None)
            return None if batch is None else {"pixels": batch}

    return Reader()


def read_quantized(backbone: Backbone) -> bytes:
    """Return the bytes of ``backbone.quantized``.

    Raises:
        SpecError: if the network was not quantized.
        WeightsError: if the file is gone or another one.
    """
    if backbone.quantized is None:
        raise SpecError(f"{backbone.name} has not been quantized: int8 needs train images to be calibrated on")
    path, digest = backbone.quantized
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): extract with --precision int8 again") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise WeightsError(f"{path} is not the int8 network {digest[:12]} that made the vectors: extract again")
    return data
