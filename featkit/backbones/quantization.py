"""Quantize a network to int8: export to ONNX, calibrate on a few images, correct biases.

``featkit.backbones.engines`` runs the result.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featkit.backbones.base import Backbone
from featkit.backbones.engines.onnx import OnnxEngine
from featkit.backbones.int8 import (
    CHECKED_IMAGES,
    WEIGHT_BITS,
    Int8Record,
    compare_with_float32,
    warn_or_refuse,
)
from featkit.backbones.onnx_export import NetworkOnPixels, silence, write_onnx
from featkit.errors import SpecError
from featkit.extras import require
from featkit.registry import unknown

METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile", "dynamic": ""}
"""Calibration methods, with their names in ONNX Runtime."""

Layer = nn.Conv2d | nn.Linear

_LARGEST_WEIGHT = {7: 64, 8: 127}
"""Largest absolute value of a quantized weight, by number of bits, as in ONNX Runtime."""

_HISTOGRAM_METHODS = ("entropy", "percentile")
_BATCH, _HISTOGRAM_BATCH = 16, 4


@dataclass(frozen=True)
class QuantizationConfig:
    """How a network is quantized to int8.

    Attributes:
        method: how the range of each activation is calibrated: ``minmax`` (smallest and largest
            value), ``entropy`` or ``percentile`` (99.999 %) of a histogram; ``dynamic`` computes it
            for each batch at run time instead.
        keep: layers that stay in float32, named as by ``featkit models --layers``; a block includes
            all its layers.
        bias_correction: whether biases are corrected for the mean error of rounded weights (not
            with ``dynamic``).
        weight_bits: 7, or 8 for processors whose int8 sums do not saturate (``backbones.int8``);
            ``dynamic`` always uses 8, unsigned, whose sums do not saturate.
    """

    method: str = "minmax"
    keep: tuple[str, ...] = ()
    bias_correction: bool = False
    weight_bits: int = WEIGHT_BITS

    def keeps(self, layer: str) -> bool:
        """Return whether a layer stays in float32."""
        return any(_is_inside(layer, each) for each in self.keep)

    @property
    def identity(self) -> str:
        """Return the text that determines the names of quantized networks: it must never change."""
        # The repr that this class had in featkit 0.1, where it was called Scheme and weights had 8
        # bits: names of networks contain its digest.
        bits = "" if self.stored_bits == 8 else f", weight_bits={self.weight_bits}"
        return (
            f"Scheme(method={self.method!r}, keep={self.keep!r}, "
            f"bias_correction={self.bias_correction!r}{bits})"
        )

    @property
    def stored_bits(self) -> int:
        """Return the number of bits of the weights in the file."""
        return 8 if self.method == "dynamic" else self.weight_bits

    @property
    def extras(self) -> str:
        """Return the settings other than the method, for display after it."""
        corrected = ", bias correction" if self.bias_correction else ""
        if self.method != "dynamic" and self.weight_bits != WEIGHT_BITS:
            corrected += f", {self.weight_bits}-bit weights"
        return corrected + (f", {', '.join(self.keep)} in float32" if self.keep else "")


def quantize(
    backbone: Backbone,
    pixels: Sequence[NDArray[np.uint8]],
    path: Path,
    config: QuantizationConfig | None = None,
) -> Int8Record:
    """Quantize a backbone to int8, write it as an ONNX file and compare it with float32.

    Static quantization (Jacob et al., "Quantization and training of neural networks for efficient
    integer-arithmetic- only inference", CVPR 2018) by ONNX Runtime, after BatchNorms are folded
    into convolutions: weights per output channel, activations per tensor. The features of the first
    calibration images are compared with those in float32; the record of it is part of the file.

    Args:
        backbone: the network, its weights and its preprocessing.
        pixels: calibration images, uint8 ``(h, w, 3)``, preprocessed by ``backbone.preprocess``.
        path: the new file; it maps uint8 ``(b, h, w, 3)`` to float32 ``(b, d)``.
        config: None for the defaults.

    Raises:
        SpecError: if the network cannot be exported to ONNX, the method or a layer is unknown, or
            the features differ too much from float32, see ``int8.warn_or_refuse``.
        MissingExtraError: if ONNX, ONNX Script or ONNX Runtime is not installed.
    """
    tools = require("onnxruntime.quantization", "int8")
    config = config or QuantizationConfig()
    if config.method not in METHODS:
        raise unknown("calibration method", config.method, list(METHODS))
    if config.bias_correction and config.method == "dynamic":
        raise SpecError(
            "dynamic quantization uses no calibration images, which bias correction needs: "
            "use another method"
        )
    if config.weight_bits not in _LARGEST_WEIGHT:
        raise SpecError(f"weights of {config.weight_bits} bits are not supported: use 7 or 8")
    batch_size = _HISTOGRAM_BATCH if config.method in _HISTOGRAM_METHODS else _BATCH
    starts = range(0, len(pixels), batch_size)
    batches = [np.stack(pixels[start : start + batch_size]) for start in starts]
    network = NetworkOnPixels(backbone).eval()
    checked = np.stack(pixels[:CHECKED_IMAGES])
    # Before biases are corrected, in place.
    expected = _run_in_batches(network, checked)
    with tempfile.TemporaryDirectory() as scratch, silence():
        if config.bias_correction:
            _correct_quantized_layers(network, batches, config)
        exported = Path(scratch, "float.onnx")
        example = torch.zeros((2, *backbone.preprocess.crop, 3), dtype=torch.uint8)
        names = ("pixels", "vectors")
        write_onnx(network, example, exported, names=names, title=backbone.name)
        _quantize_file(tools, exported, path, batches, config)
    title = f"the int8 network of {backbone.name}"
    data = path.read_bytes()
    found = OnnxEngine(data, title)
    record = compare_with_float32(found, checked, expected, config.stored_bits)
    path.write_bytes(record.append_to(data))
    warn_or_refuse(
        record,
        f"{backbone.name} ({config.method}{config.extras})",
        "quantize with more calibration images, another --method or --keep-worst 2, "
        "or use --precision fp32",
    )
    return record


@torch.no_grad()
def _run_in_batches(network: nn.Module, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the float32 features ``(n, d)`` of images."""
    batches = torch.split(torch.from_numpy(pixels), _BATCH)
    features: NDArray[np.float32] = torch.cat([network(batch) for batch in batches]).numpy()
    return features


def _quantize_file(
    tools: ModuleType,
    exported: Path,
    path: Path,
    batches: Sequence[NDArray[np.uint8]],
    config: QuantizationConfig,
) -> None:
    """Quantize an exported float32 network with ONNX Runtime."""
    excluded = _nodes_of(exported, config.keep)
    if config.method == "dynamic":
        # ONNX Runtime has no dynamic convolution with signed weights.
        tools.quantize_dynamic(
            exported, path, nodes_to_exclude=excluded, weight_type=tools.QuantType.QUInt8
        )
        return
    # One batch at a time: histograms would otherwise need the activations of all images at once.
    extra_options = {"CalibStridedMinMax": 1} if config.method in _HISTOGRAM_METHODS else {}
    tools.quantize_static(
        exported,
        path,
        _calibration_reader(tools, batches),
        per_channel=True,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        reduce_range=config.weight_bits == 7,
        calibrate_method=getattr(tools.CalibrationMethod, METHODS[config.method]),
        nodes_to_exclude=excluded,
        extra_options=extra_options,
    )


def _correct_quantized_layers(
    network: NetworkOnPixels, batches: Sequence[NDArray[np.uint8]], config: QuantizationConfig
) -> None:
    """Correct the biases of the layers that do not stay in float32."""
    layers = layers_with_weights(network.network)
    quantized = [layer for name, layer in layers.items() if not config.keeps(layer_of(name))]
    inputs = (network.prepare(torch.from_numpy(batch)) for batch in batches)
    correct_biases(network.network, quantized, inputs, config.weight_bits)


def layers_with_weights(network: nn.Module) -> dict[str, Layer]:
    """Return the layers that are quantized, by their names in the network."""
    return {name: part for name, part in network.named_modules() if isinstance(part, Layer)}


def layer_of(weight: str) -> str:
    """Return the layer of a weight in an exported network, such as ``layer1.0.conv1``."""
    return weight.removeprefix("network.").removeprefix("features.").removesuffix(".weight")


def rounded_weight(weight: Tensor, bits: int = WEIGHT_BITS) -> Tensor:
    """Round weights ``(out, ...)`` to 7 or 8 bits and back, symmetrically per output channel."""
    largest = _LARGEST_WEIGHT[bits]
    scale = (weight.abs().flatten(1).amax(1) / largest).clamp(min=1e-12)
    zero = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -largest, largest)


