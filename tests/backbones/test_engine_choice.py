"""Tests of the choice between torch and ONNX Runtime for float32 networks."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featkit.backbones import load_backbone
from featkit.backbones.base import Backbone
from featkit.backbones.engines import Workload, choice, open_engine
from featkit.backbones.engines.choice import EngineChoice
from featkit.backbones.engines.machine import engine_folder
from featkit.errors import SpecError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LONG = Workload(images=1_000_000)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def small(seed: int = 0) -> Backbone:
    return load_backbone("resnet18", weights=f"random:{seed}", layer="layer1.0", resize="32x32")


@pytest.fixture(scope="module")
def converted() -> bytes:
    """Return the small network as an ONNX file, which takes seconds to make."""
    return choice.convert(small())


@pytest.fixture
def quick(converted: bytes, monkeypatch: pytest.MonkeyPatch) -> list[Backbone]:
    """Convert the small network at no cost; return the list of networks that were converted."""
    calls: list[Backbone] = []

    def convert(backbone: Backbone) -> bytes:
        calls.append(backbone)
        return converted

    monkeypatch.setattr(choice, "convert", convert)
    return calls


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Replace the measured rates by those of the dictionary, 1 for torch and 2 for ONNX Runtime."""
    given = {"torch": 1.0, "onnxruntime": 2.0}
    examine = choice.examine

    def measured(*args: object) -> tuple[EngineChoice, bytes]:
        found, data = examine(*args)
        engine = max(given, key=given.__getitem__) if data else found.engine
        return replace(found, engine=engine), data

    monkeypatch.setattr(choice, "examine", measured)
    monkeypatch.setattr(choice, "MEASURED_FROM", 0.0)
    return given


def choice_files() -> list[Path]:
    return sorted(engine_folder().glob("*"))


def test_onnxruntime_agrees_with_torch_and_is_converted_once(quick):
    expected = open_engine(small())(PIXELS)
    for _ in range(2):
        engine = open_engine(small(), engine="onnxruntime")
        assert engine.name == "onnxruntime"
        assert choice.relative_distance(engine(PIXELS), expected) < choice.AGREEMENT
    assert len(quick) == 1
    assert [path.suffix for path in choice_files()] == [".json", ".onnx"]
    (known,) = choice.remembered_choices()
    assert known.network == "resnet18"
    assert known.torch_rate > 0
    assert known.onnxruntime_rate > 0


def test_auto_measures_nothing_for_few_images(quick):
    for images in (1, 499, 500):
        engine = open_engine(small(), engine="auto", workload=Workload(images=images))
        assert engine.name == "torch"
    assert not quick
    assert not choice_files()


def test_auto_takes_the_faster_engine_and_remembers_it(quick, rates):
    assert open_engine(small(), engine="auto", workload=LONG).name == "onnxruntime"
    # Also for one image, now that it is known.
    assert open_engine(small(), engine="auto").name == "onnxruntime"
    assert len(quick) == 1


def test_no_converted_network_is_kept_where_torch_is_faster(quick, rates):
    rates["torch"] = 3.0
    for _ in range(2):
        assert open_engine(small(), engine="auto", workload=LONG).name == "torch"
    assert len(quick) == 1
    assert [path.suffix for path in choice_files()] == [".json"]
    # A user may still ask for it.
    assert open_engine(small(), engine="onnxruntime").name == "onnxruntime"
    assert open_engine(small(), engine="auto", workload=LONG).name == "torch"


def test_another_network_has_a_choice_of_its_own(quick, rates):
    open_engine(small(), engine="auto", workload=LONG)
    assert open_engine(small(1), engine="auto").name == "torch"
    larger = load_backbone("resnet18", weights="random:0", layer="layer1.0", resize="48x48")
    assert open_engine(larger, engine="auto").name == "torch"


def test_onnxruntime_is_refused_where_features_differ(quick, rates):
    """The converted network is that of other weights."""
    with pytest.raises(
        SpecError,
        match=r"features of resnet18 differ from those of torch by .*; --engine torch runs it",
    ):
        open_engine(small(1), engine="onnxruntime")
    assert open_engine(small(1), engine="auto", workload=LONG).name == "torch"
    (known,) = choice.remembered_choices()
    assert "features of resnet18 differ from those of torch by" in str(known)


def test_a_network_that_cannot_be_converted_runs_in_torch(rates, monkeypatch):
    def convert(_: Backbone) -> bytes:
        raise SpecError("resnet18 cannot be exported to ONNX (no such operator)")

    monkeypatch.setattr(choice, "convert", convert)
    assert open_engine(small(), engine="auto", workload=LONG).name == "torch"
    assert "no such operator" in str(choice.remembered_choices()[0])
    with pytest.raises(SpecError, match=r"no such operator.*; --engine torch runs it"):
        open_engine(small(), engine="onnxruntime")


