"""Mean average precision over folds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from featkit.evaluation.clusters import Clusters
from featkit.evaluation.folds import compare_folds
from featkit.evaluation.label_folds import precision_fold_interval, score_precision_folds
from featkit.evaluation.multilabel import mean_average_precision_terms


def drawn(n=200, repeats=2, folds=4, seed=0):
    """Return scores of every repeat, targets and folds."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, 3)) < (0.5, 0.3, 0.2)).astype(np.uint8)
    scores = 1 / (1 + np.exp(-(2 * targets + rng.standard_normal((repeats, n, 3)))))
    fold_of = np.stack([rng.permutation(n) % folds for _ in range(repeats)])
    return scores, targets, fold_of


def test_the_metric_of_every_fold_is_that_of_scikit_learn():
    scores, targets, fold_of = drawn()
    found = score_precision_folds(scores, targets, fold_of, 4, assignment="a")
    expected = []
    for own_scores, own_folds in zip(scores, fold_of, strict=True):
        for fold in range(4):
            inside = own_folds == fold
            expected.append(average_precision_score(targets[inside], own_scores[inside]))
    assert found.precisions == pytest.approx(expected, abs=1e-12)
    pooled = [average_precision_score(targets, each) for each in scores]
    assert found.mean_average_precision == pytest.approx(np.mean(pooled), abs=1e-12)
    assert found.sizes == (50,) * 8
    for value, (low, high) in zip(found.precisions, found.intervals95, strict=True):
        assert low < value < high


def test_folds_that_differ_by_more_than_chance_widen_the_interval():
    scores, targets, fold_of = drawn(repeats=1)
    terms = mean_average_precision_terms(targets, scores[0])[None]
    low, high = precision_fold_interval(terms, targets, fold_of, 4)
    moved = terms + np.where(fold_of == 0, 0.3, -0.1)  # the same mean
    wide_low, wide_high = precision_fold_interval(moved, targets, fold_of, 4)
    assert wide_high - wide_low > 1.2 * (high - low)


def test_groups_are_resampled():
    scores, targets, fold_of = drawn(repeats=1)
    terms = mean_average_precision_terms(targets, scores[0])[None]
    groups = Clusters.of(np.arange(200) // 10, 200)
    low, high = precision_fold_interval(terms, targets, fold_of, 4, groups)
    assert 0 <= low < terms.mean() < high <= 1
    one = Clusters.of(np.zeros(200), 200)
    assert precision_fold_interval(terms, targets, fold_of, 4, one) == (0.0, 1.0)


def test_the_interval_covers_the_metric_of_many_images():
    """Heads of the folds that only differ by chance: 120 samples of 150 images."""
    scores, targets, _ = drawn(n=100_000, repeats=1, seed=5)
    expected = mean_average_precision_terms(targets, scores[0]).mean()
    covered = 0
    for seed in range(120):
        scores, targets, fold_of = drawn(n=150, repeats=1, seed=seed)
        terms = mean_average_precision_terms(targets, scores[0])[None]
        low, high = precision_fold_interval(terms, targets, fold_of, 4)
        covered += low <= expected <= high
    assert covered >= 110


def test_runs_on_the_same_folds_are_compared():
    scores, targets, fold_of = drawn()
    better = score_precision_folds(scores, targets, fold_of, 4, assignment="a")
    noise = np.random.default_rng(1).random(scores.shape)
    worse = score_precision_folds(scores + noise, targets, fold_of, 4, assignment="a")
    (pair,) = compare_folds({"better": better, "worse": worse})
    expected = np.mean(better.precisions) - np.mean(worse.precisions)
    assert pair.difference == pytest.approx(expected, abs=1e-12)
    assert pair.interval95[0] < pair.difference < pair.interval95[1]
    (same,) = compare_folds({"better": better, "again": better})
    assert same.difference == 0
    assert same.p == pytest.approx(1)
