"""Export of classifiers, and files that are refused."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from featkit.backbones.base import QuantizedNetwork
from featkit.backbones.engines import open_engine
from featkit.backbones.quantization import quantize
from featkit.backbones.weights import digest_file
from featkit.compression import export as module
from featkit.compression.export import Classifier, ExportAgreement, export
from featkit.compression.head_modules import make_scores_module
from featkit.compression.onnx_reader import add_metadata, load_exported
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.recipe import Recipe
from featkit.errors import HeadError, RunError, SpecError, StorageError, WeightsError
from featkit.evaluation import Temperature
from featkit.heads import make_head

pytestmark = pytest.mark.slow

RECIPE = Recipe(*["x"] * 8, {}, "fp32")


@pytest.fixture
def classifier(tiny, colours):
    return fitted(tiny, colours, "fp32")


def fitted(backbone, colours, precision, spec="linear"):
    images = colours(24)
    pixels = np.stack([backbone.preprocess(images.load(row)) for row in range(len(images))])
    head = make_head(spec).fit(open_engine(backbone, precision=precision)(pixels), images.labels)
    return Classifier(
        backbone, precision, head, spec, images.classes, Temperature(1.5, 1e-4), 0.1, RECIPE
    )


@pytest.fixture(scope="module")
def once():
    """Return a dictionary for the exported bytes, which are slow to make."""
    return {}


@pytest.fixture
def exported(classifier, colours, tmp_path, once):
    """Return an exported file that a test may change."""
    path = tmp_path / "model.onnx"
    if not once:
        export(classifier, path, colours(8, seed=1))
        once["bytes"] = path.read_bytes()
    path.write_bytes(once["bytes"])
    return path


def test_an_exported_file_predicts_as_the_original(classifier, colours, tmp_path):
    found = export(classifier, tmp_path / "model.onnx", colours(8, seed=1))
    assert (found.n, found.differing) == (8, 0)
    assert found.largest < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_contains_its_metadata(exported, classifier):
    about = load_exported(exported).metadata
    assert about == replace(classifier.metadata(), recipe=json.loads(RECIPE.to_json()))


def test_onnxruntime_runs_a_file_without_pickle_and_torch(exported, classifier, colours, tmp_path):
    images = colours(8, seed=1)
    np.save(tmp_path / "pixels.npy", np.stack([images.load(row) for row in range(8)]))
    code = f"""
