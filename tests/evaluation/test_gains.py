"""Gains and ratios on the same images."""

from __future__ import annotations

import numpy as np
import pytest

from featkit.evaluation.gains import balanced_gain, gain, ratio_interval
from featkit.evaluation.intervals import paired_interval
from featkit.evaluation.metrics import balanced_accuracy, confusion_matrix


def draw(n=400, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])
    return y, rng.random(n) < 0.8, rng.random(n) < 0.7


def test_a_gain_is_the_difference_of_top1_with_its_score_interval():
    _, a, b = draw()
    difference, ends = gain(a, b)
    assert difference == pytest.approx(a.mean() - b.mean())
    assert ends == paired_interval(int((a & ~b).sum()), int((b & ~a).sum()), len(a))


def test_a_balanced_gain_is_the_difference_of_balanced_accuracies():
    y, a, b = draw()
    one, other = (balanced_accuracy(confusion_matrix(y, np.where(right, y, (y + 1) % 4), 4)) for right in (a, b))
    difference, (low, high) = balanced_gain(y, a, b)
    assert difference == pytest.approx(one - other)
    assert low < difference < high


def test_with_classes_of_one_size_it_is_the_plain_gain():
    _, a, b = draw()
    assert balanced_gain(np.arange(400) % 4, a, b)[0] == pytest.approx(gain(a, b)[0])
    assert balanced_gain(np.arange(400) % 4, a, b)[1] == pytest.approx(gain(a, b)[1])


def test_the_interval_of_a_balanced_gain_holds_the_truth_about_as_often_as_it_says():
    """Classes of 80, 60, 40 and 20 images; a is right in 0.9 of them, b in 0.8."""
    rng, y, held = np.random.default_rng(0), np.repeat(np.arange(4), [80, 60, 40, 20]), 0
    for _ in range(300):
        low, high = balanced_gain(y, rng.random(200) < 0.9, rng.random(200) < 0.8)[1]
        held += low <= 0.1 <= high
    assert 0.92 <= held / 300 <= 0.985


def test_the_interval_of_a_ratio_holds_it_and_is_that_of_a_mean_where_nothing_divides():
    _, a, b = draw()
    low, high = ratio_interval(a[None] * 1.0, np.ones((1, 400)))
    half = 1.96 * a.std() / 20
    assert (low, high) == pytest.approx((a.mean() - half, a.mean() + half), abs=0.006)
    low, high = ratio_interval(np.array([b, a]) * 1.0, np.array([a, a]) * 1.0)
    assert low < (b.mean() / a.mean() + 1) / 2 < high


def test_without_a_denominator_there_is_no_interval():
    assert np.isnan(ratio_interval(np.ones((1, 5)), np.zeros((1, 5)))).all()
