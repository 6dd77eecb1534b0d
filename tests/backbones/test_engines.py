from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from featkit.backbones import load_backbone
from featkit.backbones.devices import pick_device
from featkit.backbones.engines import open_engine
from featkit.errors import SpecError

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_an_engine_gives_float32_and_leaves_its_input_alone():
    before = PIXELS.copy()
    PIXELS.flags.writeable = False
    vectors = open_engine(load_backbone("resnet18", weights="random"))(PIXELS)
    PIXELS.flags.writeable = True
    assert (vectors.shape, vectors.dtype) == ((3, 512), np.float32)
    np.testing.assert_array_equal(PIXELS, before)


def test_bfloat16_is_near_to_float32_and_not_the_same():
    backbone = load_backbone("resnet18", weights="random")
    exact, rough = (
        open_engine(backbone, precision=precision)(PIXELS) for precision in ("fp32", "bf16")
    )
    assert rough.dtype == np.float32
    assert (cosine(exact, rough) > 0.99).all()
    assert not np.array_equal(exact, rough)


def test_an_unknown_precision_is_refused():
    with pytest.raises(SpecError, match=r"unknown precision 'fp8'.*fp32, bf16"):
        open_engine(load_backbone("resnet18", weights="random"), precision="fp8")


def test_the_first_device_that_is_there_is_taken(monkeypatch):
    for there in ("cuda", "mps", "cpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there == "cuda")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=there: there == "mps")
        assert pick_device("auto") == there
        assert pick_device(there) == there
        assert pick_device("cpu") == "cpu"


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match="device cuda is not available: use --device"):
        pick_device("cuda")
    with pytest.raises(SpecError, match=r"unknown device 'gpu'.*auto, cpu, cuda, mps"):
        pick_device("gpu")


def test_bfloat16_leaves_the_first_convolution_and_its_weights_as_they_are():
    backbone = load_backbone("resnet18", weights="random", layer="conv1")
    exact, rough = (
        open_engine(backbone, precision=precision)(PIXELS) for precision in ("fp32", "bf16")
    )
    assert (cosine(exact, rough) > 1 - 1e-5).all()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_gives_the_same_for_batches_of_any_size():
    backbone = load_backbone("resnet18", weights="random", layer="layer1.0")
    plain, compiled = open_engine(backbone), open_engine(backbone, compiled=True)
    np.testing.assert_allclose(compiled(PIXELS), plain(PIXELS), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(compiled(PIXELS[:1]), plain(PIXELS[:1]), rtol=1e-4, atol=1e-5)
