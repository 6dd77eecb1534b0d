"""Intervals and tests over groups of images."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from featkit.errors import DataError
from featkit.evaluation import Predictions, compare, evaluate, summary
from featkit.evaluation.clusters import (
    Clusters,
    clustered_balanced_interval,
    clustered_difference,
    proportion_interval,
    sign_flip_p,
)
from featkit.evaluation.compare import mcnemar
from featkit.evaluation.effects import average, effects, score_cells
from featkit.evaluation.intervals import balanced_interval, paired_interval, wilson
from featkit.evaluation.scoring import accuracy_without, reject

SIZE = 10


def draw(
    rng: np.random.Generator, groups: int, accuracy: float, correlation: float
) -> tuple[NDArray[np.bool_], Clusters]:
    """Return correlated predictions: beta-binomial, so images of a group share their accuracy."""
    a, b = (share * (1 - correlation) / correlation for share in (accuracy, 1 - accuracy))
    codes = np.repeat(np.arange(groups), SIZE)
    return rng.random(len(codes)) < rng.beta(a, b, groups)[codes], Clusters(codes, groups)


@pytest.mark.parametrize(
    ("groups", "accuracy", "correlation"), [(40, 0.9, 0.3), (60, 0.7, 0.6), (150, 0.97, 0.3)]
)
def test_clustered_intervals_cover_where_independent_ones_do_not(
    groups: int, accuracy: float, correlation: float
) -> None:
    """Of 1,500 simulated test sets each."""
    rng, clustered, independent = np.random.default_rng(0), 0, 0
    for _ in range(1500):
        correct, clusters = draw(rng, groups, accuracy, correlation)
        low, high = proportion_interval(correct, clusters)
        clustered += low <= accuracy <= high
        low, high = proportion_interval(correct)
        independent += low <= accuracy <= high
    assert 0.93 <= clustered / 1500 <= 0.97
    assert independent / 1500 < 0.75


def test_clustered_balanced_intervals_cover_where_independent_ones_do_not() -> None:
    """Two classes in the ratio 3 to 1, each group of one class."""
    rng, clustered, independent = np.random.default_rng(1), 0, 0
    y = np.repeat(np.where(np.arange(60) % 4 == 0, 1, 0), SIZE)
    totals = np.bincount(y)
    for _ in range(300):
        correct, clusters = draw(rng, 60, 0.8, 0.4)
        low, high = clustered_balanced_interval(correct, y, clusters, resamples=300)
        clustered += low <= 0.8 <= high
        hits = np.bincount(y, correct).astype(int)
        low, high = balanced_interval(hits, totals, resamples=300)
        independent += low <= 0.8 <= high
    assert 0.92 <= clustered / 300 <= 0.985
    assert independent / 300 < 0.75


def test_clustered_differences_cover_and_keep_the_error_rate() -> None:
    """Two equally good classifiers that differ by whole groups."""
    rng, covered, rejected, naive = np.random.default_rng(2), 0, 0, 0
    for _ in range(400):
        (a, clusters), (b, _) = draw(rng, 50, 0.85, 0.5), draw(rng, 50, 0.85, 0.5)
        (low, high), p = clustered_difference(a, b, clusters)
        covered += low <= 0 <= high
        rejected += p < 0.05
        naive += mcnemar(int(np.sum(a & ~b)), int(np.sum(b & ~a))) < 0.05
    assert 0.93 <= covered / 400 <= 0.975
    assert 0.02 <= rejected / 400 <= 0.07
    assert naive / 400 > 0.2


def test_means_over_a_grid_cover_with_groups() -> None:
    """Three seeds on the same groups; the classifier of each seed differs a little."""
    rng, covered, independent = np.random.default_rng(3), 0, 0
    for _ in range(300):
        correct, clusters = draw(rng, 50, 0.85, 0.4)
        ids = [str(row) for row in range(len(correct))]
        cells, plain = [], []
        for seed in range(3):
            flipped = correct ^ (rng.random(len(correct)) < 0.02)
            predicted = np.where(flipped, 1, 0)
            found = Predictions(ids, np.ones(len(ids), int), predicted)
            plain.append(({"seed": seed}, found))
            groups = clusters.codes.astype(str)
            cells.append(({"seed": seed}, Predictions(ids, found.y, predicted, groups=groups)))
        truth = 0.85 * 0.98 + 0.15 * 0.02
        low, high = average(score_cells(cells)).interval95
        covered += low <= truth <= high
        low, high = average(score_cells(plain)).interval95
        independent += low <= truth <= high
    assert 0.92 <= covered / 300 <= 0.98
    assert independent / 300 < 0.8


def test_groups_of_one_image_give_nearly_the_interval_of_independent_images() -> None:
    """Student's t with 199 degrees of freedom differs a little from the normal distribution."""
    correct = np.arange(200) % 10 > 0
    low, high = proportion_interval(correct, Clusters(np.arange(200), 200))
    assert (low, high) == pytest.approx(wilson(180, 200), abs=0.001)
    assert low <= wilson(180, 200)[0]


