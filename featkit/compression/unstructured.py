"""Unstructured magnitude pruning: set the smallest weights to zero.

Zeros make a network smaller only where its file is compressed, and not faster on hardware for dense
matrices; see ``structured`` for networks that are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from featkit.backbones.layers import freeze
from featkit.compression.structured import check_fraction
from featkit.errors import SpecError

Train = Callable[[nn.Module], nn.Module]
"""Trains a network, in place or not, and returns it; weights that were pruned to zero stay zero."""


def prune_weights(module: nn.Module, sparsity: float, train: Train | None = None) -> nn.Module:
    """Return the network with its smallest convolution and linear weights set to zero.

    One threshold holds for all layers. Weights that are zero already count as pruned, so that
    calling this again with a higher sparsity, with training in between, is iterative pruning.

    Args:
        module: a backbone; unchanged.
        sparsity: fraction of the weights that are zero afterwards, at least 0 and below 1.
        train: trains the remaining weights, or None.

    Raises:
        SpecError: if the sparsity is outside 0..1, or no weight would remain.

    Source: Han et al., "Learning both weights and connections for efficient neural networks",
        NeurIPS 2015.
    """
    pruned = copy.deepcopy(module)
    layers = [part for part in pruned.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    magnitudes = torch.cat([layer.weight.detach().abs().flatten() for layer in layers])
    zeros = round(check_fraction(sparsity, "sparsity") * len(magnitudes))
    if zeros == len(magnitudes):
        raise SpecError(
            f"sparsity {sparsity:g} leaves none of {len(magnitudes):,} weights: choose a lower one"
        )
    # A stable sort, not a threshold: equal weights must not change the number of zeros.
    kept = torch.ones(len(magnitudes), dtype=torch.bool)
    kept[magnitudes.argsort(stable=True)[:zeros]] = False
    masks = torch.split(kept, [layer.weight.numel() for layer in layers])
    for layer, mask in zip(layers, masks, strict=True):
        shaped = mask.reshape(layer.weight.shape)
        parametrize.register_parametrization(layer, "weight", _MaskedWeight(shaped))
    if train:
        pruned = train(pruned)
    for part in pruned.modules():
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    return freeze(pruned)


class _MaskedWeight(nn.Module):
    """A parametrization that keeps pruned weights at zero, whatever an optimiser does to them."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.kept = nn.Buffer(kept)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.kept, weight, 0.0)
