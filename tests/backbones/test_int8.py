"""int8 on processors whose products of 8-bit numbers saturate."""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from dataclasses import asdict, replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from featkit.backbones import int8, load_backbone
from featkit.backbones.base import Backbone, Preprocess, QuantizedNetwork
from featkit.backbones.devices import CHECK_VARIABLE, cpu_flags, instruction_set
from featkit.backbones.engines import open_engine
from featkit.backbones.engines.noise import smooth_noise
from featkit.backbones.engines.onnx import OnnxEngine
from featkit.backbones.engines.openvino import OpenVinoEngine
from featkit.backbones.int8 import (
    Int8Record,
    can_saturate,
    check_on_this_machine,
    cosines,
    float32_model,
    products_saturate,
    warn_or_refuse,
)
from featkit.backbones.layers import freeze
from featkit.backbones.quantization import QuantizationConfig, quantize
from featkit.backbones.saved import INT8_CARD, Int8Description
from featkit.backbones.state_dict import seeded
from featkit.errors import SpecError, WeightsError
from featkit.images.decode import decode_file

RNG = np.random.default_rng(0)
BRIGHT = RNG.integers(200, 256, (16, 32, 32, 3), dtype=np.uint8)
RECORD = Int8Record(7, "x86_64 avx2", 16, 0.996, 0.98)


def worst_case() -> nn.Module:
    """Return a network whose weights saturate wherever pairs of products are added in 16 bits.

    The first half of the channels of each convolution adds all inputs of the first half, with equal
    weights. The other channels have one weight each and cannot saturate, so that the direction of
    the features changes.
    """
    first, second = nn.Conv2d(3, 16, 3, stride=2), nn.Conv2d(16, 32, 3, stride=2)
    for convolution in (first, second):
        nn.init.zeros_(convolution.bias)
        nn.init.zeros_(convolution.weight)
    with torch.no_grad():
        first.weight[:8] = 1
        second.weight[:16, :8] = 1
        for channel in range(8):
            first.weight[8 + channel, channel % 3, 1, 1] = 20
        for channel in range(16):
            second.weight[16 + channel, 8 + channel % 8, 1, 1] = 100 if channel % 2 else 7
    layers = (first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return freeze(nn.Sequential(*layers))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    base = load_backbone("resnet18", weights="random")
    preprocess = Preprocess(resize=32, crop=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))
    return replace(base, name="worst", preprocess=preprocess, build=worst_case)


@pytest.fixture(scope="module")
def quantized(backbone, tmp_path_factory):
    """Return a function that returns the network quantized to a number of bits."""
    folder = tmp_path_factory.mktemp("int8")

    def make(bits: int) -> Backbone:
        path = folder / f"{bits}.onnx"
        if not path.exists():
            quantize(backbone, list(BRIGHT), path, QuantizationConfig(weight_bits=bits))
        return with_file(backbone, path)

    return make


def with_file(backbone: Backbone, path) -> Backbone:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(backbone, quantized=QuantizedNetwork(path, digest))


def plain_session(backbone: Backbone):
    """Run the file as a program other than featkit does."""
    session = onnxruntime.InferenceSession(
        backbone.quantized.path, providers=["CPUExecutionProvider"]
    )
    return lambda pixels: session.run(None, {"pixels": pixels})[0]


def similarity(engine, backbone: Backbone) -> float:
    return float(cosines(engine(BRIGHT), open_engine(backbone)(BRIGHT)).min())


@pytest.fixture(autouse=True)
def _nothing_checked(monkeypatch):
    monkeypatch.setattr(int8, "_checked", set())
    monkeypatch.delenv(CHECK_VARIABLE, raising=False)


def test_the_probe_agrees_with_the_instruction_set():
    flags = cpu_flags()
    if {"avx512_vnni", "avx_vnni"} & flags:
        assert not products_saturate()
    elif "avx2" in flags:
        assert products_saturate()
    else:
        pytest.skip("not an x86 processor under Linux")


@pytest.mark.slow
def test_seven_bits_are_right_in_every_program_on_every_processor(quantized):
    seven = quantized(7)
    assert similarity(plain_session(seven), seven) > 0.999
    assert similarity(open_engine(seven, precision="int8"), seven) > 0.999


