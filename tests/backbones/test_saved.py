"""Saved networks load as backbones."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from featkit.backbones import load_backbone
from featkit.backbones.base import Preprocess
from featkit.backbones.resnet_modules import narrow
from featkit.backbones.saved import (
    NETWORK_FILE,
    NetworkDescription,
    read_description,
    save_network,
)
from featkit.backbones.state_dict import digest_state, read_state, seeded
from featkit.embeddings.request import Request
from featkit.errors import SpecError, WeightsError

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


@pytest.fixture
def saved(tmp_path):
    """Return a run directory with a narrowed network, the network and its description."""
    base = "resnet18:stem=small"
    module = load_backbone(base, weights="random:7").build()
    narrow(module, {"layer4.0.conv1": 6})
    torch.nn.init.ones_(module.layer4[0].conv1.weight)
    torch.nn.init.ones_(module.layer4[0].conv2.weight)
    directory = tmp_path / "run"
    directory.mkdir()
    preprocess = Preprocess(resize=40, crop=(32, 32), interpolation="bicubic")
    description = NetworkDescription(
        base, "resnet18-tried-1a2b", "tried out", preprocess, {"layer4.0.conv1": 6}
    )
    save_network(module, description, directory / NETWORK_FILE)
    return directory, module, description


def test_a_saved_network_loads_as_an_equal_backbone(saved):
    directory, module, description = saved
    backbone = load_backbone(str(directory))
    assert (backbone.name, backbone.weights, backbone.preprocess) == (
        "resnet18-tried-1a2b",
        "tried out",
        description.preprocess,
    )
    assert torch.equal(backbone.build()(IMAGES), module(IMAGES))
    assert backbone.trained


def test_layers_of_a_saved_network_can_be_extracted(saved):
    directory, module, _ = saved
    expected = module.layer2(module.layer1(module.relu(module.bn1(module.conv1(IMAGES))))).flatten(
        1
    )
    taken = load_backbone(str(directory / NETWORK_FILE), layer="layer2", pool="none").build()(
        IMAGES
    )
    assert torch.allclose(taken, expected, rtol=1e-5, atol=1e-6)


def test_a_moved_network_keeps_its_digest(saved, tmp_path):
    directory, *_ = saved
    before = load_backbone(str(directory))
    moved = shutil.move(directory, tmp_path / "moved")
    after = load_backbone(str(moved))
    assert (after.digest, after.name) == (before.digest, before.name)


def test_the_digest_covers_the_description(saved):
    directory, module, description = saved
    before = load_backbone(str(directory)).digest
    save_network(
        module,
        NetworkDescription(
            description.base, description.name, "tried out", Preprocess(), description.widths
        ),
        directory / NETWORK_FILE,
    )
    assert load_backbone(str(directory)).digest != before


@pytest.mark.slow
def test_loading_imports_no_torch_and_building_uses_no_pickle(saved):
    directory, *_ = saved
    code = (
        "import sys; from featkit.backbones import load_backbone;"
        f"b = load_backbone({str(directory)!r}); assert 'torch' not in sys.modules, 'torch';"
        "import pickle, torch, torchvision\n"
        "def refuse(*_, **__): raise AssertionError('pickle')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse\n"
        "print(float(b.build()(torch.ones(1, 3, 32, 32)).sum()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = load_backbone(str(directory)).build()(torch.ones(1, 3, 32, 32)).sum()
    np.testing.assert_allclose(float(done.stdout), float(expected), rtol=1e-5)


def test_a_request_stores_the_absolute_path(saved, monkeypatch):
    directory, *_ = saved
    monkeypatch.chdir(directory.parent)
    assert Request(backbone="run").to_dict()["backbone"] == str(directory)
    assert Request(backbone="resnet18").to_dict()["backbone"] == "resnet18"


def test_other_weights_are_rejected(saved):
    with pytest.raises(SpecError, match="its own weights"):
        load_backbone(str(saved[0]), weights="random")


def test_a_directory_without_a_network_is_rejected(tmp_path):
    with pytest.raises(WeightsError, match=r"contains no network\.safetensors"):
        load_backbone(str(tmp_path))


def test_a_missing_path_is_rejected(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        load_backbone(str(tmp_path / "missing"))


def test_plain_weights_are_rejected(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(WeightsError, match="not saved by featkit"):
        load_backbone(str(tmp_path / "plain.safetensors"))


@pytest.mark.parametrize("size", [0, 5, 100, 5000])
def test_a_truncated_file_is_rejected(saved, size):
    file = saved[0] / NETWORK_FILE
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(WeightsError, match="damaged"):
        load_backbone(str(saved[0])).build()


def test_a_description_survives_its_json(saved):
    assert read_description(saved[0] / NETWORK_FILE) == saved[2]


@pytest.fixture
def small_file(tmp_path):
    """Return the file of a small network with a description."""
    with seeded(3):
        module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    description = NetworkDescription(
        "resnet18", "resnet18-tried-1a2b", "tried out", Preprocess(), {"conv1": 4}, ("0123", "4567")
    )
    save_network(module, description, tmp_path / NETWORK_FILE)
    return tmp_path / NETWORK_FILE


def test_no_flipped_bit_of_a_network_is_read_as_another_one(small_file):
    content = small_file.read_bytes()
    expected = (read_description(small_file), digest_state(read_state(small_file)))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        small_file.write_bytes(changed)
        try:
            found = (read_description(small_file), digest_state(read_state(small_file)))
        except WeightsError:
            refused += 1
        else:
            # A space that pads the header, or the name of the digest itself.
            assert found == expected
    assert refused > 380


def test_a_network_without_a_digest_is_read(small_file):
    description = read_description(small_file)
    state = read_state(small_file)
    save_file(state, small_file, metadata={"featkit": description.to_json()})
    assert digest_state(read_state(small_file)) == digest_state(state)


def test_a_flipped_weight_is_an_error_when_the_network_is_built(saved):
    file = saved[0] / NETWORK_FILE
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)
    for spec, weights in ((str(saved[0]), "imagenet"), ("resnet18:stem=small", str(file))):
        backbone = load_backbone(spec, weights=weights)
        with pytest.raises(WeightsError, match="its content does not match its own digest"):
            backbone.build()


def test_a_deeply_nested_header_is_damaged(small_file):
    header = b'{"__metadata__":' + b"[" * 100_000
    small_file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match="is damaged"):
        read_description(small_file)


def test_a_network_always_has_the_same_bytes(saved, tmp_path):
    """Its digest is part of the names of features in the cache."""
    directory, module, description = saved
    expected = (directory / NETWORK_FILE).read_bytes()
    for number in range(6):
        file = tmp_path / f"{number}.safetensors"
        save_network(module, description, file)
        assert file.read_bytes() == expected
