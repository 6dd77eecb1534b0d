"""A network in eight bits, that loads as a backbone again; and which of its layers lose most by that."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featkit.backbones.base import Backbone
from featkit.backbones.batchnorm import fold_batchnorm
from featkit.backbones.quantization import (
    Layer,
    QuantizationConfig,
    layer_of,
    layers_with_weights,
    rounded_input,
    rounded_weight,
)
from featkit.backbones.quantization import quantize as write_quantized
from featkit.backbones.saved import Int8Description, images_trained_on, is_int8
from featkit.compression.profile import measure_size
from featkit.embeddings.calibration import IMAGES, CalibrationTask, read_pixels
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys, make_recipe
from featkit.embeddings.request import Request
from featkit.errors import SpecError
from featkit.storage import digest

FEW = 32
"""Fewer images than this to calibrate on are worth a warning."""

_NOISE_IMAGES = 8


@dataclass(frozen=True)
class QuantizationRequest:
    """What is asked for.

    Attributes:
        scheme: method, and layers that are to stay in float32.
        keep_worst: how many more layers stay in float32: those that lose most.
        images: most train images to calibrate on.
    """

    scheme: QuantizationConfig = field(default_factory=QuantizationConfig)
    keep_worst: int = 0
    images: int = IMAGES


@dataclass(frozen=True)
class QuantizationResult:
    """A network in eight bits.

    Attributes:
        card: what it is.
        scheme: how it was made, with the layers that were kept in float32.
        images: number of train images that it was calibrated on.
        noise: for each layer, see ``layer_noise``.
    """

    card: Int8Description
    scheme: QuantizationConfig
    images: int
    noise: tuple[tuple[str, float], ...]


def quantize(request: Request, wish: QuantizationRequest, path: Path, compute: Compute) -> QuantizationResult:
    """Quantize a network on train images.

    Args:
        request: which network, which images.
        wish: how.
        path: the ONNX file to write.
        compute: how images are read.

    Raises:
        SpecError: if the network is one of eight bits already, or a layer or the method is unknown.
        DataError: if there are no train images.
        MissingExtraError: if the extra ``int8`` is not installed.
    """
    if is_int8(request.backbone):
        raise SpecError(f"{request.backbone} is a network in eight bits already")
    backbone = request.load_backbone()
    images = request.load_images()
    keys = content_keys(images, compute)
    task = CalibrationTask(backbone, make_recipe(images, keys, backbone, "int8"), images, keys)
    seen = task.train_keys(wish.images)
    pixels = read_pixels(task, seen, compute)
    noise = layer_noise(backbone, pixels[:_NOISE_IMAGES])
    worst = [layer for layer, _ in sorted(noise, key=lambda each: each[1])[: wish.keep_worst]]
    scheme = replace(wish.scheme, keep=tuple(dict.fromkeys([*wish.scheme.keep, *worst])))
    write_quantized(backbone, pixels, path, scheme)
    made = digest([backbone.digest, scheme.identity, *seen])[:8]
    return QuantizationResult(_card(request, backbone, path, scheme, made), scheme, len(pixels), tuple(noise))


def _card(request: Request, backbone: Backbone, path: Path, scheme: QuantizationConfig, made: str) -> Int8Description:
    size = measure_size(backbone, "fp32")
    return Int8Description(
        base=request.backbone,
        name=f"{backbone.name}-int8-{made}",
        label=f"{backbone.weights}, in eight bits ({scheme.method}{scheme.extras})",
        preprocess=backbone.preprocess,
        layer=backbone.layer,
        pool=backbone.pool,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        parameters=size.parameters,
        nonzero=size.nonzero,
        macs=size.macs,
        trained_on=tuple(sorted(images_trained_on(request.backbone))),
    )


def layer_noise(backbone: Backbone, pixels: Sequence[NDArray[np.uint8]]) -> list[tuple[str, float]]:
    """Return the signal-to-noise ratio of the vectors, in decibel, with one layer at a time in eight bits.

    The lower, the more is lost by this layer. Its weights are rounded per output channel, its input to the range that
    these images show; nothing else is.

    Args:
        backbone: the network.
        pixels: a few images, uint8 ``(h, w, 3)`` as ``backbone.preprocess`` gives them.
    """
    network = fold_batchnorm(backbone.build())
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
    batch = backbone.preprocess.normalise(batch)
    with torch.no_grad():
        exact = network(batch)
        return [
            (layer_of(name), _decibel(exact, _with_rounded(network, part, batch)))
            for name, part in layers_with_weights(network).items()
        ]


def _with_rounded(network: nn.Module, layer: Layer, batch: Tensor) -> Tensor:
    """Return the vectors of a batch with one layer in eight bits."""
    weight = layer.weight.data
    handle = layer.register_forward_pre_hook(lambda _, inputs: (rounded_input(inputs[0]),))
    layer.weight.data = rounded_weight(weight)
    try:
        vectors: Tensor = network(batch)
    finally:
        handle.remove()
        layer.weight.data = weight
    return vectors


def _decibel(exact: Tensor, noisy: Tensor) -> float:
    noise = float((noisy - exact).square().sum())
    return float("inf") if noise == 0 else 10 * float(np.log10(float(exact.square().sum()) / noise))
