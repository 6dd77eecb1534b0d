"""Ties of nearest neighbours are broken by distance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from featkit.evaluation.metrics import top_k
from featkit.heads import make_head
from featkit.heads.knn import TIE_SHARE

SPECS = [
    "knn:k=4,weights=uniform",
    "knn:k=4",
    "knn:k=4,weights=temperature",
    "knn:k=4,metric=euclidean,weights=uniform",
    "knn:k=4,metric=euclidean,weights=uniform,scale=standard",
]


@pytest.fixture(scope="module")
def blobs():
    """Return features of twelve overlapping classes, 240 for training and 200 others."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 12, 440)
    x = (rng.normal(size=(440, 6)) + 2 * rng.normal(size=(12, 6))[y]).astype(np.float32)
    return x[:240], y[:240], x[240:], y[240:]


@pytest.mark.parametrize("spec", SPECS)
def test_classes_are_ranked_by_votes_then_by_their_nearest_image(spec, blobs):
    x, y, points, _ = blobs
    head = make_head(spec).fit(x, y)
    scores, neighbours = head.predict_proba(points), head._neighbours(points)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-12)
    for row, nearest in enumerate(neighbours.class_distances):
        voted = np.unique(neighbours.codes[row])
        without = np.setdiff1d(np.arange(12), voted)
        assert scores[row, voted].min() > scores[row, without].max()
        by_score = without[np.argsort(-scores[row, without], kind="stable")]
        np.testing.assert_array_equal(by_score, without[np.argsort(nearest[without])])


def test_equal_votes_go_to_the_class_of_the_nearest_image(blobs):
    """Other predictions are those of scikit-learn."""
    x, y, points, _ = blobs
    head = make_head("knn:k=4,metric=euclidean,weights=uniform").fit(x, y)
    reference = KNeighborsClassifier(4).fit(x, y).predict_proba(points)
    found, neighbours = head.predict(points), head._neighbours(points)
    ties = 0
    for row, shares in enumerate(reference):
        best = np.flatnonzero(shares == shares.max())
        ties += len(best) > 1
        nearest = best[np.argmin(neighbours.class_distances[row, best])]
        assert found[row] == nearest
    assert ties > 5
    np.testing.assert_allclose(head.predict_proba(points), reference, atol=TIE_SHARE)


@pytest.mark.parametrize("spec", SPECS)
def test_top_5_is_better_than_the_order_of_the_classes(spec, blobs):
    """Without the distances, classes without a vote are ranked by their codes."""
    x, y, points, y_points = blobs
    scores = make_head(spec).fit(x, y).predict_proba(points)
    votes = np.where(scores > TIE_SHARE, scores, 0)
    columns = np.arange(12)
    with_distances = top_k(scores, y_points, columns, 5)
    assert with_distances > top_k(votes, y_points, columns, 5)


def test_an_exact_copy_and_equal_points_have_finite_scores():
    x = np.array([[1.0, 0], [0, 1], [1, 1], [1, 1]], np.float32)
    head = make_head("knn:k=2").fit(x, [0, 1, 2, 3])
    scores = head.predict_proba(x)
    np.testing.assert_array_equal(scores[:2].argmax(axis=1), [0, 1])
    assert np.isfinite(scores).all()
    same = make_head("knn:k=2,metric=euclidean").fit(np.ones((4, 2)), [0, 1, 2, 3])
    np.testing.assert_allclose(same.predict_proba(np.ones((1, 2))).sum(), 1)


@given(seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_the_order_of_the_training_images_does_not_change_the_ranking(seed, blobs):
    x, y, points, _ = blobs
    order = np.random.default_rng(seed).permutation(len(x))
    head = make_head("knn:k=4,weights=uniform")
    scores = head.fit(x, y).predict_proba(points)
    shuffled = head.fit(x[order], y[order]).predict_proba(points)
    np.testing.assert_allclose(shuffled, scores, atol=1e-9)


def test_trials_give_the_scores_of_fitted_heads(blobs):
    from featkit.heads.knn import KNNHead

    x, y, points, _ = blobs
    for options, scores in list(KNNHead.trials(x, y, points))[::9]:
        head = KNNHead(**options).fit(x, y)
        np.testing.assert_allclose(scores, head.predict_proba(points), atol=1e-9)
