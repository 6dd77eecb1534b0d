import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import AdaBoostClassifier
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.utils.estimator_checks import parametrize_with_checks

from featkit.errors import HeadError
from featkit.heads import HEADS, make_head
from featkit.heads.balance import BalancedHead

OWN = ["linear", "svm", "knn", "mlp", "prototypical"]
FLOORS = {
    "linear": 0.94,
    "svm": 0.98,
    "svm:kernel=linear": 0.96,
    "knn": 0.97,
    "knn:metric=euclidean,weights=uniform": 0.97,
    "knn:weights=temperature,scale=root": 0.97,
    "mlp": 0.96,
    "prototypical": 0.86,
    "prototypical:metric=euclidean": 0.87,
    "prototypical:metric=mahalanobis,scale=root": 0.93,
}


OPTIONS = [
    "linear:scale=none",
    "linear:scale=l2",
    "linear:scale=standard",
    "svm:kernel=linear",
    "svm:gamma=0.3",
    "svm:scale=none",
    "svm:scale=l2",
    "svm:scale=standard",
    "knn:k=1",
    "knn:metric=euclidean",
    "knn:weights=uniform",
    "knn:weights=temperature",
    "knn:scale=root",
    "knn:scale=l2",
    "knn:scale=standard",
    "mlp:scale=none",
    "mlp:scale=l2",
    "mlp:scale=standard",
    "prototypical:metric=euclidean",
    "prototypical:metric=mahalanobis",
    "prototypical:scale=root",
    "prototypical:scale=l2",
    "prototypical:scale=standard",
]
"""Every value of every option that is not the default."""

EVERY = [*OWN, *(pytest.param(spec, marks=pytest.mark.slow) for spec in OPTIONS)]


@parametrize_with_checks([HEADS.get(name)() for name in OWN])
def test_every_head_is_a_scikit_learn_estimator(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [
        *(make_head(spec) for spec in OPTIONS),
        *(BalancedHead(correction=name) for name in ("none", "reweight", "logit_adjust", "lws")),
    ]
)
def test_every_option_is_a_scikit_learn_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("spec", EVERY)
def test_every_option_passes_the_checks_of_imbalanced_learn(spec):
    """String labels as a pandas category; several labels per sample are refused."""
    checks = pytest.importorskip("imblearn.utils.estimator_checks")
    head = make_head(spec)
    if not (spec.startswith("mlp:scale=") and spec != "mlp:scale=standard"):
        # 30 epochs of 100 samples do not suffice to predict all three classes of iris there.
        checks.check_classifiers_with_encoded_labels(spec, head)
    checks.check_classifier_on_multilabel_or_multioutput_targets(spec, head)


@pytest.mark.parametrize("spec", EVERY)
def test_string_labels_give_the_scores_of_numbers(spec, small):
    """NumPy texts, objects and bytes; the scores have the order of the sorted labels."""
    x_train, x_test, y_train, _ = small
    names = np.array([f"digit {digit}" for digit in range(10)])
    expected = make_head(spec).fit(x_train, y_train).predict_proba(x_test)
    for labels in (names, names.astype(object)):
        head = clone(make_head(spec)).fit(x_train, labels[y_train])
        np.testing.assert_array_equal(head.classes_, labels)
        np.testing.assert_array_equal(head.predict_proba(x_test), expected)
        assert head.predict(x_test).tolist() == labels[expected.argmax(axis=1)].tolist()


@pytest.mark.parametrize("spec", ["linear", "svm", "prototypical"])
def test_heads_with_sample_weights_can_be_boosted(spec, small):
    x_train, x_test, y_train, y_test = small
    booster = AdaBoostClassifier(make_head(spec), n_estimators=3, random_state=0)
    assert clone(booster).fit(x_train, y_train).score(x_test, y_test) > 0.8


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return train_test_split(x.astype(np.float32), y, test_size=0.4, random_state=0, stratify=y)


