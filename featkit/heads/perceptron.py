"""Training of a perceptron with one hidden layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import gen_batches

from featkit.heads.base import Floats, softmax, two_columns

RATE, MEAN, SQUARE, TINY = 5e-4, 0.9, 0.999, 1e-8
"""Of Adam: the step size, what it remembers of the gradient and of its square, and what keeps it from dividing by 0."""

_BLOCK = 1 << 15
"""Numbers that Adam treats at once: its five arrays then stay within a core's cache."""


class Perceptron(NamedTuple):
    """The weights of two layers: ``(d, width)``, ``(width, k)``, ``(width,)``, ``(k,)``; k is 1 for two classes."""

    hidden_coef: Floats
    coef: Floats
    hidden_intercept: Floats
    intercept: Floats


def train_perceptron(
    x: Floats, codes: NDArray[np.integer[Any]], *, width: int, decay: float, epochs: int, seed: int
) -> Perceptron:
    """Train a perceptron with rectified units to a low cross-entropy, by Adam.

    It takes the steps of scikit-learn's ``MLPClassifier`` from the same random numbers, without its checks, its
    copies and its float64 in Adam, which take a third of its time.

    Args:
        x: rows ``(n, d)``, float32 or float64, as the weights will be.
        codes: classes ``(n,)``, 0 to k - 1, each of them there.
        width: number of hidden units.
        decay: on a batch of b rows, the squared weights cost ``decay / (2 b)``.
        epochs: passes over the rows, in batches of a sixteenth of them (16 to 128).
        seed: of the initial weights and of the order of the rows.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, end of section 2; Glorot and
    Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010, eq. 16.
    """
    targets = np.eye(codes.max() + 1, dtype=x.dtype)
    targets = targets[:, 1:] if len(targets) == 2 else targets
    d, k = x.shape[1], targets.shape[1]
    rng = np.random.RandomState(seed)
    (hidden_coef, hidden_intercept), (coef, intercept) = _initial(d, width, rng), _initial(width, k, rng)
    drawn = (hidden_coef, coef, hidden_intercept, intercept)
    weights = np.concatenate([part.ravel() for part in drawn]).astype(x.dtype)
    gradient = np.empty_like(weights)
    network, slopes = _layers(weights, d, width, k), _layers(gradient, d, width, k)
    decayed = hidden_coef.size + coef.size
    adam = _Adam(weights)
    order, size = np.arange(len(x)), min(len(x), int(np.clip(len(x) // 16, 16, 128)))
    for _ in range(epochs):
        order = order[rng.permutation(len(x))]
        for batch in gen_batches(len(x), size):
            rows = order[batch]
            _backpropagate(network, x[rows], targets[codes[rows]], slopes)
            gradient[:decayed] += decay / len(rows) * weights[:decayed]
            adam.step(gradient)
    return network


def _initial(fan_in: int, fan_out: int, rng: np.random.RandomState) -> tuple[Floats, Floats]:
    """Draw the weights ``(fan_in, fan_out)`` and intercepts ``(fan_out,)`` of a layer."""
    bound = np.sqrt(6 / (fan_in + fan_out))
    return rng.uniform(-bound, bound, (fan_in, fan_out)), rng.uniform(-bound, bound, fan_out)


def _layers(flat: Floats, d: int, width: int, k: int) -> Perceptron:
    """Return the parts of a vector of all weights, which they share."""
    parts = np.split(flat, np.cumsum([d * width, width * k, width]))
    return Perceptron(parts[0].reshape(d, width), parts[1].reshape(width, k), parts[2], parts[3])


def _backpropagate(network: Perceptron, x: Floats, targets: Floats, slopes: Perceptron) -> None:
    """Write the derivatives of the mean cross-entropy of a batch ``(b, d)`` into ``slopes``."""
    hidden = np.maximum(x @ network.hidden_coef + network.hidden_intercept, 0)
    chances = softmax(two_columns(hidden @ network.coef + network.intercept))[:, -targets.shape[1] :]
    residual = (chances.astype(x.dtype) - targets) / len(x)
    back = (residual @ network.coef.T) * (hidden > 0)
    np.matmul(x.T, back, out=slopes.hidden_coef)
    np.matmul(hidden.T, residual, out=slopes.coef)
    np.sum(back, axis=0, out=slopes.hidden_intercept)
    np.sum(residual, axis=0, out=slopes.intercept)


class _Adam:
    """Adam's memory of the gradients of some weights ``(p,)``, which it changes in place."""

    def __init__(self, weights: Floats) -> None:
        self._weights, self._mean, self._square = weights, np.zeros_like(weights), np.zeros_like(weights)
        self._steps = 0

    def step(self, gradient: Floats) -> None:
        """Move the weights; the gradient ``(p,)`` is used up."""
        self._steps += 1
        rate = RATE * float(np.sqrt(1 - SQUARE**self._steps)) / (1 - MEAN**self._steps)
        for part in gen_batches(len(gradient), _BLOCK):
            mean, square, slope = self._mean[part], self._square[part], gradient[part]
            mean *= MEAN
            mean += (1 - MEAN) * slope
            slope *= slope
            square *= SQUARE
            square += (1 - SQUARE) * slope
            np.sqrt(square, out=slope)
            slope += TINY
            np.divide(mean, slope, out=slope)
            slope *= rate
            self._weights[part] -= slope
