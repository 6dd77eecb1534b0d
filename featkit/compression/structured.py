"""Structured pruning: remove channels inside the blocks of a ResNet."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featkit.backbones.layers import freeze
from featkit.backbones.resnet_modules import is_basic_block, is_block, narrow
from featkit.compression.profile import count_macs
from featkit.errors import SpecError

Importance = Mapping[str, Tensor]
"""Importance ``(c,)`` of the output channels of each convolution that can be narrowed."""

_MULTIPLE = 8
"""Widths are multiples of this, the number of floats that vector units process at once."""


@dataclass(frozen=True)
class InnerConvolution:
    """A convolution inside a block whose output is read by the next convolution of the block alone.

    Attributes:
        block: name of the block.
        name, conv, norm: the convolution and its BatchNorm.
        after_name, after, norm_after: the next convolution and its BatchNorm.
    """

    block: str
    name: str
    conv: nn.Conv2d
    norm: nn.Module
    after_name: str
    after: nn.Conv2d
    norm_after: nn.Module


@dataclass(frozen=True)
class NarrowedNetwork:
    """A network with fewer channels.

    Attributes:
        module: the network.
        kept: for each narrowed convolution, by name, the channels ``(c,)`` that were kept.
    """

    module: nn.Module
    kept: Mapping[str, Tensor]

    @property
    def widths(self) -> dict[str, int]:
        """Number of output channels of each narrowed convolution, by name."""
        return {name: len(channels) for name, channels in self.kept.items()}


def inner_convolutions(module: nn.Module) -> list[InnerConvolution]:
    """Return the convolutions of a ResNet whose channels can be removed, in order.

    Raises:
        SpecError: if there are none.
    """
    found = []
    for block, part in module.named_modules():
        if not is_block(part):
            continue
        # The output of the last convolution of a block is added to the block's input: its width
        # stays.
        last = 2 if is_basic_block(part) else 3
        for number in range(1, last):
            found.append(
                InnerConvolution(
                    block=block,
                    name=f"{block}.conv{number}",
                    conv=getattr(part, f"conv{number}"),
                    norm=getattr(part, f"bn{number}"),
                    after_name=f"{block}.conv{number + 1}",
                    after=getattr(part, f"conv{number + 1}"),
                    norm_after=getattr(part, f"bn{number + 1}"),
                )
            )
    if not found:
        raise SpecError(
            "channels can only be pruned in torchvision's ResNets: "
            "choose --sparsity for this network"
        )
    return found


def prune_channels(
    module: nn.Module, fraction: float, crop: tuple[int, int], importance: Importance
) -> NarrowedNetwork:
    """Return a ResNet without the least important channels inside its blocks.

    The channels of all layers compete; importance is normalised by its root mean square in each
    layer. Widths are multiples of 8.

    Args:
        module: a torchvision ResNet; unchanged.
        fraction: of the MACs that may remain, above 0 and up to 1.
        crop: ``(height, width)`` of its images in pixels.
        importance: see ``importance_by_magnitude`` and ``importance_by_activation``.

    Raises:
        SpecError: if the fraction is outside 0..1, or too low to be reached inside the blocks.
    """
    before = count_macs(module, crop)
    target = check_fraction(fraction, "macs") * before
    if fraction == 1:
        return NarrowedNetwork(copy.deepcopy(module), {})
    thresholds = torch.cat([_normalised(values) for values in importance.values()]).sort().values
    lowest = _macs_after(module, _channels_above(importance, float(thresholds[-1])), crop)
    if lowest > target:
        raise SpecError(
            f"macs {fraction:g} cannot be reached inside the blocks of this network: choose "
            f"{lowest / before + 0.005:.2f} or more"
        )
    # Binary search for the lowest threshold that reaches the target: ``low`` does not, ``high``
    # does.
    low, high = 0, len(thresholds) - 1
    while high - low > 1:
        middle = (low + high) // 2
        kept = _channels_above(importance, float(thresholds[middle]))
        if _macs_after(module, kept, crop) <= target:
            high = middle
        else:
            low = middle
    return _remove_channels(module, _channels_above(importance, float(thresholds[high])))


def importance_by_magnitude(module: nn.Module) -> Importance:
    """Return the L2 norm of each filter inside the blocks of a ResNet, times its BatchNorm scale.

    Source: Li et al., "Pruning filters for efficient ConvNets", ICLR 2017, which uses the L1 norm.

    Raises:
        SpecError: if the network has no such blocks.
    """
    importance = {}
    for each in inner_convolutions(module):
        norms: Tensor = each.conv.weight.detach().square().sum((1, 2, 3)).sqrt()
        if isinstance(each.norm, nn.BatchNorm2d) and each.norm.running_var is not None:
            deviation = (each.norm.running_var + each.norm.eps).sqrt()
            norms = norms * each.norm.weight.detach().abs() / deviation
        importance[each.name] = norms
    return importance


def importance_by_activation(module: nn.Module, batches: Iterable[Tensor]) -> Importance:
    """Return mean activations of channels inside the blocks, times the norm of their readers.

    Args:
        module: a ResNet.
        batches: normalised training images ``(b, 3, h, w)``.

    Raises:
        SpecError: if the network has no such blocks.
    """
    convolutions = inner_convolutions(module)
    sums = {each.name: torch.zeros(each.conv.out_channels) for each in convolutions}
    handles = []
    for each in convolutions:

        def add_means(_: nn.Module, inputs: tuple[Tensor, ...], name: str = each.name) -> None:
            sums[name] += inputs[0].mean((2, 3)).sum(0)

        handles.append(each.after.register_forward_pre_hook(add_means))
    images = 0
    with torch.no_grad():
        for batch in batches:
            images += len(module(batch))
    for handle in handles:
        handle.remove()
    importance = {}
    for each in convolutions:
        norms = each.after.weight.detach().square().sum((0, 2, 3)).sqrt()
        importance[each.name] = sums[each.name] / max(images, 1) * norms
    return importance


def _normalised(values: Tensor) -> Tensor:
    return values / values.square().mean().sqrt().clamp(min=1e-12)


def _channels_above(importance: Importance, threshold: float) -> dict[str, Tensor]:
    """Return the channels above a threshold, rounded up to a multiple of 8, in order."""
    kept = {}
    for name, values in importance.items():
        above = int((_normalised(values) > threshold).sum())
        multiples = max(1, -(-above // _MULTIPLE))
        width = min(len(values), multiples * _MULTIPLE)
        kept[name] = values.argsort(descending=True, stable=True)[:width].sort().values
    return kept


def _macs_after(module: nn.Module, kept: Mapping[str, Tensor], crop: tuple[int, int]) -> int:
    """Return the MACs of the network with these channels, without copying a weight."""
    with torch.device("meta"):
        network = copy.deepcopy(module).to("meta")
        narrow(network, {name: len(channels) for name, channels in kept.items()})
    return count_macs(network, crop)


def _remove_channels(module: nn.Module, kept: Mapping[str, Tensor]) -> NarrowedNetwork:
    state = dict(module.state_dict())
    narrowed: dict[str, Tensor] = {}
    for each in inner_convolutions(module):
        channels = kept[each.name]
        if len(channels) == each.conv.out_channels:
            continue
        narrowed[each.name] = channels
        norm = f"{each.block}.bn{each.name[-1]}."
        for name, value in state.items():
            if name.startswith((f"{each.name}.", norm)) and value.ndim:
                state[name] = value[channels]
        weight = f"{each.after_name}.weight"
        state[weight] = state[weight][:, channels]
    network = copy.deepcopy(module)
    result = NarrowedNetwork(network, narrowed)
    narrow(network, result.widths)
    network.load_state_dict(state)
    freeze(network)
    return result


def check_fraction(value: float, name: str) -> float:
    """Check that a value is a fraction and return it.

    Raises:
        SpecError: if it is not from 0 to 1.
    """
    if not 0 <= value <= 1:
        raise SpecError(f"{name} {value:g} is not a fraction: give a number from 0 to 1")
    return value
