"""Exported files that were changed and sealed again are refused with one line."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from featkit.backbones.base import Preprocess
from featkit.compression.onnx_reader import ExportMetadata, add_metadata, load_exported
from featkit.embeddings.recipe import Recipe
from featkit.errors import FeatkitError, RunError, WeightsError

METADATA = ExportMetadata(
    classes=("cat", "dog"),
    preprocess=Preprocess(resize=8, crop=(8, 8)),
    precision="fp32",
    threshold=0.1,
    head="linear",
    temperature={"value": 1.5, "smoothing": 1e-4},
    recipe=asdict(Recipe(*["x"] * 8, {}, "fp32")),
)
PIXELS = np.full((3, 8, 8, 3), 128, np.uint8)


def model_of(nodes, *, shape=("n", 3, 8, 8), output=("n", 2), initializers=(), functions=()):
    """Return a model from ``images`` to ``probabilities``."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, output)],
        initializer=list(initializers),
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=functions)


def constant_scores(values):
    """Return a model that gives the same two numbers for every image."""
    weights = helper.make_tensor("scores", TensorProto.FLOAT, (1, 2), values)
    zero = helper.make_tensor("zero", TensorProto.FLOAT, (), [0.0])
    axes = helper.make_tensor("axes", TensorProto.INT64, (3,), [1, 2, 3])
    row = helper.make_tensor("row", TensorProto.INT64, (2,), [-1, 1])
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["none"]),
        helper.make_node("Reshape", ["none", "row"], ["rows"]),
        helper.make_node("Add", ["rows", "scores"], ["probabilities"]),
    ]
    return model_of(nodes, initializers=[weights, zero, axes, row])


def sealed(path, model, metadata=METADATA):
    path.write_bytes(add_metadata(model.SerializeToString(), metadata))
    return path


def test_a_valid_file_gives_probabilities(tmp_path):
    exported = load_exported(sealed(tmp_path / "m.onnx", constant_scores([0.25, 0.75])))
    np.testing.assert_allclose(exported.engine(PIXELS), [[0.25, 0.75]] * 3)
    assert exported.metadata == METADATA


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "values", [(NAN, 0.5), (NAN, NAN), (INF, 0), (-0.5, 1.5), (0.7, 0.7), (0, 0), (0, 1.01)]
)
def test_values_that_are_not_probabilities_are_refused(values, tmp_path):
    exported = load_exported(sealed(tmp_path / "m.onnx", constant_scores(values)))
    with pytest.raises(RunError, match="gives values that are not probabilities: export it again"):
        exported.engine(PIXELS)


