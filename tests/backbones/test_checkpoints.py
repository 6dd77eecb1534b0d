"""Checkpoints of training programs: state dicts inside of others, prefixes, and what lies beside them."""

from __future__ import annotations

import argparse
import itertools
import logging
from collections import OrderedDict
from pathlib import PosixPath

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from featkit.backbones.state_dict import load_weights, seeded
from featkit.backbones.weights import file_weights, split_key
from featkit.embeddings.request import Request
from featkit.errors import WeightsError


class Network(nn.Module):
    """A network whose names are those of a ResNet."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 2, 3)
        self.bn1 = nn.BatchNorm2d(2)
        self.layer1 = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Sequential(nn.Conv2d(2, 2, 1)))
        self.fc = nn.Linear(2, classes)


def state_of(seed: int, classes: int = 5) -> dict[str, torch.Tensor]:
    with seeded(seed):
        return dict(Network(classes).state_dict())


STATE, OTHER = state_of(1), state_of(2)


def prefixed(prefix: str, state=STATE) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def load(path, key: str = "") -> dict[str, torch.Tensor]:
    network = Network()
    load_weights(network, path, network_name="resnet0", ignore=("fc.",), key=key)
    return {
        name: value for name, value in network.state_dict().items() if not name.startswith("fc.")
    }


def is_state(found, state) -> bool:
    return all(torch.equal(found[name], state[name]) for name in found)


PREFIXES = ["module", "model", "backbone", "_orig_mod", "encoder_q", "net", "student", "encoder"]
KEYS = ["state_dict", "model_state_dict", "model", "net", "ema", "state_dict_ema", "teacher", "x"]
BESIDE = {
    "head": {"fc2.weight": torch.ones(2), "projector.0.weight": torch.ones(3)},
    "counter": {"n_averaged": torch.tensor(3)},
    "queue": {"queue": torch.ones(2, 4), "queue_ptr": torch.zeros(1)},
    "loss": {"criterion.weight": torch.ones(5)},
    "nothing": {},
}
TRAINING = {
    "epoch": 3,
    "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    "args": argparse.Namespace(lr=0.1, out=PosixPath("/tmp/x")),
    "best_acc1": np.float64(0.9),
    "best": np.float32(0.5),
    "hyper_parameters": {"lr": 0.1},
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_combinations_of_keys_prefixes_and_extras_are_read(depth, beside, tmp_path, caplog):
    caplog.set_level(logging.INFO, "featkit")
    rng = np.random.default_rng(depth)
    for prefixes in itertools.islice(
        itertools.permutations(PREFIXES, depth), 0, None, 7**depth // 5 + 1
    ):
        prefix = "".join(f"{each}." for each in prefixes)
        content = {**prefixed(prefix), **BESIDE[beside]}
        key = str(rng.choice(KEYS))
        for saved in (content, {key: content, **TRAINING}, {"wrapper": {key: content}}):
            torch.save(saved, tmp_path / "try.pth")
            caplog.clear()
            assert is_state(load(tmp_path / "try.pth"), STATE), (prefix, key, beside)
            said = " ".join(record.getMessage() for record in caplog.records)
            for each in prefixes:
                assert each in said
            if saved is content and not prefixes and beside == "nothing":
                assert not said


@settings(max_examples=20)
@given(st.lists(st.from_regex("[a-z_][a-z0-9_]{0,8}", fullmatch=True), min_size=1, max_size=4))
def test_any_common_prefix_is_removed(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("any") / "try.safetensors"
    save_file(prefixed("".join(f"{part}." for part in parts)), path)
    assert is_state(load(path), STATE)


@pytest.mark.parametrize(
    "name",
    [
        "layer1._orig_mod.0.weight",
        "layer1._fsdp_wrapped_module.0.weight",
        "layer1._checkpoint_wrapped_module.0.weight",
    ],
)
def test_wrappers_inside_of_names_are_removed(name, tmp_path):
    torch.save(
        {
            **{k: v for k, v in STATE.items() if k != "layer1.0.weight"},
            name: STATE["layer1.0.weight"],
        },
        tmp_path / "try.pth",
    )
    assert is_state(load(tmp_path / "try.pth"), STATE)


@pytest.mark.parametrize(
    ("content", "taken", "other"),
    [
        ({"model": STATE, "ema": OTHER}, "model", "ema"),
        ({"ema": OTHER, "model": STATE}, "model", "ema"),
        ({"state_dict": STATE, "state_dict_ema": OTHER}, "state_dict", "state_dict_ema"),
        ({"student": STATE, "teacher": OTHER}, "student", "teacher"),
        ({"model": STATE, "model_ema": {"module": OTHER}}, "model", "model_ema"),
        (
            {
                "state_dict": {
                    **prefixed("module.encoder_k.", OTHER),
                    **prefixed("module.encoder_q."),
                }
            },
            "state_dict/module.encoder_q",
            "encoder_k",
        ),
    ],
)
def test_of_two_fitting_state_dicts_the_message_says_how_to_take_the_other(
    content, taken, other, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "featkit")
    path = tmp_path / "two.pth"
    torch.save(content, path)
    assert is_state(load(path), STATE)
    first, second = (record.getMessage() for record in caplog.records)
    assert f"read {taken} of two.pth" in first
    assert second.startswith("weights: ")
    named = second.partition(f"--weights {path}:")[2].split()[0]
    assert other in named
    assert is_state(load(path, named), OTHER)
    assert is_state(load(path, other), OTHER)
    with pytest.raises(
        WeightsError, match=rf"contains no state dict nowhere; it contains .*{other}"
    ):
        load(path, "nowhere")


def test_a_key_is_part_of_the_digest_and_of_recorded_requests(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": STATE, "ema": OTHER}, "two.pth")
    plain, ema = (file_weights(text, "weights", []) for text in ("two.pth", "two.pth:ema"))
    assert plain.digest != ema.digest
    assert (ema.label, ema.key, ema.path) == ("two.pth:ema", "ema", tmp_path / "two.pth")
    recorded = Request(weights="two.pth:ema").to_dict()["weights"]
    assert recorded == f"{tmp_path / 'two.pth'}:ema"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.pth", ("a.pth", "")),
        ("a.pth:ema", ("a.pth", "ema")),
        ("a.pth:state_dict/module.encoder_k", ("a.pth", "state_dict/module.encoder_k")),
        (r"C:\a.pth", (r"C:\a.pth", "")),
        (r"C:\a.pth:ema", (r"C:\a.pth", "ema")),
        ("random:3", ("random:3", "")),
        ("imagenet", ("imagenet", "")),
    ],
)
def test_a_file_and_its_key_are_separated(text, expected):
    assert split_key(text) == expected


def test_an_existing_file_with_a_colon_is_a_file(tmp_path):
    (tmp_path / "a.pth:b").write_bytes(b"1")
    text = str(tmp_path / "a.pth:b")
    assert split_key(text) == (text, "")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            prefixed("module.", state_of(1) | {"layer1.0.weight": torch.zeros(2)}),
            r"layer1.0.weight has shape 2 instead .* in module\)",
        ),
        (
            {"model": {**prefixed("backbone."), "backbone.layer1.7.weight": torch.zeros(1)}},
            r"unexpected layer1.7.weight in model/backbone",
        ),
        (
            {"features.0.weight": torch.zeros(2), "n": torch.zeros(1)},
            r"conv1.weight is missing; it has features.0.weight, n",
        ),
        (
            {name: value for name, value in prefixed("net.").items() if "bn1.bias" not in name},
            r"bn1.bias is missing in net",
        ),
    ],
)
def test_the_prefix_and_the_names_found_are_in_the_error(content, reason, tmp_path):
    torch.save(content, tmp_path / "try.pth")
    with pytest.raises(WeightsError, match=f"is not a state dict of resnet0 .*{reason}") as caught:
        load(tmp_path / "try.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "convert",
    [
        lambda weight: (weight * 10).to(torch.int8),
        lambda weight: weight.to(torch.complex64),
        lambda weight: weight.to_sparse(),
    ],
)
def test_weights_of_another_kind_of_number_are_rejected(convert, tmp_path):
    torch.save({**STATE, "conv1.weight": convert(STATE["conv1.weight"])}, tmp_path / "try.pth")
    with pytest.raises(WeightsError, match=r"try.pth"):
        load(tmp_path / "try.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read(dtype, tmp_path):
    halved = {k: v.to(dtype) if v.is_floating_point() else v for k, v in STATE.items()}
    torch.save(halved, tmp_path / "try.pth")
    found = load(tmp_path / "try.pth")
    assert all(torch.allclose(found[name], STATE[name], atol=0.01) for name in found)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            "is a Git LFS pointer",
        ),
        (b"<!DOCTYPE html>\n<html>", "is a web page"),
        (b"\n  <HTML><head>", "is a web page"),
        (b"<?xml version='1.0'?><Error>", "is an XML document"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"", "is empty"),
    ],
)
def test_what_is_saved_in_place_of_weights_is_named(content, message, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"weights{suffix} {message}"):
        load(path)


def test_a_lightning_checkpoint_is_read(tmp_path):
    content = {
        "epoch": 2,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict(**prefixed("model."), **{"criterion.weight": torch.ones(5)}),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.9)}},
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "hyper_parameters": {"lr": 0.1},
    }
    torch.save(content, tmp_path / "last.ckpt")
    assert is_state(load(tmp_path / "last.ckpt"), STATE)
