import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC, LinearSVC

from featkit.evaluation.calibration import ece, nll
from featkit.heads import make_head, svm
from featkit.heads.balance import BalancedHead
from featkit.heads.persist import load_head, save_head
from featkit.heads.scaling import apply_scale, fit_scale
from featkit.heads.search import search


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x[:400].astype(np.float32), y[:400] * 3, x[400:700].astype(np.float32)


def reference(x, y, points, weights=None, **options):
    """Decision values of scikit-learn's SVC on the same scaled features."""
    scale = fit_scale(x, "root", weights)
    machine = SVC(C=3.0, tol=1e-8, **options).fit(
        apply_scale(x, "root", *scale).astype(float), y, weights
    )
    return machine.decision_function(apply_scale(points, "root", *scale).astype(float))


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_decision_values_equal_those_of_scikit_learn(kernel, classes, digits):
    x, y, points = digits
    x, y = x[y < 3 * classes], y[y < 3 * classes]
    expected = reference(x, y, points, kernel=kernel, gamma=1.0)
    values = make_head(f"svm:kernel={kernel}").fit(x, y).decision_function(points)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)
    if classes > 2:
        np.testing.assert_array_equal(values.argmax(axis=1), expected.argmax(axis=1))


def test_samples_of_weight_zero_are_ignored(digits):
    x, y, points = digits
    weights = np.arange(len(x)) % 3
    values = make_head("svm").fit(x, y, sample_weight=weights).decision_function(points)
    kept = weights > 0
    expected = reference(x[kept], y[kept], points, weights[kept].astype(float), gamma=1.0)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_gamma_scale_equals_that_of_scikit_learn_without_scaling(offset, digits):
    """Also where the column means differ, and far from zero."""
    x, y, points = digits
    x, points = x + np.float32(offset), points + np.float32(offset)
    head = make_head("svm:scale=none").fit(x, y)
    machine = SVC(C=3.0, tol=1e-8).fit(x.astype(float), y)
    assert head.gamma_ == pytest.approx(machine._gamma, rel=1e-5)
    np.testing.assert_allclose(
        head.decision_function(points), machine.decision_function(points), rtol=0, atol=1e-4
    )


