"""Mean costs of decisions, their intervals and comparisons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featkit.errors import DataError
from featkit.evaluation import Report, evaluate
from featkit.evaluation.clusters import Clusters, resampled_means, sign_flip_p
from featkit.evaluation.compare import mcnemar
from featkit.evaluation.costs import (
    CostMatrix,
    compare_costs,
    cost_difference,
    cost_sentence,
    mean_cost_interval,
    score_costs,
)
from featkit.evaluation.intervals import paired_interval, wilson

EQUAL = CostMatrix(((0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0)))
UNEQUAL = CostMatrix(((0.0, 1.0, 2.0), (5.0, 0.0, 1.0), (10.0, 3.0, 0.0)))
RARE = CostMatrix(((0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (50.0, 1.0, 0.0)))


def draw(
    rng: np.random.Generator, n: int, accuracy: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return true and predicted classes; errors are spread evenly over the other classes."""
    y = rng.integers(0, 3, n)
    wrong = (y + rng.integers(1, 3, n)) % 3
    return y, np.where(rng.random(n) < accuracy, y, wrong)


def true_mean(matrix: CostMatrix, accuracy: float) -> float:
    return (1 - accuracy) * float(matrix.values.sum()) / 6


def test_equal_costs_give_the_error_rate() -> None:
    """The interval contains Wilson's of the error rate, and both decisions are the same."""
    rng = np.random.default_rng(0)
    scores = rng.dirichlet([1, 1, 1], 200)
    y = rng.integers(0, 3, 200)
    predicted = scores.argmax(axis=1)
    found = score_costs(scores, y, predicted=predicted, columns=np.arange(3), matrix=EQUAL)
    assert found.n == 200
    assert found.mean == pytest.approx(np.mean(predicted != y))
    low, high = wilson(int(np.sum(predicted != y)), 200)
    assert found.interval95[0] <= low
    assert found.interval95[1] >= high
    assert (found.changed, found.difference) == (0, 0)
    assert found.least_mean == found.mean


def test_the_decision_of_least_expected_cost_minimises_the_expected_cost() -> None:
    """By hand: errors on the last class cost ten times as much; no column, no decision."""
    scores = np.array([[0.7, 0.1, 0.2], [0.9, 0.05, 0.05], [0.2, 0.5, 0.3]])
    decided = UNEQUAL.decide(scores, np.arange(3))
    expected = [row @ UNEQUAL.values for row in scores]
    assert decided.tolist() == [row.argmin() for row in expected] == [1, 0, 2]
    two = scores[:, :2] / scores[:, :2].sum(axis=1, keepdims=True)
    assert set(UNEQUAL.decide(two, np.array([0, 2])).tolist()) <= {0, 2}


def test_of_equal_expected_costs_the_most_probable_class_is_decided() -> None:
    """As for classes that nobody tells apart, whose costs are equal."""
    matrix = CostMatrix(((0.0, 0.0, 1.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0)))
    scores = np.array([[0.2, 0.5, 0.3], [0.45, 0.3, 0.25]])
    assert matrix.decide(scores, np.arange(3)).tolist() == [1, 0]


def test_deciding_by_cost_is_cheaper_where_probabilities_are_right() -> None:
    """On 2,000 images whose classes are drawn from their probabilities, significantly."""
    rng = np.random.default_rng(3)
    scores = rng.dirichlet([0.7, 0.7, 0.7], 2000)
    y = (scores.cumsum(axis=1) < rng.random((2000, 1))).sum(axis=1)
    found = score_costs(
        scores, y, predicted=scores.argmax(axis=1), columns=np.arange(3), matrix=UNEQUAL
    )
    assert found.difference == pytest.approx(found.least_mean - found.mean)
    assert found.difference_interval95[1] < 0
    decided = UNEQUAL.decide(scores, np.arange(3))
    assert found.changed == np.sum(decided != scores.argmax(axis=1)) > 0
    assert found.least_top1 == np.mean(decided == y) < np.mean(scores.argmax(axis=1) == y)
    text = cost_sentence(found)
    assert f"of the class of least expected cost, which is another one for {found.changed}" in text
    assert "n = 2000, of the most probable class, which `predict` answers with" in text


