"""Learning rates and weight decay: by stage, by kind of parameter, by step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from featkit.training.config import TrainingConfig
from featkit.training.network import TrainableClassifier, blocks

_MOMENTUM = 0.9


def make_optimiser(model: TrainableClassifier, extra: nn.Module | None, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimiser of what has gradients; each group knows its height of the learning rate as ``peak``.

    Args:
        model: the network.
        extra: what else learns, at the classifier's rate, such as a projection.
        config: optimiser, rates, decay.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            peak = config.lr * config.layer_decay ** _depth_below(model, name)
            groups.setdefault((peak, _decay(parameter, config)), []).append(parameter)
    for parameter in extra.parameters() if extra else ():
        groups.setdefault((config.lr, _decay(parameter, config)), []).append(parameter)
    listed = [
        {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), parameters in groups.items()
    ]
    if config.optimiser == "adamw":
        return torch.optim.AdamW(listed, lr=config.lr)
    return torch.optim.SGD(listed, lr=config.lr, momentum=_MOMENTUM, nesterov=True)


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Give each group this share of its highest learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor


def rate(step: int, steps: int, warmup: int) -> float:
    """Return the share of the highest learning rate at a step: rising for ``warmup`` steps, then half a cosine.

    Loshchilov and Hutter 2017, without restarts.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _decay(parameter: Tensor, config: TrainingConfig) -> float:
    """Return the weight decay: norms and biases, which are vectors, have none."""
    return config.weight_decay if parameter.ndim > 1 else 0.0


def _depth_below(model: TrainableClassifier, name: str) -> int:
    """Return how many stages lie between a parameter and the classifier."""
    if name.startswith("fc."):
        return 0
    inner = name.removeprefix("body.network.")
    stages = ["layer4", "layer3", "layer2", "layer1"] if blocks(model.body.network) else []
    return next((1 + place for place, stage in enumerate(stages) if inner.startswith(f"{stage}.")), 1 + len(stages))
