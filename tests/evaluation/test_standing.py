"""Classifiers compared with the best one on the same test images."""

from __future__ import annotations

import numpy as np
import pytest

from featkit.evaluation import Predictions, compare
from featkit.evaluation.effects import METRICS, SEED, score_cells
from featkit.evaluation.standing import BEST, TIED, WORSE, standings, standings_of_pairs

N = 200
Y = np.arange(N) % 4


def predictions(wrong):
    """Return predictions that are wrong on the given images."""
    predicted = Y.copy()
    predicted[list(wrong)] = (predicted[list(wrong)] + 1) % 4
    return Predictions([f"{row}.png" for row in range(N)], Y, predicted)


RUNS = {"a": predictions(range(10)), "b": predictions(range(5, 17)), "c": predictions(range(60))}


def scored(runs, metric=METRICS[0]):
    return {name: score_cells([({SEED: 0}, run)], metric) for name, run in runs.items()}


def test_classifiers_are_the_best_tied_with_it_or_worse():
    found = standings(scored(RUNS))
    assert {name: each.text for name, each in found.items()} == {"a": BEST, "b": TIED, "c": WORSE}
    assert [each.is_tied for each in found.values()] == [False, True, False]
    assert (found["a"].p_holm, found["a"].is_best) == (None, True)


def test_p_values_are_those_of_all_pairs_as_in_a_comparison_of_runs():
    found = standings(scored(RUNS))
    pairs = {frozenset((pair.a, pair.b)): pair for pair in compare(RUNS)}
    for name in ("b", "c"):
        assert found[name].p_holm == pytest.approx(pairs[frozenset(("a", name))].p_holm)
        assert found[name].comparisons == 3
    top1 = {name: float(run.correct.mean()) for name, run in RUNS.items()}
    assert standings_of_pairs(top1, compare(RUNS)) == found


def test_classifiers_of_equal_accuracy_are_all_the_best():
    found = standings(scored({"a": predictions([1]), "b": predictions([2]), "c": predictions([])}))
    assert [each.text for each in found.values()] == [TIED, TIED, BEST]
    equal = standings(scored({"a": predictions([1]), "b": predictions([2])}))
    assert [each.text for each in equal.values()] == [BEST, BEST]


def test_seeds_are_matched_and_averaged():
    cells = {}
    for name, first in (("a", 0), ("b", 30)):
        own = [({SEED: seed}, predictions(range(first + 5 + seed))) for seed in range(3)]
        cells[name] = score_cells(own)
    found = standings(cells)
    assert found["a"].text == BEST
    assert found["b"].text == WORSE


def test_a_single_classifier_is_compared_with_nothing():
    assert standings(scored({"a": RUNS["a"]})) == {}
    assert standings({}) == {}


def test_a_classifier_on_other_images_has_no_standing():
    other = Predictions([f"x{row}" for row in range(N)], Y, Y)
    cells = score_cells([({SEED: 0}, run) for run in (*RUNS.values(), other)])
    found = standings(dict(zip("abcd", [[cell] for cell in cells], strict=True)))
    assert set(found) == {"d"}  # the best; nothing else has its images


def test_equal_classifiers_are_rarely_called_worse():
    """The best of ten is chosen on the test images: nine tests alone would be wrong too often."""
    rng = np.random.default_rng(0)
    wrong_calls = 0
    for _ in range(60):
        runs = {}
        for name in "abcdefghij":
            runs[name] = predictions(np.flatnonzero(rng.random(N) < 0.3))
        found = standings(scored(runs))
        wrong_calls += any(each.text == WORSE for each in found.values())
    assert wrong_calls <= 6
