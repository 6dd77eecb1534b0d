"""Variants of ResNets."""

import pytest
import torch
from torchvision.models import resnet18, resnet50

from featkit.backbones import load_backbone
from featkit.backbones.resnet_modules import BLOCKS, make_resnet, narrow
from featkit.errors import SpecError, WeightsError

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def plain(network="resnet18", **changed):
    torch.manual_seed(0)
    return make_resnet(
        network, **{"classes": 5, "residual": True, "norm": True, "small": False, **changed}
    ).eval()


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
