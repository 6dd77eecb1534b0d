"""The perceptron is trained as scikit-learn trains it."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from featkit.heads.perceptron import Perceptron, train_perceptron


def theirs(x, codes, batch):
    network = MLPClassifier((20,), alpha=0.3, batch_size=batch, learning_rate_init=5e-4, max_iter=5, random_state=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(x, codes)
    return Perceptron(*network.coefs_, *network.intercepts_)


@pytest.mark.parametrize(("dtype", "rounding"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize(("k", "n", "batch"), [(10, 500, 31), (3, 10, 10), (2, 300, 18)])
def test_every_weight_is_scikit_learns(k, n, batch, dtype, rounding):
    """Also for two classes, a last batch that is smaller, and fewer rows than a batch holds."""
    x, codes = load_digits(n_class=k, return_X_y=True)
    x, codes = (x[:n] / 16).astype(dtype), codes[:n]
    ours = train_perceptron(x, codes, width=20, decay=0.3, epochs=5, seed=7)
    for weights, expected in zip(ours, theirs(x, codes, batch), strict=True):
        assert weights.dtype == expected.dtype == dtype
        np.testing.assert_allclose(weights, expected, atol=rounding)
