"""Accuracy of int8 networks on the processor that runs them.

x86 processors without VNNI multiply unsigned by signed 8-bit numbers in pairs and add the two
products in 16 bits. With weights of 8 bits such a sum saturates (2 x 255 x 127 > 32,767), which no
error reports; with weights of 7 bits it cannot (2 x 255 x 64 < 32,767). featkit therefore

- quantizes weights to 7 bits unless it is told otherwise,
- lets ONNX Runtime add exactly (``open_session``),
- compares each int8 network with float32 when it is made, and on its first images when it was made
  on another processor,
- records the processor and the result of the comparison in the ONNX file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.base import Backbone
from featkit.backbones.devices import instruction_set, refuse_int8
from featkit.backbones.engines.base import Engine, ForwardPass
from featkit.backbones.engines.onnx import OnnxEngine
from featkit.extras import require

WEIGHT_BITS = 7
"""Default number of bits of weights."""

WARN_BELOW, REFUSE_BELOW = 0.985, 0.97
"""Mean cosine similarity of int8 and float32 features below which a network is suspicious, and
below which it is refused."""

CHECKED_IMAGES = 32
"""Images that are compared: the standard error of the mean is then below 0.002 for ResNets."""

_LARGEST_SAFE = 64
"""Largest weight of which 2 x 255 x weight fits into 16 bits with a sign."""

_FEW_IMAGES = 8
"""With fewer images, the mean similarity to float32 says little about the network."""

_QUANTIZE_AGAIN = "quantize it again on this machine, or use --precision fp32"

_PROPERTY = "featkit.int8"
_BATCH = 4

_checked: set[tuple[str, str]] = set()
"""Digest and precision of the networks that this process has checked already."""

log = logging.getLogger("featkit")


@dataclass(frozen=True)
class Int8Record:
    """How an int8 network was made; stored in the metadata of its ONNX file.

    Attributes:
        weight_bits: number of bits of its weights.
        instruction_set: of the processor that made it, see ``devices.instruction_set``.
        images: number of calibration images on which it was compared with float32.
        cosine: mean cosine similarity of int8 and float32 features of these images.
        worst: the smallest one.
    """

    weight_bits: int
    instruction_set: str
    images: int
    cosine: float
    worst: float

    def __str__(self) -> str:
        return (
            f"cosine similarity to float32: mean {self.cosine:.4f}, worst {self.worst:.4f} "
            f"({self.images} images, {self.weight_bits}-bit weights, {self.instruction_set})"
        )

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> Int8Record | None:
        """Read the metadata of an ONNX file; None if it has no record (featkit 0.1)."""
        try:
            values = json.loads(properties[_PROPERTY])
            return cls(
                weight_bits=int(values["weight_bits"]),
                instruction_set=str(values["instruction_set"]),
                images=int(values["images"]),
                cosine=float(values["cosine"]),
                worst=float(values["worst"]),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def append_to(self, model: bytes) -> bytes:
        """Return the bytes of an ONNX file with this record in its metadata."""
        onnx = require("onnx", "int8")
        entry = onnx.StringStringEntryProto(key=_PROPERTY, value=json.dumps(asdict(self)))
        # Parsers merge what is appended to a protobuf message.
        added: bytes = onnx.ModelProto(metadata_props=[entry]).SerializeToString()
        return model + added


@cache
def products_saturate() -> bool:
    """Return whether ONNX Runtime's default int8 product saturates on this machine.

    Measured with the largest 8-bit values, because lists of processors are never complete.

    Raises:
        MissingExtraError: if ONNX or ONNX Runtime is not installed.
    """
    helper = require("onnx.helper", "int8")
    types = require("onnx", "int8").TensorProto
    runtime = require("onnxruntime", "int8")
    length, columns = 64, 16
    weights = helper.make_tensor("w", types.INT8, (length, columns), [127] * length * columns)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", types.UINT8, (1, length))],
        [helper.make_tensor_value_info("y", types.INT32, (1, columns))],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    product = session.run(None, {"x": np.full((1, length), 255, np.uint8)})[0]
    return bool((product != 255 * 127 * length).any())


def cosines(features: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cosine similarity of each row of two arrays ``(n, d)``.

    It is 1 for two rows of zeros, 0 for one, and NaN for values that are not finite.
    """
    a, b = np.asarray(features, np.float64), np.asarray(reference, np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    similarity: NDArray[np.float64] = np.where(~a.any(axis=1) & ~b.any(axis=1), 1.0, 0.0)
    np.divide((a * b).sum(axis=1), norms, out=similarity, where=norms != 0)
    return similarity


def compare_with_float32(
    int8: ForwardPass,
    pixels: NDArray[np.uint8],
    expected: NDArray[np.float32],
    weight_bits: int,
) -> Int8Record:
    """Compare the features of an int8 network, on this machine, with those in float32.

    Args:
        int8: runs the int8 network.
        pixels: images, uint8 ``(n, h, w, 3)``, as ``backbone.preprocess`` returns them.
        expected: features of the images in float32, ``(n, d)``.
        weight_bits: number of bits of the weights, for the record.
    """
    similarity = cosines(run_in_batches(int8, pixels), expected)
    return Int8Record(
        weight_bits=weight_bits,
        instruction_set=instruction_set(),
        images=len(pixels),
        cosine=round(float(similarity.mean()), 4),
        worst=round(float(similarity.min()), 4),
    )


def run_in_batches(engine: ForwardPass, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the features ``(n, d)`` of images, computed in small batches."""
    starts = range(0, len(pixels), _BATCH)
    return np.concatenate([engine(pixels[start : start + _BATCH]) for start in starts])


def warn_or_refuse(record: Int8Record, title: str, fix: str) -> None:
    """Warn about an int8 network whose features differ from float32, or refuse it.

    Args:
        record: result of the comparison.
        title: name of the network.
        fix: what to do, for the message.

    Raises:
        SpecError: if the mean cosine similarity is below ``REFUSE_BELOW``, unless the environment
            variable ``FEATKIT_INT8_CHECK`` is ``warn``.
    """
    # Not "record.cosine < ...", which would accept NaN.
    if record.cosine >= WARN_BELOW:
        return
    found = f"int8 features of {title} differ from float32 ({record})"
    if record.cosine >= REFUSE_BELOW:
        log.warning("%s: %s", found, fix)
        return
    refuse_int8(f"{found}, at least {REFUSE_BELOW} is required: {fix}")


def check_on_this_machine(
    engine: Engine,
    backbone: Backbone,
    precision: str,
    load_pixels: Callable[[int], NDArray[np.uint8]],
) -> None:
    """Check an int8 network that was made on another processor.

    Its features of a few images are compared with those of ``float32_model``; with fewer than 8
    images, only its arithmetic is checked, by a comparison with rounded values in float32. Each
    network is checked once in a process.

    Args:
        engine: runs ``backbone.quantized``.
        backbone: the network.
        precision: ``int8`` or ``int8-openvino``.
        load_pixels: returns up to so many images, uint8 ``(n, h, w, 3)``, preprocessed.

    Raises:
        SpecError: if the features differ too much from float32, see ``warn_or_refuse``.
    """
    if backbone.quantized is None or (backbone.quantized.digest, precision) in _checked:
        return
    title = f"{backbone.name}@{precision}"
    record = Int8Record.from_properties(engine.properties)
    made_here = record is not None and record.instruction_set == instruction_set()
    if record is not None:
        warn_or_refuse(record, title, _QUANTIZE_AGAIN)
    # In OpenVINO too: its engine compares itself with ONNX Runtime when it is opened.
    if not made_here:
        _compare_on_first_images(engine, backbone, title, load_pixels(CHECKED_IMAGES))
    warn_if_unrecorded(engine.properties, title)
    # Not before: a network that is refused must not be accepted when it is opened again.
    _checked.add((backbone.quantized.digest, precision))


def _compare_on_first_images(
    engine: Engine, backbone: Backbone, title: str, pixels: NDArray[np.uint8]
) -> None:
    if not len(pixels):
        return
    record = Int8Record.from_properties(engine.properties)
    data = backbone.read_quantized()
    if len(pixels) < _FEW_IMAGES:
        reference = OnnxEngine(data, title, optimized=False)
    else:
        reference = OnnxEngine(float32_model(data), title)
    expected = run_in_batches(reference, pixels)
    found = compare_with_float32(engine, pixels, expected, record.weight_bits if record else 8)
    warn_or_refuse(found, title, _QUANTIZE_AGAIN)


def warn_if_unrecorded(properties: Mapping[str, str], title: str) -> None:
    """Warn of a network of featkit 0.1, which recorded no processors, where products saturate.

    Args:
        properties: metadata of its ONNX file.
        title: name of the network.
    """
    if Int8Record.from_properties(properties) is None and products_saturate():
        log.warning(
            "%s was quantized by featkit 0.1, whose int8 features are wrong on x86 processors "
            "without VNNI such as this one: if they were extracted on one, extract and fit again",
            title,
        )


def can_saturate(model: Any) -> bool:
    """Return whether an ONNX model has signed weights of 8 bits, whose products may saturate."""
    onnx = require("onnx", "int8")
    for tensor in model.graph.initializer:
        # Biases have one dimension and are added in 32 bits.
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1:
            values = onnx.numpy_helper.to_array(tensor).astype(np.int32)
            if np.abs(values).max(initial=0) > _LARGEST_SAFE:
                return True
    return False


def float32_model(data: bytes) -> bytes:
    """Return a statically quantized ONNX network without the rounding of its activations.

    The result computes in float32 with the weights of the int8 network. It is the reference where
    the float32 network is not at hand. Activations are still clipped to their quantized range,
    because ONNX Runtime removes a ReLU whose work that range does.
    """
    onnx = require("onnx", "int8")
    model = onnx.load_model_from_string(data)
    graph = model.graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    rounded = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    nodes = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in rounded:
            quantizer = rounded[node.input[0]]
            low, high = _range_of(quantizer, constants)
            names = [f"{node.output[0]}/low", f"{node.output[0]}/high"]
            for name, bound in zip(names, (low, high), strict=True):
                graph.initializer.append(onnx.numpy_helper.from_array(bound, name))
            inputs = [quantizer.input[0], *names]
            nodes.append(onnx.helper.make_node("Clip", inputs, [node.output[0]]))
        elif node.op_type != "QuantizeLinear":
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    content: bytes = model.SerializeToString()
    return content


def _range_of(
    quantizer: Any, constants: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the smallest and the largest number that a QuantizeLinear node can represent."""
    scale, zero = (constants[name] for name in quantizer.input[1:3])
    limits = np.iinfo(zero.dtype)
    # As int32: the difference does not fit into int8.
    low, high = (limit - zero.astype(np.int32) for limit in (limits.min, limits.max))
    return np.asarray(low * scale, np.float32), np.asarray(high * scale, np.float32)
