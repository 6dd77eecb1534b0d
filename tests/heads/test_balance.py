"""Every correction against its formula in float64, and ``BalancedHead``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.utils.estimator_checks import parametrize_with_checks

from featkit.errors import HeadError, MissingExtraError, SpecError
from featkit.heads import CORRECTIONS, make_head, parse_correction
from featkit.heads.balance import BalancedHead
from featkit.heads.persist import load_head, save_head

Floats = NDArray[np.float64]
COUNTS = np.array([30, 12, 5])
LABELS = np.repeat([7, 2, 4], COUNTS)
PLAIN = "linear:C=2,scale=none"
WITHOUT_EXTRA = [name for name in CORRECTIONS.names() if name != "smote"]


@pytest.fixture(scope="module")
def rows() -> Floats:
    """Return 47 samples of three overlapping classes, 7, 2 and 4, in decreasing size."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(47, 4)) + np.repeat(rng.normal(size=(3, 4)), COUNTS, axis=0)


@pytest.fixture(scope="module")
def points() -> Floats:
    """Samples to score."""
    return np.random.default_rng(1).normal(size=(25, 4))


def scores(
    x: Floats, points: Floats, correction: str, head: str = PLAIN, y: NDArray[np.int64] = LABELS
) -> Floats:
    return BalancedHead(head=head, correction=correction).fit(x, y).predict_proba(points)


def shares(y: NDArray[np.int64] = LABELS) -> Floats:
    return np.unique(y, return_counts=True)[1] / len(y)


def solve(
    x: Floats, *, weights: Floats | None = None, offsets: Floats | None = None
) -> tuple[Floats, Floats]:
    """Minimise the summed log loss plus ``|w|^2 / (2 C)``, C = 2; return weights and intercepts."""
    codes = np.unique(LABELS, return_inverse=True)[1]
    each = np.ones(len(x)) if weights is None else weights
    added = np.zeros(3) if offsets is None else offsets

    def objective(theta: Floats) -> float:
        logits = x @ theta[:12].reshape(3, 4).T + theta[12:] + added
        return float(
            -each @ log_softmax(logits, axis=1)[np.arange(len(x)), codes]
            + theta[:12] @ theta[:12] / 4
        )

    theta = minimize(objective, np.zeros(15), method="BFGS", options={"gtol": 1e-5}).x
    return theta[:12].reshape(3, 4), theta[12:]


def row_weights(of_class: Floats) -> Floats:
    """Weights of the rows, of mean 1, from those of classes 2, 4 and 7."""
    each = of_class[np.searchsorted([2, 4, 7], LABELS)]
    return each / each.mean()


@parametrize_with_checks(
    [BalancedHead(head=PLAIN, correction=name) for name in ("none", "reweight", "logit_adjust")]
)
def test_a_corrected_head_is_a_scikit_learn_estimator(estimator, check):
    """For each kind of correction."""
    check(estimator)


def test_correction_none_equals_the_plain_head(rows, points):
    """Bit by bit."""
    np.testing.assert_array_equal(
        scores(rows, points, "none"), make_head(PLAIN).fit(rows, LABELS).predict_proba(points)
    )


@pytest.mark.parametrize(
    ("correction", "of_class"),
    [
        ("reweight", 1 / np.array([12, 5, 30])),
        ("effective:beta=0.9", 0.1 / (1 - 0.9 ** np.array([12, 5, 30]))),
        ("effective:beta=0", np.ones(3)),
    ],
)
def test_sample_weights_equal_the_formula(correction, of_class, rows, points):
    """Inverse frequency, and eq. 2 of Cui et al., in a loss that is minimised directly."""
    coef, intercept = solve(rows, weights=row_weights(of_class))
    np.testing.assert_allclose(
        scores(rows, points, correction), softmax(points @ coef.T + intercept, axis=1), atol=1e-4
    )


