"""Feature maps, class activation maps and filters of networks."""

from __future__ import annotations

import numpy as np
import pytest

from featkit.backbones import load_backbone
from featkit.backbones.explain import (
    ActivationMapper,
    first_layer_filters,
    resize_maps,
    stage_maps,
)
from featkit.errors import SpecError


def images(count=2, side=64):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def small(**options):
    return load_backbone("resnet18", weights="random", resize="64", crop="64", **options)


def test_the_mean_of_a_map_is_the_linear_score_without_its_bias():
    mapper = ActivationMapper(small())
    weights = np.random.default_rng(1).normal(size=(2, 512)).astype(np.float32)
    maps, features = mapper.class_activation_maps(images(), lambda _: weights)
    assert mapper.layer == "layer4"
    assert maps.shape == (2, 2, 2)
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), (weights * features).sum(axis=1), rtol=1e-4)


def test_with_average_pooling_a_map_weights_the_channels_by_the_gradient():
    mapper = ActivationMapper(small())
    weights = np.random.default_rng(1).normal(size=(2, 512)).astype(np.float32)
    maps, _ = mapper.class_activation_maps(images(), lambda _: weights)
    channels, _ = mapper.maps(images())
    expected = np.einsum("bc,bchw->bhw", weights, channels)
    np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-3)


def test_features_are_those_of_the_network():
    import torch

    backbone = small()
    _, features = ActivationMapper(backbone).maps(images())
    batch = torch.tensor(images()).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = backbone.build()(backbone.preprocess.normalise(batch)).numpy()
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


def test_the_map_of_an_earlier_layer_has_its_resolution():
    mapper = ActivationMapper(small(layer="layer2"))
    channels, features = mapper.maps(images(1))
    assert channels.shape == (1, 128, 8, 8)
    assert features.shape == (1, 128)
    assert mapper.layer == "layer2"


def test_the_last_maps_with_several_positions_are_used_for_small_images():
    """After layer4 an image of 32 pixels has one position."""
    backbone = load_backbone("resnet18", weights="random", resize="32", crop="32")
    mapper = ActivationMapper(backbone)
    assert mapper.layer == "layer3"


def test_images_without_positions_are_refused():
    backbone = load_backbone("resnet18", weights="random", resize="1", crop="1")
    with pytest.raises(SpecError, match="--resize"):
        ActivationMapper(backbone)


@pytest.mark.parametrize("layer", [None, "layer3"])
def test_stages_are_the_last_output_at_each_resolution(layer):
    stages = stage_maps(small(layer=layer), images(1)[0])
    expected = {"relu": 64, "layer1": 64, "layer2": 128, "layer3": 256, "layer4": 512}
    if layer:
        del expected["layer4"]
    assert {name: len(maps) for name, maps in stages.items()} == expected
    assert (stages["relu"] >= 0).all()


def test_filters_are_the_kernels_of_the_first_convolution():
    filters = first_layer_filters(small())
    assert filters.shape == (64, 7, 7, 3)
    kernel = small().build().conv1.weight.detach().numpy()
    np.testing.assert_array_equal(filters[5, :, :, 2], kernel[5, 2])


def test_resized_maps_keep_constant_values():
    maps = np.full((1, 2, 2), 3.0, np.float32)
    np.testing.assert_allclose(resize_maps(maps, (5, 7)), np.full((1, 5, 7), 3.0))
