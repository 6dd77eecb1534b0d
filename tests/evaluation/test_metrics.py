from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as golden

from featkit.evaluation import metrics

K = 8


@given(st.integers(2, 40), st.sets(st.integers(0, K - 1), min_size=1), st.integers(0, 2**32 - 1))
def test_every_metric_equals_that_of_scikit_learn(n: int, present: set[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, scores = rng.choice(sorted(present), n), rng.random((n, K))
    predicted = metrics.predict(scores, np.arange(K))
    counts = metrics.confusion_matrix(y, predicted, K)
    labels = np.unique(y)

    np.testing.assert_array_equal(
        counts, golden.confusion_matrix(y, predicted, labels=np.arange(K))
    )
    recall = golden.recall_score(y, predicted, labels=labels, average="macro")
    assert metrics.balanced_accuracy(counts) == pytest.approx(recall)
    f1 = golden.f1_score(y, predicted, labels=labels, average="macro", zero_division=0)
    assert metrics.macro_f1(counts) == pytest.approx(f1)
    expected = golden.precision_recall_fscore_support(
        y, predicted, labels=np.arange(K), zero_division=np.nan
    )
    ours = metrics.per_class(counts)
    np.testing.assert_allclose(ours.precision, expected[0])
    np.testing.assert_allclose(ours.recall, expected[1])
    np.testing.assert_allclose(ours.f1[labels], expected[2][labels])
    for k in (1, 2, 5):
        share = golden.top_k_accuracy_score(y, scores, k=k, labels=np.arange(K))
        assert metrics.top_k(scores, y, np.arange(K), k) == pytest.approx(share)


def test_balanced_accuracy_does_not_depend_on_class_sizes() -> None:
    counts = np.array([[90, 10], [1, 1]])
    assert metrics.balanced_accuracy(counts) == pytest.approx((0.9 + 0.5) / 2)
    assert metrics.balanced_accuracy(counts * [[1], [50]]) == pytest.approx((0.9 + 0.5) / 2)


def test_a_class_without_test_images_has_no_recall_and_counts_in_no_mean() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 4]])
    rows = metrics.per_class(counts)
    np.testing.assert_array_equal(rows.recall, [0.75, np.nan, 1])
    np.testing.assert_array_equal(rows.precision, [1, 0, 1])
    np.testing.assert_array_equal(rows.f1, [6 / 7, np.nan, 1])
    assert metrics.balanced_accuracy(counts) == pytest.approx(0.875)
    assert metrics.macro_f1(counts) == pytest.approx((6 / 7 + 1) / 2)


def test_a_class_never_predicted_has_no_precision_but_an_f1_of_zero() -> None:
    rows = metrics.per_class(np.array([[0, 2], [0, 2]]))
    np.testing.assert_array_equal(rows.precision, [np.nan, 0.5])
    np.testing.assert_array_equal(rows.f1, [0, 2 / 3])


def test_ties_count_against_the_head_beyond_the_predicted_class() -> None:
    """Three votes for class 6 and two for class 7; classes 0 to 5 have score 0, in any order."""
    scores = np.tile([0, 0, 0, 0, 0, 0, 0.6, 0.4], (8, 1))
    assert metrics.top_k(scores, np.arange(8), np.arange(8), 5) == 2 / 8


def test_the_predicted_class_is_among_the_first_k_even_in_a_tie() -> None:
    scores, columns = np.zeros((6, 6)), np.arange(6)
    assert metrics.predict(scores, columns).tolist() == [0] * 6
    assert (
        metrics.top_k(scores, np.arange(6), columns, 1)
        == metrics.top_k(scores, np.arange(6), columns, 5)
        == 1 / 6
    )


@given(st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_top_k_grows_with_k_and_starts_at_accuracy(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, scores, columns = (
        rng.integers(0, K, n),
        rng.integers(0, 3, (n, K)).astype(float),
        np.arange(K),
    )
    shares = [metrics.top_k(scores, y, columns, k) for k in range(1, K + 1)]
    assert shares[0] == np.mean(metrics.predict(scores, columns) == y)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_class_without_training_images_counts_as_errors() -> None:
    scores, columns = np.array([[0.2, 0.8], [0.9, 0.1]]), np.array([1, 3])
    assert metrics.predict(scores, columns).tolist() == [3, 1]
    for k in (1, 2, 5):
        assert metrics.top_k(scores, np.array([2, 0]), columns, k) == 0
        assert metrics.top_k(scores, np.array([9, 1]), columns, k) == 0.5


def test_confusions_are_sorted_by_count_then_fraction_then_name() -> None:
    """In any order of the classes."""
    confusion = np.array([[5, 3, 1, 1], [3, 9, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    expected = [("d", "b"), ("b", "d"), ("a", "d"), ("d", "a"), ("d", "c"), ("b", "a")]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        names = [["d", "b", "c", "a"][place] for place in order]
        pairs = metrics.most_confused(confusion[np.ix_(order, order)], names)
        assert [(names[true], names[predicted]) for true, predicted in pairs] == expected
