"""Heads in files that were changed and sealed again are refused with one line."""

from __future__ import annotations

import io
import json
import zipfile
from copy import deepcopy

import numpy as np
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.errors import HeadError
from featkit.heads import make_head
from featkit.heads.balance import BalancedHead
from featkit.heads.persist import load_head, save_head
from featkit.heads.validate import check_fitted_head

SPECS = ["linear", "svm", "knn:k=2", "mlp:width=4,epochs=1", "prototypical"]


@pytest.fixture(scope="module")
def heads():
    """Return fitted heads by their specs."""
    rng = np.random.default_rng(0)
    y = np.arange(30) % 3
    x = (rng.normal(size=(30, 5)) + 2 * np.eye(5)[y]).astype(np.float32)
    fitted = {spec: make_head(spec).fit(x, y) for spec in SPECS}
    fitted["balanced"] = BalancedHead(correction="logit_adjust").fit(x, y)
    fitted["binary"] = make_head("linear").fit(x, y > 0)
    return fitted


def refused(head, path, match=""):
    """Check that a head cannot be loaded after it was saved as it is."""
    skops.io.dump({"scikit-learn": "1.9", "head": head}, path)
    with pytest.raises(HeadError, match=match) as caught:
        load_head(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("spec", [*SPECS, "balanced", "binary"])
def test_a_fitted_head_is_valid(spec, heads, tmp_path):
    check_fitted_head(heads[spec])
    save_head(heads[spec], tmp_path / "head.skops")
    load_head(tmp_path / "head.skops")


def broken_arrays(values):
    """Yield replacements of a fitted array that no fit gives."""
    yield values[:-1]
    yield values[..., None]
    yield values.astype(complex)
    yield values.tolist()
    yield None
    yield np.full(values.shape, "x")
    if values.dtype.kind == "f":
        yield np.full_like(values, np.nan)
        yield np.full_like(values, np.inf)


@pytest.mark.parametrize("spec", [*SPECS, "binary"])
def test_arrays_of_another_shape_type_or_value_are_refused(spec, heads):
    tried = 0
    for name, values in vars(heads[spec]).items():
        if not isinstance(values, np.ndarray):
            continue
        for broken in broken_arrays(values):
            head = deepcopy(heads[spec])
            setattr(head, name, broken)
            with pytest.raises(HeadError, match="is not a valid fitted head"):
                check_fitted_head(head)
            tried += 1
    assert tried > 20


@pytest.mark.parametrize(
    ("case", "match"),
    [
        (("knn:k=2", "codes_", np.full(30, 3)), "codes_ must be in 0..2"),
        (("knn:k=2", "codes_", np.full(30, -1)), "codes_ must be in"),
        (("knn:k=2", "k", 31), "rows_ must hold 31"),
        (("knn:k=2", "k", 0), "k"),
        (("knn:k=2", "weights", "other"), "weights"),
        (("svm", "n_support_", np.array([1, 1, 1], np.int32)), "n_support_ must sum"),
        (("svm", "gamma_", float("nan")), "gamma_"),
        (("svm", "gamma_", "scale"), "gamma_"),
        (("linear", "classes_", np.array([2, 1, 0])), "sorted"),
        (("linear", "classes_", np.array([1, 1, 2])), "sorted"),
        (("linear", "classes_", np.array(["a", 1, "c"], dtype=object)), "classes_"),
        (("linear", "spread_", np.zeros(5, np.float32)), "spread_ must be positive"),
        (("linear", "n_features_in_", 4), "centre_"),
        (("linear", "n_features_in_", True), "n_features_in_"),
        (("linear", "n_iter_", "many"), "n_iter_"),
        (("linear", "warnings_", "text"), "warnings_"),
        (("linear", "warnings_", (1,)), "warnings_"),
        (("linear", "predict_proba", 3), "'predict_proba' hides a method"),
        (("balanced", "head_", 3), "head_|int"),
        (("balanced", "head", "tree"), "tree"),
        (("balanced", "correction", "tau_norm:tau=-1"), "tau"),
    ],
)
def test_an_inconsistent_attribute_is_named(case, match, heads, tmp_path):
    spec, name, value = case
    head = deepcopy(heads[spec])
    setattr(head, name, value)
    refused(head, tmp_path / "head.skops", match)


def test_a_missing_attribute_is_named(heads, tmp_path):
    for spec in SPECS:
        head = deepcopy(heads[spec])
        del head.centre_
        refused(head, tmp_path / "head.skops", "centre_")


@pytest.fixture
def saved(heads, tmp_path):
    """Return the parts of a saved head by their names."""
    save_head(heads["linear"], tmp_path / "head.skops")
    with zipfile.ZipFile(tmp_path / "head.skops") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archived(parts, path, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def test_parts_that_were_archived_again_are_loaded(saved, tmp_path):
    load_head(archived(saved, tmp_path / "again.skops"))


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(saved, tmp_path):
    name = next(name for name in saved if name.endswith(".npy"))
    large = {**saved, name: npy(np.zeros(2**24, np.uint8))}
    path = archived(large, tmp_path / "bomb.skops", zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**16
    with pytest.raises(HeadError, match="is compressed, which featkit never does"):
        load_head(path)


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(-1,)", "(2, 3)", "()"])
def test_an_array_that_states_another_shape_is_refused(shape, saved, tmp_path):
    name = next(name for name in saved if name.endswith(".npy"))
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": eval(shape)}
    np.lib.format.write_array_header_1_0(stream, header)
    parts = {**saved, name: stream.getvalue() + bytes(64)}
    with pytest.raises(HeadError, match=r"is not an array of the shape|negative"):
        load_head(archived(parts, tmp_path / "head.skops"))


def test_an_array_that_is_read_many_times_is_refused(saved, tmp_path):
    """Each node of the schema reads the file again."""
    schema = json.loads(saved["schema.json"])
    attributes = schema["content"]["head"]["content"]["content"]
    node = attributes["coef_"]
    copies = [{**node, "__id__": number} for number in range(1000)]
    attributes["warnings_"] = {**list_node(copies), "__id__": 1001}
    parts = {**saved, "schema.json": json.dumps(schema).encode()}
    with pytest.raises(HeadError, match="arrays are read more than once"):
        load_head(archived(parts, tmp_path / "head.skops"))


def list_node(content):
    return {
        "__class__": "list",
        "__module__": "builtins",
        "__loader__": "ListNode",
        "content": content,
    }


def test_lists_that_repeat_themselves_are_refused_at_once(saved, tmp_path):
    """Thirty lists of two references to the next one stand for 2^30 objects."""
    schema = json.loads(saved["schema.json"])
    node = {**list_node([]), "__id__": 1}
    for level in range(2, 32):
        node = {**list_node([node, {**list_node([]), "__id__": level - 1}]), "__id__": level}
    schema["content"]["head"]["content"]["content"]["warnings_"] = node
    parts = {**saved, "schema.json": json.dumps(schema).encode()}
    with pytest.raises(HeadError, match=r"more than 1048576 objects|levels deep"):
        load_head(archived(parts, tmp_path / "head.skops"))


def test_deep_nesting_and_special_files_are_refused(saved, tmp_path):
    deep = b"[" * 100_000 + b"]" * 100_000
    for text in (deep, b'{"a":' * 60 + b"1" + b"}" * 60, b"[]", b"{}", b"3", b"\xff"):
        with pytest.raises(HeadError, match="is not a head saved by featkit"):
            load_head(archived({**saved, "schema.json": text}, tmp_path / "head.skops"))
    with pytest.raises(HeadError, match="is not a head saved by featkit"):
        load_head(tmp_path)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_changed_value_of_the_schema_is_refused_or_harmless(data, heads, saved_once):
    """A head is loaded, and then predicts, or a HeadError is raised."""
    parts, path = saved_once
    schema = json.loads(parts["schema.json"])
    nodes = list(values_of(schema))
    container, key = nodes[data.draw(st.integers(0, len(nodes) - 1))]
    container[key] = data.draw(
        st.sampled_from([None, 0, -1, "", "x", "null", "1e999", [], {}, True, "NdArrayNode"])
    )
    archived({**parts, "schema.json": json.dumps(schema).encode()}, path)
    try:
        head = load_head(path)
    except HeadError:
        return
    assert np.isfinite(head.predict_proba(np.ones((2, 5), np.float32))).all()


@pytest.fixture(scope="module")
def saved_once(heads, tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    save_head(heads["svm"], folder / "head.skops")
    with zipfile.ZipFile(folder / "head.skops") as archive:
        return {name: archive.read(name) for name in archive.namelist()}, folder / "changed.skops"


def values_of(node):
    """Yield every place of a JSON document as its container and the key in it."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield node, key
        if isinstance(value, dict | list):
            yield from values_of(value)
