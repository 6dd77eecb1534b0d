"""Build variants of ResNets: without skip connections, without BatchNorm, narrower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from featkit.errors import WeightsError

BLOCKS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}
"""Type of block, and number of blocks in each of the four stages (He et al. 2016, table 1)."""


def make_resnet(
    network: str, *, classes: int, residual: bool, norm: bool, small: bool
) -> nn.Module:
    """Build a ResNet with random weights from torch's current random state.

    Args:
        network: ``resnet18``, ...
        classes: number of outputs of the classifier.
        residual: whether blocks add their input to their output.
        norm: whether there are BatchNorms. Without them convolutions still have no bias, as in
            torchvision.
        small: whether the first convolution is 3 x 3 without stride and there is no max pooling,
            for images of about 32 pixels.
    """
    if residual and norm:
        module: nn.Module = torchvision.models.get_model(network, weights=None, num_classes=classes)
    else:
        block, depths = BLOCKS[network]
        block = block if residual else _PLAIN[block]
        options: dict[str, Any] = {} if norm else {"norm_layer": _no_norm}
        module = ResNet(block, depths, num_classes=classes, **options)
    if not residual:
        for part in list(module.modules()):
            if isinstance(part, BasicBlock | Bottleneck):
                part.downsample = None
    if small:
        module.conv1 = _small_stem()
        module.maxpool = nn.Identity()
    return module


def narrow(module: nn.Module, widths: Mapping[str, int]) -> None:
    """Replace convolutions inside residual blocks by ones with fewer output channels, in place.

    The next convolution and the BatchNorm between them are replaced too. The new weights are
    undefined.

    Args:
        module: a ResNet.
        widths: number of output channels by the convolution's name, such as ``layer1.0.conv1``. The
            last convolution of a block cannot be narrowed, because its output is added to the
            block's input.

    Raises:
        WeightsError: if a name or a number does not fit the network.
    """
    for name, width in widths.items():
        block_name, _, conv = name.rpartition(".")
        index = conv.removeprefix("conv")
        try:
            block = module.get_submodule(block_name)
            first, second = getattr(block, conv), getattr(block, f"conv{int(index) + 1}")
            fits = isinstance(block, BasicBlock | Bottleneck) and 1 <= width <= first.out_channels
        except (AttributeError, ValueError):
            fits = False
        if not fits:
            raise WeightsError(
                f"this network has no convolution {name!r} that could have {width} channels"
            )
        setattr(block, conv, _resized(first, first.in_channels, width))
        setattr(block, f"conv{int(index) + 1}", _resized(second, width, second.out_channels))
        if isinstance(getattr(block, f"bn{index}"), nn.BatchNorm2d):
            setattr(block, f"bn{index}", nn.BatchNorm2d(width).train(block.training))


def shortcut(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    """Return the output of a block's skip connection, zero if it has none."""
    if isinstance(block, tuple(_PLAIN.values())):
        return x.new_zeros(())
    added: Tensor = x if block.downsample is None else block.downsample(x)
    return added


def _resized(conv: nn.Conv2d, in_channels: int, out_channels: int) -> nn.Conv2d:
    assert not isinstance(conv.padding, str)  # torchvision's are numbers
    return nn.Conv2d(
        in_channels,
        out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )


def _small_stem() -> nn.Conv2d:
    conv = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _no_norm(_: int) -> nn.Module:
    return nn.Identity()


class _PlainBasicBlock(BasicBlock):  # type: ignore[misc]
    """A basic block without skip connection."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        plain: Tensor = self.relu(self.bn2(self.conv2(out)))
        return plain


class _PlainBottleneck(Bottleneck):  # type: ignore[misc]
    """A bottleneck block without skip connection."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        plain: Tensor = self.relu(self.bn3(self.conv3(out)))
        return plain


_PLAIN: dict[type, Any] = {BasicBlock: _PlainBasicBlock, Bottleneck: _PlainBottleneck}
