"""The linear head equals scikit-learn's logistic regression on scaled features."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from featkit.errors import HeadError
from featkit.heads import make_head
from featkit.heads.linear import SEARCH_CS, LinearHead
from featkit.heads.scaling import SCALES, apply_scale


@pytest.fixture(scope="module")
def small():
    """150 training samples and 100 to score; labels differ from class positions."""
    x, y = load_digits(return_X_y=True)
    return (
        x[:150].astype(np.float32),
        y[:150] * 2 + 1,
        x[150:250].astype(np.float32),
        y[150:250] * 2 + 1,
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_equal_those_of_scikit_learn(scale, dtype, small):
    """The same scores as a LogisticRegression on the scaled rows, in float64 to four digits."""
    x, y, points, _ = small
    head = LinearHead(scale=scale).fit(x.astype(dtype), y)
    scaled, points_scaled = (
        apply_scale(rows.astype(np.float64), scale, head.centre_, head.spread_)
        for rows in (x, points)
    )
    expected = (
        LogisticRegression(C=20, solver="newton-cg", tol=1e-9)
        .fit(scaled, y)
        .predict_proba(points_scaled)
    )
    assert head.warnings_ == ()
    tolerance = 1e-4 if dtype == np.float64 else 5e-3
    np.testing.assert_allclose(head.predict_proba(points.astype(dtype)), expected, atol=tolerance)


def test_search_space_has_every_scale_and_every_c_once(small):
    """Each candidate consists of options that a spec can set."""
    x, y, points, labels = small
    trials = list(LinearHead.trials(x, y, points))
    tried = [(trial.options["scale"], trial.options["C"]) for trial in trials]
    assert len(set(tried)) == len(tried) == 4 * 45
    assert {scale for scale, _ in tried} == set(SCALES)
    assert all(trial.scores.shape == (100, 10) for trial in trials)
    best = max(
        trials, key=lambda trial: (np.unique(y)[trial.scores.argmax(axis=1)] == labels).mean()
    )
    assert make_head("linear").set_params(**best.options).fit(x, y).score(points, labels) > 0.9


@pytest.mark.parametrize("place", [12, 24, 36])
def test_scores_of_a_trial_equal_those_of_a_head_with_its_options(place, small):
    """To the coarser tolerance of a trial."""
    x, y, points, _ = small
    trial = list(LinearHead.trials(x, y, points))[place]
    assert trial.options == {"C": SEARCH_CS[place], "scale": None}
    scores = LinearHead(**trial.options).fit(x, y).predict_proba(points)
    np.testing.assert_allclose(trial.scores, scores, atol=0.05)


@pytest.mark.parametrize("scale", ["standard", None])
@pytest.mark.parametrize("k", [2, 5])
def test_weights_for_unscaled_features_give_the_same_scores(scale, k):
    from scipy.special import softmax

    y = np.arange(60) % k
    x = np.random.default_rng(0).normal(size=(60, 7)) * np.arange(1, 8) + 3 + np.eye(7)[y]
    head = LinearHead(scale=scale).fit(x, y)
    coef, intercept = head.to_weights()
    np.testing.assert_allclose(
        softmax(x @ coef.T + intercept, axis=1), head.predict_proba(x), atol=1e-12
    )
    again = LinearHead.from_weights(coef, intercept, head.classes_)
    np.testing.assert_allclose(again.predict_proba(x), head.predict_proba(x), atol=1e-12)


def test_to_weights_fails_for_a_scaling_that_normalises_rows():
    head = LinearHead().fit(np.eye(4), [0, 0, 1, 1])
    with pytest.raises(HeadError, match="scale=root is not linear"):
        head.to_weights()