@pytest.fixture(scope="module")
def small(digits):
    """148 training rows, 100 test rows."""
    x_train, x_test, y_train, y_test = digits
    return x_train[:148], x_test[:100], y_train[:148], y_test[:100]


@pytest.mark.parametrize(("spec", "floor"), FLOORS.items())
def test_accuracy_on_digits(spec, floor, digits):
    x_train, x_test, y_train, y_test = digits
    head = make_head(spec).fit(x_train, y_train)
    assert (head.predict(x_test) == y_test).mean() >= floor
    assert head.warnings_ == ()


@pytest.mark.parametrize("spec", FLOORS)
def test_scores_sum_to_one_in_the_order_of_classes(spec, small):
    x_train, x_test, y_train, _ = small
    head = make_head(spec).fit(x_train, y_train)
    scores = head.predict_proba(x_test)
    assert scores.shape == (100, 10)
    assert (scores >= 0).all()
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(head.classes_[scores.argmax(axis=1)], head.predict(x_test))


@pytest.mark.parametrize("spec", OWN)
def test_labels_may_have_gaps(spec, small):
    """The scores have one column per training label."""
    x_train, x_test, y_train, _ = small
    with_gaps = make_head(spec).fit(x_train, y_train * 10 + 3)
    np.testing.assert_array_equal(with_gaps.classes_, np.arange(10) * 10 + 3)
    np.testing.assert_array_equal(
        with_gaps.predict_proba(x_test), make_head(spec).fit(x_train, y_train).predict_proba(x_test)
    )


@pytest.mark.parametrize("spec", OWN)
def test_renaming_the_classes_renames_the_predictions(spec, small):
    """Nothing depends on the code of a class."""
    x_train, x_test, y_train, _ = small
    names = np.array(list("jihgfedcba"))
    scores = make_head(spec).fit(x_train, y_train).predict_proba(x_test)
    renamed = make_head(spec).fit(x_train, names[y_train])
    np.testing.assert_array_equal(renamed.classes_, names[::-1])
    if spec == "mlp":  # the initial weights of an output belong to its column
        assert (
            renamed.predict_proba(x_test).argmax(axis=1) == 9 - scores.argmax(axis=1)
        ).mean() > 0.9
    else:
        np.testing.assert_allclose(renamed.predict_proba(x_test)[:, ::-1], scores, atol=2e-3)


@pytest.mark.parametrize(
    "spec", ["linear", "svm", "knn", "prototypical", "prototypical:metric=euclidean"]
)
@given(seed=st.integers(0, 99))
@settings(max_examples=5, deadline=None)
def test_order_of_training_samples_does_not_matter(spec, small, seed):
    x_train, x_test, y_train, _ = small
    order = np.random.default_rng(seed).permutation(len(x_train))
    scores = make_head(spec).fit(x_train, y_train).predict_proba(x_test)
    shuffled = make_head(spec).fit(x_train[order], y_train[order]).predict_proba(x_test)
    np.testing.assert_allclose(shuffled, scores, atol=2e-3)


@pytest.mark.parametrize("spec", OWN)
def test_same_seed_gives_the_same_scores(spec, small):
    x_train, x_test, y_train, _ = small
    first, second = (
        make_head(spec, seed=7).fit(x_train, y_train).predict_proba(x_test) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "spec",
    ["linear:scale=none", "svm:scale=none", *OWN, *(f"{name}:scale=standard" for name in OWN)],
)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_constant_columns_are_harmless(spec, value, small):
    """Dead units are common in embeddings; their variance of zero must not be divided by."""
    x_train, x_test, y_train, y_test = small
    x_train, x_test = (
        np.column_stack([x, np.full(len(x), value, np.float32)]) for x in (x_train, x_test)
    )
    head = make_head(spec).fit(x_train, y_train)
    assert np.isfinite(head.predict_proba(x_test)).all()
    # Without scaling, gamma=scale is scikit-learn's: it depends on the means of the columns.
    if (spec, value) != ("svm:scale=none", 1e4):
        assert (head.predict(x_test) == y_test).mean() > 0.7


