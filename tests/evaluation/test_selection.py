"""Choice of rows to label next."""

from __future__ import annotations

import numpy as np
import pytest

from featkit.errors import DataError
from featkit.evaluation.selection import margins, select_batch


def probabilities(rng, n, k=4):
    p = rng.random((n, k))
    return p / p.sum(axis=1, keepdims=True)


def test_margin_is_the_difference_of_the_two_largest_probabilities():
    p = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.5, 0.5, 0.0]])
    assert margins(p) == pytest.approx([0.2, 0.7, 0.0])
    assert margins(p[:, :2]) == pytest.approx([0.2, 0.0, 0.0])


def test_the_same_seed_gives_the_same_distinct_rows_sorted_by_margin():
    rng = np.random.default_rng(0)
    p, x = probabilities(rng, 200), rng.normal(size=(200, 8))
    rows = select_batch(p, x, 20, seed=3)
    assert len(set(rows.tolist())) == 20
    assert rows.tolist() == select_batch(p, x, 20, seed=3).tolist()
    assert (np.diff(margins(p)[rows]) >= 0).all()


def test_only_the_most_uncertain_rows_are_candidates():
    rng = np.random.default_rng(0)
    p, x = probabilities(rng, 200), rng.normal(size=(200, 8))
    rows = select_batch(p, x, 10, candidates=3)
    assert set(rows.tolist()) <= set(np.argsort(margins(p), kind="stable")[:30].tolist())
    most_uncertain = np.argsort(margins(p), kind="stable")[:10]
    assert select_batch(p, x, 10, candidates=1).tolist() == most_uncertain.tolist()


def test_rows_that_look_the_same_are_not_chosen_together():
    """Of five tight groups of uncertain rows, each is represented."""
    rng = np.random.default_rng(0)
    group = np.arange(50) % 5
    x = 10 * np.eye(5)[group] + 0.01 * rng.normal(size=(50, 5))
    p = np.full((50, 2), 0.5)
    assert set(group[select_batch(p, x, 5, candidates=10)].tolist()) == set(range(5))


def test_equal_features_are_filled_up_with_the_most_uncertain_rows():
    rng = np.random.default_rng(0)
    p = probabilities(rng, 30)
    rows = select_batch(p, np.ones((30, 3)), 6)
    assert len(set(rows.tolist())) == 6


def test_all_rows_can_be_chosen():
    rng = np.random.default_rng(0)
    p = probabilities(rng, 7)
    assert sorted(select_batch(p, rng.normal(size=(7, 3)), 7).tolist()) == list(range(7))


@pytest.mark.parametrize("n", [0, 8])
def test_a_number_that_cannot_be_chosen_is_refused(n):
    p = np.full((7, 2), 0.5)
    with pytest.raises(DataError, match="from 1 to 7"):
        select_batch(p, np.ones((7, 2)), n)


def test_certain_rows_and_zero_features_are_valid_input():
    p = np.tile([1.0, 0.0], (12, 1))
    assert len(select_batch(p, np.zeros((12, 3), np.float32), 4)) == 4
