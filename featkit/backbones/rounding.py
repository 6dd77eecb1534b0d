"""What eight bits do to the weights and the input of a layer, computed in float."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

Layer = nn.Conv2d | nn.Linear


def layers_with_weights(network: nn.Module) -> dict[str, Layer]:
    """Return the layers that go into eight bits, by their names in the network."""
    return {name: part for name, part in network.named_modules() if isinstance(part, Layer)}


def rounded_weight(weight: Tensor) -> Tensor:
    """Return weights ``(out, ...)`` rounded to 255 steps, symmetrically, for each output channel by itself."""
    scale = (weight.abs().flatten(1).amax(1) / 127).clamp(min=1e-12)
    zero = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def rounded_input(values: Tensor) -> Tensor:
    """Return values rounded to 256 steps between the least and the greatest of them."""
    low, high = values.amin().clamp(max=0), values.amax().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    return torch.fake_quantize_per_tensor_affine(values, scale, (-low / scale).round().int(), 0, 255)


def correct_biases(network: nn.Module, layers: Sequence[Layer], batches: Iterable[Tensor]) -> None:
    """Take from the bias of each layer the mean of what rounding its weights adds to its output.

    What rounding does to a weight is the same for every image, and so moves the mean output of its layer, by
    ``(Q(W) - W) E[x]``; the mean input ``E[x]`` is that of some images (Nagel et al., "Data-free quantization through
    weight equalization and bias correction", ICCV 2019, section 4.2).

    Args:
        network: changed in place; without BatchNorm, which would have statistics of its own.
        layers: those of it whose weights are going to be rounded.
        batches: of the network's input, ``(b, 3, h, w)``.
    """
    errors = {layer: _error_of(layer) for layer in layers}
    shifts = {layer: torch.zeros(len(layer.weight)) for layer in layers}
    images = 0

    def add(layer: Layer, inputs: tuple[Tensor, ...]) -> None:
        # The error is linear: that of the batch's sum is the sum of those of its images.
        moved = errors[layer](inputs[0].sum(dim=0, keepdim=True))
        channel = 1 if isinstance(layer, nn.Conv2d) else -1
        shifts[layer] += moved.movedim(channel, 0).flatten(1).mean(dim=1)

    handles = [layer.register_forward_pre_hook(add) for layer in layers]
    with torch.no_grad():
        for batch in batches:
            network(batch)
            images += len(batch)
    for handle in handles:
        handle.remove()
    for layer in layers:
        before = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
        layer.bias = nn.Parameter(before - shifts[layer] / images, requires_grad=False)


def _error_of(layer: Layer) -> Layer:
    """Return a layer that computes what rounding the weights of another one adds to its output."""
    error = copy.deepcopy(layer)
    error.weight = nn.Parameter(rounded_weight(layer.weight) - layer.weight, requires_grad=False)
    error.bias = None
    return error
