"""Networks with fewer weights (zeros among them) or fewer channels.

Zeros make a network smaller only where a file is compressed, and no faster on hardware for dense matrices. Fewer
channels make it smaller and faster everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.models.resnet import BasicBlock, Bottleneck

from featkit.backbones.layers import freeze
from featkit.backbones.resnet_modules import narrow
from featkit.compression.profile import count_macs
from featkit.errors import SpecError

Recover = Callable[[nn.Module], nn.Module]
"""Trains a network, in place or not, and returns it; zeros that pruning made stay zeros."""

Importance = Mapping[str, Tensor]
"""For each convolution whose channels may go, by name, what each of them matters ``(c,)``."""

_MULTIPLE = 8
"""Widths are multiples of this: what vector units compute at once."""


def prune_weights(module: nn.Module, sparsity: float, recover: Recover | None = None) -> nn.Module:
    """Return the network with the smallest weights of all its convolutions and linear layers set to zero.

    Weights that were zero before count among them: pruning again, with more sparsity and recovery in between, is
    iterative pruning.

    Args:
        module: a backbone; stays as it is.
        sparsity: share of the weights to be zero, from 0 to below 1.
        recover: what trains the rest, if anything does.

    Raises:
        SpecError: if the share is outside 0..1, or nothing would be left.

    Source: Han et al., "Learning both weights and connections for efficient neural networks", NeurIPS 2015, with one
    threshold for all layers.
    """
    pruned = copy.deepcopy(module)
    layers = [part for part in pruned.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    sizes = torch.cat([layer.weight.detach().abs().flatten() for layer in layers])
    zeros = round(_share(sparsity, "sparsity") * len(sizes))
    if zeros == len(sizes):
        raise SpecError(f"sparsity {sparsity:g} leaves none of {len(sizes):,} weights: choose a lower one")
    kept = torch.ones(len(sizes), dtype=torch.bool)
    kept[sizes.argsort(stable=True)[:zeros]] = False
    for layer, mask in zip(layers, torch.split(kept, [layer.weight.numel() for layer in layers]), strict=True):
        parametrize.register_parametrization(layer, "weight", _Masked(mask.reshape(layer.weight.shape)))
    pruned = recover(pruned) if recover else pruned
    for part in pruned.modules():
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    return freeze(pruned)


class _Masked(nn.Module):
    """Weights of which some are zero, whatever an optimiser does to them."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.kept = nn.Buffer(kept)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.kept, weight, 0.0)


@dataclass(frozen=True)
class InnerConvolution:
    """A convolution inside a block, whose channels nothing sees but the next convolution there.

    Attributes:
        block: name of the block.
        name, conv, norm: the convolution and the norm behind it.
        after_name, after, norm_after: the next convolution and the norm behind that.
    """

    block: str
    name: str
    conv: nn.Conv2d
    norm: nn.Module
    after_name: str
    after: nn.Conv2d
    norm_after: nn.Module


def inner_convolutions(module: nn.Module) -> list[InnerConvolution]:
    """Return the convolutions of a ResNet whose channels may go, in order.

    Raises:
        SpecError: if there are none.
    """
    found = []
    for block, part in module.named_modules():
        if isinstance(part, BasicBlock | Bottleneck):
            for place in range(1, 2 if isinstance(part, BasicBlock) else 3):
                (conv, norm), (after, norm_after) = (
                    (getattr(part, f"conv{number}"), getattr(part, f"bn{number}")) for number in (place, place + 1)
                )
                names = f"{block}.conv{place}", f"{block}.conv{place + 1}"
                found.append(InnerConvolution(block, names[0], conv, norm, names[1], after, norm_after))
    if not found:
        raise SpecError("channels can only be pruned in torchvision's ResNets: choose --sparsity for this network")
    return found


@dataclass(frozen=True)
class NarrowedNetwork:
    """A network with fewer channels; of the convolutions that lost some, by name, those that they kept ``(c,)``."""

    module: nn.Module
    kept: Mapping[str, Tensor]

    @property
    def widths(self) -> dict[str, int]:
        """Number of channels that are left, by name."""
        return {name: len(channels) for name, channels in self.kept.items()}


