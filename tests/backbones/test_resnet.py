from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from featkit.backbones import load_backbone
from featkit.backbones.engines import open_engine
from featkit.backbones.resnet import SIZES
from featkit.backbones.state_dict import seeded
from featkit.errors import SpecError

IMAGES = [
    np.random.default_rng(side).integers(0, 256, (side, side + 9, 3), dtype=np.uint8)
    for side in (8, 40, 70, 131)
]


def embed(images, name="resnet18", *, batch=64, **options) -> np.ndarray:
    backbone = load_backbone(name, **options)
    engine = open_engine(backbone)
    pixels = np.stack([backbone.preprocess(image) for image in images])
    return np.concatenate(
        [engine(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
    )


def plain_loop(network: torch.nn.Module, transform, images) -> np.ndarray:
    """Reference: torchvision's own transform and network, one image at a time."""
    network.fc = torch.nn.Identity()
    network.eval()
    with torch.no_grad():
        return torch.cat(
            [network(transform(Image.fromarray(image))[None]) for image in images]
        ).numpy()


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize(("name", "dim"), [("resnet18", 512), ("resnet50", 2048)])
def test_embeddings_equal_a_plain_torchvision_loop(name, dim):
    with seeded(0):
        network = torchvision.models.get_model(name)
    transform = torchvision.models.get_model_weights(name).IMAGENET1K_V1.transforms(
        resize_size=64, crop_size=64
    )
    ours, theirs = (
        embed(IMAGES, name, weights="random", resize="64"),
        plain_loop(network, transform, IMAGES),
    )
    assert ours.shape == (4, dim)
    assert ours.dtype == np.float32
    assert relative(ours, theirs) < 1e-4


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_real_embeddings_equal_a_plain_torchvision_loop(name, real_data, real_weights):
    paths = sorted((real_data / "caltech101" / "test").glob("*/*.jpg"))[::181]
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    network = torchvision.models.get_model(name)
    network.load_state_dict(torch.load(real_weights / f"{name}.pth", weights_only=True))
    transform = torchvision.models.get_model_weights(name).IMAGENET1K_V1.transforms()
    assert len(images) >= 16
    assert relative(embed(images, name), plain_loop(network, transform, images)) < 1e-4


def test_embeddings_do_not_depend_on_the_batch_size():
    options = {"weights": "random", "resize": "64"}
    assert relative(embed(IMAGES, batch=1, **options), embed(IMAGES, batch=3, **options)) < 1e-5


def test_a_network_is_always_in_eval_mode_without_gradients():
    for options in ({}, {"layer": "layer2"}, {"pool": "max"}):
        network = load_backbone("resnet18", weights="random", **options).build()
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_random_weights_depend_on_their_seed_only():
    before = torch.random.get_rng_state()
    options = {"resize": "32"}
    first = embed(IMAGES, weights="random", **options)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    np.testing.assert_array_equal(first, embed(IMAGES, weights="random:0", **options))
    assert relative(first, embed(IMAGES, weights="random:1", **options)) > 0.01


def test_other_poolings_use_the_last_feature_map():
    mean, most, both = (
        embed(IMAGES, weights="random", resize="96", pool=p) for p in ("avg", "max", "catavgmax")
    )
    np.testing.assert_allclose(both, np.hstack([mean, most]), rtol=1e-5, atol=1e-6)
    assert (most >= mean - 1e-6).all()
    last = embed(IMAGES, weights="random", resize="96", layer="layer4", pool="max")
    np.testing.assert_array_equal(last, most)


@pytest.mark.parametrize(
    ("layer", "dim"),
    [
        ("conv1", 64),
        ("bn1", 64),
        ("layer1.0.relu", 64),
        ("layer3", 256),
        ("layer3.0.conv1", 256),
        ("fc", 1000),
    ],
)
def test_an_extracted_layer_equals_the_output_seen_by_a_hook(layer, dim):
    options = {"weights": "random", "resize": "64"}
    network = torchvision.models.resnet18()
    network.load_state_dict(
        load_backbone("resnet18", weights="random", layer="fc").build().features.state_dict()
    )
    network.eval()
    seen = []
    # Copied at once, for the next layer may write over it.
    network.get_submodule(layer).register_forward_hook(
        lambda module, args, output: seen.append(output.clone())
    )
    backbone = load_backbone("resnet18", **options)
    pixels = np.stack([backbone.preprocess(image) for image in IMAGES])
    with torch.no_grad():
        network(backbone.preprocess.normalise(torch.tensor(pixels).permute(0, 3, 1, 2).float()))
    expected = seen[0].mean((2, 3)) if seen[0].ndim == 4 else seen[0]
    ours = embed(IMAGES, layer=layer, **options)
    assert ours.shape == (4, dim)
    assert relative(ours, expected.numpy()) < 1e-4


def test_later_layers_are_removed():
    network = load_backbone("resnet18", weights="random", layer="layer2").build()
    assert {name.split(".")[1] for name, _ in network.named_parameters()} == {
        "conv1",
        "bn1",
        "layer1",
        "layer2",
    }


@pytest.mark.parametrize(
    ("layer", "named"), [("layr3", "did you mean layer3"), ("", "fc"), ("layer9.0", "layer4")]
)
def test_an_unknown_layer_is_rejected_with_suggestions(layer, named):
    backbone = load_backbone("resnet18", weights="random", layer=layer)
    with pytest.raises(SpecError, match=f"unknown layer of resnet18.*{named}"):
        backbone.build()


@pytest.mark.parametrize("name", SIZES)
def test_widths_and_parameter_counts_equal_torchvision(name):
    with torch.device("meta"):
        network = torchvision.models.get_model(name)
    assert SIZES[name] == (
        network.fc.in_features,
        sum(parameter.numel() for parameter in network.parameters()),
    )
