"""A network in two parts: blocks that stay as they are, and blocks that learn, with a classifier behind them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from featkit.backbones.base import Backbone
from featkit.backbones.state_dict import seeded
from featkit.errors import SpecError
from featkit.registry import unknown
from featkit.training.config import TrainingConfig

WHOLE = 0
"""Where a network is cut that learns as a whole."""


class TrainableBody(nn.Module):
    """The blocks of a network from one on, up to its pooled embedding.

    Args:
        network: as ``Backbone.build`` gives it.
        start: number of the first block; ``WHOLE`` for the whole network, the number of blocks for none of it.
        shape: ``(c, h, w)`` of what it is given.
    """

    def __init__(self, network: nn.Module, start: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.start = start
        self.shape = shape

    def forward(self, inputs: Tensor) -> Tensor:
        """Return embeddings ``(b, d)`` for images ``(b, 3, h, w)``, or for flat maps ``(b, c h w)`` at the cut."""
        if self.start == WHOLE:
            whole: Tensor = self.network(inputs)
            return whole
        parts = blocks(self.network)
        if self.start >= len(parts):
            return inputs
        features = inputs.reshape(-1, *self.shape).contiguous(memory_format=torch.channels_last)
        for _, part in parts[self.start :]:
            features = part(features)
        return features.mean((2, 3))

    def learning(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the parts from ``start`` on, with their names."""
        yield from [("", self.network)] if self.start == WHOLE else blocks(self.network)[self.start :]


class TrainableClassifier(nn.Module):
    """The learning part of a network, and a linear classifier on its embeddings."""

    def __init__(self, body: TrainableBody, width: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.fc = nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings ``(b, d)`` and logits ``(b, k)``."""
        features = self.body(inputs)
        return features, self.fc(features)


def blocks(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the residual blocks of a ResNet in order, the stem before them; of any other network nothing."""
    if not isinstance(network, ResNet):
        return []
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    stages = [(name, getattr(network, name)) for name in ("layer1", "layer2", "layer3", "layer4")]
    return [
        ("stem", stem),
        *((f"{name}.{place}", block) for name, stage in stages for place, block in enumerate(stage)),
    ]


def cut_at(network: nn.Module, name: str, config: TrainingConfig) -> int:
    """Return the number of the first block that learns.

    Args:
        network: as ``Backbone.build`` gives it.
        name: of the network, for the error.
        config: the mode, and what to unfreeze.

    Raises:
        SpecError: if there is no such block, or the network is not cut into blocks.
    """
    if config.mode in ("full", "scratch") or (config.mode == "shallow" and not config.frozen_norms):
        return WHOLE
    names = [block for block, _ in blocks(network)]
    if config.mode == "shallow":
        return max(len(names), 1)
    if not names:
        raise SpecError(f"{name} is not cut into blocks: use --mode shallow or full")
    if config.unfreeze.isdecimal():
        count = int(config.unfreeze)
        if not 1 <= count < len(names):
            raise SpecError(f"--unfreeze {count}: {name} has {len(names) - 1} blocks; use --mode full for all of it")
        return len(names) - count
    found = [place for place, block in enumerate(names) if config.unfreeze in (block, block.partition(".")[0])]
    if not found or found[0] == 0:
        raise unknown(f"block of {name}", config.unfreeze, ["layer1", "layer2", "layer3", "layer4", *names[1:]])
    return found[0]


def cut_layer(network: nn.Module, start: int) -> str | None:
    """Return the layer whose output the learning part takes, as ``load_backbone`` names it.

    None for the embedding: nothing of the network learns. Not to be asked of a whole network.
    """
    parts = blocks(network)
    if start >= len(parts):
        return None
    before, after = parts[start - 1][0], parts[start][0]
    stage = before.partition(".")[0]
    return "maxpool" if before == "stem" else (before if after.startswith(f"{stage}.") else stage)


def make_classifier(backbone: Backbone, classes: int, config: TrainingConfig, *, size: tuple[int, int]) -> TrainableClassifier:
    """Return a network whose learning part has gradients, its classifier drawn from the seed.

    Args:
        backbone: the network to begin with.
        classes: number of classes.
        config: what learns.
        size: ``(height, width)`` of its images in pixels.

    Raises:
        SpecError: if what is to learn is unknown.
        WeightsError: if the weights are damaged or of another network.
    """
    network = backbone.build()
    start = cut_at(network, backbone.name, config)
    with torch.no_grad():
        features = torch.zeros(1, 3, *size)
        width = network(features).shape[1]
        for _, part in blocks(network)[:start] if start != WHOLE else []:
            features = part(features)
    shape = (width, 1, 1) if start > 0 and start >= len(blocks(network)) else tuple(features.shape[1:])
    tail = TrainableBody(network, start, shape)
    with seeded(config.seed):
        model = TrainableClassifier(tail, width, classes)
    for _, part in tail.learning():
        part.requires_grad_(config.mode != "shallow")
    return model


def set_training(model: TrainableClassifier, config: TrainingConfig) -> None:
    """Put the learning part into training mode, and the rest, which includes norms to be kept, into eval mode."""
    model.eval()
    model.fc.train()
    if config.frozen_norms:
        return
    for _, part in model.body.learning():
        part.train()


def learning_state(model: TrainableClassifier) -> dict[str, Tensor]:
    """Return the tensors that training may change, statistics of norms included, by name."""
    prefixes = tuple(f"body.network.{name}{'.' if name else ''}" for name, _ in model.body.learning())
    return {name: value for name, value in model.state_dict().items() if name.startswith(("fc.", *prefixes))}
