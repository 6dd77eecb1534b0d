"""Runs on features that stay in their cache file, made small here by lowering the limits."""

import json

import numpy as np
import pytest

import featkit
from featkit import blocks
from featkit.blocks import RowView
from featkit.embeddings import store
from featkit.embeddings.exchange import export_file, import_file
from featkit.embeddings.pipeline import Compute
from featkit.runs.directory import load_run
from featkit.runs.features import find_copies, load_features

N, D = 900, 32


@pytest.fixture
def file(tmp_path):
    """A cache file with three classes, of which some test rows are copies of train rows."""
    rng = np.random.default_rng(0)
    y = np.arange(N) % 3
    x = (rng.standard_normal((N, D)) + 1.5 * np.eye(3, D)[y]).astype(np.float32)
    splits = rng.choice(["train", "val", "test"], N, p=[0.7, 0.1, 0.2])
    tests, others = np.flatnonzero(splits == "test"), np.flatnonzero(splits == "train")
    x[tests[:5]] = x[others[:5]] * 1.001
    np.savez(
        tmp_path / "features.npz",
        embeddings=x,
        labels=y,
        ids=np.array([f"image{row}" for row in range(N)]),
        splits=splits,
        classes=np.array(["a", "b", "c"]),
    )
    return import_file(tmp_path / "features.npz", tmp_path / "cache")


def results(path):
    found = json.loads((path / "results.json").read_text())
    return {name: found[name] for name in ("run", "n", "top1", "interval95", "balanced_accuracy")}


def predicted(path):
    """Return the predictions of a run without the confidences, which may be rounded otherwise."""
    lines = (path / "predictions.csv").read_text().splitlines()
    return [line.rpartition(",")[0] for line in lines]


def only_run(folder):
    (path,) = folder.glob("*/*/results.json")
    return path.parent


@pytest.mark.parametrize("head", ["linear", "knn", "prototypical"])
def test_a_run_on_a_view_has_the_results_of_a_run_in_memory(head, file, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "LARGE_VALUES", 3000)
    monkeypatch.setattr(blocks, "BLOCK_VALUES", D * 100)
    featkit.fit(head=head, cache=file, out=tmp_path / "memory")
    monkeypatch.setattr(blocks, "VIEW_VALUES", 3000)
    assert isinstance(store.read(file).x, RowView)
    featkit.fit(head=head, cache=file, out=tmp_path / "file")
    memory, view = only_run(tmp_path / "memory"), only_run(tmp_path / "file")
    assert results(view) == results(memory)
    assert predicted(view) == predicted(memory)
    x = store.read(file).x[:50]
    scores = [load_run(each).head.predict_proba(x) for each in (memory, view)]
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-5)


def test_copies_are_those_of_features_in_memory(file, tmp_path, monkeypatch):
    expected = find_copies(load_features({}, file, Compute()))
    assert len(expected.near) >= 5
    monkeypatch.setattr(blocks, "VIEW_VALUES", 3000)
    monkeypatch.setattr(blocks, "BLOCK_VALUES", D * 100)
    found = find_copies(load_features({}, file, Compute()))
    assert sorted(found.near) == sorted(expected.near)
    assert (found.identical, found.n) == (expected.identical, expected.n)


@pytest.mark.parametrize("options", [{"folds": 3}, {"tune": True}, {"subset": "kshot:k=20"}])
def test_other_protocols_take_a_view(options, file, tmp_path, monkeypatch):
    expected = featkit.fit(head="prototypical", cache=file, **options)
    monkeypatch.setattr(blocks, "VIEW_VALUES", 3000)
    found = featkit.fit(head="prototypical", cache=file, **options)
    assert found.report.top1 == expected.report.top1
    np.testing.assert_array_equal(found.predictions.predicted, expected.predictions.predicted)


def test_a_view_is_exported(file, tmp_path, monkeypatch):
    expected = store.read(file)
    monkeypatch.setattr(blocks, "VIEW_VALUES", 3000)
    export_file(file, tmp_path / "a.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["embeddings"], expected.x)