@pytest.mark.slow
def test_seven_bits_are_right_in_openvino(quantized):
    assert similarity(open_engine(quantized(7), precision="int8-openvino"), quantized(7)) > 0.999


@pytest.mark.slow
def test_openvino_is_compared_with_onnx_runtime_once(quantized, monkeypatch):
    """Unless they differ and the user continues in spite of it."""
    compared = []

    def check(engine, reference):
        compared.append(reference.name)
        return len(compared) > 1

    monkeypatch.setattr(OpenVinoEngine, "check_against", check)
    for _ in range(3):
        engine = open_engine(quantized(7), precision="int8-openvino")
        assert Int8Record.from_properties(engine.properties) is not None
    assert compared == ["onnxruntime", "onnxruntime"]


@pytest.mark.slow
def test_eight_bits_saturate_unless_featkit_runs_them(quantized):
    eight = quantized(8)
    assert similarity(open_engine(eight, precision="int8"), eight) > 0.999
    if products_saturate():
        assert similarity(plain_session(eight), eight) < 0.97


@pytest.mark.parametrize(("bits", "expected"), [(7, False), (8, True)])
def test_a_file_is_known_to_saturate_by_its_weights(bits, expected, quantized):
    assert can_saturate(onnx.load(quantized(bits).quantized.path)) == expected


@pytest.mark.slow
def test_openvino_is_right_or_refused(quantized):
    """Whether its sums saturate depends on the processor and on the kernel that it chooses."""
    try:
        engine = open_engine(quantized(8), precision="int8-openvino")
    except SpecError as error:
        refused = str(error)
        assert products_saturate()
        assert "features of OpenVINO and ONNX Runtime differ" in refused
    else:
        assert similarity(engine, quantized(8)) > 0.97


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.realdata
def test_a_real_network_of_eight_bits_is_refused_in_openvino_where_sums_saturate(
    real_data, real_weights, tmp_path
):
    paths = sorted((real_data / "caltech101" / "train").glob("*/*.jpg"))[::181]
    network = load_backbone("resnet18")
    pixels = [network.preprocess.fast(decode_file(path)) for path in paths]
    for bits in (7, 8):
        path = tmp_path / f"{bits}.onnx"
        record = quantize(network, pixels, path, QuantizationConfig(weight_bits=bits))
        assert record.cosine > 0.99
        reference = OnnxEngine(float32_model(path.read_bytes()), "reference")
        images = np.stack(pixels[:8])
        assert cosines(reference(images), open_engine(network)(images)).mean() > 0.99
        if bits == 8 and products_saturate():
            with pytest.raises(SpecError, match="OpenVINO and ONNX Runtime differ"):
                open_engine(with_file(network, path), precision="int8-openvino")
        else:
            open_engine(with_file(network, path), precision="int8-openvino")


def test_the_record_is_in_the_file_and_names_the_processor(quantized):
    record = Int8Record.from_properties(open_engine(quantized(7), precision="int8").properties)
    assert record.weight_bits == 7
    assert record.instruction_set == instruction_set()
    assert record.images == len(BRIGHT)
    assert record.cosine >= record.worst > 0.999
    assert instruction_set().split()[0] in str(record)