def test_effective_with_beta_near_one_equals_reweight(rows, points):
    """See Cui et al."""
    np.testing.assert_allclose(
        scores(rows, points, "effective:beta=0.999999"), scores(rows, points, "reweight"), atol=1e-4
    )


@pytest.mark.parametrize("tau", [0.0, 0.5, 2.0])
def test_logit_adjustment_equals_the_formula(tau, rows, points):
    """Eq. 9 of Menon et al.: scores over the power tau of the share, for linear and MLP heads."""
    for head in (PLAIN, "mlp:width=8,epochs=3"):
        expected = scores(rows, points, "none", head) / shares() ** tau
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(
            scores(rows, points, f"logit_adjust:tau={tau}", head), expected, atol=1e-6
        )


@pytest.mark.parametrize(
    ("correction", "tau"), [("logit_adjust_loss:tau=1.5", 1.5), ("balanced_softmax", 1.0)]
)
def test_adjusted_loss_equals_direct_minimisation(correction, tau, rows, points):
    """Eq. 10 of Menon et al., eq. 4 of Ren et al.: offsets in training, none in prediction."""
    coef, intercept = solve(rows, offsets=tau * np.log(shares()))
    np.testing.assert_allclose(
        scores(rows, points, correction), softmax(points @ coef.T + intercept, axis=1), atol=1e-4
    )


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_tau_normalisation_equals_the_formula(tau, rows, points):
    """Eq. 5 of Kang et al., without intercept."""
    coef, _ = solve(rows)
    coef /= np.linalg.norm(coef, axis=1, keepdims=True) ** tau
    np.testing.assert_allclose(
        scores(rows, points, f"tau_norm:tau={tau}"), softmax(points @ coef.T, axis=1), atol=1e-4
    )


def test_weight_scaling_equals_direct_minimisation(rows, points):
    """One factor for each class, the class-balanced log loss, the penalty of the head."""
    coef, intercept = solve(rows)
    codes, weights = (
        np.unique(LABELS, return_inverse=True)[1],
        row_weights(1 / np.array([12, 5, 30])),
    )

    def objective(factors: Floats) -> float:
        logs = log_softmax(factors * (rows @ coef.T + intercept), axis=1)[
            np.arange(len(rows)), codes
        ]
        return float(-weights @ logs + ((factors[:, None] * coef) ** 2).sum() / 4)

    factors = minimize(objective, np.ones(3), method="BFGS").x
    expected = softmax(factors * (points @ coef.T + intercept), axis=1)
    np.testing.assert_allclose(scores(rows, points, "lws"), expected, atol=1e-3)