def test_scores_that_are_no_probabilities_have_no_expected_cost() -> None:
    """Such as those of a plug-in; the cost of its predictions is reported."""
    scores = np.array([[3.0, -1.0, 0.0], [0.0, 2.0, 1.0]])
    found = score_costs(
        scores,
        np.array([0, 2]),
        predicted=np.array([0, 1]),
        columns=np.arange(3),
        matrix=UNEQUAL,
    )
    assert found.mean == 1.5
    assert found.least_mean is None
    assert "no probabilities" in cost_sentence(found)


@pytest.mark.parametrize("matrix", [EQUAL, UNEQUAL, RARE], ids=["equal", "unequal", "rare"])
@pytest.mark.parametrize(("n", "accuracy"), [(60, 0.95), (150, 0.8), (300, 0.97)])
def test_intervals_of_the_mean_cost_cover_it(matrix: CostMatrix, n: int, accuracy: float) -> None:
    """200 simulated test sets, also where a large cost occurs once in hundreds of images."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        y, predicted = draw(rng, n, accuracy)
        low, high = mean_cost_interval(matrix.of(y, predicted), y, matrix)
        covered += low <= true_mean(matrix, accuracy) <= high
    assert covered / 200 >= 0.92


def test_groups_of_images_widen_the_interval() -> None:
    """150 simulated test sets of 40 groups of eight images of a common accuracy."""
    rng, clustered, independent = np.random.default_rng(1), 0, 0
    groups = np.repeat(np.arange(40), 8)
    clusters, expected = Clusters.of(groups, 320), true_mean(UNEQUAL, 0.8)
    for _ in range(150):
        y, predicted = draw(rng, 320, rng.beta(1.6, 0.4, 40)[groups])
        costs = UNEQUAL.of(y, predicted)
        low, high = mean_cost_interval(costs, y, UNEQUAL, clusters)
        clustered += low <= expected <= high
        low, high = mean_cost_interval(costs, y, UNEQUAL)
        independent += low <= expected <= high
    assert clustered / 150 >= 0.92
    assert independent / 150 < 0.87
    single = Clusters.of(np.zeros(320), 320)
    assert mean_cost_interval(costs, y, UNEQUAL, single) == (0, 10)


def test_the_interval_has_a_width_where_all_predictions_are_right() -> None:
    """The upper end grows with the largest cost that an error could have had."""
    y = np.repeat([0, 1, 2], 20)
    low, high = mean_cost_interval(UNEQUAL.of(y, y), y, UNEQUAL)
    assert (low, high) == (0, pytest.approx(10 * wilson(0, 60)[1]))


def test_resampled_means_are_those_of_a_bootstrap() -> None:
    """Mean and spread of the bootstrap over images, and over groups of one image."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, 80).astype(float)
    means = resampled_means(values, resamples=4000)
    error = values.std() / np.sqrt(80)
    assert means.mean() == pytest.approx(values.mean(), abs=4 * error / np.sqrt(4000))
    assert means.std() == pytest.approx(error, rel=0.05)
    grouped = resampled_means(values, Clusters.of(np.arange(80), 80), resamples=4000)
    assert grouped.std() == pytest.approx(error, rel=0.05)


def test_differences_of_equal_costs_are_those_of_accuracies() -> None:
    """McNemar's p-value, and an interval that contains Tango's, with the sign turned."""
    rng = np.random.default_rng(4)
    y, a = draw(rng, 150, 0.9)
    wrong = (y + 1) % 3
    b = np.where(rng.random(150) < 0.75, y, wrong)
    only_a, only_b = int(np.sum((a == y) & (b != y))), int(np.sum((b == y) & (a != y)))
    (low, high), p = cost_difference(EQUAL.of(y, a), EQUAL.of(y, b), 1.0)
    assert p == pytest.approx(mcnemar(only_a, only_b))
    tango = paired_interval(only_b, only_a, 150)
    assert low <= tango[0] + 1e-9
    assert high >= tango[1] - 1e-9


