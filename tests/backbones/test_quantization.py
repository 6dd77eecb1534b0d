"""Networks in eight bits."""

from __future__ import annotations

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from featkit.backbones import load_backbone
from featkit.backbones.base import Backbone, QuantizedNetwork
from featkit.backbones.devices import INT8
from featkit.backbones.engines import open_engine
from featkit.backbones.engines.openvino import OpenVinoEngine
from featkit.backbones.quantization import quantize
from featkit.errors import MissingExtraError, SpecError, WeightsError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> Backbone:
    backbone = load_backbone("resnet18", weights="random", resize="32")
    path = tmp_path_factory.mktemp("int8") / "network.onnx"
    quantize(backbone, list(PIXELS), path)
    return replace(
        backbone, quantized=QuantizedNetwork(path, hashlib.sha256(path.read_bytes()).hexdigest())
    )


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("precision", INT8)
def test_int8_is_near_to_float32_and_a_quarter_of_its_size(precision, quantized):
    exact = open_engine(quantized)(PIXELS)
    vectors = open_engine(quantized, precision=precision)(PIXELS)
    assert (vectors.shape, vectors.dtype) == ((12, 512), np.float32)
    assert (cosine(exact, vectors) > 0.98).all()
    assert not np.allclose(exact, vectors, rtol=1e-4)
    assert quantized.quantized.path.stat().st_size < 0.27 * 4 * 11_200_000


@pytest.mark.parametrize("precision", INT8)
def test_a_batch_may_have_any_size(precision, quantized):
    engine = open_engine(quantized, precision=precision)
    whole = engine(PIXELS)
    np.testing.assert_allclose(
        np.concatenate([engine(PIXELS[:1]), engine(PIXELS[1:])]), whole, rtol=1e-5, atol=1e-6
    )


def test_a_network_that_was_not_quantized_is_refused():
    with pytest.raises(SpecError, match="resnet18 has not been quantized"):
        open_engine(load_backbone("resnet18", weights="random"), precision="int8")


def test_another_file_than_the_one_that_was_calibrated_is_refused(quantized, tmp_path):
    other = tmp_path / "network.onnx"
    other.write_bytes(quantized.quantized.path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="is not the int8 network"):
        open_engine(
            replace(quantized, quantized=QuantizedNetwork(other, quantized.quantized.digest)),
            precision="int8",
        )
    with pytest.raises(WeightsError, match="cannot read"):
        open_engine(
            replace(quantized, quantized=QuantizedNetwork(tmp_path / "gone", "0")), precision="int8"
        )


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_without_the_extra_it_is_named(package, quantized, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"{package}.quantization", raising=False)
    with pytest.raises(MissingExtraError, match=r"featkit\[int8\]"):
        quantize(quantized, list(PIXELS), tmp_path / "network.onnx")


def test_without_openvino_its_extra_is_named(quantized, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"featkit\[openvino\]"):
        open_engine(quantized, precision="int8-openvino")


def test_openvino_gives_each_thread_its_own_vectors(quantized):
    engine = open_engine(quantized, precision="int8-openvino")
    batches = [PIXELS[rows] for rows in np.random.default_rng(1).integers(0, 12, (24, 9))]
    with ThreadPoolExecutor(4) as pool:
        for batch, vectors in zip(batches, pool.map(engine, batches), strict=True):
            np.testing.assert_array_equal(vectors, engine(batch))


def test_openvino_is_refused_where_its_features_differ_or_it_cannot_run(quantized):
    data = quantized.read_quantized()
    engine = OpenVinoEngine(data, (32, 32), "the network")
    engine.check_against(open_engine(quantized, precision="int8"))
    with pytest.raises(
        SpecError,
        match=r"other features than ONNX Runtime for the network .*: use --precision int8",
    ):
        engine.check_against(lambda pixels: np.ones((len(pixels), 512), np.float32))
    with pytest.raises(SpecError, match="OpenVINO cannot run the network"):
        OpenVinoEngine(data[:100], (32, 32), "the network")
