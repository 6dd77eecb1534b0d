"""The path solver gives scikit-learn's optimum, from memory and from blocks, on NumPy and on torch."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from featkit.errors import HeadError
from featkit.heads import rotated
from featkit.heads.logistic import logistic_path

CS = [1e-4, 1e-2, 1.0, 100.0, 1e4]


def blobs(n, d, k, seed=0, dtype=np.float64):
    """Rows of k overlapping classes with a decaying spectrum, off the origin; every class occurs."""
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.arange(k), rng.integers(k, size=n - k)])
    x = rng.normal(size=(k, d))[codes] + rng.normal(size=(n, d)) * 3
    return ((x + 1) / np.sqrt(np.arange(1, d + 1))).astype(dtype), codes


def theirs(x, codes, c, weights=None):
    return LogisticRegression(C=c, solver="newton-cg", tol=1e-9, max_iter=1000).fit(x, codes, weights)


def objective(x, codes, c, model, weights=None):
    """The documented objective of scikit-learn, in float64."""
    coef, intercept = model
    weights = np.ones(len(codes)) if weights is None else weights
    scores = x.astype(np.float64) @ coef.T + intercept
    scores = np.column_stack([np.zeros(len(x)), scores]) if len(coef) == 1 else scores
    losses = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(x)), codes]
    return weights @ losses / weights.sum() + (coef.astype(np.float64) ** 2).sum() / (2 * c * weights.sum())


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize(("n", "d"), [(120, 8), (40, 60)])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_value_of_c_has_scikit_learns_optimum(n, d, k, weighted):
    """Binary and multinomial, more rows than columns and fewer, with and without weights."""
    x, codes = blobs(n, d, k)
    weights = np.random.default_rng(1).uniform(0.5, 3, n) if weighted else None
    for fitted in logistic_path(x, codes, CS, n_classes=k, sample_weight=weights, tol=1e-12):
        expected = theirs(x, codes, fitted.C, weights)
        assert fitted.converged
        assert fitted.coef.shape == expected.coef_.shape
        assert fitted.intercept.shape == expected.intercept_.shape
        scale = np.abs(expected.coef_).max()
        np.testing.assert_allclose(fitted.coef, expected.coef_, atol=1e-4 * scale)
        np.testing.assert_allclose(
            fitted.loss, objective(x, codes, fitted.C, (fitted.coef, fitted.intercept), weights), rtol=1e-9
        )
        best = objective(x, codes, fitted.C, (expected.coef_, expected.intercept_), weights)
        assert fitted.loss <= best * (1 + 1e-7)


@pytest.mark.parametrize(("n", "d"), [(300, 20), (60, 200)])
def test_float32_is_as_good_to_one_in_ten_thousand(n, d):
    """At each C, also where every row is far on the right side and its loss is nearly nothing."""
    x, codes = blobs(n, d, 6, dtype=np.float32)
    for fitted in logistic_path(x, codes, CS, n_classes=6):
        expected = theirs(x.astype(np.float64), codes, fitted.C)
        best = objective(x, codes, fitted.C, (expected.coef_, expected.intercept_))
        assert fitted.coef.dtype == np.float32
        assert fitted.loss <= best * (1 + 1e-4)
        assert objective(x, codes, fitted.C, (fitted.coef, fitted.intercept)) <= best * (1 + 1e-4)
        assert (expected.predict(x) == (x @ fitted.coef.T + fitted.intercept).argmax(axis=1)).mean() > 0.99


class Slices:
    """What h5py's data sets offer of an array: a shape, a type and slices."""

    def __init__(self, rows):
        self._rows, self.shape, self.dtype = rows, rows.shape, rows.dtype

    def __getitem__(self, part):
        assert isinstance(part, slice)
        return self._rows[part].copy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_of_a_source_give_what_memory_gives(dtype, monkeypatch, tmp_path):
    """Blocks of 7 rows, the last one shorter; an array mapped from a file is such a source."""
    monkeypatch.setattr(rotated, "BLOCK", 7 * 12)
    x, codes = blobs(100, 12, 4, dtype=dtype)
    np.save(tmp_path / "rows.npy", x)
    held = logistic_path(x, codes, CS, n_classes=4, tol=1e-9 if dtype == np.float64 else 1e-6)
    for source in (Slices(x), np.load(tmp_path / "rows.npy", mmap_mode="r")):
        read = logistic_path(source, codes, CS, n_classes=4, tol=1e-9 if dtype == np.float64 else 1e-6)
        for a, b in zip(held, read, strict=True):
            np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)
            np.testing.assert_allclose(a.coef, b.coef, atol=2e-3 * np.abs(a.coef).max())


