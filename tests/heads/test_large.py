"""Heads on arrays that are read in blocks, made small here by lowering the limit."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from featkit import blocks
from featkit.heads import linear, make_head

SPECS = {
    "linear": 2e-2,
    "knn": 1e-6,
    "knn:metric=euclidean,weights=temperature,k=9": 1e-5,
    "prototypical": 1e-5,
    "prototypical:metric=mahalanobis,scale=root": 1e-4,
}


@pytest.fixture
def digits():
    x, y = load_digits(return_X_y=True)
    x = (x + 0.1).astype(np.float32)
    # Copies of training rows are the hard case of a search.
    return x[:900], y[:900] * 3, np.concatenate([x[:5], x[900:1100]])


def lower_limits(monkeypatch):
    monkeypatch.setattr(blocks, "LARGE_VALUES", 1000)
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 64 * 130)
    monkeypatch.setattr(linear, "START_ROWS", 300)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("spec", SPECS)
def test_a_fit_in_blocks_gives_the_same_scores(spec, classes, digits, monkeypatch):
    x, y, points = digits
    x, y = x[y < 3 * classes], y[y < 3 * classes]
    expected = make_head(spec).fit(x, y).predict_proba(points)
    lower_limits(monkeypatch)
    found = make_head(spec).fit(x, y).predict_proba(points)
    np.testing.assert_allclose(found, expected, rtol=0, atol=SPECS[spec])


@pytest.mark.parametrize("spec", ["linear:C=1", "prototypical:scale=standard"])
def test_weights_count_as_repeated_rows_in_blocks(spec, digits, monkeypatch):
    x, y, points = digits
    weights = np.arange(len(x)) % 3 + 1.0
    expected = make_head(spec).fit(x, y, weights).predict_proba(points)
    lower_limits(monkeypatch)
    found = make_head(spec).fit(x, y, weights).predict_proba(points)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2)


def test_an_mlp_learns_from_rows_sorted_by_class_in_blocks(digits, monkeypatch):
    x, y, _ = digits
    order = np.argsort(y[:600], kind="stable")
    lower_limits(monkeypatch)
    head = make_head("mlp:width=64").fit(x[:600][order], y[:600][order])
    assert np.mean(head.predict(x[600:]) == y[600:]) > 0.85


def test_a_memory_mapped_array_is_fitted_as_one_in_memory(digits, monkeypatch, tmp_path):
    x, y, points = digits
    np.save(tmp_path / "x.npy", x)
    lower_limits(monkeypatch)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for spec in ("linear", "prototypical"):
        expected = make_head(spec).fit(x, y).predict_proba(points)
        np.testing.assert_array_equal(
            make_head(spec).fit(mapped, y).predict_proba(points), expected
        )


def test_numbers_that_are_not_finite_are_refused_in_blocks(digits, monkeypatch):
    x, y, _ = digits
    x[700, 3] = np.nan
    lower_limits(monkeypatch)
    with pytest.raises(ValueError, match="NaN"):
        make_head("prototypical").fit(x, y)
