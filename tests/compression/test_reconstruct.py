"""Reconstruction of weights behind removed channels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from featkit.backbones.batchnorm import has_statistics
from featkit.backbones.layers import freeze
from featkit.backbones.resnet_modules import make_resnet
from featkit.backbones.state_dict import seeded
from featkit.compression.reconstruct import reconstruct
from featkit.compression.structured import (
    NarrowedNetwork,
    importance_by_magnitude,
    inner_convolutions,
    prune_channels,
)

pytestmark = pytest.mark.slow

with seeded(1):
    IMAGES = list(torch.randn(4, 16, 3, 48, 48))


def short(network):
    network.layer3 = network.layer4 = network.fc = nn.Identity()
    return freeze(network)


def resnet(block=BasicBlock):
    with seeded(0):
        network = ResNet(block, [1, 1, 1, 1])
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.uniform_(part.bias, -0.5, 0.5)
                nn.init.uniform_(part.running_mean, -0.5, 0.5)
                nn.init.uniform_(part.running_var, 0.5, 2)
    return short(network)


def variant(*, residual, norm):
    with seeded(0):
        network = make_resnet("resnet18", classes=2, residual=residual, norm=norm, small=False)
    return short(network)


NETWORKS = {
    "basic": resnet(),
    "bottleneck": resnet(Bottleneck),
    "plain": variant(residual=False, norm=True),
    "no norm": variant(residual=True, norm=False),
    "neither": variant(residual=False, norm=False),
}


def error(network, other):
    batch = torch.cat(IMAGES)
    with torch.no_grad():
        return float((network(batch) - other(batch)).square().mean())


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_reconstruction_lowers_the_error(network):
    before = copy.deepcopy(network.state_dict())
    narrowed = prune_channels(network, 0.7, (48, 48), importance_by_magnitude(network))
    told = []
    fitted = reconstruct(network, narrowed, IMAGES, on_message=told.append)
    assert error(fitted, network) < 0.7 * error(narrowed.module, network)
    assert len(told) == len(inner_convolutions(network))
    assert told[0].startswith("layer1.0.conv2: unexplained variance")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert fitted.state_dict().keys() == narrowed.module.state_dict().keys()
    assert not any(each.requires_grad or each.grad_fn for each in fitted.parameters())


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_reconstruction_without_removed_channels_changes_nothing(network):
    fitted = reconstruct(network, NarrowedNetwork(copy.deepcopy(network), {}), IMAGES)
    for name, value in network.state_dict().items():
        if value.ndim == 4:
            torch.testing.assert_close(fitted.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    outputs = network(IMAGES[0])
    torch.testing.assert_close(
        fitted(IMAGES[0]), outputs, rtol=1e-3, atol=1e-3 * float(outputs.abs().max())
    )


@pytest.mark.parametrize("name", ["basic", "bottleneck", "plain"])
def test_reconstruction_restores_statistics_for_training(name):
    """Without them, training would normalise twice."""
    network = copy.deepcopy(NETWORKS[name])
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.zero_()
            part.running_var.fill_(1 - part.eps)
    narrowed = prune_channels(network, 0.7, (48, 48), importance_by_magnitude(network))
    fitted = reconstruct(network, narrowed, IMAGES)
    assert has_statistics(fitted)
    batch = torch.cat(IMAGES)
    with torch.no_grad():
        expected = fitted(batch)
        learning = copy.deepcopy(fitted).train()(batch)
    torch.testing.assert_close(
        learning, expected, rtol=0.05, atol=0.02 * float(expected.abs().max())
    )


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_removing_duplicated_channels_costs_nothing(kind):
    """The second half of the channels of each inner convolution repeats the first."""
    network = copy.deepcopy(NETWORKS[kind])
    kept = {}
    for each in inner_convolutions(network):
        half = each.conv.out_channels // 2
        for values in (
            each.conv.weight,
            *(value for value in each.norm.state_dict().values() if value.ndim),
        ):
            values[half:] = values[:half]
        kept[each.name] = torch.arange(half)
    everything = {name: torch.ones(2 * len(rows)) for name, rows in kept.items()}
    for name, rows in kept.items():
        everything[name][rows] = 2.0
    narrowed = prune_channels(network, 0.8, (48, 48), everything)
    assert narrowed.kept
    assert all(torch.equal(rows, kept[name]) for name, rows in narrowed.kept.items())
    fitted = reconstruct(network, narrowed, IMAGES)
    assert error(fitted, network) < 0.02 * error(narrowed.module, network)


def test_a_convolution_equals_the_ridge_regression_solution():
    """One convolution against normal equations in float64, fitted at all positions."""
    network = copy.deepcopy(NETWORKS["basic"])
    narrowed = prune_channels(network, 0.7, (48, 48), importance_by_magnitude(network))
    fitted = reconstruct(network, narrowed, IMAGES)
    name = "layer2.0"  # 6 x 6 places
    whole, narrow = network.get_submodule(name), fitted.get_submodule(name)
    old = narrowed.module.get_submodule(name)
    with torch.no_grad():
        batch = torch.cat(IMAGES)

        def before(net):
            return net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(batch)))))

        theirs, ours = before(network), before(fitted)
        norm = whole.bn2
        target = whole.bn2(
            whole.conv2(whole.relu(whole.bn1(whole.conv1(theirs))))
        ) + whole.downsample(theirs)
        target = (target - whole.downsample(ours) - norm.bias[:, None, None]).double()
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).double()
        y = (target / scale[:, None, None]).flatten(2).transpose(1, 2).flatten(0, 1)
        hidden = narrow.relu(narrow.bn1(narrow.conv1(ours)))
        x = nn.functional.unfold(hidden, 3, padding=1).transpose(1, 2).flatten(0, 1).double()
        centred, start = x - x.mean(0), old.conv2.weight.flatten(1).T.double()
        gram = centred.T @ centred / len(x)
        ridge = 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
        change = torch.linalg.solve(
            gram + ridge, centred.T @ (y - y.mean(0) - centred @ start) / len(x)
        )
        weights = start + change
        mean = (x @ weights).mean(0) - y.mean(0)
    torch.testing.assert_close(
        narrow.conv2.weight.flatten(1).T.double(), weights, rtol=1e-3, atol=1e-4
    )
    given = narrow.bn2(narrow.conv2(hidden)) + whole.downsample(ours)
    fit = scale[:, None] * ((x @ weights).T - mean[:, None]) + norm.bias[:, None].double()
    fit = fit.reshape(len(fit), len(batch), -1).transpose(0, 1).reshape(
        given.shape
    ) + whole.downsample(ours)
    torch.testing.assert_close(given.double(), fit, rtol=1e-3, atol=1e-3 * float(fit.abs().max()))
