"""Find the layer where values that are not finite first appear."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from featkit.backbones import load_backbone
from featkit.backbones.layers import first_non_finite_layer, freeze

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def backbone_of(module: nn.Module, **options):
    """Return a backbone that builds a module."""
    return replace(
        load_backbone("resnet18", weights="random", **options), build=lambda: freeze(module)
    )


def damaged_build(build, layer: str, value: float) -> nn.Module:
    """Return a network with one filter of a layer replaced."""
    module = build()
    weight = dict(module.named_parameters())
    name = next(key for key in weight if key.endswith(f"{layer}.weight"))
    with torch.no_grad():
        weight[name][0] = value
    return module


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_a_finite_network_has_no_such_layer(pool):
    backbone = load_backbone("resnet18", weights="random", pool=pool)
    assert first_non_finite_layer(backbone, PIXELS) is None


@pytest.mark.parametrize(
    ("layer", "value", "pool"),
    [
        ("conv1", float("nan"), "avg"),
        ("layer1.0.bn2", float("inf"), "max"),
        ("layer2.0.downsample.0", -float("inf"), "catavgmax"),
        ("layer4.1.conv2", float("nan"), "none"),
    ],
)
def test_the_layer_of_a_damaged_weight_is_named(layer, pool, value):
    backbone = load_backbone("resnet18", weights="random", pool=pool)
    backbone = replace(backbone, build=partial(damaged_build, backbone.build, layer, value))
    assert first_non_finite_layer(backbone, PIXELS) == layer


def test_an_overflow_of_a_sum_is_named_as_models_layers_lists_it():
    backbone = load_backbone("resnet18", weights="random")

    def build():
        module = backbone.build()
        # Each summand is finite in float32, their sum is not.
        for norm in (module.layer2[0].bn2, module.layer2[0].downsample[1]):
            norm.weight.zero_()
            norm.bias.fill_(3e38)
        return module

    assert first_non_finite_layer(replace(backbone, build=build), PIXELS) == "layer2.0.add"


class Untraceable(nn.Module):
    """A network whose computation depends on its input."""

    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = second

    def forward(self, batch):
        features = self.first(batch)
        return self.second(features).mean((2, 3)) if features.sum() > -1e30 else features


class Overflow(nn.Module):
    def forward(self, features):
        return (features.abs() + 1) * 3e38 * 10


def test_a_network_that_cannot_be_traced_is_searched_by_module():
    assert first_non_finite_layer(backbone_of(Untraceable(Overflow())), PIXELS) == "second"
    assert first_non_finite_layer(backbone_of(Untraceable(nn.Identity())), PIXELS) is None
