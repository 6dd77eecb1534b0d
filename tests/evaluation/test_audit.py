"""Duplicates, near duplicates, label errors and small classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit import blocks, similarity
from featkit.blocks import RowView
from featkit.errors import DataError
from featkit.evaluation import audit
from featkit.evaluation.audit import (
    find_label_errors,
    near_copies,
    neighbour_class_frequencies,
    pool_probabilities,
    small_classes,
    stratified_folds,
)
from featkit.similarity import (
    connected_groups,
    exact_duplicates,
    near_duplicates,
    nearest_neighbours,
)


def cloud(n=600, d=12, seed=0):
    """Return points drawn uniformly on the sphere."""
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def with_copies(x, copies, noise=0.01, seed=1):
    """Return ``x`` with slightly changed copies of its first rows."""
    rng = np.random.default_rng(seed)
    changed = [
        x[:20] + noise * rng.normal(size=x[:20].shape).astype(np.float32) for _ in range(copies)
    ]
    return np.concatenate([x, *changed])


def blobs(sizes=(60, 60, 60), d=8, seed=0):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    return (4 * np.eye(len(sizes), d)[y] + rng.normal(size=(len(y), d))).astype(np.float32), y


def test_identical_images_are_found_and_unreadable_ones_are_ignored():
    """Rows with equal keys form a group; an empty key marks an unreadable image."""
    assert [rows.tolist() for rows in exact_duplicates(["a", "", "b", "a", "", "c", "a"])] == [
        [0, 3, 6]
    ]


@given(n=st.integers(2, 40), k=st.integers(1, 12), seed=st.integers(0, 99))
def test_neighbours_do_not_depend_on_the_block_size(n, k, seed):
    """The cosines of a row exclude the row itself and are in descending order."""
    x = cloud(n, 5, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "BLOCK_NUMBERS", 3 * n)
        found = nearest_neighbours(x, k)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    whole = unit @ unit.T
    np.fill_diagonal(whole, -np.inf)
    np.testing.assert_allclose(
        found.cosines, -np.sort(-whole, axis=1)[:, : min(k, n - 1)], atol=1e-6
    )
    np.testing.assert_allclose(
        np.take_along_axis(whole, found.rows, axis=1), found.cosines, atol=1e-6
    )


def test_neighbours_of_a_single_image_raise():
    """The error gives the number of images."""
    with pytest.raises(DataError, match="among 1 images"):
        nearest_neighbours(cloud(1))


def test_progress_is_reported_for_every_block():
    """``track`` is called for each block."""
    seen = []
    nearest_neighbours(cloud(10), track=lambda steps: seen.extend(steps) or steps)
    assert seen == [0]


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_synthetic_near_duplicates_are_found_with_few_false_positives(copies):
    """Up to five versions of one image are all paired with each other."""
    x = with_copies(cloud(), copies)
    found = near_duplicates(nearest_neighbours(x))
    of = np.concatenate([np.arange(600), *[np.arange(20)] * copies])
    true = of[found.pairs[:, 0]] == of[found.pairs[:, 1]]
    assert true.sum() == 20 * copies * (copies + 1) / 2
    assert (~true).sum() <= 3
    assert true[: true.sum()].all()


def test_copies_of_every_image_do_not_hide_each_other():
    """The threshold is computed from neighbours that are farther away than the copies."""
    x = cloud(300)
    noise = 0.01 * np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    found = near_duplicates(nearest_neighbours(np.concatenate([x, x + noise])))
    assert {(row, row + 300) for row in range(300)} <= set(map(tuple, found.pairs.tolist()))


@pytest.mark.parametrize("seed", range(5))
def test_uniform_points_have_about_the_expected_number_of_pairs(seed):
    """Uniform points have few near duplicates in any number of dimensions."""
    assert all(
        len(near_duplicates(nearest_neighbours(cloud(500, d, seed))).pairs) <= 3
        for d in (4, 16, 64)
    )


def test_the_estimated_dimension_equals_that_of_the_points():
    """A sphere in 9 dimensions has dimension 8."""
    assert near_duplicates(nearest_neighbours(cloud(3000, 9))).dimension == pytest.approx(
        8, abs=0.8
    )


@pytest.mark.parametrize("x", [np.ones((5, 3)), np.zeros((4, 3)), np.eye(6), np.eye(2)])
def test_constant_features_have_no_near_duplicates(x):
    """All distances are equal."""
    assert len(near_duplicates(nearest_neighbours(x)).pairs) == 0


def test_the_threshold_is_reported_as_a_cosine():
    """The reported cosine corresponds to the distance ratio."""
    neighbours = nearest_neighbours(cloud())
    found = near_duplicates(neighbours)
    distance = found.ratio * neighbours.distances[:, found.k - 1]
    assert 0 < found.ratio < 1
    assert found.cosine == pytest.approx(np.median(1 - distance**2 / 2))


def test_pairs_that_share_a_row_are_one_group():
    """Directly or through other pairs; groups are numbered in order of appearance."""
    assert connected_groups(np.array([[4, 5], [0, 1], [1, 2], [6, 5], [2, 3]])).tolist() == [
        0,
        1,
        1,
        0,
        1,
    ]
    assert connected_groups(np.empty((0, 2), np.int64)).tolist() == []


def test_a_row_is_not_its_own_neighbour():
    """Class frequencies are those of the neighbours alone, and sum to 1."""
    x, y = blobs()
    y[0] = 2
    votes = neighbour_class_frequencies(nearest_neighbours(x, 5), y, 4)
    np.testing.assert_allclose(votes.sum(axis=1), 1)
    assert votes[0, 0] > 0.5
    assert votes[:, 3].max() == 0


def test_one_estimate_alone_cannot_exclude_a_class():
    """The lower bound keeps the pooled probability above zero if one estimate is zero."""
    shares = pool_probabilities([(np.array([[1.0, 0.0]]), 0.01), (np.array([[0.0, 1.0]]), 0.01)])
    np.testing.assert_allclose(shares, [[0.5, 0.5]])


@given(seed=st.integers(0, 50), wrong=st.integers(1, 9))
def test_synthetic_label_errors_rank_first(seed, wrong):
    """With the true probabilities, all are found and the true class is suggested."""
    y = np.arange(90) % 3
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.01, 0.05, (90, 3))
    p[np.arange(90), y] = 0.9
    rows = rng.choice(90, wrong, replace=False)
    given_labels = y.copy()
    given_labels[rows] = (y[rows] + 1) % 3
    found = find_label_errors(p / p.sum(axis=1, keepdims=True), given_labels)
    assert set(found.rows.tolist()) <= set(rows.tolist())
    np.testing.assert_array_equal(found.suggested, y[found.rows])
    assert (np.diff(found.odds) <= 0).all()
    assert (found.odds > 1).all()


def test_correct_labels_are_not_flagged():
    """The given class always has the highest probability."""
    y = np.arange(30) % 3
    assert len(find_label_errors(0.1 + 0.7 * np.eye(3)[y], y).rows) == 0


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    folds=st.integers(2, 5),
    seed=st.integers(0, 9),
)
def test_folds_are_stratified(sizes, folds, seed):
    """Class sizes of folds differ by at most one; the same seed gives the same folds."""
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    assigned = stratified_folds(y, folds, seed)
    for label in np.unique(y):
        assert np.ptp(np.bincount(assigned[y == label], minlength=folds)) <= 1
    np.testing.assert_array_equal(assigned, stratified_folds(y, folds, seed))


def test_classes_are_small_for_few_train_or_no_test_images():
    """The class with the fewest train images comes first."""
    y = np.repeat([0, 1, 2], [6, 3, 6])
    splits = np.array(["train"] * 4 + ["test"] * 2 + ["train", "test", "test"] + ["train"] * 6)
    small, sizes = small_classes(y, splits, 4, 3)
    assert small.tolist() == [3, 1, 2]
    assert sizes.tolist() == [[4, 2], [1, 2], [6, 0], [0, 0]]


def uneven(seed=0, n=900, d=48):
    """Return features of classes of very different density, and which rows are test rows."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 6, n)
    spread = np.array([0.02, 0.1, 0.3, 0.6, 1.0, 1.0])[y]
    x = rng.normal(size=(6, d))[y] + spread[:, None] * rng.normal(size=(n, d))
    return np.maximum(x, 0).astype(np.float32), rng.random(n) < 0.3


