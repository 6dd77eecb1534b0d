"""Learning rates and weight decay."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featkit.backbones import load_backbone
from featkit.training.config import TrainingConfig
from featkit.training.network import make_classifier
from featkit.training.optim import learning_rate_factor, make_optimiser, set_learning_rate


def optimiser(**chosen):
    settings = TrainingConfig(mode="full", lr=1.0, **chosen)
    model = make_classifier(load_backbone("resnet18", weights="random"), 3, settings, size=(32, 32))
    made = make_optimiser(model, None, settings)
    groups = {id(value): group for group in made.param_groups for value in group["params"]}
    return made, {name: groups[id(value)] for name, value in model.named_parameters()}


def test_layer_decay_lowers_the_rate_of_earlier_stages():
    _, groups = optimiser(layer_decay=0.5)
    names = [
        "fc.weight",
        *(f"body.network.layer{n}.0.conv1.weight" for n in (4, 3, 2, 1)),
        "body.network.conv1.weight",
    ]
    assert [groups[name]["peak"] for name in names] == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]


def test_norms_and_biases_have_no_weight_decay():
    _, groups = optimiser(weight_decay=0.1)
    assert all(
        group["weight_decay"]
        == (0.0 if "bn" in name or "bias" in name or "downsample.1" in name else 0.1)
        for name, group in groups.items()
    )


def test_a_learning_rate_is_a_fraction_of_the_peak_of_each_group():
    made, groups = optimiser(layer_decay=0.5)
    set_learning_rate(made, 0.1)
    assert groups["fc.weight"]["lr"] == pytest.approx(0.1)
    assert groups["body.network.layer4.0.conv1.weight"]["lr"] == pytest.approx(0.05)


@given(st.integers(0, 50), st.integers(1, 200))
def test_the_rate_warms_up_to_one_then_falls(warmup, rest):
    steps = warmup + rest
    rates = [learning_rate_factor(step, steps, warmup) for step in range(steps)]
    assert all(0 < value <= 1 for value in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[warmup] == 1


def test_the_rate_falls_as_half_a_cosine():
    assert learning_rate_factor(50, 100, 0) == pytest.approx(0.5)
    assert learning_rate_factor(25, 100, 0) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_adamw_can_be_chosen():
    assert isinstance(optimiser(optimiser="adamw")[0], torch.optim.AdamW)