@pytest.fixture(scope="module")
def signed(backbone, tmp_path_factory) -> Backbone:
    """Return an int8 network of which ReLU sets half of the activations to zero."""

    def build() -> nn.Module:
        with seeded(0):
            layers = [nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU6()]
            last = [nn.Conv2d(32, 24, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            return freeze(nn.Sequential(*layers, *last))

    network = replace(backbone, name="signed", build=build)
    path = tmp_path_factory.mktemp("signed") / "signed.onnx"
    quantize(network, list(BRIGHT), path)
    return with_file(network, path)


def test_float32_model_differs_from_the_network_by_its_rounded_weights(quantized, signed):
    for network in (quantized(7), signed):
        reference = OnnxEngine(float32_model(network.read_quantized()), "reference")
        assert similarity(reference, network) > 0.999
    found = float32_model(quantized(7).read_quantized())
    kinds = {node.op_type for node in onnx.load_model_from_string(found).graph.node}
    assert "QuantizeLinear" not in kinds


@pytest.mark.parametrize(
    ("cosine", "level"),
    [(1.0, None), (0.985, None), (0.9849, "warning"), (0.97, "warning"), (0.9699, "error")]
    + [(0.0, "error"), (-1.0, "error"), (float("nan"), "error")],
)
def test_a_dissimilar_network_is_warned_of_or_refused(cosine, level, caplog, monkeypatch):
    record = replace(RECORD, cosine=cosine)
    caplog.set_level(logging.WARNING, "featkit")
    if level == "error":
        with pytest.raises(SpecError, match=r"at least 0.97 is required: mend it, or set FEATKIT_"):
            warn_or_refuse(record, "net", "mend it")
        monkeypatch.setenv(CHECK_VARIABLE, "warn")
    warn_or_refuse(record, "net", "mend it")
    assert bool(caplog.records) == (level is not None)


def test_a_misspelt_variable_is_an_error(monkeypatch):
    monkeypatch.setenv(CHECK_VARIABLE, "wran")
    with pytest.raises(SpecError, match="FEATKIT_INT8_CHECK is 'wran': set it to warn or refuse"):
        warn_or_refuse(replace(RECORD, cosine=0.5), "net", "mend it")


def from_elsewhere(backbone: Backbone, tmp_path, record: Int8Record | None) -> Backbone:
    """Return an int8 network with another record, or with none."""
    model = onnx.load(backbone.quantized.path)
    del model.metadata_props[:]
    data = model.SerializeToString()
    (tmp_path / "other.onnx").write_bytes(record.append_to(data) if record else data)
    return with_file(backbone, tmp_path / "other.onnx")


class Wrong:
    """An engine whose sums are wrong: on this machine, other engines are right."""

    def __init__(self, engine) -> None:
        self.engine = engine
        self.properties = engine.properties

    def __call__(self, pixels):
        features = self.engine(pixels)
        features[:, ::2] = np.minimum(features[:, ::2], features.mean() / 4)
        return features


@pytest.mark.parametrize("count", [1, 3, 16])
@pytest.mark.parametrize("record", [replace(RECORD, instruction_set="z80"), None])
def test_a_network_from_elsewhere_is_compared_on_its_first_images(
    record, count, quantized, signed, tmp_path
):
    for network in (quantized(7), quantized(8), signed):
        other = from_elsewhere(network, tmp_path, record)
        engine = open_engine(other, precision="int8")
        # Refused each time, not only the first.
        for _ in range(2):
            with pytest.raises(SpecError, match=r"int8 features of .*@int8 differ from float32"):
                check_on_this_machine(Wrong(engine), other, "int8", lambda most: BRIGHT[:count])
        check_on_this_machine(engine, other, "int8", lambda most: BRIGHT[:count])
        int8._checked.clear()


def test_without_a_readable_image_nothing_is_compared(quantized, tmp_path):
    other = from_elsewhere(quantized(7), tmp_path, replace(RECORD, instruction_set="z80"))
    engine = open_engine(other, precision="int8")
    check_on_this_machine(Wrong(engine), other, "int8", lambda most: BRIGHT[:0])


def test_a_network_of_this_machine_is_not_compared_again(quantized):
    seven = quantized(7)
    engine = open_engine(seven, precision="int8")
    if Int8Record.from_properties(engine.properties).instruction_set == instruction_set():
        check_on_this_machine(engine, seven, "int8", lambda most: pytest.fail("images were read"))


def test_a_network_that_was_forced_is_refused_when_it_is_opened(quantized, tmp_path):
    forced = replace(RECORD, instruction_set=instruction_set(), cosine=0.9)
    other = from_elsewhere(quantized(7), tmp_path, forced)
    with pytest.raises(SpecError, match=r"mean 0\.9000"):
        check_on_this_machine(
            open_engine(other, precision="int8"), other, "int8", lambda most: BRIGHT
        )


def description(**changes) -> Int8Description:
    values = {
        "base": "resnet18",
        "name": "resnet18-int8-1",
        "label": "a label",
        "preprocess": Preprocess(),
        "layer": "avgpool",
        "pool": "avg",
        "sha256": "0" * 64,
        "parameters": 1,
        "nonzero": 1,
        "macs": 1,
        "trained_on": ("0123",),
        "record": asdict(RECORD),
    }
    return Int8Description(**{**values, **changes})


def test_a_directory_of_version_0_1_is_refused_where_products_saturate(tmp_path, monkeypatch):
    (tmp_path / INT8_CARD).write_text(description(record={}).to_json())
    monkeypatch.setattr(int8, "products_saturate", lambda: True)
    with pytest.raises(SpecError, match=r"quantized by featkit 0.1.*: quantize it again, or set"):
        load_backbone(str(tmp_path))
    monkeypatch.setenv(CHECK_VARIABLE, "warn")
    assert load_backbone(str(tmp_path)).name == "resnet18-int8-1"
    monkeypatch.delenv(CHECK_VARIABLE)
    monkeypatch.setattr(int8, "products_saturate", lambda: False)
    assert load_backbone(str(tmp_path)).name == "resnet18-int8-1"


def test_no_changed_byte_of_a_description_is_read_as_another_one(tmp_path):
    path = tmp_path / INT8_CARD
    content = description().to_json().encode()
    path.write_bytes(content)
    expected = load_backbone(str(tmp_path))
    rng = np.random.default_rng(0)
    for place in rng.choice(len(content), 300, replace=False):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        # A changed space between two values changes nothing.
        with suppress(WeightsError):
            found = replace(load_backbone(str(tmp_path)), digest="", build=expected.build)
            assert found == replace(expected, digest="", build=expected.build)


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": "256"},
        {"resize": 0},
        {"resize": [224, 224, 3]},
        {"resize": 10**9},
        {"crop": [224]},
        {"crop": [224.5, 224]},
        {"interpolation": "nearest"},
        {"mean": [0, 0]},
        {"mean": [0, 0, None]},
        {"std": [1, 1, 0]},
        {"std": [1, 1, float("nan")]},
        {"gamma": 2},
    ],
)
def test_impossible_preprocessing_is_rejected(changes):
    values = asdict(Preprocess())
    assert Preprocess.from_dict(values) == Preprocess()
    with pytest.raises((TypeError, ValueError)):
        Preprocess.from_dict({**values, **changes})


