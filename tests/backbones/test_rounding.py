"""What rounding does to layers, and biases that make up for its mean."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from featkit.backbones.quantization import (
    correct_biases,
    layers_with_weights,
    rounded_input,
    rounded_weight,
)
from featkit.backbones.state_dict import seeded


@pytest.fixture
def network():
    with seeded(0):
        layers = [
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3, groups=2, bias=False),
        ]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(54, 5)).eval().requires_grad_(False)


def test_rounding_moves_no_value_by_more_than_half_a_step():
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    step = weight.abs().flatten(1).amax(1) / 127
    assert ((rounded_weight(weight) - weight).abs().flatten(1).amax(1) <= 0.5001 * step).all()
    values = torch.rand(50, generator=torch.Generator().manual_seed(1)) - 0.2
    step = (values.max() - values.min()) / 255
    assert (rounded_input(values) - values).abs().max() <= 0.5001 * step
    assert rounded_weight(torch.zeros(2, 3)).eq(0).all()


def test_corrected_biases_give_back_the_mean_output_of_every_layer(network):
    """With rounded weights, on the inputs that the exact network gives."""
    images = torch.randn(12, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    exact, inputs, means = copy.deepcopy(network), {}, {}

    def mean(output):
        return output.movedim(1, 0).flatten(1).mean(1)

    for name, layer in layers_with_weights(exact).items():
        layer.register_forward_hook(
            lambda _, given, out, name=name: (inputs.update({name: given[0]}), None)[1]
        )
    exact(images)
    layers = layers_with_weights(network)
    correct_biases(network, list(layers.values()), images.split(5))
    for name, layer in layers.items():
        before = layers_with_weights(exact)[name]
        means[name] = mean(before(inputs[name]))
        plain, layer.weight.data = (
            mean(_rounded(before)(inputs[name])),
            rounded_weight(layer.weight),
        )
        torch.testing.assert_close(mean(layer(inputs[name])), means[name], rtol=0, atol=2e-6)
        assert (plain - means[name]).abs().max() > 1e-5


def _rounded(layer):
    changed = copy.deepcopy(layer)
    changed._forward_hooks.clear()
    changed.weight.data = rounded_weight(layer.weight)
    return changed


def test_layers_that_are_not_named_keep_their_bias(network):
    first, *_, last = layers_with_weights(network).values()
    before = last.bias.clone()
    correct_biases(network, [first], [torch.randn(4, 3, 10, 10)])
    assert torch.equal(last.bias, before)
