"""Heads as torch modules give the probabilities of the heads."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.backbones.onnx_export import write_onnx
from featkit.compression.class_scores import make_class_scores
from featkit.compression.head_modules import make_labels_module, make_scores_module
from featkit.errors import HeadError
from featkit.evaluation import Temperature
from featkit.evaluation.calibration import apply_temperature
from featkit.evaluation.multilabel import LabelCalibration, apply_calibrations
from featkit.heads import make_head, svm
from featkit.heads.balance import BalancedHead
from featkit.heads.multilabel import MultiLabelHead

SPECS = [
    "linear",
    "linear:scale=standard",
    "linear:scale=none",
    "mlp:epochs=2,width=8",
    "prototypical",
    "prototypical:metric=euclidean,scale=l2",
    "prototypical:metric=mahalanobis",
    "svm",
    "svm:kernel=linear,scale=none",
    "svm:gamma=0.3,scale=standard",
    "knn",
    "knn:metric=euclidean,weights=uniform,k=3",
    "knn:weights=temperature,k=20,scale=root",
]


TEMPERATURES = [None, Temperature(20.1, 2.2e-308), Temperature(0.3, 2.2e-16), Temperature(5, 1e-2)]


def answers(head, vectors, temperature=None):
    with torch.no_grad():
        return make_scores_module(head, temperature)(torch.from_numpy(vectors)).numpy()


def expected_scores(head, vectors, temperature):
    scores = head.predict_proba(vectors)
    return apply_temperature(scores, temperature) if temperature else scores


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("spec", SPECS)
def test_a_module_gives_the_probabilities_of_its_head(spec, k, blobs):
    """For rows that it was fitted on, for other rows, and for a row of zeros."""
    x, y = blobs(k)
    head = make_head(spec).fit(x, y)
    rows = np.concatenate([x, np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32)])
    if spec.startswith("knn"):  # every training image has the same angle to a vector of zeros
        rows = rows[1:]
    for temperature in TEMPERATURES:
        found = answers(head, rows, temperature)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected_scores(head, rows, temperature), atol=1e-4)


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("spec", ["svm", "svm:kernel=linear,scale=standard"])
def test_a_module_gives_the_probabilities_of_an_approximate_svm(spec, k, blobs, monkeypatch):
    x, y = blobs(k)
    monkeypatch.setattr(svm, "MAX_KERNEL_ROWS", len(x) - 1)
    head = make_head(spec).fit(x, y)
    assert "approximate" in head.warnings_[0]
    np.testing.assert_allclose(answers(head, x), head.predict_proba(x), atol=1e-3)


@cache
def fitted_on_noise(spec):
    """Return a head and other features, of which the first are large."""
    x, others = np.random.default_rng(0).normal(size=(2, 30, 4)).astype(np.float32)
    others[0] *= 1000
    return make_head(spec).fit(x, np.arange(30) % 3), others


@pytest.mark.parametrize("spec", ["knn", "linear", "mlp:epochs=2,width=8"])
@given(value=st.floats(0.05, 100), smoothing=st.sampled_from([2.2e-308, 2.2e-16, 1e-4, 1e-2]))
@settings(max_examples=10, deadline=None)
def test_a_temperature_is_applied_as_in_a_run(spec, value, smoothing):
    """Also a smoothing that float32 cannot hold, of scores that are 0."""
    head, others = fitted_on_noise(spec)
    temperature = Temperature(value, smoothing)
    found = answers(head, others, temperature)
    np.testing.assert_allclose(found, expected_scores(head, others, temperature), atol=2e-4)


def onnx_file(head, temperature, d, path):
    """Export the module of a head with ``d`` features and return the file."""
    module = make_scores_module(head, temperature)
    names = ("features", "probabilities")
    write_onnx(module, torch.zeros((2, d)), path, names=names, title="the head")
    return path


def double_values(model):
    """Return the names of all float64 tensors and casts in a model."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    double = onnx.TensorProto.DOUBLE
    names = [tensor.name for tensor in inferred.initializer if tensor.data_type == double]
    for info in [*inferred.value_info, *inferred.input, *inferred.output]:
        if info.type.tensor_type.elem_type == double:
            names.append(info.name)
    for node in inferred.node:
        for attribute in node.attribute:
            if attribute.t.data_type == double or (attribute.name, attribute.i) == ("to", double):
                names.append(node.name)
    return names