def test_block_size_does_not_change_decision_values(digits, monkeypatch):
    x, y, points = digits
    head = make_head("svm").fit(x, y)
    whole = head.decision_function(points)
    monkeypatch.setattr(svm, "BLOCK_VALUES", 7 * len(head.support_vectors_))
    np.testing.assert_allclose(head.decision_function(points), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", ["svm", "svm:kernel=linear,scale=standard"])
@pytest.mark.parametrize("classes", [2, 10])
def test_more_rows_than_a_kernel_matrix_holds_are_fitted_approximately(
    spec, classes, digits, monkeypatch, tmp_path
):
    """It says so, predicts nearly the same classes, and is the same after saving and loading."""
    x, y, points = digits
    x, y = x[y < 3 * classes], y[y < 3 * classes]
    points = points[load_digits().target[400:700] < classes]
    exact = make_head(spec).fit(x, y)
    monkeypatch.setattr(svm, "MAX_KERNEL_ROWS", 50)
    monkeypatch.setattr(svm, "ENOUGH_IMAGES", 40)
    head = make_head(spec).fit(x, y)
    assert head.warnings_[0].startswith(f"svm is approximate: {len(x)} training images are more")
    assert np.mean(head.predict(points) == exact.predict(points)) > 0.9
    scores = head.predict_proba(points)
    np.testing.assert_array_equal(head.classes_[scores.argmax(axis=1)], head.predict(points))
    truth = 3 * load_digits().target[400:700]
    assert ece(scores, truth[truth < 3 * classes], head.classes_) < 0.15
    save_head(head, tmp_path / "head.skops")
    np.testing.assert_array_equal(load_head(tmp_path / "head.skops").predict_proba(points), scores)


def test_with_all_rows_as_landmarks_the_weights_are_those_of_linear_svc(digits, monkeypatch):
    """On the same kernel: only the loss of images that are held out for the slope is missing."""
    x, y, points = digits
    monkeypatch.setattr(svm, "MAX_KERNEL_ROWS", 50)
    monkeypatch.setattr(svm, "_held_out", lambda x, codes: np.zeros(len(codes), bool))
    head = make_head("svm:kernel=linear").fit(x, y)
    scale = fit_scale(x, "root")
    scaled = [apply_scale(rows, "root", *scale).astype(float) for rows in (x, points)]
    machine = LinearSVC(C=3.0, intercept_scaling=1000.0, tol=1e-6, max_iter=100_000)
    expected = machine.fit(scaled[0], y).decision_function(scaled[1])
    values = head.decision_function(points)
    np.testing.assert_allclose(values, expected, rtol=0, atol=0.1)
    assert np.mean(values.argmax(axis=1) == expected.argmax(axis=1)) > 0.99


def test_groups_are_held_out_whole_for_the_slope_and_no_class_is_lost(monkeypatch):
    codes = np.repeat([0, 1, 2], [60, 60, 5])
    groups = np.concatenate([np.arange(120) // 6, np.full(5, 100)]).astype(str)
    groups[:6] = ""
    monkeypatch.setattr(svm, "ENOUGH_IMAGES", 40)
    held = svm._held_out_groups(groups, codes)
    assert 20 <= held.sum() <= 40
    assert not set(groups[held]) & set(groups[~held])
    assert not held[:6].any()
    assert set(codes[~held]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((3700, 300), {1}), ((1000, 1000, 1000), {0}), ((2900, *[10] * 20), set(range(1, 11)))],
    ids=["one large group", "three equal groups", "many small groups"],
)
def test_at_most_the_wanted_rows_are_held_out_or_the_smallest_group(sizes, expected, monkeypatch):
    """Whatever the groups are called."""
    monkeypatch.setattr(svm, "ENOUGH_IMAGES", 100)
    codes = np.arange(sum(sizes)) % 5
    for letters in ("abcdefghijklmnopqrstuvwxyz", "zyxwvutsrqponmlkjihgfedcba"):
        groups = np.repeat(list(letters[: len(sizes)]), sizes)
        held = svm._held_out_groups(groups, codes)
        assert held.sum() == sum(sizes[group] for group in expected)
        assert all(len(set(held[groups == group])) == 1 for group in set(groups))


def test_a_machine_is_fitted_on_large_groups_that_were_held_out(monkeypatch):
    """Its weights are those of a fit without groups."""
    monkeypatch.setattr(svm, "MAX_KERNEL_ROWS", 100)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = (rng.normal(size=(3, 8))[y] + rng.normal(size=(300, 8))).astype(np.float32)
    monkeypatch.setattr(svm, "ENOUGH_IMAGES", 20)
    grouped = make_head("svm").fit(x, y, groups=np.arange(300) % 3)
    monkeypatch.setattr(svm, "_held_out", lambda x, codes: np.zeros(len(codes), bool))
    plain = make_head("svm").fit(x, y)
    np.testing.assert_array_equal(grouped.coef_, plain.coef_)
    assert grouped.calibration_[0] != svm.DEFAULT_SLOPE
    assert plain.calibration_[0] == svm.DEFAULT_SLOPE
    assert svm.UNCALIBRATED in plain.warnings_
    assert svm.UNCALIBRATED not in grouped.warnings_


def test_copies_of_an_image_are_held_out_together(monkeypatch):
    """Such as those of oversampling: the slope would be that of images that were fitted."""
    monkeypatch.setattr(svm, "MAX_KERNEL_ROWS", 1000)
    rng = np.random.default_rng(0)
    y = (rng.random(2200) < 0.1).astype(np.int64)
    x = rng.normal(size=(2200, 64)).astype(np.float32)
    x[:, 0] += 0.8 * y
    x[1] = x[0]
    held = svm._held_out(x, np.zeros(2200, np.intp))
    assert held[0] == held[1]
    assert 900 < held.sum() < 1200
    truth = (rng.random(4000) < 0.5).astype(np.int64)
    points = rng.normal(size=(4000, 64)).astype(np.float32)
    points[:, 0] += 0.8 * truth
    head = BalancedHead(head="svm", correction="oversample").fit(x, y)
    assert nll(head.predict_proba(points), truth, head.classes_) < 0.72


def test_an_approximate_fit_draws_rows_of_every_class(digits, monkeypatch):
    x, y, points = digits
    monkeypatch.setattr(svm, "MAX_KERNEL_ROWS", 50)
    monkeypatch.setattr(svm, "MAX_APPROXIMATE_ROWS", 200)
    monkeypatch.setattr(svm, "LANDMARKS", 60)
    head = make_head("svm").fit(x, y, groups=np.arange(len(x)) // 3)
    assert len(head.classes_) == 10
    assert "with 60 landmarks, on 2" in head.warnings_[0]
    assert len(set(head.predict(points).tolist())) == 10


@pytest.mark.parametrize("classes", [2, 10])
def test_scores_are_calibrated_and_predict_the_same_classes(classes):
    """The calibration error of images that were not trained on, and the order of confidences."""
    x, y = load_digits(return_X_y=True)
    noise = np.random.default_rng(0).normal(scale=6, size=x.shape)
    x, y = (x + noise).astype(np.float32), y % classes
    train, test = np.arange(len(x)) < 600, np.arange(len(x)) >= 600
    head = make_head("svm").fit(x[train], y[train])
    scores = head.predict_proba(x[test])
    correct = scores.argmax(axis=1) == y[test]
    values = head.decision_function(x[test])
    predicted = values.argmax(axis=1) if classes > 2 else (values > 0).astype(int)
    np.testing.assert_array_equal(scores.argmax(axis=1), predicted)
    np.testing.assert_array_equal(head.predict(x[test]), predicted)
    columns = np.arange(classes)
    linear = make_head("linear").fit(x[train], y[train]).predict_proba(x[test])
    assert ece(scores, y[test], columns) < ece(linear, y[test], columns) + 0.02
    before = softmax(values if classes > 2 else np.column_stack([0 * values, values]), axis=1)
    assert ece(scores, y[test], columns) < ece(before, y[test], columns)
    order = roc_auc_score(correct, scores.max(axis=1))
    assert order > roc_auc_score(correct, before.max(axis=1)) - 1e-9
    assert order > 0.75


@given(
    data=hnp.arrays(np.float64, (7, 6), elements=st.floats(-5, 5)),
    slope=st.floats(1e-3, 1e4),
)
@settings(max_examples=60, deadline=None)
def test_calibrated_scores_never_move_a_prediction(data, slope):
    """For any decision values of four classes, also tied ones."""
    pairs = np.round(data, 1)
    scores = svm._scores(pairs, slope)
    expected = svm._one_vs_rest(pairs, 4).argmax(axis=1)
    np.testing.assert_array_equal(scores.argmax(axis=1), expected)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-9)
    assert (scores >= 0).all()


def test_equal_rows_are_in_the_same_fold_in_any_order(digits):
    x, y, _ = digits
    doubled, labels = np.concatenate([x, x]), np.concatenate([y, y])
    folds = svm._folds(doubled, labels)
    np.testing.assert_array_equal(folds[: len(x)], folds[len(x) :])
    order = np.random.default_rng(0).permutation(len(x))
    np.testing.assert_array_equal(svm._folds(x[order], y[order]), folds[order])
    for label in np.unique(y):
        sizes = np.bincount(folds[: len(x)][y == label], minlength=svm.FOLDS)
        assert sizes.max() - sizes.min() <= 1


def test_one_image_per_class_uses_the_default_slope_and_says_so(digits):
    x, y, points = digits
    _, rows = np.unique(y, return_index=True)
    head = make_head("svm").fit(x[rows], y[rows])
    assert head.calibration_.tolist() == [svm.DEFAULT_SLOPE]
    assert head.warnings_ == ("svm: too few images to calibrate the scores, which use a default",)
    np.testing.assert_allclose(head.predict_proba(points).sum(axis=1), 1)


def test_a_head_without_slope_gives_the_scores_of_version_0_1_0(digits):
    x, y, points = digits
    head = make_head("svm").fit(x, y)
    del head.calibration_
    expected = softmax(head.decision_function(points), axis=1)
    np.testing.assert_allclose(head.predict_proba(points), expected)


def test_a_search_gives_the_scores_of_the_fitted_head(digits, monkeypatch):
    x, y, points = digits
    monkeypatch.setattr(svm, "SEARCH_KERNELS", (("root", "scale"), ("l2", 0.3)))
    y_val = make_head("linear").fit(x, y).predict(points)
    found = search("svm", x, y, points, y_val)
    head = make_head("svm").set_params(**found.best.options).fit(x, y)
    np.testing.assert_allclose(found.scores, head.predict_proba(points), atol=1e-6)


def test_saved_file_contains_each_support_vector_once(digits, tmp_path):
    x, y, _ = digits
    wide = np.random.default_rng(0).normal(size=(len(x), 2048)).astype(np.float32)
    save_head(make_head("svm").fit(wide, y), tmp_path / "head.skops")
    assert (tmp_path / "head.skops").stat().st_size < 1.1 * wide.nbytes