@pytest.mark.parametrize("seed", range(4))
def test_near_copies_across_splits_are_found_and_dense_classes_are_not(seed):
    """Copies of train rows with noise far below the distance to their neighbours."""
    x, is_test = uneven(seed)
    assert len(near_copies(x, is_test).rows) == 0
    rng = np.random.default_rng(seed + 100)
    originals = rng.choice(np.flatnonzero(~is_test), 15, replace=False)
    nearest = np.sqrt(np.maximum(2 - 2 * nearest_neighbours(x, 1).cosines[:, 0], 0))
    lengths = np.linalg.norm(x, axis=1) * nearest
    noise = rng.normal(size=(15, x.shape[1])).astype(np.float32)
    noise *= (0.1 * lengths[originals] / np.linalg.norm(noise, axis=1))[:, None]
    both = np.concatenate([x, x[originals] + noise])
    found = near_copies(both, np.concatenate([is_test, np.ones(15, bool)]))
    assert dict(zip(found.rows.tolist(), found.originals.tolist(), strict=True)) == dict(
        zip(range(len(x), len(x) + 15), originals.tolist(), strict=True)
    )
    assert np.all(np.diff(found.cosines) <= 0)


def test_copies_within_a_split_and_scaled_features_do_not_matter():
    """The criterion is about pairs of a test row and another row, and about angles."""
    x, is_test = uneven()
    twice = np.concatenate([x, 7 * x[is_test], 0.5 * x[~is_test]])
    splits = np.repeat([False, True, False], [len(x), is_test.sum(), (~is_test).sum()])
    splits[: len(x)] = is_test
    assert len(near_copies(twice, splits).rows) == 0
    one = near_copies(np.concatenate([x, 3 * x[:1]]), np.append(is_test, not is_test[0]))
    assert len(one.rows) == 1