def test_fractional_costs_are_tested_by_random_exchanges() -> None:
    """Halved costs give the p-value of the whole ones, up to the random error."""
    rng = np.random.default_rng(5)
    y, a = draw(rng, 120, 0.9)
    _, b = draw(rng, 120, 0.8)
    b = np.where(a == y, b, a)
    whole = cost_difference(UNEQUAL.of(y, a), UNEQUAL.of(y, b), 2.0)[1]
    halved = cost_difference(UNEQUAL.of(y, a) / 3, UNEQUAL.of(y, b) / 3, 2 / 3)[1]
    assert halved == pytest.approx(whole, abs=0.02)


def test_comparisons_of_costs_resample_groups_and_keep_the_error_rate() -> None:
    """Of two classifiers of equal mean cost, 150 times; one group says nothing."""
    rng, rejected, covered = np.random.default_rng(6), 0, 0
    groups = np.repeat(np.arange(40), 6)
    for _ in range(150):
        y, a = draw(rng, 240, rng.beta(1.6, 0.4, 40)[groups])
        wrong = (y + rng.integers(1, 3, 240)) % 3
        b = np.where(rng.random(240) < rng.beta(1.6, 0.4, 40)[groups], y, wrong)
        costs = {"a": UNEQUAL.of(y, a), "b": UNEQUAL.of(y, b)}
        (pair,) = compare_costs(costs, UNEQUAL.typical_excess(y), groups)
        rejected += pair.p < 0.05
        covered += pair.interval95[0] <= 0 <= pair.interval95[1]
    assert rejected / 150 <= 0.09
    assert covered / 150 >= 0.92
    sums = Clusters.of(groups, 240).sums(costs["a"] - costs["b"])
    assert pair.p == sign_flip_p(sums.astype(np.int64))
    (single,) = compare_costs(costs, 1.0, np.zeros(240, str))
    assert (single.p, single.interval95) == (1.0, (-10, 10))


def test_several_comparisons_are_corrected_and_name_the_cheaper_one_first() -> None:
    """With Holm correction over all pairs."""
    costs = {"dear": np.full(40, 3.0), "cheap": np.zeros(40), "same": np.zeros(40)}
    pairs = compare_costs(costs, 1.0)
    assert [pair.comparisons for pair in pairs] == [3, 3, 3]
    assert pairs[0].sentence.startswith("mean cost of cheap - dear: -3 (unadjusted 95% CI ")
    assert "; significant after Holm correction over 3 pairs (p < 0.001)" in pairs[0].sentence
    assert pairs[2].p_holm == 1
    assert not pairs[2].significant
    assert pairs[0].to_dict()["interval95"] == list(pairs[0].interval95)
    with pytest.raises(DataError, match="b has costs of 2 images, not 3"):
        compare_costs({"a": np.zeros(3), "b": np.zeros(2)}, 1.0)


def test_reports_with_costs_survive_json_and_those_without_are_as_before() -> None:
    """The matrix is written with the mean cost."""
    rng = np.random.default_rng(7)
    scores, y = rng.dirichlet([1, 1, 1], 30), rng.integers(0, 3, 30)
    report = evaluate(scores, y, ["a", "b", "c"])
    assert "decision_cost" not in report.to_dict()
    found = score_costs(
        scores, y, predicted=scores.argmax(axis=1), columns=np.arange(3), matrix=UNEQUAL
    )
    values = report.to_dict() | {"decision_cost": None}
    assert Report.from_dict(values).decision_cost is None
    again = Report.from_json(replace(report, decision_cost=found).to_json())
    assert again.decision_cost == found