def test_nearest_class_mean_replaces_a_linear_head(rows, points):
    """With cosine distance; a prototypical head is not replaced."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    means = np.array([(rows / lengths)[label == LABELS].mean(axis=0) for label in (2, 4, 7)])
    nearest = (points @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(axis=1)
    np.testing.assert_array_equal(scores(rows, points, "ncm").argmax(axis=1), nearest)
    np.testing.assert_array_equal(
        scores(rows, points, "ncm", "prototypical"), scores(rows, points, "none", "prototypical")
    )


class RowsSeen:
    """Mock head that records its training data."""

    def fit(self, x: Floats, y: NDArray[np.int64]) -> RowsSeen:
        self.x, self.y = x[:, 0].astype(int), y
        return self


@pytest.mark.parametrize(
    ("correction", "size"),
    [
        ("oversample", max),
        ("undersample", min),
        ("class_aware", max),
        ("crt", max),
    ],
)
@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=6), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_sampling_balances_the_classes(correction, size, sizes, seed):
    """Each image of a class is drawn equally often, up to a difference of one."""
    y = np.repeat(np.arange(len(sizes)), sizes)
    seen = CORRECTIONS.make(parse_correction(correction)).fit(
        RowsSeen(), np.arange(len(y))[:, None], y, seed
    )
    np.testing.assert_array_equal(seen.y, y[seen.x])
    assert set(np.bincount(seen.y, minlength=len(sizes))) == {size(sizes)}
    times = np.bincount(seen.x, minlength=len(y))
    assert all(np.ptp(times[y == label]) <= 1 for label in range(len(sizes)))


def test_sampling_depends_on_the_seed_only_and_crt_is_class_aware(rows, points):
    """Classifier re-training is an alias."""
    first, again, other = (
        BalancedHead(head=PLAIN, correction="class_aware", seed=seed)
        .fit(rows, LABELS)
        .predict_proba(points)
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(scores(rows, points, "crt"), scores(rows, points, "class_aware"))


def test_smote_is_that_of_imbalanced_learn(rows, points):
    """With fewer neighbours than the smallest class has images."""
    over_sampling = pytest.importorskip("imblearn.over_sampling")
    grown, labels = over_sampling.SMOTE(k_neighbors=4, random_state=0).fit_resample(rows, LABELS)
    assert np.unique(labels, return_counts=True)[1].tolist() == [30, 30, 30]
    expected = make_head(PLAIN).fit(grown, labels).predict_proba(points)
    np.testing.assert_array_equal(scores(rows, points, "smote"), expected)


@pytest.mark.parametrize("counts", [(30, 12, 1), (6, 1, 2, 1), (1, 2), (1, 1)])
def test_smote_repeats_the_image_of_a_class_with_one(counts):
    pytest.importorskip("imblearn")
    y = np.repeat(np.arange(len(counts)), counts)
    x = np.random.default_rng(0).normal(size=(len(y), 4))
    seen = AllSeen()
    CORRECTIONS.make("smote").train(seen, x, y, 0, np.arange(len(y)).astype(str))
    assert set(np.bincount(seen.y)) == {max(counts)}
    np.testing.assert_array_equal(seen.x[: len(y)], x)
    for label in np.flatnonzero(np.array(counts) == 1):
        repeated = seen.y == label
        assert len(np.unique(seen.x[repeated], axis=0)) == 1
        assert set(seen.groups[repeated]) == {str(np.flatnonzero(y == label)[0])}


class AllSeen:
    """Mock head that records its training data and their groups."""

    def fit(self, x: Floats, y: NDArray[np.int64], groups: Any = None) -> AllSeen:
        self.x, self.y, self.groups = x, y, groups
        return self


def test_smote_without_its_extra_raises_an_error_that_names_it(rows, points, monkeypatch):
    monkeypatch.setitem(sys.modules, "imblearn.over_sampling", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'featkit\[longtail\]'$"):
        scores(rows, points, "smote")


@pytest.mark.parametrize("correction", WITHOUT_EXTRA)
def test_every_correction_works_on_two_classes_with_string_labels(correction, rows, points):
    """Also for float32 features."""
    names = np.where(LABELS == 7, "weed", "crop")
    head = BalancedHead(head="linear", correction=correction).fit(rows.astype(np.float32), names)
    found = head.predict_proba(points.astype(np.float32))
    assert found.shape == (25, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-9)
    assert set(head.predict(points)) <= {"weed", "crop"}


def test_binary_adjustments_equal_the_multiclass_formulas(rows, points):
    """A binary head stores a single row of weights."""
    y = np.where(LABELS == 7, 7, 2)
    plain = scores(rows, points, "none", y=y)
    expected = plain / shares(y)
    np.testing.assert_allclose(
        scores(rows, points, "logit_adjust", y=y),
        expected / expected.sum(axis=1, keepdims=True),
        atol=1e-9,
    )
    head = make_head(PLAIN).fit(rows, y)
    weight = head.coef_[0] / 2
    logits = points @ np.array([-weight, weight]).T / np.linalg.norm(weight)
    np.testing.assert_allclose(
        scores(rows, points, "tau_norm", y=y), softmax(logits, axis=1), atol=1e-9
    )


@pytest.mark.parametrize("correction", sorted({*WITHOUT_EXTRA} - {"tau_norm", "lws", "ncm"}))
def test_corrections_change_nothing_for_balanced_classes(correction, points):
    """Except those that replace the classifier or its weights."""
    x, y = np.random.default_rng(2).normal(size=(40, 4)), np.arange(40) % 4
    np.testing.assert_allclose(
        scores(x, points, correction, y=y), scores(x, points, "none", y=y), atol=1e-5
    )


@pytest.mark.parametrize("correction", WITHOUT_EXTRA)
def test_loaded_head_gives_the_same_scores(correction, rows, points, tmp_path: Path):
    """With its parameters."""
    head = BalancedHead(correction=correction, seed=3).fit(rows, LABELS)
    save_head(head, tmp_path / "head.skops")
    loaded = load_head(tmp_path / "head.skops")
    assert loaded.get_params() == {"head": "linear", "correction": correction, "seed": 3}
    np.testing.assert_array_equal(loaded.predict_proba(points), head.predict_proba(points))


@pytest.mark.parametrize(
    ("head", "correction", "message"),
    [
        (
            "svm",
            "tau_norm",
            r"^correction tau_norm does not apply to head svm: it supports linear$",
        ),
        ("knn", "reweight", r"it supports heads with sample weights: linear, svm, prototypical$"),
        (
            "prototypical",
            "logit_adjust:tau=2",
            r"correction logit_adjust:tau=2 .* models the class prior: linear, mlp$",
        ),
        ("mlp", "ncm", r"it supports linear, prototypical$"),
    ],
)
def test_unsupported_head_raises_an_error_that_lists_supported_heads(
    head, correction, message, rows
):
    with pytest.raises(HeadError, match=message):
        BalancedHead(head=head, correction=correction).fit(rows, LABELS)


@pytest.mark.parametrize(
    ("correction", "message"),
    [
        (
            "logit_ajust",
            r"unknown correction 'logit_ajust': did you mean logit_adjust\? known: none, reweight",
        ),
        ("logit_adjust:beta=1", r"unknown option of correction logit_adjust 'beta': known: tau$"),
        ("logit_adjust:tau=-1", r"tau=-1: must be a number >= 0"),
        ("tau_norm:tau=high", r"tau=high: must be a number >= 0"),
        ("effective:beta=1", r"beta=1: must be a number >= 0 and < 1$"),
        ("reweight:9", r"its options: none$"),
    ],
)
def test_invalid_correction_raises_a_one_line_error(correction, message, rows):
    with pytest.raises(SpecError, match=message):
        BalancedHead(correction=correction).fit(rows, LABELS)


def test_hyphens_and_underscores_are_equivalent(rows, points):
    """In the name of a correction."""
    np.testing.assert_array_equal(
        scores(rows, points, "logit-adjust:tau=0.5"), scores(rows, points, "logit_adjust:tau=0.5")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("correction", "n"),
    [("effective", 4), ("logit_adjust", 12), ("tau_norm", 11), ("tau_norm:tau=0.3", 1), ("lws", 1)],
)
def test_each_trial_equals_a_fresh_head_with_these_options(correction, n, rows, points):
    """Heads that are only adjusted are trained once; options set in the spec are kept."""
    trials = list(BalancedHead(head=PLAIN, correction=correction).trials(rows, LABELS, points))
    assert len({trial.options["correction"] for trial in trials}) == len(trials) == n
    for options, found in trials:
        fresh = BalancedHead(**options).fit(rows, LABELS)
        np.testing.assert_array_equal(found, fresh.predict_proba(points), err_msg=str(options))


def test_warnings_of_the_head_are_passed_on(rows):
    """Such as that its solver did not converge."""
    head = BalancedHead(head="linear:max_iter=1", correction="reweight").fit(rows, LABELS)
    assert head.warnings_ == ("linear did not converge in 1 iterations",)


def test_names_of_corrections_do_not_import_scikit_learn():
    """The CLI lists them."""
    code = (
        "import sys; from featkit.heads import CORRECTIONS; CORRECTIONS.names()\n"
        "assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