def test_a_damaged_network_is_converted_again(quick, rates, caplog):
    open_engine(small(), engine="auto", workload=LONG)
    (network,) = engine_folder().glob("*.onnx")
    data = bytearray(network.read_bytes())
    data[len(data) // 2] ^= 1
    network.write_bytes(data)
    assert open_engine(small(), engine="auto").name == "torch"
    assert "it was damaged, and was removed" in caplog.text
    assert open_engine(small(), engine="auto", workload=LONG).name == "onnxruntime"
    assert len(quick) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"{}", b"[" * 100_000, b"null", b'{"engine": "torch"}'],
    ids=["empty", "no text", "list", "object", "deep", "null", "incomplete"],
)
def test_a_damaged_choice_is_made_again(content, quick, rates, caplog):
    open_engine(small(), engine="auto", workload=LONG)
    (file,) = engine_folder().glob("*.json")
    file.write_bytes(content)
    assert open_engine(small(), engine="auto").name == "torch"
    assert "is not used" in caplog.text
    assert open_engine(small(), engine="auto", workload=LONG).name == "onnxruntime"


@pytest.mark.parametrize(
    "change", [{"engine": "fast"}, {"torch_rate": "1"}, {"sha256": None}, {"more": 1}]
)
def test_a_choice_with_other_values_is_refused(change):
    values = asdict(EngineChoice("resnet18", "torch", 1.0, 2.0, 0.0))
    assert EngineChoice.from_dict(values).engine == "torch"
    with pytest.raises((TypeError, ValueError)):
        EngineChoice.from_dict({**values, **change})


def test_weights_that_were_replaced_meanwhile_are_not_remembered(quick, rates, tmp_path):
    file = tmp_path / "weights.pth"
    network = load_backbone("resnet18", weights="random:0", layer="fc").build()
    torch.save(network.state_dict(), file)
    options = {"weights": file, "layer": "layer1.0", "resize": "32x32"}
    backbone = load_backbone("resnet18", **options)
    state = torch.load(file, weights_only=True)
    (later,) = (name for name in state if name.endswith("layer4.1.conv1.weight"))
    state[later] += 1  # not part of the converted network
    torch.save(state, file)
    assert open_engine(backbone, engine="onnxruntime").name == "onnxruntime"
    assert not choice_files()
    open_engine(load_backbone("resnet18", **options), engine="onnxruntime")
    assert choice_files()


def test_a_folder_that_cannot_be_written_is_a_warning(quick, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEATKIT_HOME", str(tmp_path / "file"))
    assert open_engine(small(), engine="onnxruntime").name == "onnxruntime"
    assert "the faster engine is not remembered" in caplog.text


def test_without_the_extra_auto_is_torch(rates, monkeypatch):
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    assert open_engine(small(), engine="auto", workload=LONG).name == "torch"


def test_networks_that_were_not_used_for_long_are_removed(quick, rates):
    folder = engine_folder()
    folder.mkdir(parents=True)
    for number in range(10):
        for suffix in (".json", ".onnx"):
            path = folder / f"{number}{suffix}"
            path.write_text("{}")
            os.utime(path, (number, number))
    open_engine(small(), engine="onnxruntime")
    kept = sorted(path.stem for path in folder.glob("*.onnx"))
    assert len(kept) == 8
    assert kept[:7] == [str(number) for number in range(3, 10)]
    assert kept == sorted(path.stem for path in folder.glob("*.json"))


@pytest.mark.parametrize(
    ("options", "what"),
    [({"precision": "bf16"}, "bf16 on cpu"), ({"compiled": True}, "compiled networks")],
)
def test_onnxruntime_is_for_plain_float32_networks(options, what):
    with pytest.raises(SpecError, match=f"runs float32 networks on a CPU, not {what}"):
        open_engine(small(), engine="onnxruntime", **options)


def test_an_unknown_engine_is_refused():
    with pytest.raises(SpecError, match="unknown engine 'tensorrt'"):
        open_engine(small(), engine="tensorrt")


def test_the_measured_rates_are_logged(quick, rates, caplog):
    caplog.set_level(logging.INFO)
    open_engine(small(), engine="auto", workload=LONG)
    assert "comparing torch and ONNX Runtime for resnet18" in caplog.text
    assert "resnet18: onnxruntime (torch " in caplog.text


def test_a_remembered_network_runs_without_torch(quick, rates, tmp_path):
    """As `predict` of one image does."""
    open_engine(small(), engine="onnxruntime")
    file = tmp_path / "pixels.npy"
    np.save(file, PIXELS)
    code = (
        "import json, sys, numpy\n"
        "from featkit.backbones import load_backbone\n"
        "from featkit.backbones.engines import open_engine\n"
        "backbone = load_backbone('resnet18', weights='random:0', layer='layer1.0', resize='32x32')\n"
        f"features = open_engine(backbone, device='auto', engine='auto')(numpy.load({str(file)!r}))\n"
        "loaded = [name for name in ('torch', 'onnx') if name in sys.modules]\n"
        "print(json.dumps([features.shape, loaded]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shape, loaded = json.loads(done.stdout)
    assert shape == [3, 64]
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert loaded == []