def assert_complete(calls, is_test):
    """Assert that the progress of a search grows up to the number of all pairs."""
    pairs = int(is_test.sum()) * int((~is_test).sum())
    assert {total for _, total in calls} == {pairs}
    done = [compared for compared, _ in calls]
    assert done == sorted(set(done))
    assert len(done) > 2
    assert done[-1] == pairs


def test_comparing_all_pairs_finds_the_same_copies(monkeypatch):
    """As where the bound excludes too few pairs; in blocks of a few rows as well."""
    x, is_test = uneven(3)
    x = np.concatenate([x, x[~is_test][:9] * 1.01])
    is_test = np.concatenate([is_test, np.ones(9, bool)])
    usual = near_copies(x, is_test)
    monkeypatch.setattr(audit, "_MAX_CANDIDATES", -1.0)
    monkeypatch.setattr(similarity, "BLOCK_NUMBERS", 40 * len(x))
    calls = []
    every = near_copies(x, is_test, progress=lambda *pairs: calls.append(pairs))
    assert_complete(calls, is_test)
    assert len(usual.rows) == 9
    pairs = [
        dict(zip(found.rows.tolist(), found.originals.tolist(), strict=True))
        for found in (usual, every)
    ]
    assert pairs[0] == pairs[1]
    np.testing.assert_allclose(usual.cosines, every.cosines, atol=1e-6)


@pytest.mark.parametrize(
    "x",
    [np.ones((20, 4)), np.zeros((20, 4)), np.eye(20), np.ones((2, 3)), np.ones((1, 3))],
    ids=["equal", "zero", "orthogonal", "two rows", "one row"],
)
def test_degenerate_features_have_no_near_copies(x):
    is_test = np.arange(len(x)) % 2 == 0
    assert len(near_copies(x.astype(np.float32), is_test).rows) == 0
    assert len(near_copies(x.astype(np.float32), np.zeros(len(x), bool)).rows) == 0


class Source:
    """Rows that can only be read some at a time."""

    def __init__(self, x):
        self.x, self.shape, self.dtype = x, x.shape, x.dtype

    def read(self, rows):
        assert len(rows) <= 300, "most rows were read at once"
        return self.x[rows]


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["few candidates", "many candidates"])
def test_near_copies_of_rows_in_a_file_are_those_of_an_array(share, monkeypatch):
    x = with_copies(cloud(900), copies=2)
    is_test = np.random.default_rng(3).random(len(x)) < 0.3
    expected = near_copies(x, is_test)
    assert len(expected.rows) > 5
    monkeypatch.setattr(audit, "_MAX_CANDIDATES", share)
    monkeypatch.setattr(audit, "_ROWS_PER_PASS", 100)
    monkeypatch.setattr(similarity, "BLOCK_NUMBERS", 60 * 40)
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 12 * 70)
    calls = []
    found = near_copies(RowView(Source(x)), is_test, progress=lambda *pairs: calls.append(pairs))
    assert_complete(calls, is_test)
    assert found.rows.tolist() == expected.rows.tolist()
    assert found.originals.tolist() == expected.originals.tolist()
    np.testing.assert_allclose(found.cosines, expected.cosines, rtol=0, atol=1e-6)
    assert found.cosine == pytest.approx(expected.cosine, abs=1e-6)
