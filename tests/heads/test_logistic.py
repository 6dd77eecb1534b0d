"""The path solver finds scikit-learn's optimum, in memory and in blocks, with NumPy and torch."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from featkit.errors import HeadError
from featkit.heads import logistic
from featkit.heads.logistic import logistic_path

CS = [1e-4, 1e-2, 1.0, 100.0, 1e4]


def blobs(n, d, k, seed=0, dtype=np.float64):
    """Rows of k overlapping classes with a decaying spectrum, off the origin."""
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.arange(k), rng.integers(k, size=n - k)])
    x = rng.normal(size=(k, d))[codes] + rng.normal(size=(n, d)) * 3
    return ((x + 1) / np.sqrt(np.arange(1, d + 1))).astype(dtype), codes


def theirs(x, codes, c, weights=None):
    return LogisticRegression(C=c, solver="newton-cg", tol=1e-9, max_iter=1000).fit(
        x, codes, weights
    )


def objective(x, codes, c, model, weights=None):
    """The documented objective of scikit-learn, in float64."""
    coef, intercept = model
    weights = np.ones(len(codes)) if weights is None else weights
    scores = x.astype(np.float64) @ coef.T + intercept
    scores = np.column_stack([np.zeros(len(x)), scores]) if len(coef) == 1 else scores
    losses = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(x)), codes]
    return weights @ losses / weights.sum() + (coef.astype(np.float64) ** 2).sum() / (
        2 * c * weights.sum()
    )


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize(("n", "d"), [(120, 8), (40, 60)])
@pytest.mark.parametrize("weighted", [False, True])
def test_solutions_equal_those_of_scikit_learn(n, d, k, weighted):
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
            fitted.loss,
            objective(x, codes, fitted.C, (fitted.coef, fitted.intercept), weights),
            rtol=1e-9,
        )
        best = objective(x, codes, fitted.C, (expected.coef_, expected.intercept_), weights)
        assert fitted.loss <= best * (1 + 1e-7)


@pytest.mark.parametrize(("n", "d"), [(300, 20), (60, 200)])
def test_float32_solutions_are_within_one_in_ten_thousand(n, d):
    """At each C, also on separated data whose loss is close to zero."""
    x, codes = blobs(n, d, 6, dtype=np.float32)
    for fitted in logistic_path(x, codes, CS, n_classes=6):
        expected = theirs(x.astype(np.float64), codes, fitted.C)
        best = objective(x, codes, fitted.C, (expected.coef_, expected.intercept_))
        assert fitted.coef.dtype == np.float32
        assert fitted.loss <= best * (1 + 1e-4)
        assert objective(x, codes, fitted.C, (fitted.coef, fitted.intercept)) <= best * (1 + 1e-4)
        assert (
            expected.predict(x) == (x @ fitted.coef.T + fitted.intercept).argmax(axis=1)
        ).mean() > 0.99


class Slices:
    """The interface of an h5py dataset: a shape, a type and slices."""

    def __init__(self, rows):
        self._rows, self.shape, self.dtype = rows, rows.shape, rows.dtype

    def __getitem__(self, part):
        assert isinstance(part, slice)
        return self._rows[part].copy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reading_in_blocks_gives_the_same_solutions(dtype, monkeypatch, tmp_path):
    """Blocks of 7 rows with a shorter last one; also for a memory-mapped array."""
    monkeypatch.setattr(logistic, "BLOCK_VALUES", 7 * 12)
    x, codes = blobs(100, 12, 4, dtype=dtype)
    np.save(tmp_path / "rows.npy", x)
    held = logistic_path(x, codes, CS, n_classes=4, tol=1e-9 if dtype == np.float64 else 1e-6)
    for source in (Slices(x), np.load(tmp_path / "rows.npy", mmap_mode="r")):
        read = logistic_path(
            source, codes, CS, n_classes=4, tol=1e-9 if dtype == np.float64 else 1e-6
        )
        for a, b in zip(held, read, strict=True):
            np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)
            np.testing.assert_allclose(a.coef, b.coef, atol=2e-3 * np.abs(a.coef).max())


@pytest.mark.parametrize(("n", "d"), [(100, 12), (30, 50)])
def test_torch_gives_the_same_solutions_as_numpy(n, d):
    """The GPU code path, on the CPU."""
    torch = pytest.importorskip("torch")
    x, codes = blobs(n, d, 4)
    here = logistic_path(x, codes, CS, n_classes=4, tol=1e-12)
    there = logistic_path(x, codes, CS, n_classes=4, tol=1e-12, device=torch.device("cpu"))
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a.loss, b.loss, rtol=1e-9)
        np.testing.assert_allclose(a.coef, b.coef, atol=1e-4 * np.abs(a.coef).max())


def test_each_c_can_have_its_own_tolerance():
    """In the order of ``cs``, not of the path; coarse intermediate solutions do no harm."""
    x, codes = blobs(200, 10, 5)
    fine = logistic_path(x, codes, CS[::-1], n_classes=5, tol=1e-12)
    mixed = logistic_path(x, codes, CS[::-1], n_classes=5, tol=[1e-12, *[1e-2] * (len(CS) - 1)])
    assert all(a.n_iter > b.n_iter for a, b in zip(fine[1:-1], mixed[1:-1], strict=True))
    assert CS[-1] == mixed[0].C
    np.testing.assert_allclose(mixed[0].coef, fine[0].coef, atol=1e-4 * np.abs(fine[0].coef).max())


def test_loss_decreases_and_weights_grow_with_c():
    """Along the path the penalty decreases."""
    x, codes = blobs(200, 10, 5)
    path = logistic_path(x, codes, np.logspace(-6, 5, 45), n_classes=5)
    lengths = [np.linalg.norm(fitted.coef) for fitted in path]
    assert all(a.loss > b.loss for a, b in pairwise(path))
    assert all(a < b for a, b in pairwise(lengths))


@given(seed=st.integers(0, 1000), c=st.floats(1e-3, 1e3))
@settings(max_examples=10, deadline=None)
def test_order_of_cs_and_other_cs_do_not_matter(seed, c):
    """Solutions come in the order of ``cs``; a C alone, twice or within a path has one optimum."""
    x, codes = blobs(80, 6, 3, seed)
    (alone,) = logistic_path(x, codes, [c], n_classes=3, tol=1e-13)
    path = logistic_path(x, codes, [50.0, c, 0.1, c], n_classes=3, tol=1e-13)
    assert [fitted.C for fitted in path] == [50.0, c, 0.1, c]
    for fitted in (path[1], path[3]):
        np.testing.assert_allclose(fitted.coef, alone.coef, atol=1e-4 * np.abs(alone.coef).max())


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_sample_weights_equal_repeated_samples(seed):
    """Also for weight zero."""
    x, codes = blobs(60, 5, 3, seed)
    weights = np.random.default_rng(seed).integers(4, size=60)
    weights[:3] = 1
    rows = np.repeat(np.arange(60), weights)
    weighted = logistic_path(x, codes, CS, n_classes=3, sample_weight=weights, tol=1e-13)
    repeated = logistic_path(x[rows], codes[rows], CS, n_classes=3, tol=1e-13)
    for a, b in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(a.loss, b.loss, rtol=1e-9)
        np.testing.assert_allclose(a.coef, b.coef, atol=1e-4 * np.abs(b.coef).max())


def test_class_without_samples_is_never_predicted():
    """Codes may leave a class out; its intercept falls until it no longer matters."""
    x, codes = blobs(90, 5, 3)
    (fitted,) = logistic_path(x, codes * 2, [1.0], n_classes=5)
    assert fitted.coef.shape == (5, 5)
    assert np.isfinite(fitted.coef).all()
    assert set((x @ fitted.coef.T + fitted.intercept).argmax(axis=1)) <= {0, 2, 4}


def test_stopping_at_max_iter_is_reported():
    """``converged`` is False."""
    x, codes = blobs(200, 10, 5)
    (fitted,) = logistic_path(x, codes, [10.0], n_classes=5, tol=1e-10, max_iter=2)
    assert (fitted.n_iter, fitted.converged) == (2, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cs": [1.0, 0.0]}, r"values of C must be positive, but cs is \[1\.0, 0\.0\]"),
        ({"cs": []}, r"values of C must be positive"),
        ({"n_classes": 2}, r"class codes must be in 0\.\.1, but are 0\.\.2"),
        ({"sample_weight": np.zeros(30)}, r"sample_weight must have 30 non-negative values"),
        ({"sample_weight": -np.ones(30)}, r"non-negative values that are not all zero"),
        ({"sample_weight": np.ones(3)}, r"sample_weight must have 30 non-negative values"),
    ],
)
def test_invalid_arguments_raise_a_one_line_error(options, message):
    """The message contains the invalid value."""
    x, codes = blobs(30, 4, 3)
    with pytest.raises(HeadError, match=message):
        logistic_path(x, codes, **{"cs": [1.0], "n_classes": 3} | options)
