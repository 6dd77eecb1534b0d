"""Variants of ResNets."""

import subprocess
import sys

import pytest
import torch
import torchvision
from torchvision.models import resnet18, resnet50
from torchvision.models.feature_extraction import NodePathTracer

from featkit.backbones import load_backbone
from featkit.backbones.layers import LayerTracer
from featkit.backbones.resnet_modules import (
    BLOCKS,
    is_basic_block,
    is_block,
    is_resnet,
    make_resnet,
    narrow,
)
from featkit.errors import SpecError, WeightsError

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def plain(network="resnet18", **changed):
    torch.manual_seed(0)
    return make_resnet(
        network, **{"classes": 5, "residual": True, "norm": True, "small": False, **changed}
    ).eval()


DEEP = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet34", "resnet101")]


@pytest.mark.parametrize("network", ["resnet18", "resnet50", *DEEP])
def test_weights_and_outputs_equal_those_of_torchvision(network):
    """Bit by bit, and in the same order, so that random networks and digests stay the same."""
    ours = plain(network)
    after_ours = torch.get_rng_state()
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(network, weights=None, num_classes=5).eval()
    assert torch.equal(after_ours, torch.get_rng_state())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert torch.equal(ours(IMAGES), theirs(IMAGES))
    assert torch.equal(ours.train()(IMAGES), theirs.train()(IMAGES))


@pytest.mark.parametrize(
    "network",
    ["resnet18", "resnet50", "shufflenet_v2_x0_5"],
)
def test_operations_have_the_names_of_torchvision(network):
    with torch.device("meta"):
        module = torchvision.models.get_model(network, weights=None).eval()
    theirs = NodePathTracer()
    theirs.trace(module)
    ours = LayerTracer()
    ours.trace(plain(network) if network in BLOCKS else module)
    assert list(ours.paths.values()) == list(theirs.node_to_qualname.values())


@pytest.mark.parametrize(("make", "basic"), [(resnet18, True), (resnet50, False)])
def test_torchvisions_own_networks_are_resnets_too(make, basic):
    """A plug-in may return one."""
    module = make()
    assert is_resnet(module)
    assert is_block(module.layer1[0])
    assert is_basic_block(module.layer1[0]) is basic
    assert not is_block(module)
    assert not is_resnet(module.layer1[0])


def test_networks_are_built_without_torchvision():
    code = (
        "import sys, torch\n"
        "from featkit.backbones import load_backbone\n"
        "from featkit.backbones.engines import open_engine\n"
        "open_engine(load_backbone('resnet18', weights='random', layer='layer1'))\n"
        "import featkit.backbones.explain\n"
        "assert not {'torchvision', 'torch._dynamo'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("network", BLOCKS)
def test_blocks_of_a_variant_equal_those_of_torchvision(network):
    """Except for the convolutions of skip connections."""
    ours = plain(network, residual=False).state_dict()
    theirs = plain(network).state_dict()
    assert ours.keys() == {name for name in theirs if "downsample" not in name}
    assert all(ours[name].shape == theirs[name].shape for name in ours)


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_a_block_without_skip_connection_returns_its_branch_only(network):
    """If the last BatchNorm of the branch is zero, the output is zero."""
    with_skips, without = plain(network), plain(network, residual=False)
    for module in (with_skips, without):
        last = module.layer4[-1]
        norm = last.bn2 if network == "resnet18" else last.bn3
        torch.nn.init.zeros_(norm.weight)
    features = torch.nn.Sequential(*list(without.children())[:-2])(IMAGES)
    assert features.abs().max() == 0
    assert torch.nn.Sequential(*list(with_skips.children())[:-2])(IMAGES).abs().max() > 0


def test_without_norm_there_is_no_batchnorm():
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in plain(norm=False).modules())


def test_the_small_stem_does_not_downsample():
    module = plain(small=True)
    assert module.maxpool(module.conv1(IMAGES)).shape == (2, 64, 32, 32)


def test_options_appear_in_the_name_and_set_the_preprocessing():
    backbone = load_backbone("resnet18:norm=none,stem=small,residual=true", weights="random")
    assert backbone.name == "resnet18:norm=none,stem=small"
    assert (backbone.preprocess.resize, backbone.preprocess.crop) == (32, (32, 32))
    assert backbone.build()(IMAGES).shape == (2, 512)


def test_an_unknown_option_value_is_rejected():
    with pytest.raises(SpecError, match=r"stem of resnet18 'tiny'.*known: imagenet, small"):
        load_backbone("resnet18:stem=tiny", weights="random")


@pytest.mark.parametrize(("make", "names"), [(resnet18, ["conv1"]), (resnet50, ["conv1", "conv2"])])
def test_inner_convolutions_can_be_narrowed(make, names):
    """The block still has the same numbers of input and output channels."""
    module = make(num_classes=5).eval()
    narrow(module, {f"layer2.1.{name}": 3 + place for place, name in enumerate(names)})
    block = module.layer2[1]
    assert [getattr(block, name).out_channels for name in names] == [3, 4][: len(names)]
    assert module(IMAGES).shape == (2, 5)


@pytest.mark.parametrize(
    "name", ["layer1.0.conv2", "layer9.0.conv1", "conv1", "fc", "layer1.0.bn1", "layer1.0.conv"]
)
def test_other_convolutions_cannot_be_narrowed(name):
    with pytest.raises(WeightsError, match="could have 3 channels"):
        narrow(plain(), {name: 3})


def test_convolutions_cannot_be_widened():
    with pytest.raises(WeightsError, match="65 channels"):
        narrow(plain(), {"layer1.0.conv1": 65})