def test_intervals_have_a_width_where_all_predictions_are_correct() -> None:
    """Twenty groups of ten equal images count as twenty images, at most."""
    correct = np.ones(200, bool)
    low, high = proportion_interval(correct, Clusters(np.repeat(np.arange(20), 10), 20))
    assert high == 1
    assert wilson(18, 18)[0] - 0.02 < low < wilson(20, 20)[0]


def test_one_group_tells_nothing_about_others() -> None:
    """Neither of an accuracy nor of a difference."""
    correct, clusters = np.arange(20) > 1, Clusters(np.zeros(20, np.int64), 1)
    assert proportion_interval(correct, clusters) == (0, 1)
    assert clustered_balanced_interval(correct, np.zeros(20, int), clusters) == (0, 1)
    assert clustered_difference(correct, ~correct, clusters) == ((-1, 1), 1.0)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 2), (4, 4), (30, 12)])
def test_the_sign_flip_test_of_single_images_is_mcnemar(only_a: int, only_b: int) -> None:
    """Their sums are 1 and -1."""
    sums = np.array([1] * only_a + [-1] * only_b + [0] * 7)
    assert sign_flip_p(sums) == pytest.approx(mcnemar(only_a, only_b), abs=1e-12)


def test_the_sign_flip_test_counts_all_exchanges() -> None:
    """The distribution is that of all 2**6 assignments of signs."""
    sums = np.array([3, -1, 4, 1, -5, 9])
    totals = np.abs([np.dot(sums, signs) for signs in product([-1, 1], repeat=6)])
    expected = np.mean(totals > 11) + np.mean(totals == 11) / 2
    assert sign_flip_p(sums) == pytest.approx(expected, abs=1e-12)


def test_the_difference_of_single_images_is_that_without_groups() -> None:
    """Apart from the degrees of freedom."""
    a, b = np.arange(400) % 7 > 0, np.arange(400) % 5 > 0
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    interval, p = clustered_difference(a, b, Clusters(np.arange(400), 400))
    assert interval == pytest.approx(paired_interval(only_a, only_b, 400), abs=0.001)
    assert p == pytest.approx(mcnemar(only_a, only_b))


def grouped_report_inputs() -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.str_]]:
    """Return scores, classes and groups of 120 images in 12 groups; three groups are wrong."""
    y = np.arange(120) % 2
    groups = np.repeat(np.arange(12), 10)
    confident = np.where(groups < 9, 0.9, 0.2)
    scores = np.column_stack([np.where(y == 0, confident, 1 - confident)] * 2)
    scores[:, 1] = 1 - scores[:, 0]
    return scores, y, groups.astype(str)


def test_a_report_resamples_groups_and_says_so() -> None:
    """Every interval is wider, no other number changes."""
    scores, y, groups = grouped_report_inputs()
    plain = evaluate(scores, y, ["a", "b"], train_counts=[200, 10])
    grouped = evaluate(scores, y, ["a", "b"], train_counts=[200, 10], groups=groups)
    assert (grouped.top1, grouped.ece, grouped.n) == (plain.top1, plain.ece, plain.n)
    assert grouped.test_groups == 12
    assert "n = 120 images of 12 groups, which the intervals resample" in summary(grouped)
    for wide, narrow in [
        (grouped.interval95, plain.interval95),
        (grouped.balanced_interval95, plain.balanced_interval95),
        (grouped.groups[0].interval95, plain.groups[0].interval95),
        (grouped.reliability[0].interval95, plain.reliability[0].interval95),
    ]:
        assert wide[1] - wide[0] > 1.4 * (narrow[1] - narrow[0])
    assert grouped.per_class[0].recall_interval95[0] < 0.6