def rounded_input(values: Tensor) -> Tensor:
    """Round activations to uint8 and back, with one scale from their smallest to largest value."""
    low, high = values.amin().clamp(max=0), values.amax().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    return torch.fake_quantize_per_tensor_affine(
        values, scale, (-low / scale).round().int(), 0, 255
    )


def correct_biases(
    network: nn.Module,
    layers: Sequence[Layer],
    batches: Iterable[Tensor],
    bits: int = WEIGHT_BITS,
) -> None:
    """Subtract from biases the mean error that rounding adds to the layer's output, in place.

    The error of a rounded weight is the same for every image, so it shifts the mean output of its
    layer by ``(Q(W) - W) E[x]``. The mean input ``E[x]`` is estimated on some images (Nagel et al.,
    "Data-free quantization through weight equalization and bias correction", ICCV 2019, section
    4.2).

    Args:
        network: without BatchNorm, whose statistics would have to change too.
        layers: the layers of ``network`` whose weights are going to be rounded.
        batches: inputs of the network, ``(b, 3, h, w)``.
        bits: number of bits of the rounded weights.
    """
    error_layers = {layer: _rounding_error(layer, bits) for layer in layers}
    shifts = {layer: torch.zeros(len(layer.weight)) for layer in layers}
    images = 0

    def add_error(layer: Layer, inputs: tuple[Tensor, ...]) -> None:
        # The layer is linear, so its error for the sum of a batch is the sum of the errors.
        error = error_layers[layer](inputs[0].sum(dim=0, keepdim=True))
        channel = 1 if isinstance(layer, nn.Conv2d) else -1
        shifts[layer] += error.movedim(channel, 0).flatten(1).mean(dim=1)

    handles = [layer.register_forward_pre_hook(add_error) for layer in layers]
    with torch.no_grad():
        for batch in batches:
            network(batch)
            images += len(batch)
    for handle in handles:
        handle.remove()
    for layer in layers:
        bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
        layer.bias = nn.Parameter(bias - shifts[layer] / images, requires_grad=False)