@pytest.mark.parametrize("spec", OWN)
def test_scale_of_the_features_does_not_matter(spec, small):
    x_train, x_test, y_train, _ = small
    scores = make_head(spec).fit(x_train, y_train).predict_proba(x_test)
    scaled = make_head(spec).fit(x_train * 1024, y_train).predict_proba(x_test * 1024)
    np.testing.assert_allclose(scaled, scores, atol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        "linear",
        "svm",
        "svm:scale=none",
        "prototypical",
        "prototypical:metric=mahalanobis,scale=standard",
    ],
)
def test_sample_of_weight_two_equals_two_samples(spec, small):
    x_train, x_test, y_train, _ = small
    weights = np.where(y_train < 5, 2, 1)
    weighted = make_head(spec).fit(x_train, y_train, sample_weight=weights).predict_proba(x_test)
    rows = np.repeat(np.arange(len(x_train)), weights)
    repeated = make_head(spec).fit(x_train[rows], y_train[rows]).predict_proba(x_test)
    np.testing.assert_allclose(weighted, repeated, atol=2e-3)


@pytest.mark.parametrize("spec", OWN)
def test_two_classes_give_two_columns(spec, small):
    x_train, x_test, y_train, y_test = small
    head = make_head(spec).fit(x_train, y_train == 3)
    assert head.predict_proba(x_test).shape == (100, 2)
    assert (head.predict(x_test) == (y_test == 3)).mean() > 0.8
    if hasattr(head, "decision_function"):
        np.testing.assert_array_equal(head.decision_function(x_test) > 0, head.predict(x_test))


@pytest.mark.parametrize("spec", OWN)
def test_single_class_raises_a_one_line_error(spec, small):
    x_train, _, y_train, _ = small
    with pytest.raises(
        HeadError, match=r"^\w+ needs at least two classes, but the training data has 1 class$"
    ):
        make_head(spec).fit(x_train, np.zeros_like(y_train))


@pytest.mark.parametrize("spec", OWN)
def test_non_finite_features_raise_an_error(spec, small):
    x_train, _, y_train, _ = small
    x_train = x_train.copy()
    x_train[3, 3] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        make_head(spec).fit(x_train, y_train)


def test_prototypes_equal_the_formula_of_snell_et_al(small):
    x_train, x_test, y_train, _ = small
    x, points = x_train.astype(np.float64) / 16, x_test.astype(np.float64) / 16
    means = np.array([x[y_train == label].mean(axis=0) for label in range(10)])
    powers = np.exp(-((points[:, None] - means) ** 2).sum(axis=2))
    expected = powers / powers.sum(axis=1, keepdims=True)
    head = make_head("prototypical:metric=euclidean").fit(x_train / 16, y_train)
    np.testing.assert_allclose(head.predict_proba(x_test / 16), expected, rtol=1e-4)
    np.testing.assert_allclose(head.fit(x, y_train).predict_proba(points), expected, rtol=1e-10)


def test_cosine_prototypes_equal_the_formula(small):
    x_train, x_test, y_train, _ = small
    x, points = (
        (rows / np.linalg.norm(rows, axis=1)[:, None]).astype(np.float64)
        for rows in (x_train, x_test)
    )
    means = np.array([x[y_train == label].mean(axis=0) for label in range(10)])
    powers = np.exp(points @ (means / np.linalg.norm(means, axis=1)[:, None]).T / 0.015)
    expected = powers / powers.sum(axis=1, keepdims=True)
    head = make_head("prototypical").fit(x_train, y_train)
    np.testing.assert_allclose(head.predict_proba(x_test), expected, atol=1e-4)