def test_reports_with_groups_survive_json_and_those_without_are_as_before() -> None:
    """Reports without groups have no new keys."""
    scores, y, groups = grouped_report_inputs()
    grouped = evaluate(scores, y, ["a", "b"], groups=groups)
    again = type(grouped).from_json(grouped.to_json())
    assert again.to_dict() == grouped.to_dict()
    assert again.per_class == grouped.per_class
    plain = evaluate(scores, y, ["a", "b"]).to_dict()
    assert "test_groups" not in plain
    assert "recall_interval95" not in plain["per_class"][0]


def test_rejection_and_accuracy_without_copies_resample_groups() -> None:
    """Both intervals are wider than with independent images."""
    scores, y, groups = grouped_report_inputs()
    options = {"share": 0.1, "threshold": 0.85}
    plain = reject(scores, y, np.arange(2), **options)
    grouped = reject(scores, y, np.arange(2), groups=groups, **options)
    assert grouped.coverage_interval95[0] < plain.coverage_interval95[0]
    correct, copied = scores.argmax(axis=1) == y, np.arange(120) % 4 == 0
    wide = accuracy_without(correct, copied, groups).interval95
    assert wide[0] < accuracy_without(correct, copied).interval95[0]


def test_groups_must_match_the_images() -> None:
    """One group for each image."""
    scores, y, groups = grouped_report_inputs()
    with pytest.raises(DataError, match="give a group for each"):
        evaluate(scores, y, ["a", "b"], groups=groups[1:])


def predictions(groups: NDArray[np.str_] | None, wrong: int) -> Predictions:
    """Return predictions on 60 images, of which some are wrong."""
    y = np.zeros(60, int)
    return Predictions([f"{i}" for i in range(60)], y, (np.arange(60) < wrong) * 1, groups=groups)


def test_comparisons_resample_groups() -> None:
    """Twelve images that all lie in two groups are no evidence; as single images they are."""
    groups = np.repeat(np.arange(10), 6).astype(str)
    (plain,) = compare({"a": predictions(None, 0), "b": predictions(None, 12)})
    (grouped,) = compare({"a": predictions(groups, 0), "b": predictions(groups, 12)})
    assert plain.significant
    assert not grouped.significant
    assert (grouped.groups, grouped.to_dict()["groups"]) == (10, 10)
    assert "groups" not in plain.to_dict()
    cells = [({"head": "a"}, predictions(groups, 0)), ({"head": "b"}, predictions(groups, 12))]
    (effect,) = effects(score_cells(cells), "head", [("a", "b")])
    assert (effect.interval95, effect.p) == (grouped.interval95, grouped.p)


def test_runs_with_different_groups_are_not_compared() -> None:
    """They do not agree on which images belong together."""
    groups, others = (np.repeat(np.arange(n), 60 // n).astype(str) for n in (10, 20))
    with pytest.raises(DataError, match="different groups"):
        compare({"a": predictions(groups, 1), "b": predictions(others, 2)})


def test_groups_of_one_run_hold_for_another_on_the_same_images() -> None:
    """Such as a run before its images were grouped."""
    groups = np.repeat(np.arange(10), 6).astype(str)
    (both,) = compare({"a": predictions(groups, 1), "b": predictions(groups, 12)})
    (one,) = compare({"a": predictions(groups, 1), "b": predictions(None, 12)})
    assert one == both


def test_data_sets_with_and_without_groups_can_be_averaged() -> None:
    """The images of the second one are groups of their own."""
    groups = np.repeat(np.arange(10), 6).astype(str)
    cells = []
    for data, own in (("grouped", groups), ("plain", None)):
        for head, wrong in (("a", 3), ("b", 14)):
            cells.append(({"data": data, "head": head}, predictions(own, wrong)))
    scored = score_cells(cells)
    assert average(scored).groups == 70
    assert average(scored[2:]).groups is None
    (effect,) = effects(scored, "head", [("a", "b")])
    assert (effect.cells, effect.n) == (2, 120)
