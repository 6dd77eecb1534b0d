"""Linear classifiers on more rows than fit into memory, fitted in passes over blocks of them.

The solver of ``heads.logistic`` keeps the logits of all rows, ten arrays ``(n, k)``: 4 GB for a
million rows and 100 classes. Here they are computed again, block by block, for each value of the
objective and its gradient, and nothing of length n but labels and weights is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featkit.heads.logistic import Backend, RotatedRows

MEMORY = 10
"""Number of past steps that L-BFGS uses."""

SUFFICIENT_DECREASE, SUFFICIENT_FLATNESS = 1e-4, 0.9
"""Constants of the strong Wolfe conditions (Nocedal and Wright, "Numerical optimization", 2006)."""

MAX_EVALUATIONS = 12
"""Values of the objective in one line search."""

Floats = NDArray[np.floating[Any]]


class BlockTerms(NamedTuple):
    """The weighted loss of a block of b rows.

    Attributes:
        loss: its sum over the rows.
        residual: derivative by the logits ``(b, k)``.
        curvature: sum over the rows of the second derivatives by the logits, ``(k, k)``.
    """

    loss: float
    residual: Floats
    curvature: NDArray[np.float64]


Loss = Callable[[Floats, NDArray[np.intp], Floats], BlockTerms]
"""A loss of logits ``(b, k)``, classes ``(b,)`` and weights ``(b, 1)``."""


class StreamedFit(NamedTuple):
    """A fitted linear classifier.

    Attributes:
        coef, intercept: ``(k, d)``, ``(k,)``, a row for each class, also for two.
        n_iter: iterations of the solver.
        converged: whether the tolerance was reached.
    """

    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    n_iter: int
    converged: bool


def log_loss(logits: Floats, codes: NDArray[np.intp], weights: Floats) -> BlockTerms:
    """Return the cross-entropy of the softmax."""
    rows = np.arange(len(codes))
    logits -= logits.max(axis=1, keepdims=True)
    own = logits[rows, codes]
    powers = np.exp(logits, out=logits)
    total = powers.sum(axis=1, keepdims=True)
    loss = float(weights[:, 0] @ (np.log(total[:, 0]) - own))
    powers /= total
    residual = powers * weights
    curvature = np.diag(residual.sum(axis=0, dtype=np.float64)) - powers.T @ residual
    residual[rows, codes] -= weights[:, 0]
    return BlockTerms(loss, residual, np.asarray(curvature, np.float64))


def squared_hinge(logits: Floats, codes: NDArray[np.intp], weights: Floats) -> BlockTerms:
    """Return the squared hinge loss of each class against the rest, summed over the classes."""
    rows = np.arange(len(codes))
    margins = logits
    margins[rows, codes] *= -1
    margins += 1
    np.maximum(margins, 0, out=margins)
    active = np.count_nonzero(margins, axis=0) * float(weights.mean())
    weighted = margins * weights
    loss = float(np.vdot(weighted, margins))
    weighted *= 2
    weighted[rows, codes] *= -1
    return BlockTerms(loss, weighted, np.diag(2.0 * active))


@dataclass
class _State:
    """The objective at weights ``theta (r + 1, k)``, with its gradient."""

    theta: Floats
    objective: float
    gradient: Floats
    curvature: NDArray[np.float64]


def fit_streamed(
    x: Any,
    codes: NDArray[np.intp],
    loss: Loss,
    *,
    n_classes: int,
    penalty: float,
    weights: NDArray[np.float64] | None = None,
    start: tuple[Floats, Floats] | None = None,
    tol: float = 1e-4,
    max_iter: int = 200,
) -> StreamedFit:
    """Minimise the mean loss plus ``penalty |coef|^2 / 2``; intercepts are not penalised.

    L-BFGS, with the preconditioner of ``heads.logistic``: the Kronecker product of the mean
    curvatures of the features, in their principal axes, and of the classes.

    Args:
        x: features ``(n, d)``: an object with ``shape`` and ``dtype`` whose slices are arrays, not
            an array in memory. It is read once per value of the objective.
        codes: class codes ``(n,)`` in 0..k-1.
        loss: ``log_loss`` or ``squared_hinge``.
        n_classes: k.
        penalty: see above.
        weights: sample weights ``(n,)``; 1 by default.
        start: coefficients ``(k, d)`` and intercepts ``(k,)`` to start from; zeros by default.
        tol: a fit stops when the estimated distance to the minimum falls below ``tol`` times the
            objective.
        max_iter: maximum number of iterations.
    """
    solver = _Solver(x, codes, loss, k=n_classes, penalty=penalty, weights=weights)
    return solver.fit(start, tol, max_iter)


class _Solver:
    """Rows, loss and penalty of a fit; weights refer to the principal axes of the rows."""

    def __init__(
        self,
        x: Any,
        codes: NDArray[np.intp],
        loss: Loss,
        *,
        k: int,
        penalty: float,
        weights: NDArray[np.float64] | None,
    ) -> None:
        self._dtype = np.dtype(x.dtype)
        shares = np.full(len(codes), 1 / len(codes)) if weights is None else weights / weights.sum()
        self._codes, self._loss, self._k = codes, loss, k
        self._weights = shares.astype(self._dtype)[:, None]
        self._rows = RotatedRows(x, self._weights, Backend("cpu", self._dtype))
        self._penalty = np.full((len(self._rows.spectrum), 1), penalty, self._dtype)
        self._penalty[-1] = 0
        self._pairs: deque[tuple[Floats, Floats]] = deque(maxlen=MEMORY)

    def fit(self, start: tuple[Floats, Floats] | None, tol: float, max_iter: int) -> StreamedFit:
        theta = np.zeros((len(self._rows.spectrum), self._k), self._dtype)
        if start is not None:
            theta = self._rows.to_principal_axes(*start).astype(self._dtype)
        state, step = self._evaluate(theta), 0
        while True:
            remaining = _dot(state.gradient, self._precondition(state, state.gradient)) / 2
            converged = remaining <= tol * state.objective
            if converged or step == max_iter:
                break
            following = self._line_search(state, self._direction(state))
            if following is None:
                break  # rounding: no step along the gradient is better
            moved, change = following.theta - state.theta, following.gradient - state.gradient
            if _dot(moved, change) > 0:
                self._pairs.append((moved, change))
            state, step = following, step + 1
        coef, intercept = self._rows.to_original_axes(state.theta)
        return StreamedFit(coef, intercept, step, bool(converged))

    def _evaluate(self, theta: Floats) -> _State:
        """Compute objective, gradient and curvature in one pass over the rows."""
        plain, intercept = self._rows.plain(theta)
        total = 0.0
        gradient = np.zeros(plain.shape)
        own = np.zeros(self._k)
        curvature = np.zeros((self._k, self._k))
        for part, block in self._rows.blocks():
            terms = self._loss(block @ plain + intercept, self._codes[part], self._weights[part])
            total += terms.loss
            gradient += block.T @ terms.residual
            own += terms.residual.sum(axis=0, dtype=np.float64)
            curvature += terms.curvature
        rotated = np.vstack([self._rows.rotated(gradient.astype(self._dtype)), own])
        penalised = self._penalty * theta
        objective = total + _dot(theta, penalised) / 2
        return _State(theta, objective, (rotated + penalised).astype(self._dtype), curvature)

    def _precondition(self, state: _State, gradient: Floats) -> Floats:
        """Return the product with the inverse approximate Hessian."""
        k = self._k
        # A constant added to all classes does not change a softmax: its direction has no curvature.
        values, vectors = np.linalg.eigh(state.curvature + np.trace(state.curvature) / k**2)
        values = np.maximum(values, 1e-3 * values[-1])
        scale = self._rows.spectrum * values + self._penalty
        product: Floats = ((gradient @ vectors) / scale) @ vectors.T
        return product.astype(self._dtype)

    def _direction(self, state: _State) -> Floats:
        """Return the search direction of L-BFGS."""
        direction, products = -state.gradient, []
        for moved, change in reversed(self._pairs):
            product = _dot(moved, direction) / _dot(moved, change)
            direction = direction - product * change
            products.append(product)
        direction = self._precondition(state, direction)
        for (moved, change), product in zip(self._pairs, reversed(products), strict=True):
            factor = product - _dot(change, direction) / _dot(moved, change)
            direction = direction + factor * moved
        if _dot(state.gradient, direction) < 0:
            return direction
        self._pairs.clear()
        return self._precondition(state, -state.gradient)

    def _line_search(self, state: _State, direction: Floats) -> _State | None:
        """Return the state after a step that meets the strong Wolfe conditions; None if none does.

        The objective is convex along the line: the slope changes its sign between a length that is
        too short and one that is too long.
        """
        slope = _dot(state.gradient, direction)
        low, low_slope, high, high_slope = 0.0, slope, np.inf, 0.0
        length, best = 1.0, None
        for _ in range(MAX_EVALUATIONS):
            tried = self._evaluate((state.theta + length * direction).astype(self._dtype))
            current = _dot(tried.gradient, direction)
            limit = state.objective + SUFFICIENT_DECREASE * length * slope
            if tried.objective <= limit:
                best = tried
                if abs(current) <= SUFFICIENT_FLATNESS * abs(slope):
                    return tried
            if current < 0 and tried.objective <= limit:
                low, low_slope = length, current
            else:
                high, high_slope = length, current
            if high == np.inf:
                length *= 2
                continue
            # The secant of the slopes, kept away from both ends.
            share = low_slope / (low_slope - high_slope) if high_slope > 0 else 0.5
            length = low + (high - low) * float(np.clip(share, 0.1, 0.9))
        return best


def _dot(a: Floats, b: Floats) -> float:
    """Return the sum of the elementwise product."""
    return float(np.vdot(a, b))