def test_mahalanobis_prototypes_equal_discriminant_analysis_with_equal_priors(small):
    x_train, x_test, y_train, _ = small
    x, points = x_train.astype(np.float64), x_test.astype(np.float64)
    head = make_head("prototypical:metric=mahalanobis,shrinkage=0.3").fit(x, y_train)
    means = np.array([x[y_train == label].mean(axis=0) for label in range(10)])
    covariance = np.cov((x - means[y_train]).T, bias=True)
    shrunk = 0.7 * covariance + 0.3 * np.trace(covariance) / 64 * np.eye(64)
    lda = LinearDiscriminantAnalysis(
        solver="lsqr", covariance_estimator=FixedCovariance(shrunk), priors=np.full(10, 0.1)
    )
    np.testing.assert_allclose(
        head.predict_proba(points), lda.fit(x, y_train).predict_proba(points), atol=1e-9
    )


class FixedCovariance(BaseEstimator):
    """A known covariance, as a covariance estimator of scikit-learn."""

    def __init__(self, covariance_=None):
        self.covariance_ = covariance_

    def fit(self, X):
        return self


def test_knn_temperature_weights_equal_the_formula(small):
    """As in DINO: exp(cosine / 0.07), summed for each class over the k nearest."""
    x_train, x_test, y_train, _ = small
    x, points = (
        rows / np.linalg.norm(rows, axis=1)[:, None]
        for rows in (x_train.astype(float), x_test.astype(float))
    )
    similarities = points @ x.T
    votes = np.where(
        similarities >= np.sort(similarities, axis=1)[:, -20, None], np.exp(similarities / 0.07), 0
    )
    expected = votes @ np.eye(10)[y_train]
    head = make_head("knn:k=20,weights=temperature").fit(x_train.astype(float), y_train)
    np.testing.assert_allclose(
        head.predict_proba(x_test.astype(float)),
        expected / expected.sum(axis=1, keepdims=True),
        atol=1e-4,  # the share that breaks ties
    )


@pytest.mark.parametrize("spec", ["svm", "prototypical"])
def test_class_of_weight_zero_raises_a_one_line_error(spec, small):
    x_train, _, y_train, _ = small
    with pytest.raises(HeadError, match=r"^all images of class 3 have sample weight zero$"):
        make_head(spec).fit(x_train, y_train, sample_weight=y_train != 3)


def test_knn_distance_weights_are_inverse_distances():
    x, y = np.array([[0.0], [3.0], [10.0]]), [5, 8, 8]
    head = make_head("knn:k=2,metric=euclidean").fit(x, y)
    # 1e-4 of the scores breaks ties.
    np.testing.assert_allclose(head.predict_proba([[1.0]]), [[2 / 3, 1 / 3]], atol=1e-4)
    np.testing.assert_allclose(head.predict_proba([[3.0]]), [[0, 1]], atol=1e-4)


def test_knn_ties_go_to_the_nearest_class_then_to_the_first_in_any_order_of_rows():
    x, y = np.array([[0.0], [2.0]]), np.array([8, 5])
    for order in ([0, 1], [1, 0]):
        head = make_head("knn:k=2,metric=euclidean,weights=uniform").fit(x[order], y[order])
        np.testing.assert_array_equal(head.predict([[0.5], [1.0], [1.5]]), [8, 5, 5])


def test_k_larger_than_the_training_set_raises_a_one_line_error(small):
    x_train, _, y_train, _ = small
    with pytest.raises(
        HeadError,
        match=r"^knn needs at least k=200 .*, but n_samples = 148: choose a smaller k$",
    ):
        make_head("knn:k=200").fit(x_train, y_train)


def test_non_convergence_is_recorded_without_a_warning(small):
    x_train, _, y_train, _ = small
    head = make_head("linear:max_iter=3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head.fit(x_train, y_train)
    assert head.warnings_ == ("linear did not converge in 3 iterations",)
    assert clone(head).set_params(max_iter=1000).fit(x_train, y_train).warnings_ == ()


def test_heads_work_in_a_grid_search(small):
    x_train, x_test, y_train, y_test = small
    search = GridSearchCV(make_head("svm"), {"kernel": ["rbf", "linear"], "C": [1.0, 3.0]}, cv=2)
    assert search.fit(x_train, y_train).score(x_test, y_test) > 0.85
