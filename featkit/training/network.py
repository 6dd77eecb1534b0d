"""A network split into frozen and trainable layers, with a linear classifier."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from featkit.backbones.base import Backbone
from featkit.backbones.resnet_modules import is_resnet
from featkit.backbones.state_dict import seeded
from featkit.errors import SpecError
from featkit.registry import unknown
from featkit.training.config import TrainingConfig

WHOLE = 0
"""``TrainableBody.start`` of a network that is trained as a whole."""

_STAGES = ("layer1", "layer2", "layer3", "layer4")


class TrainableBody(nn.Module):
    """The layers of a network from a block on, up to its pooled embedding.

    Args:
        network: a network as ``Backbone.build`` returns it.
        start: index of the first trainable block; ``WHOLE`` for the whole network, the number of
            blocks for none.
        shape: ``(c, h, w)`` of the input of the first trainable block.
    """

    def __init__(self, network: nn.Module, start: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.start = start
        self.shape = shape

    def forward(self, inputs: Tensor) -> Tensor:
        """Return embeddings ``(b, d)``.

        Args:
            inputs: images ``(b, 3, h, w)`` for the whole network; else flattened activations
                ``(b, c * h * w)`` of the frozen layers.
        """
        if self.start == WHOLE:
            embeddings: Tensor = self.network(inputs)
            return embeddings
        blocks = network_blocks(self.network)
        if self.start >= len(blocks):
            return inputs
        features = inputs.reshape(-1, *self.shape).contiguous(memory_format=torch.channels_last)
        for _, block in blocks[self.start :]:
            features = block(features)
        return features.mean((2, 3))

    def trainable_parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield trainable blocks and their names; ``""`` is the whole network."""
        if self.start == WHOLE:
            yield "", self.network
        else:
            yield from network_blocks(self.network)[self.start :]


class TrainableClassifier(nn.Module):
    """The trainable layers of a network and a linear classifier on its embeddings."""

    def __init__(self, body: TrainableBody, width: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.fc = nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings ``(b, d)`` and logits ``(b, k)``."""
        embeddings = self.body(inputs)
        return embeddings, self.fc(embeddings)


def network_blocks(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the stem and the residual blocks of a ResNet; nothing for other networks."""
    if not is_resnet(network):
        return []
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    blocks: list[tuple[str, nn.Module]] = [("stem", stem)]
    for stage in _STAGES:
        for index, block in enumerate(getattr(network, stage)):
            blocks.append((f"{stage}.{index}", block))
    return blocks


def first_trainable_block(network: nn.Module, name: str, config: TrainingConfig) -> int:
    """Return the index of the first trainable block, as ``TrainableBody.start`` takes it.

    Args:
        network: a network as ``Backbone.build`` returns it.
        name: of the network, for errors.
        config: the mode, and the block from which ``deep`` trains.

    Raises:
        SpecError: if there is no such block, or the network has no blocks.
    """
    if config.mode in ("full", "scratch"):
        return WHOLE
    if config.mode == "shallow" and not config.frozen_norms:
        # No weight of the network is trained, but its BatchNorm statistics are updated: it must
        # run.
        return WHOLE
    names = [block for block, _ in network_blocks(network)]
    if config.mode == "shallow":
        return max(len(names), 1)
    if not names:
        raise SpecError(f"{name} is not divided into blocks: use --mode shallow or full")
    return _first_unfrozen(names, name, config.unfreeze)


def _first_unfrozen(names: list[str], network: str, unfreeze: str) -> int:
    """Return the index of the block that ``TrainingConfig.unfreeze`` selects."""
    if unfreeze.isdecimal():
        count = int(unfreeze)
        if not 1 <= count < len(names):
            raise SpecError(
                f"--unfreeze {count}: {network} has {len(names) - 1} blocks; "
                "use --mode full to train all layers"
            )
        return len(names) - count
    for index, block in enumerate(names):
        if index > 0 and unfreeze in (block, block.partition(".")[0]):
            return index
    raise unknown(f"block of {network}", unfreeze, [*_STAGES, *names[1:]])


def frozen_output_layer(network: nn.Module, start: int) -> str | None:
    """Return the last frozen layer, as ``load_backbone`` names it; None if it is the embedding.

    Args:
        network: a network as ``Backbone.build`` returns it.
        start: index of the first trainable block; not ``WHOLE``, where no layer is frozen.
    """
    blocks = network_blocks(network)
    if start >= len(blocks):
        return None
    before, after = blocks[start - 1][0], blocks[start][0]
    if before == "stem":
        return "maxpool"
    stage = before.partition(".")[0]
    return before if after.startswith(f"{stage}.") else stage


def make_classifier(
    backbone: Backbone, classes: int, config: TrainingConfig, *, size: tuple[int, int]
) -> TrainableClassifier:
    """Return a network with gradients in its trainable layers, and a random classifier.

    Args:
        backbone: the initial network.
        classes: number of classes.
        config: which layers are trainable, and the seed.
        size: ``(height, width)`` of the images in pixels.

    Raises:
        SpecError: if the trainable layers are unknown.
        WeightsError: if the weights are damaged or of another network.
    """
    network = backbone.build()
    start = first_trainable_block(network, backbone.name, config)
    blocks = network_blocks(network)
    with torch.no_grad():
        features = torch.zeros(1, 3, *size)
        width = network(features).shape[1]
        if start != WHOLE:
            for _, block in blocks[:start]:
                features = block(features)
    only_classifier = start != WHOLE and start >= len(blocks)
    shape = (width, 1, 1) if only_classifier else tuple(features.shape[1:])
    body = TrainableBody(network, start, shape)
    with seeded(config.seed):
        model = TrainableClassifier(body, width, classes)
    for _, part in body.trainable_parts():
        part.requires_grad_(config.mode != "shallow")
    return model


def set_train_mode(model: TrainableClassifier, config: TrainingConfig) -> None:
    """Put trainable layers into training mode; frozen ones stay in eval mode."""
    model.eval()
    model.fc.train()
    if config.frozen_norms:
        return
    for _, part in model.body.trainable_parts():
        part.train()


def trainable_state(model: TrainableClassifier) -> dict[str, Tensor]:
    """Return the tensors that training may change, by name; BatchNorm statistics are included."""
    prefixes = ["fc."]
    for name, _ in model.body.trainable_parts():
        prefixes.append(f"body.network.{name}." if name else "body.network.")
    state = model.state_dict()
    return {name: value for name, value in state.items() if name.startswith(tuple(prefixes))}
