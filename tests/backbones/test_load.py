from __future__ import annotations

import subprocess
import sys

import pytest

from featkit.backbones import BACKBONES, list_layers, list_models, load_backbone
from featkit.errors import MissingExtraError, SpecError
from featkit.testing import check_backbone

PLUGIN = """
from featkit.backbones.base import Backbone, Preprocess

def build():
    from torch import nn
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()

def colour(*, weights, layer, pool):
    return Backbone("colour", weights, "0" * 64, layer or "mean", pool, Preprocess(), build)

def wrong(*, weights, layer, pool):
    return "colour"

def old(*, weights):
    return "colour"
"""


@pytest.fixture
def plugin(install):
    """Install a package that adds backbones by entry point."""
    points = "".join(
        f"{name} = colour_backbone:{name}\n" for name in ("colour", "wrong", "old", "missing")
    )
    install("colour_backbone", PLUGIN, f"[featkit.backbones]\n{points}")


@pytest.mark.parametrize(
    ("spec", "layer", "pool"),
    [
        ("resnet18", None, "avg"),
        ("resnet18", "layer2", "max"),
        ("resnet18:stem=small,residual=false", None, "avg"),
    ],
)
def test_resnets_pass_the_checks_for_plugins(spec, layer, pool):
    check_backbone(load_backbone(spec, weights="random", layer=layer, pool=pool, resize="32"))


def test_a_plugin_backbone_is_loaded_and_its_sizes_overridden(plugin):
    backbone = load_backbone("colour", weights="mine", layer="deep", pool="max", resize="32x48")
    assert (backbone.weights, backbone.layer, backbone.pool) == ("mine", "deep", "max")
    assert backbone.preprocess.crop == (32, 48)
    assert "colour" in BACKBONES.names()
    assert "colour" in [row[0] for row in list_models()]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wrong", "not a featkit Backbone"),
        ("old", "unexpected keyword argument"),
        ("missing", "cannot be imported"),
    ],
)
def test_an_invalid_plugin_is_rejected(name, reason, plugin):
    with pytest.raises(SpecError, match=reason):
        load_backbone(name)


def test_loading_a_resnet_and_listing_models_does_not_import_torch(tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"x")
    code = """
import sys
from featkit.backbones import list_models, load_backbone
list_models()
load_backbone("resnet18", weights="random", layer="layer3", pool="max", resize="64")
load_backbone("resnet50", weights="mine.pth")
assert not {"torch", "torchvision", "timm"} & sys.modules.keys()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("spec", "options", "reason"),
    [
        ("resnet19", {}, "did you mean resnet18.*resnet152, timm"),
        ("resnet18:7", {}, "too many positional"),
        ("resnet18:layer=fc", {}, "unknown option"),
        ("timm", {}, "missing a required argument"),
        ("resnet18", {"pool": "mean"}, "unknown pool 'mean'.*avg, max, catavgmax"),
        ("resnet18", {"resize": "big"}, "resize 'big'"),
    ],
)
def test_unknown_names_and_values_are_rejected(spec, options, reason):
    with pytest.raises(SpecError, match=reason):
        load_backbone(spec, weights="random", **options)


def test_a_backbone_has_name_weights_and_digest():
    backbone = load_backbone("resnet18", weights="random:3")
    assert (backbone.name, backbone.weights, backbone.digest) == (
        "resnet18",
        "random:3 (untrained)",
        "random:3",
    )
    assert (backbone.layer, backbone.pool, backbone.trained) == ("avgpool", "avg", False)


def test_models_are_listed():
    rows = {row[0]: row[1:] for row in list_models()}
    assert rows["resnet18"] == ("512", "11,689,512", "IMAGENET1K_V1")
    assert rows["resnet101"][2] == "IMAGENET1K_V1, IMAGENET1K_V2"
    assert "timm:NAME" in rows


def test_layers_are_listed_in_order_with_their_shapes():
    layers = dict(list_layers("resnet50"))
    assert layers["conv1"] == (64, 112, 112)
    assert layers["layer3"] == layers["layer3.5"] == (1024, 14, 14)
    assert layers["layer3.0.conv1"] == (256, 28, 28)
    assert layers["avgpool"] == (2048, 1, 1)
    assert layers["fc"] == (1000,)
    names = list(layers)
    assert (
        names.index("layer3.0.relu_2")
        < names.index("layer3.0")
        < names.index("layer3.1")
        < names.index("layer3")
    )


@pytest.mark.slow
def test_every_listed_layer_can_be_extracted():
    for name, _ in list_layers("resnet18")[::6]:
        load_backbone("resnet18", weights="random", layer=name).build()


@pytest.mark.parametrize("name", ["resnet19", "timm", "resnet18:7"])
def test_listing_layers_of_an_unknown_network_is_rejected(name):
    with pytest.raises(SpecError, match="unknown backbone"):
        list_layers(name)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"featkit\[timm\]"):
        load_backbone("timm:resnet10t", weights="random")
