"""Quantized networks, and the sensitivity of their layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featkit.backbones import load_backbone
from featkit.backbones.engines import open_engine
from featkit.backbones.quantization import QuantizationConfig
from featkit.backbones.saved import INT8_CARD, INT8_FILE
from featkit.compression.quantize import QuantizationRequest, layer_snr, quantize
from featkit.embeddings.extract import run_extractions
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.errors import SpecError, WeightsError

pytestmark = pytest.mark.slow

COMPUTE = Compute(workers=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a directory with a quantized network, the result and the request."""
    from PIL import Image

    root = tmp_path_factory.mktemp("quantized")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "photos" / name / f"{number}.png")
    request = Request(data=str(root / "photos"), backbone="resnet18", weights="random", resize="32")
    directory = root / "int8"
    directory.mkdir()
    found = quantize(
        request,
        QuantizationRequest(QuantizationConfig(keep=("layer4.1",)), keep_worst=1),
        directory / INT8_FILE,
        COMPUTE,
    )
    (directory / INT8_CARD).write_text(found.description.to_json())
    return directory, found, request


def test_a_quantized_backbone_is_close_to_the_float_one(made):
    directory, found, request = made
    backbone, exact = load_backbone(str(directory)), request.load_backbone()
    pixels = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    a, b = open_engine(backbone, precision="int8")(pixels), open_engine(exact)(pixels)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert (cosines > 0.98).all()
    assert backbone.name == found.description.name
    assert "int8" in backbone.weights


def test_named_and_most_sensitive_layers_stay_in_float32(made):
    import onnx

    _, found, _ = made
    worst = min(found.snr, key=lambda each: each[1])[0]
    assert found.config.keep == ("layer4.1", worst)
    kept = {
        each.name
        for each in onnx.load(made[0] / INT8_FILE).graph.initializer
        if each.data_type == 1
    }
    assert {
        "network.layer4.1.conv1.weight",
        "network.layer4.1.conv2.weight",
        f"network.{worst}.weight",
    } <= kept
    assert "network.layer3.0.conv1.weight" not in kept


def test_a_quantized_directory_is_a_backbone(made, tmp_path):
    directory, found, request = made
    asked = Request(data=request.data, backbone=str(directory))
    (done,) = run_extractions([asked], asked.load_images(), tmp_path, COMPUTE)
    assert (done.precision, done.weights, done.embedded) == ("int8", found.description.label, 12)
    (again,) = run_extractions([asked], asked.load_images(), tmp_path, COMPUTE)
    assert again.hit


def test_a_fresh_process_without_pickle_gives_the_same_features(made, tmp_path):
    directory, *_ = made
    pixels = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    code = f"""
import pickle
def refuse(*_, **__): raise AssertionError("pickle")
pickle.load = pickle.loads = refuse
import sys
from featkit.backbones import load_backbone
backbone = load_backbone({str(directory)!r})
assert not {{"torch", "onnx"}} & sys.modules.keys()
import numpy
from featkit.backbones.engines import open_engine
vectors = open_engine(backbone, precision="int8")(numpy.load({str(tmp_path / "pixels.npy")!r}))
numpy.save({str(tmp_path / "vectors.npy")!r}, vectors)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    here = open_engine(load_backbone(str(directory)), precision="int8")(pixels)
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), here)


def test_unsupported_uses_of_an_int8_network_are_refused(made):
    directory, *_ = map(str, made[:1])
    with pytest.raises(SpecError, match="--precision fp32"):
        Request(backbone=directory, precision="fp32").for_device("cpu")
    with pytest.raises(SpecError, match="remove --resize"):
        load_backbone(directory, resize="40")
    with pytest.raises(SpecError, match="remove --weights"):
        load_backbone(directory, layer="layer3")
    with pytest.raises(SpecError, match="use --precision int8"):
        load_backbone(directory).build()
    with pytest.raises(SpecError, match="already an int8 network"):
        quantize(Request(backbone=directory), QuantizationRequest(), Path("never.onnx"), COMPUTE)


def test_a_damaged_card_or_another_network_is_refused(made, tmp_path):
    directory, *_ = made
    (tmp_path / INT8_CARD).write_text("{")
    with pytest.raises(WeightsError, match="is damaged"):
        load_backbone(str(tmp_path))
    (tmp_path / INT8_CARD).write_text((directory / INT8_CARD).read_text())
    (tmp_path / INT8_FILE).write_bytes((directory / INT8_FILE).read_bytes()[:-1])
    with pytest.raises(WeightsError, match="is not the int8 network"):
        open_engine(load_backbone(str(tmp_path)), precision="int8")


def test_an_unknown_layer_is_refused(made, tmp_path):
    *_, request = made
    with pytest.raises(SpecError, match=r"unknown layer with weights 'layer9'.*layer4\.1\.conv2"):
        quantize(
            request,
            QuantizationRequest(QuantizationConfig(keep=("layer9",))),
            tmp_path / "network.onnx",
            COMPUTE,
        )
    assert not list(tmp_path.iterdir())


def test_sensitivity_is_reported_for_every_layer(tiny):
    """Also for a network with one huge weight."""
    from dataclasses import replace

    def build():
        network = tiny.build()
        network[2].weight[:, 0, 0, 0] = 1000 * network[2].weight.abs().max()
        return network

    pixels = list(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    before, after = (
        dict(layer_snr(tiny, pixels)),
        dict(layer_snr(replace(tiny, build=build), pixels)),
    )
    assert before.keys() == after.keys() == {"0", "2"}
    assert all(20 < noise < 80 for noise in before.values())


@pytest.mark.parametrize("method", ["entropy", "percentile", "dynamic"])
def test_other_calibration_methods_are_close_to_float(tiny, tmp_path, method, capsys):
    from dataclasses import replace

    from featkit.backbones.base import QuantizedNetwork
    from featkit.backbones.quantization import quantize as write
    from featkit.backbones.weights import digest_file

    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    path = tmp_path / "network.onnx"
    write(tiny, list(pixels), path, QuantizationConfig(method))
    quantized = replace(tiny, quantized=QuantizedNetwork(path, digest_file(path)))
    a, b = open_engine(tiny)(pixels), open_engine(quantized, precision="int8")(pixels)
    assert ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1) > 0.99).all()
    assert not np.array_equal(a, b)
    assert capsys.readouterr().out == ""


def test_a_description_survives_its_json(made):
    from featkit.backbones.saved import Int8Description

    card = made[1].description
    assert Int8Description.from_json(card.to_json()) == card
    assert json.loads(card.to_json())["macs"] > 1e7
