"""Rows that are read when they are asked for."""

import pickle

import numpy as np
import pytest

from featkit import blocks
from featkit.blocks import RowView, row_blocks, select_rows


class Source:
    """Rows in memory that count how many were read."""

    def __init__(self, x):
        self.x, self.shape, self.dtype, self.read_rows = x, x.shape, x.dtype, 0

    def read(self, rows):
        self.read_rows += len(rows)
        return self.x[rows]


X = np.arange(60, dtype=np.float32).reshape(20, 3)

INDEXES = {
    "slice": slice(3, 17),
    "steps": slice(None, None, -4),
    "rows": np.array([4, 1, 1, 19]),
    "negative": [-1, 0],
    "booleans": np.arange(20) % 3 == 0,
    "none": [],
    "row": 7,
    "columns": (slice(2, 5), [0, 2]),
    "pairs": ([1, 2], [2, 0]),
}


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_indexing_reads_what_indexing_an_array_returns(index):
    found = RowView(Source(X))[index]
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, X[index])


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_a_view_of_a_view_has_the_same_rows(index):
    rows = np.array([5, 5, *range(18, 0, -1)])
    np.testing.assert_array_equal(RowView(Source(X)).select(rows)[index], X[rows][index])


@pytest.mark.parametrize("index", [20, [-21], np.ones(19, bool), [0.5], np.ones((2, 2), int)])
def test_rows_that_do_not_exist_are_refused(index):
    with pytest.raises(IndexError):
        RowView(Source(X))[index]


def test_a_view_is_used_like_an_array():
    view = RowView(Source(X))
    assert (view.shape, view.ndim, view.size, view.nbytes, len(view)) == ((20, 3), 2, 60, 240, 20)
    for found, expected in [
        (np.asarray(view), X),
        (np.asarray(view, np.float64), X.astype(np.float64)),
        (np.concatenate([view, X]), np.concatenate([X, X])),
        (view * 2 - X, X),
        (view == X, np.ones_like(X, bool)),
        (view @ np.eye(3), X),
        (view.mean(axis=0), X.mean(axis=0)),
        (view.T, X.T),
        (np.stack(list(view)), X),
        (np.asarray(pickle.loads(pickle.dumps(view))), X),
    ]:
        np.testing.assert_array_equal(found, expected)
    source = Source(X)
    assert hasattr(RowView(source), "mean")
    assert hasattr(RowView(source), "device")
    assert not hasattr(RowView(source), "iloc")
    assert source.read_rows == 0
    with pytest.raises(ValueError, match="not in memory"):
        np.asarray(view, copy=False)


def test_blocks_of_a_view_read_each_row_once():
    source = Source(X)
    view = RowView(source).select(np.arange(19, 3, -1))
    found = np.concatenate([block for _, block in row_blocks(view, values=12)])
    np.testing.assert_array_equal(found, X[19:3:-1])
    assert source.read_rows == 16


def test_few_rows_are_read_and_many_stay_where_they_are(monkeypatch):
    monkeypatch.setattr(blocks, "VIEW_VALUES", 30)
    source = Source(X)
    assert isinstance(select_rows(RowView(source), np.arange(11)), RowView)
    assert source.read_rows == 0
    assert isinstance(select_rows(RowView(source), np.arange(10)), np.ndarray)
    assert isinstance(select_rows(X, np.arange(11)), np.ndarray)