def prune_channels(module: nn.Module, share: float, crop: tuple[int, int], importance: Importance) -> NarrowedNetwork:
    """Return a ResNet without the channels inside its blocks that matter least.

    What a block adds to its input keeps its width, so that no other block has to change. Channels of all layers
    compete, each layer's importance being measured by its root mean square; widths are multiples of 8.

    Args:
        module: a ResNet of torchvision's; stays as it is.
        share: of the MACs that may be left, above 0 and up to 1.
        crop: ``(height, width)`` of its images in pixels.
        importance: see ``by_magnitude`` and ``by_activation``.

    Raises:
        SpecError: if the share is outside 0..1, or so low that pruning inside blocks cannot reach it.
    """
    before = count_macs(module, crop)
    most = _share(share, "macs") * before
    if share == 1:
        return NarrowedNetwork(copy.deepcopy(module), {})
    levels = torch.cat([_relative(values) for values in importance.values()]).sort().values
    low, high = 0, len(levels) - 1  # places of a level that leaves too much, and of one that leaves little enough
    least = _macs(module, _kept(importance, float(levels[high])), crop)
    if least > most:
        raise SpecError(
            f"macs {share:g} cannot be reached inside the blocks of this network: choose {least / before + 0.005:.2f} "
            "or more"
        )
    while high - low > 1:
        middle = (low + high) // 2
        enough = _macs(module, _kept(importance, float(levels[middle])), crop) <= most
        low, high = (low, middle) if enough else (middle, high)
    return _narrowed(module, _kept(importance, float(levels[high])))


def by_magnitude(module: nn.Module) -> Importance:
    """Return the length of each filter inside the blocks of a ResNet, its BatchNorm folded in.

    Source: Li et al., "Pruning filters for efficient ConvNets", ICLR 2017, with the L2 norm.

    Raises:
        SpecError: if the network has no such blocks.
    """
    return {each.name: _filters(each) for each in inner_convolutions(module)}


def by_activation(module: nn.Module, batches: Iterator[Tensor]) -> Importance:
    """Return what each channel inside the blocks gives to the next layer: its mean output, times its weights there.

    Args:
        module: a ResNet.
        batches: normalised images ``(b, 3, h, w)`` of train.

    Raises:
        SpecError: if the network has no such blocks.
    """
    inner = inner_convolutions(module)
    sums = {each.name: torch.zeros(each.conv.out_channels) for each in inner}

    def listen(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sums[name] += inputs[0].mean((2, 3)).sum(0)

        return hook

    handles = [each.after.register_forward_pre_hook(listen(each.name)) for each in inner]
    with torch.no_grad():
        seen = sum(len(module(batch)) for batch in batches)
    for handle in handles:
        handle.remove()
    lengths = {each.name: each.after.weight.detach().square().sum((0, 2, 3)).sqrt() for each in inner}
    return {name: total / max(seen, 1) * lengths[name] for name, total in sums.items()}


def reestimate_norms(module: nn.Module, batches: Iterator[Tensor]) -> nn.Module:
    """Return the network with the means and variances of its BatchNorms taken anew: recovery without a gradient.

    Args:
        module: a pruned network; stays as it is.
        batches: normalised images ``(b, 3, h, w)`` of train.
    """
    fresh = copy.deepcopy(module)
    for part in fresh.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # the plain mean over all batches
            part.train()
    with torch.no_grad():
        for batch in batches:
            fresh(batch)
    return freeze(fresh)


def _filters(each: InnerConvolution) -> Tensor:
    lengths: Tensor = each.conv.weight.detach().square().sum((1, 2, 3)).sqrt()
    if not isinstance(each.norm, nn.BatchNorm2d) or each.norm.running_var is None:
        return lengths
    return lengths * each.norm.weight.detach().abs() / (each.norm.running_var + each.norm.eps).sqrt()


def _relative(values: Tensor) -> Tensor:
    return values / values.square().mean().sqrt().clamp(min=1e-12)


def _kept(importance: Importance, level: float) -> dict[str, Tensor]:
    """Return the channels of each convolution that matter more than a level, in order; never fewer than eight."""
    kept = {}
    for name, values in importance.items():
        above = int((_relative(values) > level).sum())
        width = min(len(values), max(1, -(-above // _MULTIPLE)) * _MULTIPLE)
        kept[name] = values.argsort(descending=True, stable=True)[:width].sort().values
    return kept


def _macs(module: nn.Module, kept: Mapping[str, Tensor], crop: tuple[int, int]) -> int:
    with torch.device("meta"):
        network = copy.deepcopy(module).to("meta")
        narrow(network, {name: len(channels) for name, channels in kept.items()})
    return count_macs(network, crop)


def _narrowed(module: nn.Module, kept: Mapping[str, Tensor]) -> NarrowedNetwork:
    state = dict(module.state_dict())
    fewer = {}
    for each in inner_convolutions(module):
        channels = kept[each.name]
        if len(channels) == each.conv.out_channels:
            continue
        fewer[each.name] = channels
        norm = f"{each.block}.bn{each.name[-1]}."
        own = [name for name in state if name.startswith((f"{each.name}.", norm))]
        state.update({name: state[name][channels] for name in own if state[name].ndim})
        after = f"{each.after_name}.weight"
        state[after] = state[after][:, channels]
    network = copy.deepcopy(module)
    narrowed = NarrowedNetwork(network, fewer)
    narrow(network, narrowed.widths)
    network.load_state_dict(state)
    freeze(network)
    return narrowed


def _share(value: float, name: str) -> float:
    if not 0 <= value <= 1:
        raise SpecError(f"{name} {value:g} is no share: give a number from 0 to 1")
    return value
