"""Intervals over folds and the corrected resampled t-test."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t, ttest_rel

from featkit.evaluation.clusters import Clusters
from featkit.evaluation.folds import corrected_t_test, fold_accuracies, fold_interval
from featkit.evaluation.intervals import wilson


def nearest_means(x: NDArray[np.float64], y: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    return np.stack([x[y == label].mean(axis=0) for label in range(k)])


def predict(means: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.int64]:
    best: NDArray[np.int64] = (x @ means.T - (means**2).sum(axis=1) / 2).argmax(axis=1)
    return best


def draw(
    rng: np.random.Generator, n: int, shift: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return images of three classes in 20 dimensions."""
    y = np.arange(n) % 3
    x = rng.normal(size=(n, 20))
    x[np.arange(n), y] += shift
    return x, y


@pytest.mark.parametrize(("n", "shift"), [(90, 2.0), (300, 1.6)])
def test_intervals_over_folds_cover_the_accuracy_of_the_final_head(n: int, shift: float) -> None:
    """400 simulated data sets; the truth is that on 3,000 new images, for the head of each."""
    rng, covered = np.random.default_rng(0), 0
    new, truth = draw(rng, 3000, shift)
    for _ in range(400):
        x, y = draw(rng, n, shift)
        fold_of = rng.permutation(np.arange(n) % 5)
        correct = np.empty(n, bool)
        for fold in range(5):
            own = fold_of == fold
            correct[own] = predict(nearest_means(x[~own], y[~own], 3), x[own]) == y[own]
        low, high = fold_interval(correct[None], fold_of[None], 5)
        covered += low <= np.mean(predict(nearest_means(x, y, 3), new) == truth) <= high
    assert 0.93 <= covered / 400 <= 0.98


def draw_groups(
    rng: np.random.Generator, groups: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return images of three classes in groups of five, which share a random offset."""
    codes = np.repeat(np.arange(groups), 5)
    x, y = draw(rng, len(codes), 0)
    y = codes % 3
    x += 0.8 * rng.normal(size=(groups, 20))[codes]
    x[np.arange(len(codes)), y] += 1.6
    return x, y, codes


def test_intervals_over_folds_of_groups_cover_where_those_over_images_do_not() -> None:
    """400 simulated data sets of 90 groups; the truth is the accuracy on images of new groups."""
    rng, clustered, independent = np.random.default_rng(0), 0, 0
    new, truth, _ = draw_groups(rng, 2000)
    for _ in range(400):
        x, y, codes = draw_groups(rng, 90)
        fold_of = rng.permutation(np.arange(90) % 5)[codes]
        correct = np.empty(len(y), bool)
        for fold in range(5):
            own = fold_of == fold
            correct[own] = predict(nearest_means(x[~own], y[~own], 3), x[own]) == y[own]
        accuracy = np.mean(predict(nearest_means(x, y, 3), new) == truth)
        low, high = fold_interval(correct[None], fold_of[None], 5, Clusters(codes, 90))
        clustered += low <= accuracy <= high
        low, high = fold_interval(correct[None], fold_of[None], 5)
        independent += low <= accuracy <= high
    assert 0.93 <= clustered / 400 <= 0.98
    assert independent < clustered - 10


def test_equal_folds_give_the_interval_of_independent_images() -> None:
    """Nothing is added where folds vary no more than by chance; repeats are no more images."""
    correct = np.arange(100) % 5 > 0
    fold_of = np.arange(100) // 20
    assert fold_interval(correct[None], fold_of[None], 5)[1] == pytest.approx(
        wilson(80, 100)[1], abs=1e-9
    )
    thrice = fold_interval(np.stack([correct] * 3), np.stack([fold_of] * 3), 5)
    assert thrice == pytest.approx(fold_interval(correct[None], fold_of[None], 5))


def test_differing_folds_and_groups_widen_the_interval() -> None:
    """One fold is much worse; and groups of ten images that are right or wrong together."""
    fold_of = np.arange(100) // 20
    even, uneven = np.arange(100) % 5 > 0, np.arange(100) >= 20
    low, _ = fold_interval(even[None], fold_of[None], 5)
    assert fold_interval(uneven[None], fold_of[None], 5)[0] < low - 0.1
    clusters = Clusters(np.arange(100) // 10, 10)
    assert fold_interval(uneven[None], fold_of[None], 5, clusters)[0] < 0.4
    single = Clusters(np.zeros(100, np.int64), 1)
    assert fold_interval(even[None], fold_of[None], 5, single) == (0, 1)


def test_the_accuracy_of_each_fold_is_by_repeat_and_fold() -> None:
    correct = np.array([[1, 1, 0, 0], [1, 0, 1, 0]], bool)
    fold_of = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
    assert fold_accuracies(correct, fold_of, 2).tolist() == [1, 0, 1, 0]


def test_the_corrected_t_test_is_the_paired_one_with_a_larger_variance() -> None:
    """Its t value is smaller by the square root of 1 + J / (folds - 1)."""
    a, b = np.array([0.8, 0.9, 0.85, 0.7, 0.95]), np.array([0.7, 0.85, 0.8, 0.75, 0.8])
    plain = ttest_rel(a, b)
    (low, high), p = corrected_t_test(a - b, 5, 2000)
    assert p == pytest.approx(2 * t.sf(plain.statistic / np.sqrt(1 + 5 / 4), 4))
    assert (low + high) / 2 == pytest.approx(np.mean(a - b))
    assert low < 0 < high


def test_equal_differences_in_all_folds_are_no_proof() -> None:
    """11 and 10 of 12 images in each of five folds, and two classifiers without errors."""
    (low, high), p = corrected_t_test(np.full(5, 1 / 12), 5, 60)
    assert p > 0.05
    assert low < 0 < 0.2 < high
    (low, high), p = corrected_t_test(np.zeros(5), 5, 100)
    assert p == 1
    assert -low == high > 0.02
    # Many more images with the same differences do tell.
    assert corrected_t_test(np.full(5, 1 / 12), 5, 6000)[1] < 0.001
    # Intervals stay within the possible differences.
    assert corrected_t_test(np.zeros(2), 2, 4)[0] == (-1, 1)


@pytest.mark.parametrize(("folds", "own"), [(2, 20), (5, 12)])
def test_equal_classifiers_rarely_differ_significantly(folds: int, own: int) -> None:
    """1,000 simulated pairs that are right for 90 % of the images, independently."""
    rng, rejected = np.random.default_rng(0), 0
    for _ in range(1000):
        a, b = rng.binomial(own, 0.9, (2, folds)) / own
        rejected += corrected_t_test(a - b, folds, folds * own)[1] < 0.05
    assert rejected / 1000 <= 0.05


def test_repeats_do_not_make_every_difference_significant() -> None:
    """With 20 repeats of the same five differences the plain t-test rejects, this one does not."""
    differences = np.tile([0.02, -0.01, 0.03, 0.0, 0.01], 20)
    assert ttest_rel(differences, np.zeros(100)).pvalue < 0.001
    assert corrected_t_test(differences, 5, 2000)[1] > 0.05
