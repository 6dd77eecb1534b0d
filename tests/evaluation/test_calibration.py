"""Calibration metrics and temperature scaling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss

from featkit.errors import DataError
from featkit.evaluation import evaluate, summary
from featkit.evaluation.calibration import (
    Temperature,
    apply_temperature,
    are_probabilities,
    calibration_error,
    ece,
    fit_temperature,
    nll,
    reliability_bins,
)
from featkit.heads import make_head

SEEDS = st.integers(0, 2**32 - 1)
TEN = np.arange(10)


def draw(n: int, sharpness: float, seed: int = 0, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return scores, calibrated at sharpness 1 and overconfident above, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y = (true.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    powers = true**sharpness
    return powers / powers.sum(axis=1, keepdims=True), y


def draw_votes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return votes of five neighbours, some of them unanimous for a wrong class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 10, n)
    centre = np.where(rng.random(n) < 0.1, rng.integers(0, 10, n), y)
    shares = np.full((n, 10), 0.02)
    shares[np.arange(n), centre] = 0.82
    return rng.multinomial(5, shares) / 5, y


@given(st.integers(1, 40), SEEDS)
def test_nll_equals_log_loss_of_scikit_learn(n: int, seed: int) -> None:
    """Also for zeros, which both clip to 2.2e-16."""
    votes, y = draw_votes(n, seed)
    assert nll(votes, y, TEN) == pytest.approx(log_loss(y, votes, labels=TEN))


def test_a_class_without_a_column_counts_as_probability_zero() -> None:
    """Omitting a class must not improve the NLL."""
    scores = np.array([[0.5, 0.5]])
    assert nll(scores, np.array([1]), np.array([0, 2])) == nll(
        np.array([[1.0, 0.0]]), np.array([1]), np.array([0, 1])
    )
    assert nll(scores, np.array([5]), np.array([0, 2])) == pytest.approx(36.04, abs=0.01)


def test_rows_that_do_not_sum_to_one_are_not_probabilities() -> None:
    """Rounding to float32 is tolerated."""
    scores, _ = draw(50, 1.0)
    assert are_probabilities(scores)
    assert are_probabilities(scores.astype(np.float32).astype(np.float64))
    assert not are_probabilities(scores * 1.01)
    assert not are_probabilities(np.array([[1.5, -0.5]]))


def test_bins_have_equal_counts_and_match_a_hand_computed_case() -> None:
    """Two bins of two: confidences 0.6 and 0.7, both correct; 0.8 and 0.9, one correct."""
    scores = np.array([[0.6, 0.4], [0.2, 0.8], [0.7, 0.3], [0.9, 0.1]])
    low, high = reliability_bins(scores, np.array([0, 0, 0, 0]), np.array([0, 1]), bins=2)
    assert (low.confidence, low.accuracy, low.count) == (pytest.approx(0.65), 1.0, 2)
    assert (high.confidence, high.accuracy, high.count) == (pytest.approx(0.85), 0.5, 2)
    assert calibration_error([low, high]) == pytest.approx((0.35 + 0.35) / 2)
    assert {each.count for each in reliability_bins(*draw(1500, 1.0), TEN)} == {100}


def test_equal_confidences_share_a_bin() -> None:
    """Votes of five neighbours have few distinct values; each is a bin."""
    votes, y = draw_votes(1000, 0)
    levels, counts = np.unique(votes.max(axis=1), return_counts=True)
    bins = reliability_bins(votes, y, TEN)
    assert len(bins) <= len(levels)
    assert bins[-1].confidence == 1
    assert bins[-1].count == counts[-1]
    assert sum(each.count for each in bins) == 1000


@settings(max_examples=30)
@given(st.integers(1, 60), SEEDS)
def test_the_order_of_rows_and_the_names_of_classes_do_not_matter(n: int, seed: int) -> None:
    """Exactly for rows; another order of columns may round differently."""
    scores, y = draw(n, 2.0, seed)
    rng = np.random.default_rng(seed)
    rows, order = rng.permutation(n), rng.permutation(10)
    for measure in (nll, ece, reliability_bins, fit_temperature):
        assert measure(scores[rows], y[rows], TEN) == measure(scores, y, TEN)
    for measure in (nll, ece):
        assert measure(scores[:, order], y, order) == measure(scores, y, TEN)
        assert measure(scores[:, order], np.argsort(order)[y], TEN) == measure(scores, y, TEN)
    here, there = fit_temperature(scores, y, TEN), fit_temperature(scores[:, order], y, order)
    assert there.value == pytest.approx(here.value, rel=1e-6)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0, 30.0])
def test_the_temperature_of_rescaled_scores_is_recovered(sharpness: float) -> None:
    """Within 10 % on 4,000 images; at sharpness 30, scores of true classes are as small as 1e-100."""
    assert fit_temperature(*draw(4000, sharpness), TEN).value == pytest.approx(sharpness, rel=0.1)


def check_calibration(
    val: np.ndarray, val_y: np.ndarray, test: np.ndarray, test_y: np.ndarray
) -> None:
    calibrated = apply_temperature(test, fit_temperature(val, val_y, TEN))
    assert ece(calibrated, test_y, TEN) < ece(test, test_y, TEN)
    assert nll(calibrated, test_y, TEN) < nll(test, test_y, TEN)
    np.testing.assert_array_equal(calibrated.argmax(axis=1), test.argmax(axis=1))


@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_a_temperature_fitted_on_val_lowers_ece_and_nll_on_test(sharpness: float) -> None:
    """For underconfident and overconfident scores."""
    check_calibration(*draw(1500, sharpness, 0), *draw(1500, sharpness, 1))


@pytest.mark.parametrize("head", ["linear", "svm", "knn", "prototypical", "mlp"])
def test_a_temperature_lowers_ece_and_nll_of_every_head(head: str) -> None:
    """On digits: a third for fitting, a third for the temperature, a third for testing."""
    x, y = load_digits(return_X_y=True)
    fit, val, test = np.array_split(np.random.default_rng(0).permutation(len(x)), 3)
    fitted = make_head(head, seed=0).fit(x[fit], y[fit])
    check_calibration(fitted.predict_proba(x[val]), y[val], fitted.predict_proba(x[test]), y[test])


def test_the_fitted_temperature_is_the_best_for_its_smoothing() -> None:
    """Compared with a grid search; the tolerance allows for the added pseudo-image."""
    scores, y = draw_votes(2000, 3)
    best = fit_temperature(scores, y, TEN)
    losses = [
        nll(apply_temperature(scores, Temperature(best.value * factor, best.smoothing)), y, TEN)
        for factor in (0.8, 0.9, 1.0, 1.1, 1.25)
    ]
    assert np.argmin(losses) == 2


def test_a_perfect_validation_score_does_not_make_every_confidence_1() -> None:
    """The likelihood alone would give temperature 0."""
    scores = np.tile([0.6, 0.3, 0.1], (100, 1))
    found = fit_temperature(scores, np.zeros(100, dtype=np.int64), np.arange(3))
    assert 0.001 < found.value < 1
    assert 0.95 < apply_temperature(scores, found).max() < 0.999


def test_scores_that_are_all_equal_have_a_temperature() -> None:
    """All temperatures are equally good; no error is raised."""
    flat = np.full((5, 4), 0.25)
    found = fit_temperature(flat, np.array([0, 1, 2, 3, 0]), np.arange(4))
    assert 0 < found.value < np.inf
    np.testing.assert_allclose(apply_temperature(flat, found), flat)


def test_images_of_unseen_classes_do_not_move_the_temperature() -> None:
    """Their likelihood does not depend on the temperature."""
    scores, y = draw(200, 2.0)
    more = np.concatenate([y, [11, 12]])
    assert fit_temperature(np.vstack([scores, scores[:2]]), more, TEN) == fit_temperature(
        scores, y, TEN
    )


@given(
    st.lists(
        st.lists(
            st.sampled_from([0.0, 1e-300, 0.3, np.nextafter(0.3, 1), 0.5, 1.0]),
            min_size=4,
            max_size=4,
        )
    ),
    st.floats(1e-3, 1e3),
    st.sampled_from([2.3e-16, 1e-6, 1e-2]),
)
def test_no_temperature_changes_the_prediction(
    rows: list[list[float]], value: float, smoothing: float
) -> None:
    """Also if scores differ in the last digit only; of equal scores the first stays first."""
    table = np.array([row for row in rows if sum(row) > 0.1] or [[1.0, 0, 0, 0]])
    scores = table / table.sum(axis=1, keepdims=True)
    calibrated = apply_temperature(scores, Temperature(value, smoothing))
    np.testing.assert_array_equal(calibrated.argmax(axis=1), scores.argmax(axis=1))
    assert are_probabilities(calibrated)
    assert np.isfinite(nll(calibrated, np.zeros(len(scores), dtype=np.int64), np.arange(4)))


def test_temperature_1_leaves_scores_unchanged() -> None:
    """With almost no smoothing."""
    scores, _ = draw(50, 1.0)
    np.testing.assert_allclose(apply_temperature(scores, Temperature(1.0, 2.3e-16)), scores)


def test_invalid_input_of_temperature_scaling_raises() -> None:
    """Decision values, classes without a column, a temperature of 0."""
    scores, y = draw(5, 1.0)
    with pytest.raises(DataError, match="not probabilities"):
        fit_temperature(scores - 1, y, TEN)
    with pytest.raises(DataError, match="not probabilities"):
        fit_temperature(np.ones((3, 1)), np.zeros(3, dtype=np.int64), np.zeros(1, dtype=np.int64))
    with pytest.raises(DataError, match="none of 5 images"):
        fit_temperature(scores, y, TEN + 20)
    with pytest.raises(DataError, match="must be positive numbers"):
        apply_temperature(scores, Temperature(0.0, 0.1))


@pytest.mark.parametrize("k", [2, 10])
def test_the_nll_of_certain_and_correct_predictions_is_printed_as_zero(k: int) -> None:
    """Not as -0.000; nor is it negative where rounding makes a probability larger than 1."""
    y = np.arange(20) % k
    for scale in (1.0, 1 + 1e-9):
        value = nll(scale * np.eye(k)[y], y, np.arange(k))
        assert f"{value:.3f}" == "0.000"
        assert not np.signbit(value)
    names = list(map(str, range(k)))
    assert "NLL 0.000" in summary(evaluate(np.eye(k)[y], y, names))