@pytest.mark.parametrize(("n", "d"), [(100, 12), (30, 50)])
def test_torch_gives_what_numpy_gives(n, d):
    """The way of a GPU, on torch's CPU."""
    torch = pytest.importorskip("torch")
    x, codes = blobs(n, d, 4)
    here = logistic_path(x, codes, CS, n_classes=4, tol=1e-12)
    there = logistic_path(x, codes, CS, n_classes=4, tol=1e-12, device=torch.device("cpu"))
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a.loss, b.loss, rtol=1e-9)
        np.testing.assert_allclose(a.coef, b.coef, atol=1e-4 * np.abs(a.coef).max())


def test_each_value_of_c_can_have_a_tolerance_of_its_own():
    """In the order of the values, not of the path: what is passed by roughly does not spoil where it leads."""
    x, codes = blobs(200, 10, 5)
    fine = logistic_path(x, codes, CS[::-1], n_classes=5, tol=1e-12)
    mixed = logistic_path(x, codes, CS[::-1], n_classes=5, tol=[1e-12, *[1e-2] * (len(CS) - 1)])
    assert all(a.n_iter > b.n_iter for a, b in zip(fine[1:-1], mixed[1:-1], strict=True))
    assert CS[-1] == mixed[0].C
    np.testing.assert_allclose(mixed[0].coef, fine[0].coef, atol=1e-4 * np.abs(fine[0].coef).max())


def test_the_loss_falls_and_the_weights_grow_with_c():
    """Along the path the penalty only ever gives way."""
    x, codes = blobs(200, 10, 5)
    path = logistic_path(x, codes, np.logspace(-6, 5, 45), n_classes=5)
    lengths = [np.linalg.norm(fitted.coef) for fitted in path]
    assert all(a.loss > b.loss for a, b in pairwise(path))
    assert all(a < b for a, b in pairwise(lengths))


@given(seed=st.integers(0, 1000), c=st.floats(1e-3, 1e3))
@settings(max_examples=10, deadline=None)
def test_the_order_of_the_values_and_the_company_of_others_do_not_matter(seed, c):
    """Solutions come in the order of ``cs``; a C alone, twice or within a path has one optimum."""
    x, codes = blobs(80, 6, 3, seed)
    (alone,) = logistic_path(x, codes, [c], n_classes=3, tol=1e-13)
    path = logistic_path(x, codes, [50.0, c, 0.1, c], n_classes=3, tol=1e-13)
    assert [fitted.C for fitted in path] == [50.0, c, 0.1, c]
    for fitted in (path[1], path[3]):
        np.testing.assert_allclose(fitted.coef, alone.coef, atol=1e-4 * np.abs(alone.coef).max())


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_a_weight_counts_as_so_many_rows_and_none_as_no_row(seed):
    """Weights 0 to 3 against repeated rows: the same optimum, and the same loss."""
    x, codes = blobs(60, 5, 3, seed)
    weights = np.random.default_rng(seed).integers(4, size=60)
    weights[:3] = 1
    rows = np.repeat(np.arange(60), weights)
    weighted = logistic_path(x, codes, CS, n_classes=3, sample_weight=weights, tol=1e-13)
    repeated = logistic_path(x[rows], codes[rows], CS, n_classes=3, tol=1e-13)
    for a, b in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(a.loss, b.loss, rtol=1e-9)
        np.testing.assert_allclose(a.coef, b.coef, atol=1e-4 * np.abs(b.coef).max())


def test_a_class_without_rows_never_wins():
    """Codes may leave a class out; its intercept falls until it no longer matters."""
    x, codes = blobs(90, 5, 3)
    (fitted,) = logistic_path(x, codes * 2, [1.0], n_classes=5)
    assert fitted.coef.shape == (5, 5)
    assert np.isfinite(fitted.coef).all()
    assert set((x @ fitted.coef.T + fitted.intercept).argmax(axis=1)) <= {0, 2, 4}


def test_too_few_steps_are_told():
    """A solution that did not meet the tolerance says so."""
    x, codes = blobs(200, 10, 5)
    (fitted,) = logistic_path(x, codes, [10.0], n_classes=5, tol=1e-10, max_iter=2)
    assert (fitted.n_iter, fitted.converged) == (2, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cs": [1.0, 0.0]}, r"values of C must be above zero, but cs is \[1\.0, 0\.0\]"),
        ({"cs": []}, r"values of C must be above zero"),
        ({"n_classes": 2}, r"codes must lie in 0\.\.1, but span 0\.\.2"),
        ({"sample_weight": np.zeros(30)}, r"sample_weight must hold 30 numbers"),
        ({"sample_weight": -np.ones(30)}, r"none below zero"),
        ({"sample_weight": np.ones(3)}, r"sample_weight must hold 30 numbers"),
    ],
)
def test_what_cannot_be_solved_is_refused_in_one_line(options, message):
    """A wrong C, class or weight names what was found."""
    x, codes = blobs(30, 4, 3)
    with pytest.raises(HeadError, match=message):
        logistic_path(x, codes, **{"cs": [1.0], "n_classes": 3} | options)
