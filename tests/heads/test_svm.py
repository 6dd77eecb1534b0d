import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from featkit.heads import make_head, svm
from featkit.heads.persist import save_head
from featkit.heads.scaling import apply_scale, fit_scale


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


def test_gamma_scale_equals_that_of_scikit_learn_without_scaling(digits):
    """On centred features: scikit-learn's variance includes differences between column means."""
    x, y, points = digits
    centre = x.mean(axis=0)
    head = make_head("svm:scale=none").fit(x - centre, y)
    machine = SVC(C=3.0, tol=1e-8).fit((x - centre).astype(float), y)
    assert head.gamma_ == pytest.approx(machine._gamma, rel=1e-5)
    values, expected = (
        head.decision_function(points - centre),
        machine.decision_function(points - centre),
    )
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-4)


def test_block_size_does_not_change_decision_values(digits, monkeypatch):
    x, y, points = digits
    head = make_head("svm").fit(x, y)
    whole = head.decision_function(points)
    monkeypatch.setattr(svm, "BLOCK_VALUES", 7 * len(head.support_vectors_))
    np.testing.assert_allclose(head.decision_function(points), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", ["svm", "svm:kernel=linear,scale=standard"])
def test_fitting_without_kernel_matrix_gives_the_same_values(spec, digits, monkeypatch):
    x, y, points = digits
    expected = make_head(spec).fit(x, y).decision_function(points)
    monkeypatch.setattr(svm, "MAX_KERNEL_ROWS", 100)
    np.testing.assert_allclose(
        make_head(spec).fit(x, y).decision_function(points), expected, rtol=0, atol=1e-6
    )


def test_fitting_without_kernel_matrix_uses_scikit_learn_intelex_if_installed(digits, monkeypatch):
    """Not with a kernel matrix, which it does not speed up."""
    x, y, _ = digits
    fitted = []

    class Intel(SVC):
        def fit(self, *data):
            fitted.append(self.kernel)
            return super().fit(*data)

    package, module = ModuleType("sklearnex"), ModuleType("sklearnex.svm")
    package.__spec__, module.SVC = ModuleSpec("sklearnex", None), Intel
    monkeypatch.setitem(sys.modules, "sklearnex", package)
    monkeypatch.setitem(sys.modules, "sklearnex.svm", module)
    make_head("svm").fit(x, y)
    assert fitted == []
    monkeypatch.setattr(svm, "MAX_KERNEL_ROWS", 100)
    make_head("svm").fit(x, y)
    assert fitted == ["rbf"]


def test_saved_file_contains_each_support_vector_once(digits, tmp_path):
    x, y, _ = digits
    wide = np.random.default_rng(0).normal(size=(len(x), 2048)).astype(np.float32)
    save_head(make_head("svm").fit(wide, y), tmp_path / "head.skops")
    assert (tmp_path / "head.skops").stat().st_size < 1.1 * wide.nbytes
