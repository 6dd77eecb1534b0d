"""Define ResNets and their variants: without skip connections, without BatchNorm, narrower.

Networks have the layers of torchvision's under the same names, and draw the same random weights.
They are defined here because importing ``torchvision.models`` takes about as long as importing
torch: it also imports detection operators, and with them torch's compiler.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from featkit.errors import WeightsError

_Norm = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a skip connection (He et al. 2016, figure 5).

    Args:
        channels: number of channels of the input.
        width: number of channels of the convolutions.
        stride: of the first convolution.
        downsample: applied to the input before it is added; None for the input itself.
        norm: returns the normalisation of so many channels.
    """

    expansion = 1
    """Channels of the output for each of the first convolution's."""

    def __init__(
        self, channels: int, width: int, stride: int, downsample: nn.Module | None, norm: _Norm
    ) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, width, kernel=3, stride=stride)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _convolution(width, width, kernel=3)
        self.bn2 = norm(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return feature maps ``(b, width, h, w)``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        added: Tensor = self.relu(out)
        return added


class Bottleneck(nn.Module):
    """Convolutions of 1 x 1, 3 x 3 and 1 x 1 and a skip connection (He et al. 2016, figure 5).

    As in torchvision, the second convolution has the stride ("ResNet v1.5").

    Args:
        channels: number of channels of the input.
        width: number of channels of the first two convolutions.
        stride: of the second convolution.
        downsample: applied to the input before it is added; None for the input itself.
        norm: returns the normalisation of so many channels.
    """

    expansion = 4
    """Channels of the output for each of the first convolution's."""

    def __init__(
        self, channels: int, width: int, stride: int, downsample: nn.Module | None, norm: _Norm
    ) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, width, kernel=1)
        self.bn1 = norm(width)
        self.conv2 = _convolution(width, width, kernel=3, stride=stride)
        self.bn2 = norm(width)
        self.conv3 = _convolution(width, width * self.expansion, kernel=1)
        self.bn3 = norm(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return feature maps ``(b, 4 width, h, w)``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        added: Tensor = self.relu(out)
        return added


class ResNet(nn.Module):
    """A residual network (He et al. 2016, table 1) with random weights.

    Args:
        block: type of block.
        depths: number of blocks in each of the four stages.
        classes: number of outputs of the classifier.
        norm: returns the normalisation of so many channels.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: Sequence[int],
        classes: int = 1000,
        norm: _Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, depths[0], stride=1, norm=norm)
        self.layer2 = _stage(block, 64 * block.expansion, 128, depths[1], stride=2, norm=norm)
        self.layer3 = _stage(block, 128 * block.expansion, 256, depths[2], stride=2, norm=norm)
        self.layer4 = _stage(block, 256 * block.expansion, 512, depths[3], stride=2, norm=norm)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, classes)
        # In the order of construction, after all layers have drawn their default weights: random
        # networks of earlier versions must stay the same.
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return scores ``(b, classes)`` of images ``(b, 3, h, w)``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        scores: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return scores


def _stage(
    block: type[BasicBlock | Bottleneck],
    channels: int,
    width: int,
    depth: int,
    *,
    stride: int,
    norm: _Norm,
) -> nn.Sequential:
    """Return a stage of blocks, of which the first has the stride."""
    wide = width * block.expansion
    downsample = None
    if stride != 1 or channels != wide:
        downsample = nn.Sequential(
            _convolution(channels, wide, kernel=1, stride=stride), norm(wide)
        )
    blocks = [block(channels, width, stride, downsample, norm)]
    blocks += [block(wide, width, 1, None, norm) for _ in range(1, depth)]
    return nn.Sequential(*blocks)


def _convolution(inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def is_resnet(module: nn.Module) -> TypeGuard[ResNet]:
    """Return whether a module is a ResNet, also one of torchvision from a plug-in."""
    return isinstance(module, (ResNet, *_torchvision_types("ResNet")))


def is_block(module: nn.Module) -> bool:
    """Return whether a module is a block of a ResNet, also of one of torchvision."""
    return is_basic_block(module) or isinstance(
        module, (Bottleneck, *_torchvision_types("Bottleneck"))
    )


def is_basic_block(module: nn.Module) -> bool:
    """Return whether a module is a block of two convolutions, also of one of torchvision."""
    return isinstance(module, (BasicBlock, *_torchvision_types("BasicBlock")))


def _torchvision_types(name: str) -> list[type]:
    """Return torchvision's type of that name, nothing if it is not imported: no instance exists."""
    module = sys.modules.get("torchvision.models.resnet")
    return [getattr(module, name)] if module else []


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
    block, depths = BLOCKS[network]
    block = block if residual else _PLAIN[block]
    module: nn.Module = ResNet(block, depths, classes, nn.BatchNorm2d if norm else _no_norm)
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
            fits = is_block(block) and 1 <= width <= first.out_channels
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


def shortcut(block: Any, x: Tensor) -> Tensor:
    """Return the output of the skip connection of a ResNet block, zero if it has none."""
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


class _PlainBasicBlock(BasicBlock):
    """A basic block without skip connection."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        plain: Tensor = self.relu(self.bn2(self.conv2(out)))
        return plain


class _PlainBottleneck(Bottleneck):
    """A bottleneck block without skip connection."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        plain: Tensor = self.relu(self.bn3(self.conv3(out)))
        return plain


_PLAIN: dict[type, Any] = {BasicBlock: _PlainBasicBlock, Bottleneck: _PlainBottleneck}
