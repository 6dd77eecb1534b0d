"""Similarity search, compared with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from featkit.errors import DataError
from featkit.evaluation.neighbours import nearest_rows


def test_the_nearest_rows_are_those_of_scikit_learn(monkeypatch):
    rng = np.random.default_rng(0)
    x, queries = rng.normal(size=(80, 12)), rng.normal(size=(15, 12))
    reference = NearestNeighbors(n_neighbors=4, metric="cosine").fit(x)
    distances, rows = reference.kneighbors(queries)
    for numbers in (2**24, 200):  # in one block and in several
        monkeypatch.setattr("featkit.evaluation.neighbours._BLOCK_NUMBERS", numbers)
        found = nearest_rows(queries, x, 4)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_allclose(found.cosines, 1 - distances, atol=1e-9)


def test_fewer_rows_than_asked_for_are_all_returned():
    found = nearest_rows(np.eye(3), np.eye(3)[:2], 5)
    assert found.rows.shape == (3, 2)


def test_searching_among_no_images_is_refused():
    with pytest.raises(DataError, match="no images"):
        nearest_rows(np.eye(3), np.empty((0, 3)), 1)
