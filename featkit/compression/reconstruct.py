"""Reconstruction: fit the weights behind removed channels so that each block keeps its output.

No labels and no gradients are needed.

Source: He et al., "Channel pruning for accelerating very deep neural networks", ICCV 2017, sections
3.1 and 3.2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional

from featkit.backbones.batchnorm import restore_statistics
from featkit.backbones.layers import freeze
from featkit.backbones.resnet_modules import shortcut
from featkit.compression.structured import InnerConvolution, NarrowedNetwork, inner_convolutions

_POSITIONS = 49
"""Random positions of each feature map at which a convolution is fitted."""

_MIN_SCALE = 1e-3
"""A channel whose BatchNorm scale is below this fraction of the median scale is not fitted."""

_RIDGE = 0.01
"""Ridge penalty of a change of the weights, as a fraction of the mean variance of the inputs."""


def reconstruct(
    module: nn.Module,
    narrowed: NarrowedNetwork,
    batches: Iterable[Tensor],
    *,
    on_message: Callable[[str], None] = lambda _: None,
    seed: int = 0,
) -> nn.Module:
    """Return a narrowed ResNet with fitted convolutions behind the removed channels.

    The convolutions are fitted in order, by ridge regression towards their old weights: from the
    inputs in the network fitted so far, to the outputs in the original network. The last
    convolution of a block also compensates for the error of the block's input. Without BatchNorm,
    only weights are fitted, no biases. At the end, BatchNorm statistics are re-estimated, so that
    the network can be trained.

    Args:
        module: the network before channels were removed.
        narrowed: the network after it; unchanged.
        batches: normalised training images ``(b, 3, h, w)``. The outputs of one block of both
            networks for all of them are held in memory: 0.8 GB for 512 images of ResNet-18, 3.3 GB
            of ResNet-50.
        on_message: called with the error of each convolution before and after fitting.
        seed: of the sampled positions.
    """
    network = copy.deepcopy(narrowed.module)
    generator = torch.Generator().manual_seed(seed)
    convolutions = inner_convolutions(network)
    blocks = [(name, list(steps)) for name, steps in groupby(convolutions, lambda each: each.block)]
    images = list(batches)
    with torch.no_grad():
        first_block = module.get_submodule(blocks[0][0])
        # Inputs of the current block in the original and in the fitted network; equal up to the
        # first block.
        original_inputs = [_input_of(first_block, module, batch) for batch in images]
        fitted_inputs = list(original_inputs)
        for name, steps in blocks:
            original_block, fitted_block = module.get_submodule(name), network.get_submodule(name)
            for step in steps:
                original_conv = module.get_submodule(step.after_name)
                scale = _batchnorm_scale(step)
                moments = _Moments()
                for original, fitted in zip(original_inputs, fitted_inputs, strict=True):
                    target = original_conv(_input_of(original_conv, original_block, original))
                    if step is steps[-1]:
                        # The block adds its shortcut after the BatchNorm: undo the scale of the
                        # latter.
                        difference = shortcut(original_block, original) - shortcut(
                            fitted_block, fitted
                        )
                        target += difference / scale[:, None, None]
                    elif step.after_name in narrowed.kept:
                        target = target[:, narrowed.kept[step.after_name]]
                    inputs = _input_of(step.after, fitted_block, fitted)
                    moments.add(*_sample_positions(step.after, inputs, target, generator))
                before, after = _fit(step, moments, scale)
                on_message(
                    f"{step.after_name}: unexplained variance {100 * before:.0f}% before, "
                    f"{100 * after:.0f}% after fitting"
                )
            for index, (original, fitted) in enumerate(
                zip(original_inputs, fitted_inputs, strict=True)
            ):
                original_inputs[index] = original_block(original)
                fitted_inputs[index] = fitted_block(fitted)
    restore_statistics(network, images)
    return freeze(network)


def _input_of(layer: nn.Module, network: nn.Module, batch: Tensor) -> Tensor:
    """Return the input of a layer while its network runs on a batch."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    network(batch)
    handle.remove()
    return found[0]


def _batchnorm_scale(step: InnerConvolution) -> Tensor:
    """Return the BatchNorm factor ``(c,)`` behind a convolution; infinity where almost zero.

    A division by infinity removes the target of channels whose output the BatchNorm suppresses
    anyway.
    """
    norm = step.norm_after
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
        return torch.ones(step.after.out_channels)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return torch.where(scale.abs() < _MIN_SCALE * scale.abs().median(), torch.inf, scale)


def _sample_positions(
    conv: nn.Conv2d, inputs: Tensor, outputs: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return inputs ``(n, d)`` and outputs ``(n, c)`` of a convolution at random positions."""
    assert not isinstance(conv.padding, str)  # torchvision uses numbers
    patches = functional.unfold(inputs, conv.kernel_size, padding=conv.padding, stride=conv.stride)
    positions = torch.randperm(patches.shape[-1], generator=generator)[:_POSITIONS]
    x = patches[:, :, positions].transpose(1, 2).flatten(0, 1)
    y = outputs.flatten(2)[:, :, positions].transpose(1, 2).flatten(0, 1)
    return x, y


class _Moments:
    """Sums over samples of inputs ``x``, outputs ``y`` and their products, in float64."""

    def __init__(self) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        self.n = 0
        self.x, self.y, self.xx, self.xy, self.yy = zero, zero, zero, zero, zero

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add samples ``(n, d)`` and ``(n, c)``."""
        x, y = x.double(), y.double()
        self.n += len(x)
        self.x = self.x + x.sum(0)
        self.y = self.y + y.sum(0)
        self.xx = self.xx + x.T @ x
        self.xy = self.xy + x.T @ y
        self.yy = self.yy + y.square().sum(0)


def _fit(step: InnerConvolution, sums: _Moments, scale: Tensor) -> tuple[float, float]:
    """Fit a convolution and the mean of its BatchNorm in place.

    Returns:
        The fraction of the output variance that is unexplained, before and after.
    """
    conv, norm = step.after, step.norm_after
    x, y, xx, xy, yy = (each / sums.n for each in (sums.x, sums.y, sums.xx, sums.xy, sums.yy))
    if isinstance(norm, nn.BatchNorm2d):
        # The BatchNorm's mean is an intercept: fit the weights on centred samples.
        xx, xy, yy = xx - torch.outer(x, x), xy - torch.outer(x, y), yy - y.square()
    old = conv.weight.flatten(1).T.double()
    penalty = _RIDGE * xx.diagonal().mean().clamp(min=1e-12)
    ridge = penalty * torch.eye(len(xx), dtype=torch.float64)
    new = old + torch.linalg.solve(xx + ridge, xy - xx @ old)
    conv.weight.copy_(new.T.reshape(conv.weight.shape))
    if isinstance(norm, nn.BatchNorm2d):
        norm.running_mean -= y - x @ new
    channel_weight = torch.where(scale.isfinite(), scale, 0.0).double().square()
    total = (channel_weight * yy).sum().clamp(min=1e-12)

    def unexplained(weights: Tensor) -> float:
        errors = yy - 2 * (weights * xy).sum(0) + (weights * (xx @ weights)).sum(0)
        return float((channel_weight * errors).sum() / total)

    return unexplained(old), unexplained(new)