import pickle, sys
def refuse(*_, **__): raise AssertionError("pickle")
pickle.load = pickle.loads = refuse
import numpy, onnxruntime
session = onnxruntime.InferenceSession({str(exported)!r})
pixels = numpy.load({str(tmp_path / "pixels.npy")!r}).transpose(0, 3, 1, 2).astype("float32") / 255
scores = session.run(None, {{"images": pixels}})[0]
assert "torch" not in sys.modules
print(scores.argmax(1).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pixels = np.stack([images.load(row) for row in range(8)])
    expected = classifier.predict_proba(open_engine(classifier.backbone)(pixels)).argmax(axis=1)
    assert done.stdout.strip() == str(expected.tolist()), done.stderr


def test_an_int8_network_is_exported_with_its_head(tiny, colours, tmp_path):
    images = colours(24)
    quantize(tiny, [images.load(row) for row in range(24)], tmp_path / "int8.onnx")
    backbone = replace(
        tiny,
        quantized=QuantizedNetwork(tmp_path / "int8.onnx", digest_file(tmp_path / "int8.onnx")),
    )
    found = export(fitted(backbone, colours, "int8"), tmp_path / "model.onnx", colours(8, seed=1))
    assert (found.n, found.differing) == (8, 0)
    with pytest.raises(SpecError, match="use --format onnx"):
        export(fitted(backbone, colours, "int8"), tmp_path / "model.pt2", images, to="torch")
    assert not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize(
    ("precision", "spec"),
    [
        *itertools.product(
            ["fp32"], ["linear", "svm", "knn", "knn:weights=uniform", "mlp:width=8"]
        ),
        *itertools.product(["int8"], ["linear", "svm"]),
        pytest.param("int8", "knn", marks=pytest.mark.long),
        pytest.param("int8", "knn:weights=uniform", marks=pytest.mark.long),
        pytest.param("int8", "mlp:width=8", marks=pytest.mark.long),
    ],
)
def test_every_head_is_exported_with_its_probabilities_and_rejections(
    spec, precision, tiny, colours, tmp_path
):
    """With a smoothing that float32 cannot hold, and a threshold between the confidences."""
    images, others = colours(24), colours(16, seed=1)
    backbone = tiny
    if precision == "int8":
        quantize(tiny, [images.load(row) for row in range(24)], tmp_path / "int8.onnx")
        digest = digest_file(tmp_path / "int8.onnx")
        backbone = replace(tiny, quantized=QuantizedNetwork(tmp_path / "int8.onnx", digest))
    temperature = Temperature(20.1, 2.2e-308)
    head = replace(fitted(backbone, colours, precision, spec), temperature=temperature)
    pixels = np.stack([head.metadata().prepare(others.load(row)) for row in range(16)])
    embeddings = open_engine(backbone, precision=precision)(pixels)
    confidences = np.sort(head.predict_proba(embeddings).max(axis=1))
    below = np.diff(confidences).argmax()
    head = replace(head, threshold=float(confidences[below : below + 2].mean()))
    found = export(head, tmp_path / "model.onnx", others)
    assert found.equal
    assert found.largest < 1e-3
    scores = load_exported(tmp_path / "model.onnx").engine(pixels)
    rejected = int(
        (scores.max(axis=1) < load_exported(tmp_path / "model.onnx").metadata.threshold).sum()
    )
    assert rejected == below + 1
    onnx_nodes = onnx.load(tmp_path / "model.onnx").graph
    double = onnx.TensorProto.DOUBLE
    assert all(tensor.data_type != double for tensor in onnx_nodes.initializer)


def test_torch_runs_an_exported_program(classifier, colours, tmp_path):
    found = export(classifier, tmp_path / "model.pt2", colours(8, seed=1), to="torch")
    assert (found.n, found.differing) == (8, 0)
    assert (tmp_path / "model.pt2").is_file()


def test_a_file_with_other_predictions_is_not_kept(classifier, colours, tmp_path, monkeypatch):
    wrong = deepcopy(classifier.head)
    wrong.coef_ = -wrong.coef_
    monkeypatch.setattr(
        module,
        "make_scores_module",
        lambda head, temperature: make_scores_module(wrong, temperature),
    )
    with pytest.raises(SpecError, match="are predicted as another class"):
        export(classifier, tmp_path / "model.onnx", colours(8, seed=1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "case",
    [
        ({"largest": 2e-3}, "differ by up to 0.002 "),
        ({"largest": float("nan")}, "differ by up to nan "),
        ({"rejected_differently": 1}, "1 are rejected by only one of the two"),
    ],
)
def test_a_file_with_other_probabilities_or_rejections_is_not_kept(
    case, classifier, colours, tmp_path, monkeypatch
):
    change, match = case
    same = ExportAgreement(8, 0, 1e-5)
    monkeypatch.setattr(module, "compare", lambda *_: replace(same, **change))
    with pytest.raises(SpecError, match=match):
        export(classifier, tmp_path / "model.pt2", colours(8, seed=1), to="torch")
    assert not list(tmp_path.iterdir())


def test_equal_confidences_are_rejected_alike(classifier):
    """A confidence that equals the threshold is accepted, also after rounding to float32."""
    expected = np.array([[0.7, 0.3], [0.69, 0.31]])
    threshold = replace(classifier, threshold=0.7).metadata().threshold
    in_file = expected.astype(np.float32).max(axis=1)
    assert float(in_file[0]) < 0.7  # NumPy would round the Python number to float32
    assert (in_file < threshold).tolist() == (expected.max(axis=1) < 0.7).tolist() == [False, True]


def test_a_head_that_cannot_be_exported_leaves_no_file(classifier, colours, tmp_path):
    with pytest.raises(HeadError, match="cannot be exported"):
        export(replace(classifier, head="a plug-in's"), tmp_path / "model.onnx", colours(8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [0, 100, -200, -1])
def test_a_changed_file_is_refused(exported, place):
    data = bytearray(exported.read_bytes())
    data[place] ^= 1
    exported.write_bytes(data)
    with pytest.raises(RunError, match="changed since: export it again"):
        load_exported(exported)


def test_a_foreign_or_missing_or_empty_file_is_refused(tmp_path):
    onnx.save(onnx.ModelProto(ir_version=10), tmp_path / "foreign.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name in ("foreign.onnx", "empty.onnx"):
        with pytest.raises(RunError, match="was not exported by featkit"):
            load_exported(tmp_path / name)
    with pytest.raises(RunError, match="cannot be read"):
        load_exported(tmp_path / "missing.onnx")


def sealed(path: Path, model: onnx.ModelProto, classifier: Classifier) -> Path:
    """Write a model with a valid checksum, as an attacker could."""
    path.write_bytes(add_metadata(model.SerializeToString(), classifier.metadata()))
    return path


@pytest.mark.parametrize("where", ["../secret", "/etc/passwd", "beside.bin"])
def test_weights_in_another_file_are_refused(exported, classifier, where):
    model = onnx.load(exported)
    del model.metadata_props[:]
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=where)
    with pytest.raises(WeightsError, match=f"another file.*{where}"):
        load_exported(sealed(exported, model, classifier))


def test_an_operator_that_the_runtime_lacks_is_reported(exported, classifier):
    model = onnx.load(exported)
    del model.metadata_props[:]
    model.graph.node[0].op_type = "Teleport"
    with pytest.raises(RunError, match=r"cannot be run.*Teleport"):
        load_exported(sealed(exported, model, classifier))


def test_an_unknown_format_or_a_file_in_place_of_a_folder_is_refused(classifier, colours, tmp_path):
    with pytest.raises(SpecError, match="unknown format 'tflite'"):
        export(classifier, tmp_path / "model.tflite", colours(8), to="tflite")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="choose another folder"):
        export(classifier, tmp_path / "file" / "model.onnx", colours(8))


def test_a_missing_folder_is_made(classifier, colours, tmp_path):
    export(classifier, tmp_path / "a" / "b" / "model.onnx", colours(8))
    assert (tmp_path / "a" / "b" / "model.onnx").is_file()


def test_the_check_uses_the_given_compute(classifier, colours, tmp_path):
    found = export(
        classifier,
        tmp_path / "model.onnx",
        colours(8, seed=1),
        compute=Compute(workers=1, batch_size=3),
    )
    assert found.n == 8
