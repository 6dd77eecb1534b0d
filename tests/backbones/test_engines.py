from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest

from featkit.backbones import load_backbone
from featkit.backbones.base import QuantizedNetwork
from featkit.backbones.engines import open_engine
from featkit.errors import SpecError

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_an_engine_returns_float32_and_does_not_change_its_input():
    before = PIXELS.copy()
    PIXELS.flags.writeable = False
    vectors = open_engine(load_backbone("resnet18", weights="random"))(PIXELS)
    PIXELS.flags.writeable = True
    assert (vectors.shape, vectors.dtype) == ((3, 512), np.float32)
    np.testing.assert_array_equal(PIXELS, before)


def test_bf16_is_close_to_fp32_but_not_equal():
    backbone = load_backbone("resnet18", weights="random")
    exact, rough = (
        open_engine(backbone, precision=precision)(PIXELS) for precision in ("fp32", "bf16")
    )
    assert rough.dtype == np.float32
    assert (cosine(exact, rough) > 0.99).all()
    assert not np.array_equal(exact, rough)


def test_an_unknown_precision_is_rejected():
    with pytest.raises(SpecError, match=r"unknown precision 'fp8'.*fp32, bf16"):
        open_engine(load_backbone("resnet18", weights="random"), precision="fp8")


def test_bf16_keeps_the_first_convolution_in_float32():
    backbone = load_backbone("resnet18", weights="random", layer="conv1")
    exact, rough = (
        open_engine(backbone, precision=precision)(PIXELS) for precision in ("fp32", "bf16")
    )
    assert (cosine(exact, rough) > 1 - 1e-5).all()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_gives_equal_features_for_any_batch_size():
    backbone = load_backbone("resnet18", weights="random", layer="layer1.0")
    plain, compiled = open_engine(backbone), open_engine(backbone, compiled=True)
    np.testing.assert_allclose(compiled(PIXELS), plain(PIXELS), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(compiled(PIXELS[:1]), plain(PIXELS[:1]), rtol=1e-4, atol=1e-5)


def test_an_int8_network_that_onnx_runtime_cannot_open_is_named_in_one_line(tmp_path):
    """A network of operators that this version of ONNX Runtime does not know."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, kind, [1]) for name in ("pixels", "y")]
    node = helper.make_node("Unheard", ["pixels"], ["y"])
    model = helper.make_model(helper.make_graph([node], "graph", ends[:1], ends[1:]))
    for number, data in enumerate((model.SerializeToString(), b"not ONNX")):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(data)
        network = QuantizedNetwork(path, hashlib.sha256(data).hexdigest())
        backbone = replace(load_backbone("resnet18", weights="random"), quantized=network)
        with pytest.raises(
            SpecError, match="ONNX Runtime cannot run the int8 network of resnet18"
        ) as error:
            open_engine(backbone, precision="int8")
        assert "\n" not in str(error.value)
        assert "--precision fp32" in str(error.value)