def endless(kind):
    """Return a model with a loop that does not end, or an operator that runs another graph."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["again"]),
            helper.make_node("Identity", ["value"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, ()),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, ("n", 2)),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ("n", 2)),
        ],
    )
    model = constant_scores([0.5, 0.5])
    model.graph.node[-1].output[0] = "start"
    true = helper.make_tensor("true", TensorProto.BOOL, (), [True])
    model.graph.initializer.append(true)
    names = {"Loop": ["", "true", "start"], "If": ["true"]}[kind]
    attributes = {"Loop": {"body": body}, "If": {"then_branch": body, "else_branch": body}}[kind]
    model.graph.node.append(helper.make_node(kind, names, ["probabilities"], **attributes))
    return model


@pytest.mark.parametrize("kind", ["Loop", "If"])
def test_an_endless_loop_is_refused_before_it_runs(kind, tmp_path):
    with pytest.raises(WeightsError, match=f"contains the operator '{kind}', which could run"):
        load_exported(sealed(tmp_path / "m.onnx", endless(kind)))


def test_functions_are_refused_as_they_may_call_each_other(tmp_path):
    call = helper.make_node("Twice", ["x"], ["y"], domain="own")
    function = helper.make_function(
        "own", "Twice", ["x"], ["y"], [call], [helper.make_opsetid("own", 1)]
    )
    model = model_of(
        [helper.make_node("Twice", ["images"], ["probabilities"], domain="own")],
        functions=[function],
    )
    with pytest.raises(WeightsError, match="contains the function 'Twice'"):
        load_exported(sealed(tmp_path / "m.onnx", model))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": ("n", 3, 9, 9)},
        {"shape": (1, 192)},
        {"output": ("n", 3)},
        {"output": ("n",)},
    ],
)
def test_other_inputs_or_outputs_are_refused(changes, tmp_path):
    model = model_of([helper.make_node("Identity", ["images"], ["probabilities"])], **changes)
    with pytest.raises(RunError, match=r"cannot be run \(.*\): export it again"):
        load_exported(sealed(tmp_path / "m.onnx", model))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", ["cat"]),
        ("classes", ["cat", "cat"]),
        ("classes", [1, 2]),
        ("classes", "ab"),
        ("classes", None),
        ("classes", ["a", "b", "c"]),
        ("threshold", "0.1"),
        ("threshold", None),
        ("threshold", 2),
        ("threshold", True),
        ("precision", "fp8"),
        ("precision", ["fp32"]),
        ("temperature", 3),
        ("temperature", {"value": "x"}),
        ("head", 3),
        ("recipe", "x"),
        ("preprocessing", {}),
        ("preprocessing", {"resize": 8}),
        ("preprocessing", {**asdict(METADATA.preprocess), "crop": [8]}),
        ("preprocessing", {**asdict(METADATA.preprocess), "crop": 8}),
        ("preprocessing", {**asdict(METADATA.preprocess), "crop": [10**9, 10**9]}),
        ("preprocessing", {**asdict(METADATA.preprocess), "resize": 0}),
        ("preprocessing", {**asdict(METADATA.preprocess), "resize": -8}),
        ("preprocessing", {**asdict(METADATA.preprocess), "resize": 8.5}),
        ("preprocessing", {**asdict(METADATA.preprocess), "resize": [10**9, 8]}),
        ("preprocessing", {**asdict(METADATA.preprocess), "interpolation": "none"}),
        ("preprocessing", {**asdict(METADATA.preprocess), "other": 1}),
    ],
)
def test_invalid_metadata_are_refused(name, value, tmp_path):
    texts = {**METADATA.to_properties(), name: json.dumps(value)}

    class Changed:
        def to_properties(self):
            return texts

    with pytest.raises(RunError, match=r"m\.onnx cannot be run \(.*\): export it again") as caught:
        load_exported(sealed(tmp_path / "m.onnx", constant_scores([0.5, 0.5]), Changed()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["classes", "threshold", "preprocessing"])
def test_missing_metadata_are_named(name, tmp_path):
    texts = METADATA.to_properties()
    del texts[name]

    class Changed:
        def to_properties(self):
            return texts

    with pytest.raises(RunError, match=f"has no metadata '{name}'"):
        load_exported(sealed(tmp_path / "m.onnx", constant_scores([0.5, 0.5]), Changed()))


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_changed_bytes_are_refused_or_give_probabilities(data, tmp_path_factory):
    """Any FeatkitError is fine, and no other exception."""
    content = bytearray(constant_scores([0.25, 0.75]).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path_factory.getbasetemp() / "changed.onnx"
    path.write_bytes(add_metadata(bytes(content), METADATA))
    try:
        scores = load_exported(path).engine(PIXELS)
    except FeatkitError:
        return
    assert scores.shape == (3, 2)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-3)


def test_a_folder_or_a_large_file_is_refused(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        load_exported(tmp_path)
    with (tmp_path / "large.onnx").open("wb") as file:
        file.truncate(2**32)
    with pytest.raises(RunError, match="cannot be read"):
        load_exported(tmp_path / "large.onnx")


LABELS = replace(METADATA, temperature=None, threshold=0.0, thresholds=(0.25, 0.5))


def test_probabilities_of_labels_need_not_sum_to_1(tmp_path):
    path = tmp_path / "model.onnx"
    sealed(path, constant_scores([0.9, 0.8]), LABELS)
    exported = load_exported(path)
    assert exported.metadata.thresholds == (0.25, 0.5)
    assert exported.engine(PIXELS) == pytest.approx(np.array([[0.9, 0.8]] * 3))
    sealed(path, constant_scores([0.9, 1.2]), LABELS)
    with pytest.raises(RunError, match="not probabilities"):
        load_exported(path).engine(PIXELS)


@pytest.mark.parametrize("thresholds", [(0.5,), (0.5, 1.5), (0.5, "a"), (0.5, True), ()], ids=str)
def test_invalid_thresholds_are_refused(thresholds, tmp_path):
    path = tmp_path / "model.onnx"
    sealed(path, constant_scores([0.9, 0.1]), replace(LABELS, thresholds=thresholds))
    with pytest.raises(RunError, match="threshold"):
        load_exported(path)


def test_files_with_one_label_per_image_have_no_thresholds():
    assert "thresholds" not in METADATA.to_properties()
