"""Paired comparisons: error rates of the tests, coverage of the intervals, sentences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from featkit.errors import DataError
from featkit.evaluation.compare import compare, format_comparison, holm, mcnemar
from featkit.evaluation.intervals import paired_interval
from featkit.evaluation.predictions import Predictions

COUNTS = st.integers(0, 400)


def run(right: np.ndarray, ids: list[str] | None = None) -> Predictions:
    """Return predictions for images of class 1; a wrong prediction is 0."""
    return Predictions(
        ids or [f"{row}.png" for row in range(len(right))],
        np.ones(len(right), int),
        right.astype(int),
    )


def answers(n: int, only_a: int, only_b: int) -> tuple[np.ndarray, np.ndarray]:
    place = np.arange(n)
    return place >= only_b, (place < only_b) | (place >= only_b + only_a)


def joint(accuracies: tuple[float, float], correlation: float) -> np.ndarray:
    """Return the probabilities that both are correct, only the first, only the second, or neither."""
    a, b = accuracies
    both = min(a * b + correlation * np.sqrt(a * (1 - a) * b * (1 - b)), a, b)
    return np.array([both, a - both, b - both, 1 - a - b + both])


def test_a_clear_difference_is_a_sentence_with_its_interval() -> None:
    """The better run is named first in any order of the arguments."""
    a, b = answers(1000, 60, 20)
    (pair,) = compare({"svm": run(a), "knn": run(b)})
    assert (pair.n, pair.only_a, pair.only_b, pair.difference) == (1000, 60, 20, 0.04)
    assert pair.sentence == "svm - knn: +4.0 points (95% CI 2.3 to 5.8), p < 0.001; significant"
    (turned,) = compare({"knn": run(b), "svm": run(a)})
    assert turned.sentence == pair.sentence
    assert turned.p == pair.p == pair.p_holm
    assert turned.difference == -0.04
    assert pair.to_dict()["sentence"] == pair.sentence


@pytest.mark.parametrize(("only_a", "only_b"), [(1042, 38), (1056, 20), (1250, 0), (5000, 3)])
def test_a_tiny_p_value_is_not_negative(only_a, only_b):
    """In floating point, twice the sum minus its last term can be negative."""
    assert 0 <= mcnemar(only_a, only_b) < 1e-200


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"), [(1, 7, 0.039), (1, 1, 0.75), (2, 2, 0.8125), (0, 0, 1)]
)
def test_mid_p_values_equal_those_of_fagerland_et_al(only_a, only_b, p):
    """The first is their example of airway hyper-responsiveness; their supplement says that equal
    counts give 1 minus half the probability of the observed one."""
    assert mcnemar(only_a, only_b) == pytest.approx(p, abs=5e-4)


def test_a_small_difference_is_reported_as_not_significant() -> None:
    (pair,) = compare(dict(zip("ab", map(run, answers(1000, 12, 8)), strict=True)))
    assert not pair.significant
    assert pair.sentence == "a - b: +0.4 points (95% CI -0.5 to 1.4), p = 0.383; not significant"


def test_a_difference_that_holm_makes_insignificant_shows_both_p_values() -> None:
    """The interval excludes zero, so the corrected p-value must explain the conclusion."""
    sentence = format_comparison(
        "svm", "knn", 0.03, (0.008, 0.059), p=0.012, p_holm=0.094, comparisons=15
    )
    assert sentence == (
        "svm - knn: +3.0 points (unadjusted 95% CI 0.8 to 5.9), unadjusted p = 0.012; "
        "not significant after Holm correction over 15 pairs (p = 0.094)"
    )


def test_no_interval_excludes_zero_beside_not_significant_without_an_explanation() -> None:
    """Four images against none: the score interval excludes zero, the exact test does not reject."""
    for only_a in range(7):
        for only_b in range(only_a + 1):
            (pair,) = compare(dict(zip("ab", map(run, answers(60, only_a, only_b)), strict=True)))
            excludes = pair.interval95[0] > 0 or pair.interval95[1] < 0
            if excludes and not pair.significant:
                assert "not significant by the exact test (the interval is app" in pair.sentence
            else:
                assert "approximate" not in pair.sentence
    (pair,) = compare(dict(zip("ab", map(run, answers(60, 4, 0)), strict=True)))
    assert "approximate" in pair.sentence


def test_runs_without_differences_have_an_interval_of_positive_width() -> None:
    """A bootstrap interval would have width zero."""
    (pair,) = compare({"a": run(np.ones(50, bool)), "b": run(np.ones(50, bool))})
    assert pair.p == 1
    assert pair.interval95 == pytest.approx((-0.0713, 0.0713), abs=1e-4)


def test_the_order_of_images_does_not_matter() -> None:
    """Images are matched by id."""
    rng = np.random.default_rng(0)
    right, other, rows = rng.random(80) < 0.9, rng.random(80) < 0.7, rng.permutation(80)
    turned = run(other[rows], [f"{row}.png" for row in rows])
    assert compare({"a": run(right), "b": turned}) == compare({"a": run(right), "b": run(other)})


def test_labels_may_be_strings_and_their_names_do_not_matter() -> None:
    """Only correctness of predictions matters."""
    y, guessed = np.array(["cat", "dog", "cat"]), np.array(["cat", "cat", "cat"])
    ids = ["1", "2", "3"]
    (pair,) = compare({"a": Predictions(ids, y, y), "b": Predictions(ids, y, guessed)})
    numbers = {
        "a": Predictions(ids, [7, 3, 7], [7, 3, 7]),
        "b": Predictions(ids, [7, 3, 7], [7, 7, 7]),
    }
    assert (pair,) == compare(numbers)


def test_every_pair_is_compared_and_holm_increases_p_values() -> None:
    """Three runs have three pairs."""
    rng = np.random.default_rng(1)
    runs = {
        name: run(rng.random(300) < accuracy)
        for name, accuracy in (("a", 0.9), ("b", 0.84), ("c", 0.6))
    }
    pairs = compare(runs)
    assert [(pair.a, pair.b) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all(pair.p_holm >= pair.p for pair in pairs)
    assert [pair.p_holm for pair in pairs] == holm([pair.p for pair in pairs])


def test_runs_on_different_images_or_labels_raise() -> None:
    """Other images, other labels, a duplicated image, a single run."""
    right = np.ones(5, bool)
    with pytest.raises(
        DataError, match=r"different test images \(5 and 4, 1 of them in one run only\)"
    ):
        compare({"a": run(right), "b": run(right[:4])})
    with pytest.raises(DataError, match=r"different test images \(5 and 5, 10 of them"):
        compare({"a": run(right), "b": run(right, list("abcde"))})
    ids = [f"{row}.png" for row in range(5)]
    with pytest.raises(DataError, match="different true classes for 5 of 5 images"):
        compare({"a": run(right), "b": Predictions(ids, np.zeros(5, int), np.zeros(5, int))})
    with pytest.raises(DataError, match="lists 2 images twice"):
        compare({"a": run(right), "b": run(right, list("aabbc"))})
    with pytest.raises(DataError, match="expected"):
        compare({"a": run(right), "b": Predictions(ids, [1], [1])})
    with pytest.raises(DataError, match="cannot compare 1 runs"):
        compare({"a": run(right)})


@given(COUNTS, COUNTS)
def test_mid_p_is_the_exact_p_value_minus_half_the_observed_probability(
    only_a: int, only_b: int
) -> None:
    """It is symmetric and never above the exact p-value."""
    p, both = mcnemar(only_a, only_b), only_a + only_b
    assert p == mcnemar(only_b, only_a)
    if both == 0:
        assert p == 1
    elif only_a == only_b:
        assert p == pytest.approx(1 - binom.pmf(only_a, both, 0.5) / 2)
    else:
        exact = binomtest(only_a, both).pvalue
        assert p == pytest.approx(exact - binom.pmf(only_a, both, 0.5))


@given(COUNTS, COUNTS)
def test_the_interval_of_a_significant_difference_excludes_zero(only_a: int, only_b: int) -> None:
    """If p < 0.05, the interval does not contain 0."""
    low, high = paired_interval(only_a, only_b, 1000)
    assert mcnemar(only_a, only_b) >= 0.05 or low > 0 or high < 0


@pytest.mark.parametrize("n", [50, 148, 500, 2893])
def test_a_true_null_is_rejected_in_at_most_5_percent_whatever_the_number_of_differences(
    n: int,
) -> None:
    """The probability is computed exactly, not simulated."""
    for rate in (0.01, 0.03, 0.1, 0.2, 0.3):
        both = np.arange(int(binom.ppf(1e-6, n, rate)), int(binom.ppf(1 - 1e-6, n, rate)) + 1)
        limits = _limits(int(both[-1]))
        rejected = [2 * binom.cdf(limits[m], m, 0.5) for m in both]
        assert np.sum(binom.pmf(both, n, rate) * rejected) <= 0.05


def _limits(most: int) -> list[int]:
    """Return for each number of discordant images the largest smaller count that is rejected, or -1."""
    return [
        int(
            np.searchsorted(
                2 * binom.cdf(np.arange(m // 2 + 1), m, 0.5)
                - binom.pmf(np.arange(m // 2 + 1), m, 0.5),
                0.05,
            )
        )
        - 1
        for m in range(most + 1)
    ]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_correction_follows_its_definition_in_any_order(p_values: list[float], random) -> None:
    """The i-th smallest of m p-values is multiplied by m - i + 1; the results do not decrease."""
    by_size, m = sorted(p_values), len(p_values)
    expected = [
        min(1.0, max((m - place) * by_size[place] for place in range(last + 1)))
        for last in range(m)
    ]
    adjusted = holm(p_values)
    assert sorted(adjusted) == pytest.approx(expected)
    order = random.sample(range(m), m)
    assert holm([p_values[place] for place in order]) == [adjusted[place] for place in order]


@pytest.mark.parametrize(
    ("n", "accuracies", "correlation"),
    [
        (2893, (0.94, 0.94), 0.5),
        (2893, (0.94, 0.925), 0.5),
        (148, (0.99, 0.99), 0.0),
        (148, (0.99, 0.95), 0.3),
        (50, (0.95, 0.95), 0.3),
        (50, (0.95, 0.90), 0.3),
    ],
)
def test_the_interval_of_a_difference_has_its_nominal_coverage(
    n: int, accuracies: tuple[float, float], correlation: float
) -> None:
    """In 2,000 trials; a true null hypothesis is rejected in at most 6 %."""
    cells = np.random.default_rng(0).multinomial(n, joint(accuracies, correlation), size=2000)
    seen, times = np.unique(cells[:, 1:3], axis=0, return_counts=True)
    true = accuracies[0] - accuracies[1]
    ends = np.array([paired_interval(int(a), int(b), n) for a, b in seen])
    covered = np.sum(times * ((ends[:, 0] <= true + 1e-12) & (true <= ends[:, 1] + 1e-12))) / 2000
    assert 0.93 <= covered <= 0.98
    if true == 0:
        assert np.sum(times * [mcnemar(int(a), int(b)) < 0.05 for a, b in seen]) / 2000 <= 0.06
