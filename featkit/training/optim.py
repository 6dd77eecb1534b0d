"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from featkit.training.config import TrainingConfig
from featkit.training.network import TrainableClassifier, network_blocks

_MOMENTUM = 0.9
_STAGES = ("layer4", "layer3", "layer2", "layer1")


def make_optimiser(
    model: TrainableClassifier, projection: nn.Module | None, config: TrainingConfig
) -> torch.optim.Optimizer:
    """Return an optimiser of the trainable parameters.

    Each parameter group has its peak learning rate as ``peak``: that of the classifier, times the
    layer-wise learning-rate decay for each stage between the group and the classifier.

    Args:
        model: the network.
        projection: trained with the network, at the learning rate of the classifier, or None.
        config: optimiser, learning rate and decays.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    rates = parameter_rates(model, config)
    for name, parameter in model.named_parameters():
        if name in rates:
            groups.setdefault(rates[name], []).append(parameter)
    for parameter in projection.parameters() if projection else ():
        groups.setdefault((config.lr, _weight_decay(parameter, config)), []).append(parameter)
    parameter_groups = [
        {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), parameters in groups.items()
    ]
    if config.optimiser == "adamw":
        return torch.optim.AdamW(parameter_groups, lr=config.lr)
    return torch.optim.SGD(parameter_groups, lr=config.lr, momentum=_MOMENTUM, nesterov=True)


def parameter_rates(
    model: TrainableClassifier, config: TrainingConfig
) -> dict[str, tuple[float, float]]:
    """Return the peak learning rate and the weight decay of each trainable parameter by name."""
    rates = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            peak = config.lr * config.layer_decay ** _stages_to_classifier(model, name)
            rates[name] = (peak, _weight_decay(parameter, config))
    return rates


def set_learning_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of each group to this fraction of its peak."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Return the learning rate at a step as a fraction of its peak.

    It rises linearly for ``warmup`` steps, then follows half a cosine to zero at ``steps``
    (Loshchilov and Hutter 2017, without restarts).
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _weight_decay(parameter: Tensor, config: TrainingConfig) -> float:
    # Parameters with one dimension are biases, and scales of normalisation layers.
    return config.weight_decay if parameter.ndim > 1 else 0.0


def _stages_to_classifier(model: TrainableClassifier, name: str) -> int:
    """Return the distance of a parameter from the classifier, in stages of a ResNet."""
    if name.startswith("fc."):
        return 0
    if not network_blocks(model.body.network):
        return 1
    inner = name.removeprefix("body.network.")
    for distance, stage in enumerate(_STAGES, start=1):
        if inner.startswith(f"{stage}."):
            return distance
    return len(_STAGES) + 1
