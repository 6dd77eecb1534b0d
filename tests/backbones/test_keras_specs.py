"""Names, recipes and errors of networks in Keras, without TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from featkit.backbones import load_backbone
from featkit.backbones.catalog import list_layers, list_models
from featkit.backbones.engines import open_engine
from featkit.backbones.keras import keras_spec
from featkit.backbones.saved import (
    NetworkDescription,
    describe_derived,
    images_trained_on,
    is_path,
    network_file,
    save_network,
    torch_spec,
)
from featkit.embeddings.request import Request
from featkit.errors import MissingExtraError, SpecError, WeightsError


@pytest.fixture
def saved(tmp_path):
    """Return the path of a saved network that was trained on one image."""
    base = load_backbone("resnet18", weights="random")
    description = NetworkDescription(
        "resnet18", "mine", "mine", base.preprocess, trained_on=("0123456789abcdef",)
    )
    save_network(base.build(), description, tmp_path / "network.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("ours", "keras"),
    [("resnet50", "keras:resnet50"), ("resnet18:stem=small", "keras:resnet18,stem=small")],
)
def test_names_are_converted_both_ways(ours, keras):
    assert keras_spec(ours) == keras
    assert torch_spec(keras) == ours
    assert torch_spec(ours) == ours


def test_the_recipe_names_the_framework_and_nothing_else_differs():
    ours = load_backbone("resnet18:stem=small", weights="random:3", layer="layer2", pool="max")
    keras = load_backbone(
        "keras:resnet18,stem=small", weights="random:3", layer="layer2", pool="max"
    )
    assert keras.name == "keras:resnet18,stem=small"
    for field in ("weights", "digest", "layer", "pool", "preprocess"):
        assert getattr(keras, field) == getattr(ours, field)
    assert (ours.framework, keras.framework) == ("torch", "keras")
    state, other = ours.build().state_dict(), keras.build().state_dict()
    assert all(torch.equal(value, other[name]) for name, value in state.items())


def test_a_saved_network_runs_in_both_frameworks_and_keeps_its_training_images(saved):
    spec = f"keras:{saved}"
    assert is_path(spec)
    assert network_file(spec) == saved / "network.safetensors"
    backbone = load_backbone(spec)
    assert (backbone.framework, backbone.name) == ("keras", "keras:mine")
    assert backbone.digest == load_backbone(str(saved)).digest
    assert images_trained_on(spec) == {"0123456789abcdef"}
    request = Request(data="", backbone=spec)
    assert request.to_dict()["backbone"] == f"keras:{saved.resolve()}"


def test_descriptions_of_saved_networks_name_no_framework(saved):
    base = load_backbone("keras:resnet18,stem=small", weights="random")
    description = describe_derived(base, "keras:resnet18,stem=small", "new", "new")
    assert description.base == "resnet18:stem=small"
    description = describe_derived(load_backbone(f"keras:{saved}"), f"keras:{saved}", "new", "new")
    assert description.base == "resnet18"
    assert description.trained_on == ("0123456789abcdef",)


def test_networks_in_keras_are_listed_with_their_layers():
    names = [row[0] for row in list_models()]
    assert {"keras:NAME", "keras:applications/resnet50", "keras:applications/resnet50v2"} <= {
        *names
    }
    assert list_layers("keras:resnet18") == list_layers("resnet18")


def test_precision_is_float32_or_int8():
    assert Request(backbone="keras:resnet18").for_device("cpu").precision == "fp32"
    assert (
        Request(backbone="keras:resnet18", precision="int8").for_device("cpu").precision == "int8"
    )
    with pytest.raises(SpecError, match="float32 or int8: use --precision fp32"):
        Request(backbone="keras:resnet18", precision="bf16").for_device("cpu")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("keras:resnet19", {}, "unknown network of keras 'resnet19': did you mean resnet18"),
        ("keras:applications/vgg16", {}, "unknown network of keras 'applications/vgg16'"),
        ("keras:applications/resnet50,stem=small", {}, "has no options"),
        ("keras:resnet18,stem=big", {}, "unknown stem of resnet18 'big'"),
        ("keras:nowhere/run", {}, "no such file or directory"),
        ("keras:applications/resnet50", {"weights": "x.h5"}, r"x\.h5 cannot be read"),
        ("keras:applications/resnet50", {"weights": "best"}, "an HDF5 file of Keras"),
    ],
)
def test_mistakes_are_one_line(spec, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SpecError, WeightsError), match=message) as raised:
        load_backbone(spec, **options)
    assert "\n" not in str(raised.value)


def test_a_saved_network_of_another_kind_is_refused(tmp_path):
    description = NetworkDescription(
        "timm:resnet10t", "mine", "mine", load_backbone("resnet18", weights="random").preprocess
    )
    save_network(torch.nn.Linear(2, 2), description, tmp_path / "network.safetensors")
    pytest.importorskip("timm")
    with pytest.raises(SpecError, match="cannot be converted to Keras: remove keras:"):
        load_backbone(f"keras:{tmp_path}")


@pytest.mark.parametrize(
    ("module", "package"), [("tensorflow", "tensorflow-cpu"), ("keras", "keras")]
)
def test_a_missing_package_names_the_extra(module, package, monkeypatch):
    for name in ("tensorflow", "keras"):
        monkeypatch.setitem(sys.modules, name, None if name == module else sys)
    backbone = load_backbone("keras:resnet18", weights="random")
    with pytest.raises(
        MissingExtraError, match=rf"{package} is not installed.*featkit\[tensorflow\]"
    ):
        open_engine(backbone)


def test_an_unknown_back_end_is_refused(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "mxnet")
    with pytest.raises(SpecError, match=r"unknown KERAS_BACKEND 'mxnet'.*tensorflow, torch, jax"):
        open_engine(load_backbone("keras:resnet18", weights="random"))


def test_an_engine_of_keras_refuses_other_networks():
    backbone = replace(load_backbone("resnet18", weights="random"), framework="keras")
    with pytest.raises(SpecError, match="no network of Keras"):
        open_engine(backbone)


_NEVER_IMPORTED = """
import sys
import featkit, featkit.api
from click.testing import CliRunner
from featkit.cli import main
from featkit.cli.main import COMMANDS
for command in COMMANDS:
    done = CliRunner().invoke(main, [command, "--help"])
    assert done.exit_code == 0, (command, done.output)
small = ["--data", "digits", "--limit", "train=40,test=20", "--resize", "16", "--weights", "random"]
for arguments in (["models"], ["models", "--layers", "keras:resnet18"],
                  ["fit", *small, "--cache", "cache", "--out", "runs"],
                  ["finetune", *small, "--mode", "full", "--epochs", "1", "--cache", "cache", "--out", "runs"]):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, (arguments, done.output)
    assert not {"keras", "tensorflow", "jax"} & set(sys.modules), arguments
"""


def test_no_other_command_imports_tensorflow(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _NEVER_IMPORTED], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
