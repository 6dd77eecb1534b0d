"""Quantization to int8, and the engines that run the result."""

from __future__ import annotations

import copy
import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from featkit.backbones import load_backbone
from featkit.backbones.base import Backbone, QuantizedNetwork
from featkit.backbones.devices import INT8
from featkit.backbones.engines import open_engine
from featkit.backbones.engines.openvino import OpenVinoEngine
from featkit.backbones.quantization import (
    correct_biases,
    layers_with_weights,
    quantize,
    rounded_input,
    rounded_weight,
)
from featkit.backbones.state_dict import seeded
from featkit.errors import MissingExtraError, SpecError, WeightsError

pytestmark = pytest.mark.slow

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
def test_int8_is_close_to_float32_and_a_quarter_of_its_size(precision, quantized):
    exact = open_engine(quantized)(PIXELS)
    vectors = open_engine(quantized, precision=precision)(PIXELS)
    assert (vectors.shape, vectors.dtype) == ((12, 512), np.float32)
    assert (cosine(exact, vectors) > 0.98).all()
    assert not np.allclose(exact, vectors, rtol=1e-4)
    assert quantized.quantized.path.stat().st_size < 0.27 * 4 * 11_200_000


@pytest.mark.parametrize("precision", INT8)
def test_int8_accepts_any_batch_size(precision, quantized):
    engine = open_engine(quantized, precision=precision)
    whole = engine(PIXELS)
    np.testing.assert_allclose(
        np.concatenate([engine(PIXELS[:1]), engine(PIXELS[1:])]), whole, rtol=1e-5, atol=1e-6
    )


def test_a_network_that_was_not_quantized_is_rejected():
    with pytest.raises(SpecError, match="resnet18 has not been quantized"):
        open_engine(load_backbone("resnet18", weights="random"), precision="int8")


def test_a_changed_or_missing_int8_file_is_rejected(quantized, tmp_path):
    other = tmp_path / "network.onnx"
    other.write_bytes(quantized.quantized.path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="is not the int8 network"):
        open_engine(
            replace(quantized, quantized=QuantizedNetwork(other, quantized.quantized.digest)),
            precision="int8",
        )
    with pytest.raises(WeightsError, match="cannot read"):
        open_engine(
            replace(quantized, quantized=QuantizedNetwork(tmp_path / "missing", "0")),
            precision="int8",
        )


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_a_missing_int8_extra_is_named(package, quantized, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"{package}.quantization", raising=False)
    with pytest.raises(MissingExtraError, match=r"featkit\[int8\]"):
        quantize(quantized, list(PIXELS), tmp_path / "network.onnx")


def test_a_missing_openvino_extra_is_named(quantized, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"featkit\[openvino\]"):
        open_engine(quantized, precision="int8-openvino")


def test_openvino_is_thread_safe(quantized):
    engine = open_engine(quantized, precision="int8-openvino")
    batches = [PIXELS[rows] for rows in np.random.default_rng(1).integers(0, 12, (24, 9))]
    with ThreadPoolExecutor(4) as pool:
        for batch, vectors in zip(batches, pool.map(engine, batches), strict=True):
            np.testing.assert_array_equal(vectors, engine(batch))


def test_openvino_is_rejected_if_its_features_differ_or_it_cannot_run(quantized):
    data = quantized.read_quantized()
    engine = OpenVinoEngine(data, (32, 32), "the network")
    engine.check_against(open_engine(quantized, precision="int8"))
    with pytest.raises(
        SpecError,
        match=r"features of OpenVINO and ONNX Runtime differ for the network .*: use --precision int8",
    ):
        engine.check_against(lambda pixels: np.ones((len(pixels), 512), np.float32))
    with pytest.raises(SpecError, match="OpenVINO cannot run the network"):
        OpenVinoEngine(data[:100], (32, 32), "the network")


@pytest.fixture
def network():
    with seeded(0):
        layers = [
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3, groups=2, bias=False),
        ]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(54, 5)).eval().requires_grad_(False)


@pytest.mark.parametrize(("bits", "largest"), [(7, 64), (8, 127)])
def test_rounding_error_is_at_most_half_a_step(bits, largest):
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    step = weight.abs().flatten(1).amax(1) / largest
    assert ((rounded_weight(weight, bits) - weight).abs().flatten(1).amax(1) <= 0.5001 * step).all()
    values = torch.rand(50, generator=torch.Generator().manual_seed(1)) - 0.2
    step = (values.max() - values.min()) / 255
    assert (rounded_input(values) - values).abs().max() <= 0.5001 * step
    assert rounded_weight(torch.zeros(2, 3)).eq(0).all()


def test_bias_correction_restores_the_mean_output_of_every_layer(network):
    """With rounded weights, on the inputs of the layers in the float network."""
    images = torch.randn(12, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    exact_layers = layers_with_weights(copy.deepcopy(network))
    inputs = _inputs_of_layers(network, images)
    layers = layers_with_weights(network)
    correct_biases(network, list(layers.values()), images.split(5))
    for name, corrected in layers.items():
        corrected.weight.data = rounded_weight(corrected.weight)
        expected = _channel_means(exact_layers[name](inputs[name]))
        uncorrected = _channel_means(_with_rounded_weight(exact_layers[name])(inputs[name]))
        found = _channel_means(corrected(inputs[name]))
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
        assert (uncorrected - expected).abs().max() > 1e-5


def _inputs_of_layers(network, images):
    """Return the input of each layer with weights, by name."""
    inputs = {}
    handles = []
    for name, layer in layers_with_weights(network).items():

        def record(_, args, name=name):
            inputs[name] = args[0]

        handles.append(layer.register_forward_pre_hook(record))
    network(images)
    for handle in handles:
        handle.remove()
    return inputs


def _channel_means(output):
    return output.movedim(1, 0).flatten(1).mean(1)


def _with_rounded_weight(layer):
    changed = copy.deepcopy(layer)
    changed.weight.data = rounded_weight(layer.weight)
    return changed


def test_other_layers_keep_their_bias(network):
    first, *_, last = layers_with_weights(network).values()
    before = last.bias.clone()
    correct_biases(network, [first], [torch.randn(4, 3, 10, 10)])
    assert torch.equal(last.bias, before)
