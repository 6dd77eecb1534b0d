from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from featkit.backbones import load_backbone
from featkit.backbones.state_dict import digest_state, read_state, seeded
from featkit.errors import WeightsError


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    with seeded(5):
        return torchvision.models.resnet18().state_dict()


@pytest.fixture
def saved(tmp_path, state) -> Path:
    torch.save(state, tmp_path / "good.pth")
    return tmp_path / "good.pth"


def build(path: Path, name: str = "resnet18", **options) -> torch.nn.Module:
    return load_backbone(name, weights=str(path), **options).build()


def same(network: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    own = network.state_dict()
    return all(torch.equal(own[key], state[key]) for key in own)


def without(state, *keys):
    return {key: value for key, value in state.items() if not key.endswith(keys)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: without(state, "num_batches_tracked"),
        lambda state: without(state, "fc.weight", "fc.bias"),
        lambda state: {**state, "fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)},
        lambda state: {
            **without(state, "fc.weight", "fc.bias"),
            "fc.1.weight": torch.zeros(7, 512),
        },
    ],
)
def test_wrapped_state_dicts_are_unwrapped(wrap, state, tmp_path):
    torch.save(wrap(state), tmp_path / "wrapped.pth")
    assert same(build(tmp_path / "wrapped.pth"), state)


def test_safetensors_and_old_torch_files_are_read(state, tmp_path):
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(build(tmp_path / "a.safetensors"), state)
    assert same(build(tmp_path / "old.pth"), state)


def test_the_classifier_has_the_width_of_the_file(state, tmp_path):
    torch.save(
        {**state, "fc.weight": torch.ones(7, 512), "fc.bias": torch.zeros(7)},
        tmp_path / "seven.pth",
    )
    network = build(tmp_path / "seven.pth", layer="fc")
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_a_missing_classifier_is_rejected_if_it_is_needed(state, tmp_path):
    torch.save(without(state, "fc.weight"), tmp_path / "headless.pth")
    with pytest.raises(
        WeightsError, match=r"headless.pth is not a state dict of resnet18 \(fc.weight is missing\)"
    ):
        build(tmp_path / "headless.pth", layer="fc")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet34", r"layer1.2.conv1.weight is missing"),
        ("resnet50", r"64x64x3x3 instead of 64x64x1x1"),
    ],
)
def test_weights_of_another_network_are_rejected(name, reason, saved):
    with pytest.raises(WeightsError, match=f"good.pth is not a state dict of {name}.*{reason}"):
        build(saved, name)


def test_unexpected_tensors_are_rejected(state, tmp_path):
    torch.save({**state, "layer1.2.conv1.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(WeightsError, match=r"unexpected layer1.2.conv1.weight"):
        build(tmp_path / "more.pth")


class Code:
    """An object that creates a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("torchs_own", [True, False])
def test_a_pickle_with_code_is_rejected_and_not_executed(
    protocol, torchs_own, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    if torchs_own:
        torch.save({"fc.weight": Code()}, path, pickle_protocol=max(protocol, 2))
    else:
        path.write_bytes(pickle.dumps({"fc.weight": Code()}, protocol=protocol))
    with pytest.raises(WeightsError, match=r"evil.pth contains .*code.* and is refused") as caught:
        build(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_the_error_for_a_pickled_network_names_its_class(tmp_path):
    torch.save(torch.nn.ReLU(), tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match=r"code \(torch.nn.modules.activation.ReLU\)"):
        build(tmp_path / "whole.pth")


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"<html>not found</html>",
        lambda content: b"hello, world",
        lambda content: b"PK\x03\x04" + bytes(100),
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content[1:],
        flipped,
    ],
)
def test_the_error_for_a_damaged_file_names_it(damage, suffix, saved, tmp_path):
    (tmp_path / f"bad{suffix}").write_bytes(damage(saved.read_bytes()))
    with pytest.raises(WeightsError, match=f"bad{suffix}") as caught:
        build(tmp_path / f"bad{suffix}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [[1, 2], {}, {"epoch": 1}, {1: torch.zeros(1)}, torch.zeros(3), {"state_dict": {"a": 1}}],
)
def test_a_file_without_a_state_dict_is_rejected(value, tmp_path):
    torch.save(value, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="contains no state dict"):
        build(tmp_path / "other.pth")


def test_the_digest_depends_on_names_types_and_values(state):
    first = {"a": torch.zeros(2), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.tensor(3)}
    assert digest_state(first) == digest_state(dict(reversed(first.items())))
    others = [
        {**first, "a": torch.ones(2)},
        {**first, "a": torch.zeros(2, 1)},
        {**first, "b": torch.ones(2)},
        state,
    ]
    assert len({digest_state(each) for each in [first, *others]}) == 5


def test_seeding_restores_the_global_random_state():
    before = torch.random.get_rng_state()
    with seeded(3):
        first = torch.rand(4)
    with seeded(3):
        assert torch.equal(first, torch.rand(4))
    with seeded(4):
        assert not torch.equal(first, torch.rand(4))
    assert torch.equal(before, torch.random.get_rng_state())


def test_tensors_are_read_to_the_cpu_by_name(saved, state):
    read = read_state(saved)
    assert read.keys() == state.keys()
    assert {value.device.type for value in read.values()} == {"cpu"}
