from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from featkit.backbones.devices import pick_device, resolve_precision
from featkit.errors import SpecError


def test_auto_picks_the_first_available_device(monkeypatch):
    for there in ("cuda", "mps", "cpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there == "cuda")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=there: there == "mps")
        assert pick_device("auto") == there
        assert pick_device(there) == there
        assert pick_device("cpu") == "cpu"


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


def test_importing_engines_imports_no_framework():
    code = """
import sys
import featkit.backbones.engines
frameworks = {"torch", "onnx", "onnxruntime", "openvino"}
assert not frameworks & sys.modules.keys(), frameworks & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