@pytest.mark.parametrize(
    "spec",
    [pytest.param(spec, marks=() if spec == "knn" else pytest.mark.slow) for spec in SPECS],
)
def test_a_file_gives_the_probabilities_of_its_head_without_float64(spec, blobs, tmp_path):
    """The exporter drops the addition of numbers that are 0 in float32."""
    x, y = blobs(4)
    x = x.astype(np.float64)  # so that all fitted arrays are float64
    head = make_head(spec).fit(x, y)
    temperature = Temperature(20.1, 2.2e-308)
    path = onnx_file(head, temperature, 8, tmp_path / "head.onnx")
    assert double_values(onnx.load(path)) == []
    rows = np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"features": rows})
    np.testing.assert_allclose(found, expected_scores(head, rows, temperature), atol=1e-4)


def test_a_corrected_head_is_exported_as_the_inner_head(blobs):
    x, y = blobs()
    head = BalancedHead(head="linear", correction="logit_adjust").fit(x, y)
    np.testing.assert_allclose(answers(head, x), head.predict_proba(x), atol=2e-6)


def test_an_unknown_kind_of_head_is_refused():
    with pytest.raises(HeadError, match="str cannot be exported: choose linear"):
        make_scores_module("nearest", None)


def labelled(k=3):
    """Return features with targets, of which one label is much rarer than the others."""
    rng = np.random.default_rng(7)
    targets = (rng.random((90, k)) < (0.5, 0.4, 0.1)[:k]).astype(np.uint8)
    centres = rng.normal(size=(k, 8))
    x = targets @ centres + 0.7 * rng.normal(size=(90, 8)) + 2
    return x.astype(np.float32), targets


@pytest.mark.parametrize("spec", ["linear", "mlp:epochs=3,width=8", "svm", "knn:k=3", "knn"])
def test_a_module_gives_the_calibrated_probabilities_of_labels(spec):
    x, targets = labelled()
    head = MultiLabelHead(head=spec).fit(x, targets)
    calibrations = [LabelCalibration(1.7, -0.4), None, LabelCalibration(0.3, 2.0)]
    rows = np.concatenate([x, x + np.float32(0.3)])
    expected = apply_calibrations(head.predict_proba(rows), calibrations)
    with torch.no_grad():
        module = make_labels_module(head, calibrations)
        found = module(torch.from_numpy(rows)).numpy()
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("spec", ["linear", "mlp:epochs=3,width=8", "svm", "knn:k=3"])
def test_the_score_of_a_label_rises_with_its_probability(spec):
    x, targets = labelled()
    head = MultiLabelHead(head=spec).fit(x, targets)
    scores = make_class_scores(head)
    with torch.no_grad():
        found = scores.module(torch.from_numpy(x)).numpy()
    probabilities = head.predict_proba(x)
    assert found.shape == probabilities.shape
    for column in range(3):
        correlation = np.corrcoef(found[:, column], probabilities[:, column])[0, 1]
        assert correlation > 0.6
    gradients = scores.gradients(x, np.full(len(x), 2))
    assert gradients.shape == x.shape
    assert np.abs(gradients).max() > 0


def test_labels_of_a_head_of_a_plug_in_cannot_be_exported():
    x, targets = labelled()
    head = MultiLabelHead(head="linear").fit(x, targets)
    head.heads_ = [object()]
    with pytest.raises(HeadError, match="cannot be exported"):
        make_labels_module(head, [None] * 3)
