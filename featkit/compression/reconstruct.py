"""Weights behind channels that were taken away, fitted anew so that each block gives what it gave: no labels needed.

Source: He et al., "Channel pruning for accelerating very deep neural networks", ICCV 2017, sections 3.1 and 3.2.
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
from featkit.compression.prune import InnerConvolution, NarrowedNetwork, inner_convolutions

_PLACES = 49
"""Of each image, drawn at random: there a convolution is fitted."""

_LEAST = 1e-3
"""A channel that its norm multiplies with less than this share of the median is left as it is."""

_RIDGE = 0.01
"""How much a change of the weights costs, as a share of the mean variance of what they are multiplied with."""


def reconstruct(
    module: nn.Module,
    narrowed: NarrowedNetwork,
    batches: Iterable[Tensor],
    *,
    note: Callable[[str], None] = lambda _: None,
    seed: int = 0,
) -> nn.Module:
    """Return a narrowed ResNet whose convolutions behind missing channels make up for them.

    The convolutions are fitted in turn, by ridge regression towards their old weights, to what they gave in the whole
    network, from what the network that is fitted so far gives them; the last one of a block makes up for what is wrong
    with the block's input, too. Where there is no BatchNorm, they have no bias to be fitted. In the end BatchNorms get
    the statistics of what they see now, so that training can go on.

    Args:
        module: the network before channels were taken away.
        narrowed: the network after it; stays as it is.
        batches: normalised images ``(b, 3, h, w)`` of train; what a block of either network gives for all of them is
            held in memory: 0.8 GB for 512 images of ResNet-18, 3.3 GB for those of ResNet-50.
        note: told how much of the variance of each convolution's output is missing, before and after.
        seed: of the places in each image that are looked at.
    """
    network = copy.deepcopy(narrowed.module)
    generator = torch.Generator().manual_seed(seed)
    blocks = [(name, list(steps)) for name, steps in groupby(inner_convolutions(network), lambda each: each.block)]
    with torch.no_grad():
        first, images = module.get_submodule(blocks[0][0]), list(batches)
        theirs = [_input_of(first, module, batch) for batch in images]
        ours = list(theirs)  # nothing is missing yet
        for name, steps in blocks:
            whole, narrow = module.get_submodule(name), network.get_submodule(name)
            for step in steps:
                layer, kept = module.get_submodule(step.after_name), narrowed.kept.get(step.after_name)
                scale, moments = _scale(step), _Moments()
                for batch, other in zip(theirs, ours, strict=True):
                    wanted = layer(_input_of(layer, whole, batch))
                    if step is steps[-1]:
                        wanted += (shortcut(whole, batch) - shortcut(narrow, other)) / scale[:, None, None]
                    elif kept is not None:
                        wanted = wanted[:, kept]
                    moments.add(*_drawn(step.after, _input_of(step.after, narrow, other), wanted, generator))
                before, after = _fit(step, moments, scale)
                note(f"{step.after_name}: of its output {100 * before:.0f} % was missing, now {100 * after:.0f} %")
            for row, (batch, other) in enumerate(zip(theirs, ours, strict=True)):
                theirs[row], ours[row] = whole(batch), narrow(other)
    restore_statistics(network, images)
    return freeze(network)


def _input_of(layer: nn.Module, network: nn.Module, batch: Tensor) -> Tensor:
    """Return what a layer is given while its network runs on a batch."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    network(batch)
    handle.remove()
    return found[0]


def _scale(step: InnerConvolution) -> Tensor:
    """Return ``(c,)`` what the norm behind a convolution multiplies channels with; infinity for next to nothing."""
    norm = step.norm_after
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
        return torch.ones(step.after.out_channels)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return torch.where(scale.abs() < _LEAST * scale.abs().median(), torch.inf, scale)


def _drawn(conv: nn.Conv2d, inputs: Tensor, outputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return what a convolution sees ``(n, d)`` and is to give ``(n, c)`` at some places of each image."""
    assert not isinstance(conv.padding, str)  # torchvision's are numbers
    patches = functional.unfold(inputs, conv.kernel_size, padding=conv.padding, stride=conv.stride)
    places = torch.randperm(patches.shape[-1], generator=generator)[:_PLACES]
    x, y = (each[:, :, places].transpose(1, 2).flatten(0, 1) for each in (patches, outputs.flatten(2)))
    return x, y


class _Moments:
    """Sums over samples: of inputs ``x``, outputs ``y`` and their products."""

    def __init__(self) -> None:
        self.n, self.x, self.y, self.xx, self.xy, self.yy = 0, *[torch.zeros((), dtype=torch.float64)] * 5

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = x.double(), y.double()
        self.n += len(x)
        self.x, self.y = self.x + x.sum(0), self.y + y.sum(0)
        self.xx, self.xy, self.yy = self.xx + x.T @ x, self.xy + x.T @ y, self.yy + y.square().sum(0)


def _fit(step: InnerConvolution, sums: _Moments, scale: Tensor) -> tuple[float, float]:
    """Fit a convolution and the mean of its norm in place; return the share of variance missing before and after."""
    conv, norm = step.after, step.norm_after
    x, y, xx, xy, yy = (each / sums.n for each in (sums.x, sums.y, sums.xx, sums.xy, sums.yy))
    if isinstance(norm, nn.BatchNorm2d):
        xx, xy, yy = xx - torch.outer(x, x), xy - torch.outer(x, y), yy - y.square()
    old = conv.weight.flatten(1).T.double()
    ridge = _RIDGE * xx.diagonal().mean().clamp(min=1e-12) * torch.eye(len(xx), dtype=torch.float64)
    new = old + torch.linalg.solve(xx + ridge, xy - xx @ old)
    conv.weight.copy_(new.T.reshape(conv.weight.shape))
    if isinstance(norm, nn.BatchNorm2d):
        norm.running_mean -= y - x @ new
    weight = torch.where(scale.isfinite(), scale, 0.0).double().square()
    all_of_it = (weight * yy).sum().clamp(min=1e-12)

    def missing(weights: Tensor) -> float:
        errors = yy - 2 * (weights * xy).sum(0) + (weights * (xx @ weights)).sum(0)
        return float((weight * errors).sum() / all_of_it)

    return missing(old), missing(new)
