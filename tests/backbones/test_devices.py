from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from featkit.backbones import load_backbone
from featkit.backbones.devices import pick_device, resolve_precision
from featkit.backbones.engines import open_engine
from featkit.errors import SpecError


def test_auto_picks_the_first_available_device(monkeypatch):
    monkeypatch.setattr("featkit.backbones.devices._may_have_gpu", lambda: True)
    for there in ("cuda", "mps", "cpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there == "cuda")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=there: there == "mps")
        assert pick_device("auto") == there
        assert pick_device(there) == there
        assert pick_device("cpu") == "cpu"


def test_without_a_driver_of_a_gpu_torch_is_not_imported():
    code = """
import sys
import featkit.backbones.devices as devices
devices._may_have_gpu = lambda: False
assert devices.pick_device("auto") == "cpu"
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unavailable_device_is_rejected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match="device cuda is not available: use --device"):
        pick_device("cuda")
    with pytest.raises(SpecError, match=r"unknown device 'gpu'.*auto, cpu, cuda, mps"):
        pick_device("gpu")


def test_auto_precision_is_one_that_every_device_supports():
    assert resolve_precision("auto", "mps") == "fp32"
    assert resolve_precision("auto", "cpu") in ("fp32", "bf16")
    assert resolve_precision("int8") == "int8"


@pytest.mark.parametrize(
    ("flags", "precision", "warns"),
    [
        ({"avx2"}, "bf16", True),
        ({"avx2"}, "fp32", False),
        ({"avx2"}, "auto", False),
        ({"avx512_bf16"}, "bf16", False),
        ({"avx512_bf16"}, "auto", False),
        (set(), "bf16", False),
    ],
)
def test_bf16_without_instructions_for_it_is_a_warning(
    flags, precision, warns, monkeypatch, caplog
):
    monkeypatch.setattr("featkit.backbones.devices.cpu_flags", lambda: flags)
    open_engine(load_backbone("resnet18", weights="random"), precision=precision, device="cpu")
    assert ("no instructions for bf16, which is up to 8 times slower" in caplog.text) == warns


def test_importing_engines_imports_no_framework():
    code = """
import sys
import featkit.backbones.engines
frameworks = {"torch", "onnx", "onnxruntime", "openvino"}
assert not frameworks & sys.modules.keys(), frameworks & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
