"""Quantize a network to int8 on training images, and measure the sensitivity of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featkit.backbones.base import Backbone
from featkit.backbones.batchnorm import fold_batchnorm
from featkit.backbones.int8 import WEIGHT_BITS, Int8Record
from featkit.backbones.quantization import (
    Layer,
    QuantizationConfig,
    layer_of,
    layers_with_weights,
    rounded_input,
    rounded_weight,
)
from featkit.backbones.quantization import quantize as write_quantized
from featkit.backbones.saved import Int8Description, images_trained_on, is_int8, torch_spec
from featkit.compression.profile import measure_size
from featkit.embeddings.calibration import IMAGES, CalibrationTask, read_pixels
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys
from featkit.embeddings.request import Request
from featkit.errors import SpecError
from featkit.storage import digest, file_sha256

FEW = 32
"""Fewer calibration images than this deserve a warning."""

_SENSITIVITY_IMAGES = 8


@dataclass(frozen=True)
class QuantizationRequest:
    """Settings of a quantization.

    Attributes:
        config: calibration method, and layers that stay in float32.
        keep_worst: number of further layers that stay in float32: the most sensitive ones.
        images: maximum number of calibration images.
    """

    config: QuantizationConfig = field(default_factory=QuantizationConfig)
    keep_worst: int = 0
    images: int = IMAGES


@dataclass(frozen=True)
class QuantizationResult:
    """An int8 network.

    Attributes:
        description: how the network is loaded, and its name.
        config: with all layers that were kept in float32.
        images: number of calibration images.
        snr: for each layer, see ``layer_snr``.
        record: its features compared with float32 on calibration images.
    """

    description: Int8Description
    config: QuantizationConfig
    images: int
    snr: tuple[tuple[str, float], ...]
    record: Int8Record


def quantize(
    request: Request, settings: QuantizationRequest, path: Path, compute: Compute
) -> QuantizationResult:
    """Quantize a network, calibrated on training images.

    Args:
        request: the network and the images.
        settings: method, layers in float32, number of images.
        path: the ONNX file to write.
        compute: how images are read.

    Raises:
        SpecError: if the network is an int8 network already, a layer or the method is unknown, or
            its features differ too much from float32.
        DataError: if there are no training images.
        MissingExtraError: if the extra ``int8`` is not installed.
    """
    if is_int8(request.backbone):
        raise SpecError(f"{request.backbone} is already an int8 network")
    # Networks of Keras have the same weights in torch, which changes them.
    request = replace(request, backbone=torch_spec(request.backbone))
    backbone = request.load_backbone()
    images = request.load_images()
    keys = content_keys(images, compute)
    task = CalibrationTask(backbone, images, keys)
    calibration_keys = task.train_keys(settings.images)
    pixels = read_pixels(task, calibration_keys, compute)
    bits = settings.config.stored_bits
    snr = layer_snr(backbone, pixels[:_SENSITIVITY_IMAGES], bits)
    most_sensitive = [layer for layer, _ in sorted(snr, key=lambda pair: pair[1])]
    keep = [*settings.config.keep, *most_sensitive[: settings.keep_worst]]
    config = replace(settings.config, keep=tuple(dict.fromkeys(keep)))
    record = write_quantized(backbone, pixels, path, config)
    identity = digest([backbone.digest, config.identity, *calibration_keys])[:8]
    size = measure_size(backbone, "fp32")
    description = Int8Description(
        base=request.backbone,
        name=f"{backbone.name}-int8-{identity}",
        label=f"{backbone.weights}, int8 ({config.method}{config.extras})",
        preprocess=backbone.preprocess,
        layer=backbone.layer,
        pool=backbone.pool,
        sha256=file_sha256(path),
        parameters=size.parameters,
        nonzero=size.nonzero,
        macs=size.macs,
        trained_on=tuple(sorted(images_trained_on(request.backbone, request.weights))),
        record=asdict(record),
    )
    return QuantizationResult(description, config, len(pixels), tuple(snr), record)


def layer_snr(
    backbone: Backbone, pixels: Sequence[NDArray[np.uint8]], bits: int = WEIGHT_BITS
) -> list[tuple[str, float]]:
    """Return the signal-to-noise ratio of the embeddings, in dB, with one layer at a time in int8.

    A low value marks a sensitive layer. The weights of the layer are rounded per output channel,
    and its input in the range of these images; all other layers stay in float32.

    Args:
        backbone: the network.
        pixels: a few images, uint8 ``(h, w, 3)``, as ``backbone.preprocess`` returns them.
        bits: number of bits of the rounded weights.
    """
    network = fold_batchnorm(backbone.build())
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
    batch = backbone.preprocess.normalise(batch)
    found = []
    with torch.no_grad():
        exact = network(batch)
        for name, layer in layers_with_weights(network).items():
            rounded = _run_with_rounded_layer(network, layer, batch, bits)
            found.append((layer_of(name), _decibel(exact, rounded)))
    return found


def _run_with_rounded_layer(network: nn.Module, layer: Layer, batch: Tensor, bits: int) -> Tensor:
    """Return the embeddings of a batch with one layer rounded to int8; the layer is restored."""
    weight = layer.weight.data
    handle = layer.register_forward_pre_hook(lambda _, inputs: (rounded_input(inputs[0]),))
    layer.weight.data = rounded_weight(weight, bits)
    try:
        embeddings: Tensor = network(batch)
    finally:
        handle.remove()
        layer.weight.data = weight
    return embeddings


def _decibel(exact: Tensor, noisy: Tensor) -> float:
    noise = float((noisy - exact).square().sum())
    if noise == 0:
        return float("inf")
    return 10 * float(np.log10(float(exact.square().sum()) / noise))