@pytest.mark.parametrize("saturates", [True, False])
def test_a_file_of_version_0_1_is_warned_of_where_products_saturate(saturates, caplog, monkeypatch):
    monkeypatch.setattr(int8, "products_saturate", lambda: saturates)
    int8.warn_if_unrecorded({}, "model.onnx")
    assert ("model.onnx was quantized by featkit 0.1" in caplog.text) is saturates
    caplog.clear()
    data = RECORD.append_to(b"")
    properties = {each.key: each.value for each in onnx.load_from_string(data).metadata_props}
    assert Int8Record.from_properties(properties) == RECORD
    int8.warn_if_unrecorded(properties, "model.onnx")
    assert not caplog.text


@pytest.mark.parametrize("text", ["{", "[]", "3", "{}", '{"weight_bits": "x"}', "null"])
def test_a_damaged_record_counts_as_none(text):
    assert Int8Record.from_properties({"featkit.int8": text}) is None


def test_cosines_of_rows_of_zeros():
    rows = np.array([[0, 0], [0, 0], [3, 4]], np.float32)
    others = np.array([[0, 0], [1, 0], [6, 8]], np.float32)
    assert cosines(rows, others).tolist() == [1.0, 0.0, 1.0]
    assert np.isnan(cosines(np.full((1, 2), np.nan), others[:1])).all()


def test_smooth_noise_is_smooth_and_repeatable():
    images = smooth_noise(4, (32, 48))
    assert (images.shape, images.dtype) == ((4, 32, 48, 3), np.uint8)
    np.testing.assert_array_equal(images, smooth_noise(4, (32, 48)))
    neighbours = np.corrcoef(images[:, :, 1:].ravel(), images[:, :, :-1].ravel())[0, 1]
    assert neighbours > 0.9
    assert 30 < images.std() < 80
