"""Heads on arrays that are read in blocks, made small here by lowering the limit."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from featkit import blocks
from featkit.blocks import RowView
from featkit.heads import knn, linear, logistic, make_head, parse_correction
from featkit.heads.balance import BalancedHead
from featkit.heads.base import predict_scores
from featkit.heads.persist import load_head, save_head

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
    monkeypatch.setattr(logistic, "BLOCK_VALUES", 64 * 140)
    monkeypatch.setattr(knn, "BLOCK_VALUES", 20 * 110)
    monkeypatch.setattr(knn, "SEARCH_VALUES", 70 * 100)
    monkeypatch.setattr(knn, "SEARCHED_AT_ONCE", 20)


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


class Source:
    """Rows that can only be read some at a time."""

    def __init__(self, x):
        self.x, self.shape, self.dtype = x, x.shape, x.dtype

    def read(self, rows):
        assert len(rows) <= 500, "most rows were read at once"
        return self.x[rows]


VIEW_SPECS = (*SPECS, "knn:scale=standard", "linear:scale=none", "prototypical:scale=l2")


@pytest.mark.parametrize("spec", VIEW_SPECS)
def test_rows_in_a_file_are_fitted_as_an_array_and_never_read_at_once(spec, digits, monkeypatch):
    x, y, points = digits
    lower_limits(monkeypatch)
    expected = make_head(spec).fit(x, y).predict_proba(points)
    head = make_head(spec).fit(RowView(Source(x)), y)
    np.testing.assert_allclose(head.predict_proba(points), expected, rtol=0, atol=1e-6)
    assert head.n_features_in_ == 64
    np.testing.assert_array_equal(head.classes_, np.unique(y))


@pytest.mark.parametrize(
    ("head", "correction"),
    [
        ("linear", "none"),
        ("linear", "logit-adjust"),
        ("mlp:epochs=2", "logit-adjust"),
        ("knn", "oversample"),
        ("prototypical", "oversample"),
    ],
)
def test_corrections_take_rows_in_a_file(head, correction, digits, monkeypatch):
    x, y, points = digits
    lower_limits(monkeypatch)

    class AnySource(Source):
        def read(self, rows):
            return self.x[rows]

    spec = str(parse_correction(correction))
    expected = BalancedHead(head=head, correction=spec).fit(x, y).predict_proba(points)
    found = BalancedHead(head=head, correction=spec).fit(RowView(AnySource(x)), y)
    np.testing.assert_allclose(found.predict_proba(points), expected, rtol=0, atol=1e-6)


def test_fewer_rows_in_a_file_are_fitted_as_an_array_is(digits):
    x, y, points = digits

    class AnySource(Source):
        def read(self, rows):
            return self.x[rows]

    for spec in ("linear", "knn", "prototypical"):
        expected = make_head(spec).fit(x, y).predict_proba(points)
        found = make_head(spec).fit(RowView(AnySource(x)), y).predict_proba(points)
        np.testing.assert_array_equal(found, expected)


def test_labels_of_rows_in_a_file_are_checked(digits, monkeypatch):
    x, y, _ = digits
    lower_limits(monkeypatch)
    for wrong, message in [
        (y[:-1], "inconsistent numbers of samples"),
        (np.zeros(len(x)), "at least two classes"),
        (y + 0.5, "Unknown label type"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_head("prototypical").fit(RowView(Source(x)), wrong)


def test_a_knn_head_of_rows_in_a_file_is_saved_and_loaded(digits, monkeypatch, tmp_path):
    x, y, points = digits
    lower_limits(monkeypatch)
    for head in (make_head("knn"), BalancedHead(head="knn:scale=root")):
        head.fit(RowView(Source(x)), y)
        save_head(head, tmp_path / "head.skops")
        loaded = load_head(tmp_path / "head.skops")
        rows = (loaded.head_ if isinstance(head, BalancedHead) else loaded).rows_
        assert isinstance(rows, np.ndarray)
        assert rows.shape == x.shape
        expected = head.predict_proba(points)
        np.testing.assert_allclose(loaded.predict_proba(points), expected, rtol=0, atol=1e-7)


def test_scores_of_rows_in_a_file_are_those_of_an_array(digits, monkeypatch):
    x, y, points = digits
    head = make_head("linear").fit(x, y)
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 64 * 50)
    found = predict_scores(head, RowView(Source(points)))
    np.testing.assert_allclose(found, head.predict_proba(points), rtol=0, atol=1e-6)
