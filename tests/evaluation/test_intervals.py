from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.errors import DataError
from featkit.evaluation.intervals import balanced_interval, wilson

counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
classes = st.lists(
    st.integers(0, 30).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=1, max_size=8
)


@given(counts)
def test_wilson_holds_the_share_and_stays_within_0_and_1(case: tuple[int, int]) -> None:
    right, n = case
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1
    assert low < high


@given(counts, st.integers(2, 10))
def test_wilson_is_narrower_with_more_images_and_wider_with_a_higher_level(case: tuple[int, int], factor: int) -> None:
    right, n = case

    def width(*arguments: float) -> float:
        low, high = wilson(*arguments)
        return high - low

    assert width(factor * right, factor * n) < width(right, n) < width(right, n, 0.99)


def test_wilson_equals_published_values() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (right, n), interval in published.items():
        assert wilson(right, n) == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize(("n", "share"), [(148, 0.99), (50, 0.95), (2893, 0.94)])
def test_wilson_covers_as_often_as_it_says(n: int, share: float) -> None:
    right = np.random.default_rng(0).binomial(n, share, size=2000)
    intervals = np.array([wilson(int(value), n) for value in right])
    covered = np.mean((intervals[:, 0] <= share) & (share <= intervals[:, 1]))
    assert 0.93 <= covered <= 0.98


@pytest.mark.parametrize(("right", "n"), [(0, 0), (-1, 5), (6, 5), (1, -1)])
def test_counts_that_cannot_be_are_refused(right: int, n: int) -> None:
    with pytest.raises(DataError, match="have no interval"):
        wilson(right, n)


@given(classes.filter(lambda rows: any(total for _, total in rows)), st.randoms())
def test_balanced_interval_holds_the_mean_recall_in_any_order_of_classes(rows: list[tuple[int, int]], random) -> None:
    hits, totals = np.array(rows).T
    low, high = balanced_interval(hits, totals, resamples=50)
    mean = np.mean(hits[totals > 0] / totals[totals > 0])
    assert 0 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1
    random.shuffle(rows)
    assert balanced_interval(*np.array(rows).T, resamples=50) == (low, high)


def test_balanced_interval_is_the_percentile_bootstrap_over_images_where_that_is_wider() -> None:
    """Three of four and 50 of 100 right: the same as drawing the 104 rows one by one."""
    y, right = np.repeat([0, 1], [4, 100]), np.concatenate([[1, 1, 1, 0], np.arange(100) % 2])
    rng, means = np.random.default_rng(1), []
    for rows in rng.integers(0, 104, (2000, 104)):
        means.append(np.mean([right[rows][y[rows] == c].mean() for c in (0, 1) if (y[rows] == c).any()]))
    low, _ = balanced_interval(np.array([3, 50]), np.array([4, 100]))
    assert low == pytest.approx(np.quantile(means, 0.025), abs=0.03)
    assert low < wilson(0.625 * 15.38, 15.38)[0] - 0.05


def test_balanced_interval_has_a_width_where_every_answer_is_right() -> None:
    low, high = balanced_interval(np.array([74, 74]), np.array([74, 74]))
    assert (low, high) == pytest.approx(wilson(148, 148))
    assert balanced_interval(np.array([143, 5]), np.array([143, 5]))[0] < low - 0.05


@pytest.mark.parametrize(
    ("totals", "recall"), [([95, 5], 0.99), ([4] * 37, 0.99), ([60] * 10, 0.95)], ids=["rare class", "few each", "many"]
)
def test_balanced_interval_covers_at_least_as_often_as_it_says(totals: list[int], recall: float) -> None:
    rng = np.random.default_rng(0)
    intervals = [
        balanced_interval(rng.binomial(totals, recall), np.array(totals), resamples=300, seed=trial)
        for trial in range(300)
    ]
    assert np.mean([low <= recall <= high for low, high in intervals]) >= 0.94


def test_balanced_interval_is_the_same_for_the_same_seed() -> None:
    hits, totals = np.array([7, 30]), np.array([10, 40])
    assert balanced_interval(hits, totals, seed=3) == balanced_interval(hits, totals, seed=3)


def test_no_test_images_have_no_interval() -> None:
    with pytest.raises(DataError, match="no test images"):
        balanced_interval(np.array([0, 0]), np.array([0, 0]))