def _rounding_error(layer: Layer, bits: int) -> Layer:
    """Return a layer that computes what rounding the weights of ``layer`` adds to its output."""
    error = copy.deepcopy(layer)
    difference = rounded_weight(layer.weight, bits) - layer.weight
    error.weight = nn.Parameter(difference, requires_grad=False)
    error.bias = None
    return error


def _nodes_of(path: Path, layers: Sequence[str]) -> list[str]:
    """Return the names of the nodes of an ONNX file that belong to some layers.

    Raises:
        SpecError: if a layer does not exist.
    """
    nodes = _nodes_with_weights(path)
    selected: set[str] = set()
    for layer in layers:
        inside = [name for name in nodes if _is_inside(name, layer)]
        if not inside:
            raise unknown("layer with weights", layer, list(nodes))
        selected.update(inside)
    return [node for name, node in nodes.items() if name in selected]


def _nodes_with_weights(path: Path) -> dict[str, str]:
    """Return the names of the nodes of an ONNX file by the layer whose weights they use."""
    nodes: dict[str, str] = {}
    for node in require("onnx", "int8").load_model(path).graph.node:
        for name in node.input:
            if name.endswith(".weight"):
                nodes[layer_of(name)] = node.name
    return nodes


def _is_inside(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def _calibration_reader(tools: ModuleType, batches: Sequence[NDArray[np.uint8]]) -> Any:
    """Return the batches as ONNX Runtime's ``CalibrationDataReader``."""

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
