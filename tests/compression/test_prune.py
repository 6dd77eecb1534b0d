"""Pruning of weights and channels."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from featkit.backbones.layers import freeze
from featkit.backbones.state_dict import seeded
from featkit.compression.profile import count_macs
from featkit.compression.recalibrate import recalibrate_batchnorm
from featkit.compression.structured import (
    importance_by_activation,
    importance_by_magnitude,
    prune_channels,
)
from featkit.compression.unstructured import prune_weights
from featkit.errors import SpecError

pytestmark = pytest.mark.slow

IMAGES = torch.linspace(-1, 1, 4 * 3 * 32 * 32).reshape(4, 3, 32, 32)


def resnet(block=BasicBlock):
    with seeded(0):
        network = ResNet(block, [1, 1, 1, 1])
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.uniform_(part.running_var, 0.5, 2)
    network.fc = nn.Identity()
    return freeze(network)


NETWORKS = {"basic": resnet(), "bottleneck": resnet(Bottleneck)}
SMALL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))


def zeros(module):
    weights = [part.weight for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    return sum(int((each == 0).sum()) for each in weights), sum(each.numel() for each in weights)


@given(sparsity=st.floats(0, 0.99))
@settings(max_examples=30, deadline=None)
def test_the_smallest_weights_are_zeroed_to_the_target_sparsity(sparsity):
    pruned = prune_weights(SMALL, sparsity)
    found, total = zeros(pruned)
    assert found == round(sparsity * total)
    before = torch.cat([SMALL[0].weight.flatten(), SMALL[2].weight.flatten()]).abs()
    after = torch.cat([pruned[0].weight.flatten(), pruned[2].weight.flatten()])
    if found:
        assert before[after == 0].max() <= before[after != 0].min()


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_pruning_nothing_leaves_the_network_unchanged(network):
    state = network.state_dict()
    for pruned in (
        prune_weights(network, 0.0),
        prune_channels(network, 1.0, (32, 32), importance_by_magnitude(network)).module,
    ):
        assert all(torch.equal(state[name], value) for name, value in pruned.state_dict().items())
        assert torch.equal(pruned(IMAGES), network(IMAGES))


def test_pruned_weights_stay_zero_during_training():
    def train(module):
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            module(IMAGES).square().sum().backward()
            optimiser.step()
        return module

    trainable = copy.deepcopy(SMALL).requires_grad_(True)
    pruned = prune_weights(trainable, 0.5, train)
    assert zeros(pruned) == zeros(prune_weights(SMALL, 0.5))
    assert not torch.equal(pruned[0].weight, prune_weights(SMALL, 0.5)[0].weight)
    assert pruned.state_dict().keys() == SMALL.state_dict().keys()


def test_weights_pruned_before_stay_pruned():
    first = prune_weights(SMALL, 0.3)
    second = prune_weights(first, 0.6)
    assert (second[0].weight[first[0].weight == 0] == 0).all()


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_channels_are_removed_down_to_the_target_macs(network):
    before = count_macs(network, (32, 32))
    narrowed = prune_channels(network, 0.6, (32, 32), importance_by_magnitude(network))
    left = count_macs(narrowed.module, (32, 32)) / before
    assert 0.5 < left <= 0.6
    assert narrowed.module(IMAGES).shape == network(IMAGES).shape
    assert all(width % 8 == 0 for width in narrowed.widths.values())
    assert all(
        narrowed.module.get_submodule(name).out_channels == width
        for name, width in narrowed.widths.items()
    )


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_dead_channels_are_removed_without_changing_the_output(network):
    """Each inner convolution gets dead channels; the rest computes the same."""
    network = copy.deepcopy(network)
    for name, width in importance_by_magnitude(network).items():
        block, _, conv = name.rpartition(".conv")
        dead = torch.arange(len(width)) % 4 == 0
        norm = network.get_submodule(f"{block}.bn{conv}")
        norm.weight[dead] = 0
        norm.bias[dead] = 0
    share = 0.85 if isinstance(network.layer1[0], BasicBlock) else 0.9
    narrowed = prune_channels(network, share, (32, 32), importance_by_magnitude(network))
    assert narrowed.widths
    torch.testing.assert_close(narrowed.module(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_channel_without_activations_has_no_importance():
    network = copy.deepcopy(NETWORKS["basic"])
    network.layer2[0].bn1.bias[3] = -1e4
    found = importance_by_activation(network, iter([IMAGES]))
    assert found.keys() == importance_by_magnitude(network).keys()
    assert found["layer2.0.conv1"][3] == 0
    assert found["layer2.0.conv1"].median() > 0


def test_recalibrated_statistics_are_those_of_the_images():
    network = NETWORKS["basic"]
    fresh = recalibrate_batchnorm(network, iter([IMAGES]))
    stem = network.conv1(IMAGES)
    torch.testing.assert_close(fresh.bn1.running_mean, stem.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not any(part.training for part in fresh.modules())
    assert not torch.equal(network.bn1.running_mean, fresh.bn1.running_mean)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_fraction_outside_0_and_1_is_refused(share):
    network = NETWORKS["basic"]
    with pytest.raises(SpecError, match="is not a fraction: give a number from 0 to 1"):
        prune_weights(network, share)
    with pytest.raises(SpecError, match="is not a fraction"):
        prune_channels(network, share, (32, 32), importance_by_magnitude(network))


def test_pruning_everything_is_refused():
    network = NETWORKS["basic"]
    with pytest.raises(SpecError, match="leaves none of"):
        prune_weights(network, 1.0)
    with pytest.raises(SpecError, match=r"macs 0 cannot be reached .* choose 0\.\d\d or more"):
        prune_channels(network, 0.0, (32, 32), importance_by_magnitude(network))


def test_channel_pruning_of_other_networks_is_refused():
    with pytest.raises(SpecError, match="only be pruned in torchvision's ResNets"):
        importance_by_magnitude(SMALL)
