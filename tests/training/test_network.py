"""Frozen and trainable layers."""

import pytest
import torch

from featkit.backbones import load_backbone
from featkit.errors import SpecError
from featkit.training.config import TrainingConfig
from featkit.training.network import (
    WHOLE,
    first_trainable_block,
    frozen_output_layer,
    make_classifier,
    network_blocks,
    set_train_mode,
    trainable_state,
)

BACKBONE = load_backbone("resnet18:stem=small", weights="random")
IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)


def classifier(**settings):
    return make_classifier(BACKBONE, 3, TrainingConfig(**settings), size=(16, 16))


@pytest.mark.parametrize(
    ("unfreeze", "layer"),
    [
        ("layer4", "layer3"),
        ("layer4.1", "layer4.0"),
        ("1", "layer4.0"),
        ("2", "layer3"),
        ("layer1", "maxpool"),
        ("8", "maxpool"),
    ],
)
def test_frozen_and_trainable_layers_make_up_the_network(unfreeze, layer):
    """Frozen layers as a backbone, then trainable ones, give the embedding of the network."""
    model = classifier(unfreeze=unfreeze)
    assert frozen_output_layer(model.body.network, model.body.start) == layer
    trunk = load_backbone("resnet18:stem=small", weights="random", layer=layer, pool="none").build()
    model.eval()
    whole = BACKBONE.build()(IMAGES)
    assert torch.allclose(model.body(trunk(IMAGES)), whole, rtol=1e-4, atol=1e-5)


def test_shallow_mode_trains_the_classifier_on_embeddings():
    model = classifier(mode="shallow")
    assert frozen_output_layer(model.body.network, model.body.start) is None
    assert [name for name, value in model.named_parameters() if value.requires_grad] == [
        "fc.weight",
        "fc.bias",
    ]


@pytest.mark.parametrize(
    "settings", [{"mode": "full"}, {"mode": "scratch"}, {"mode": "shallow", "norm": "update"}]
)
def test_other_modes_train_the_whole_network(settings):
    assert classifier(**settings).body.start == WHOLE


def test_only_trainable_layers_have_gradients():
    model = classifier(unfreeze="layer4")
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    assert learning == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("fc.", "body.network.layer4."))
    }
    assert learning <= trainable_state(model).keys()


def test_norms_of_frozen_layers_stay_in_eval_mode():
    model = classifier(unfreeze="layer4")
    set_train_mode(model, TrainingConfig(unfreeze="layer4"))
    modes = {
        name: part.training
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.BatchNorm2d)
    }
    assert all(training == ("layer4" in name) for name, training in modes.items())


def test_frozen_norms_stay_in_eval_mode_in_trainable_layers():
    settings = TrainingConfig(mode="full", norm="frozen")
    model = classifier(mode="full", norm="frozen")
    set_train_mode(model, settings)
    assert not any(
        part.training for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)
    )


@pytest.mark.parametrize("unfreeze", ["layer5", "9", "0", "fc", "stem"])
def test_an_unknown_block_is_refused(unfreeze):
    with pytest.raises(SpecError, match=unfreeze):
        first_trainable_block(BACKBONE.build(), "resnet18", TrainingConfig(unfreeze=unfreeze))


def test_deep_mode_is_refused_without_blocks():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    assert network_blocks(network) == []
    with pytest.raises(SpecError, match="not divided into blocks"):
        first_trainable_block(network, "mine", TrainingConfig())
