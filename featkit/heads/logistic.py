"""Multinomial logistic regression along a whole path of penalties, by one preconditioned quasi-Newton run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from featkit.heads.base import UnfitDataError, single_threaded_blas
from featkit.heads.rotated import Array, Backend, RotatedRows

MEMORY = 20
"""Steps that the quasi-Newton method remembers."""

FLATTER = 10.0
"""The axes are found anew when the mean curvature of the loss has fallen by this factor."""


LARGE = 5e8
"""Multiplications in a product with the data from which it uses all cores: see ``single_threaded_blas``."""


class Solution(NamedTuple):
    """The optimum for one value of C.

    Attributes:
        C: inverse strength of the penalty.
        coef: weights ``(k, d)``, or ``(1, d)`` for two classes.
        intercept: ``(k,)``, or ``(1,)``.
        loss: the objective of scikit-learn, over C and the sum of the sample weights:
            weighted mean of the log loss + ``|coef|^2 / (2 C sum(sample_weight))``.
        n_iter: steps of the solver, each of two products with the data.
        converged: whether the solver stopped by its tolerance.
    """

    C: float
    coef: NDArray[Any]
    intercept: NDArray[Any]
    loss: float
    n_iter: int
    converged: bool


def logistic_path(
    x: Any,
    codes: NDArray[np.integer[Any]],
    cs: Sequence[float] | NDArray[Any],
    *,
    n_classes: int,
    sample_weight: NDArray[Any] | None = None,
    tol: float | Sequence[float] = 1e-5,
    max_iter: int = 500,
    device: Any = "cpu",
) -> list[Solution]:
    """Fit multinomial logistic regression with an L2 penalty for every C, each from the ones before it.

    The objective is that of scikit-learn's ``LogisticRegression``: the intercepts are not
    penalised, two classes have one row of weights.

    L-BFGS (Nocedal and Wright, "Numerical optimization", 2006, algorithm 7.4) whose initial matrix
    is the Kronecker product of two mean curvatures, of the rows and of the classes (as in Martens
    and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML
    2015), plus the exact penalty. The pairs it remembers hold for the loss alone, and so stay valid
    when C changes. The line search and the extrapolation from one C to the next work on the scores
    ``(n, k)`` and cost no product with the data.

    Args:
        x: rows ``(n, d)``: a NumPy array, or anything with ``shape`` whose slices ``x[a:b]`` are
            such arrays; the latter is read in blocks, twice for every step, and needs ten times
            ``(n, k)`` of memory.
        codes: classes ``(n,)``, 0 to k - 1.
        cs: values of C, in any order; solved from the smallest.
        n_classes: k, two or more.
        sample_weight: how much each row counts ``(n,)``; default 1.
        tol: a fit stops when the estimate ``g' M g / 2`` of what is left to gain, with the gradient
            g and the inverse M of the approximate Hessian, falls below this part of the objective,
            or, where that is less, of a hundredth of what the objective has gained on predicting
            the shares of the classes for every row. Or one for each C.
        max_iter: most steps for one C.
        device: "cpu" for NumPy, or what ``torch.device`` takes.

    Returns:
        A solution for each C, in the order of ``cs``.

    Raises:
        UnfitDataError: for values of C that are not above zero, weights below zero or all zero,
            classes out of range.
    """
    weights = _shares(len(codes), sample_weight)
    if len(cs) == 0 or not np.all(np.asarray(cs) > 0):
        raise UnfitDataError(f"values of C must be above zero, but cs is {list(cs)}")
    if n_classes < 2 or np.min(codes) < 0 or np.max(codes) >= n_classes:
        raise UnfitDataError(
            f"codes must lie in 0..{n_classes - 1}, but span {np.min(codes)}..{np.max(codes)}"
        )
    dtype = np.dtype(np.float32 if x.dtype == np.float32 else np.float64)
    total = len(codes) if sample_weight is None else float(np.sum(sample_weight))
    tols = np.broadcast_to(tol, len(cs))
    solutions: dict[int, Solution] = {}
    with threadpool_limits(
        None if x.shape[0] * x.shape[1] * n_classes > LARGE else 1, user_api="blas"
    ):
        solver = _Solver(x, codes, n_classes, weights, Backend(device, dtype))
        for position in np.argsort(cs, kind="stable"):
            c = float(cs[position])
            # With two classes, the opposite rows w/2 and -w/2 have half the penalty of the single row w.
            fit = solver.fit(
                (2 if n_classes == 2 else 1) / (c * total), float(tols[position]), max_iter
            )
            coef, intercept = solver.weights()
            solutions[int(position)] = Solution(c, coef, intercept, *fit)
    return [solutions[position] for position in range(len(cs))]


def _shares(n: int, sample_weight: NDArray[Any] | None) -> NDArray[np.float64]:
    """Return the share of each row in the loss ``(n,)``."""
    weights = np.ones(n) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if weights.shape != (n,) or not (weights >= 0).all() or not weights.sum() > 0:
        raise UnfitDataError(
            f"sample_weight must hold {n} numbers, none below zero and not all zero"
        )
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


class _Point(NamedTuple):
    """What the scores of the rows say: the loss, its derivative by them ``(n, k)``, the probabilities ``(n, k)``."""

    loss: float
    residual: Array
    chances: Array


class _Solver:
    """The state of the run: weights ``theta`` ``(r + 1, k)``, their scores ``(n, k)``, and pairs of L-BFGS."""

    def __init__(
        self,
        x: Any,
        codes: NDArray[np.integer[Any]],
        k: int,
        weights: NDArray[np.float64],
        backend: Backend,
    ) -> None:
        self._backend, self._xp = backend, backend.xp
        self._weights = backend.send(weights[:, None])
        self._own = (backend.send(np.arange(len(codes))), backend.send(codes.astype(np.int64)))
        self._rows = RotatedRows(x, self._weights, backend)
        axes = len(self._rows.spectrum)
        self._penalised = backend.send(np.append(np.ones(axes - 1), 0.0)[:, None])
        # All that is known without the rows: how frequent each class is. A class without weight gets nearly nothing.
        shares = np.bincount(codes, weights, k)
        self._prior_loss = -float(shares @ np.log(np.where(shares > 0, shares, 1)))
        self._theta = backend.send(np.zeros((axes, k)))
        self._theta[-1] = backend.send(np.log(np.maximum(shares, np.finfo(backend.dtype).eps)))
        self._scores = self._rows.scores(self._theta)
        self._pairs: deque[tuple[Array, Array]] = deque(maxlen=MEMORY)
        self._past: deque[tuple[Array, Array]] = deque(maxlen=2)
        self._spread = 1.0

    def weights(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return weights and intercepts for the rows as given, in the type of the computation."""
        coef, intercept = self._rows.unrotated(self._theta)
        coef, intercept = coef - coef.mean(0), intercept - intercept.mean()
        if len(coef) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        return coef.astype(self._backend.dtype), intercept.astype(self._backend.dtype)

    def fit(self, penalty: float, tol: float, max_iter: int) -> tuple[float, int, bool]:
        """Minimise for one penalty; return the objective, the steps taken, and whether the tolerance was met."""
        self._pull = penalty * self._penalised
        self._extrapolate()
        # Sums of steps have rounded; a product makes the scores those of the weights again.
        self._scores = self._rows.scores(self._theta)
        point = self._at(self._scores)
        invert = self._curvature(point)
        of_loss, step = self._rows.back(point.residual), 0
        while True:
            gradient = of_loss + self._pull * self._theta
            objective = point.loss + _dot(self._theta, self._pull * self._theta) / 2
            converged = _dot(gradient, invert(gradient)) / 2 <= tol * self._worth(objective)
            if converged or step == max_iter:
                break
            move, along, slope = self._descent(gradient, invert)
            length, point = self._search(move, along, slope)
            self._theta, self._scores = self._theta + length * move, self._scores + length * along
            before, of_loss = of_loss, self._rows.back(point.residual)
            self._pairs.append((length * move, of_loss - before))
            step += 1
        self._past.append((self._theta, self._scores))
        return objective, step, converged

    def _worth(self, objective: float) -> float:
        """Return the amount of which a part is left to gain when a fit stops.

        Under a strong penalty the objective is nearly constant, and says nothing of the weights;
        what it gained on the shares of the classes grows as their square, and a hundredth of it
        kept 99.9 % of the predictions. What rounds to nothing, as the loss of rows of one class, is
        worth no more.
        """
        gain = self._prior_loss - objective
        return max(min(objective, gain / 100), float(np.finfo(self._backend.dtype).eps))

    def _at(self, scores: Array) -> _Point:
        """Return the loss at these scores, exact also where nearly all probability is on the right class.

        With scores relative to that of the row's own class, nothing is lost by ``1 - p`` or ``log
        p`` for p near 1.
        """
        margins = scores - scores[self._own][:, None]
        top = self._xp.amax(margins, 1)[:, None]
        powers = self._xp.exp(margins - top)
        own = powers[self._own][:, None]
        powers[self._own] = 0
        others = powers.sum(1)[:, None]
        losses = top + self._xp.where(top == 0, self._xp.log1p(others), self._xp.log(own + others))
        powers /= own + others
        residual = self._weights * powers
        residual[self._own] = -(self._weights * others / (own + others))[:, 0]
        powers[self._own] = (own / (own + others))[:, 0]
        return _Point(float((self._weights * losses).sum(dtype=self._xp.float64)), residual, powers)

    def _curvature(self, point: _Point) -> Callable[[Array], Array]:
        """Return the product with the inverse of the approximate Hessian at a point, turning the axes if need be."""
        shared = self._backend.fetch(point.chances.T @ (self._weights * point.chances))
        np.fill_diagonal(shared, 0)
        classes = np.diag(shared.sum(1)) - shared
        if 0 < np.trace(classes) < self._spread / FLATTER:
            self._spread = float(np.trace(classes))
            self._turn(self._rows.rotate(-point.residual[self._own][:, None]))
        # What all classes have in common changes nothing, and no gradient has it; high curvature keeps rounding small.
        with single_threaded_blas():
            values, vectors = np.linalg.eigh(classes + np.trace(classes) / len(classes))
        by_class, vectors = self._backend.send(np.maximum(values, 0)), self._backend.send(vectors)
        scale = self._rows.spectrum * by_class + self._pull
        scale[-1:] = self._xp.clip(
            by_class, 1e-6 * by_class[-1], None
        )  # intercepts, which have no penalty
        return lambda gradient: ((gradient @ vectors) / scale) @ vectors.T

    def _turn(self, turn: Array) -> None:
        """Express everything remembered in new axes."""

        def turned(theta: Array) -> Array:
            return self._xp.concatenate([turn.T @ theta[:-1], theta[-1:]])

        self._theta = turned(self._theta)
        self._pairs = deque(
            ((turned(move), turned(change)) for move, change in self._pairs), MEMORY
        )
        self._past = deque(((turned(theta), scores) for theta, scores in self._past), 2)

    def _descent(
        self, gradient: Array, invert: Callable[[Array], Array]
    ) -> tuple[Array, Array, float]:
        """Return the step of L-BFGS, the scores along it, and the slope of the objective."""
        changes = [(step, change + self._pull * step) for step, change in self._pairs]
        pairs = [
            (step, change, bend) for step, change in changes if (bend := _dot(step, change)) > 0
        ]
        move, products = -gradient, []
        for step, change, bend in reversed(pairs):
            products.append(_dot(step, move) / bend)
            move = move - products[-1] * change
        move = invert(move)
        for (step, change, bend), product in zip(pairs, reversed(products), strict=True):
            move = move + (product - _dot(change, move) / bend) * step
        slope = _dot(gradient, move)
        if slope >= 0 and self._pairs:  # rounding
            self._pairs.clear()
            return self._descent(gradient, invert)
        return move, self._rows.scores(move), slope

    def _search(self, move: Array, along: Array, slope: float) -> tuple[float, _Point]:
        """Return how far to go, and the point there: where the slope is less than a third of what it was.

        The objective is convex along the line, so Newton's method for a slope of zero, kept between
        the lengths known to be too short and too long, cannot fail.
        """
        low, high, length = 0.0, np.inf, 1.0
        offset, bend = _dot(self._theta, self._pull * move), _dot(move, self._pull * move)
        relative = along - along[self._own][:, None]
        for _ in range(20):
            point = self._at(self._scores + length * along)
            now = _dot(point.residual, along) + offset + length * bend
            if abs(now) <= abs(slope) / 3:
                break
            low, high = (length, high) if now < 0 else (low, length)
            mean = (point.chances * relative).sum(1)[:, None]
            spread = _dot(self._weights * point.chances * relative, relative - mean)
            length -= now / (spread + bend)
            if not low < length < min(high, 10 * low + 1):
                length = (low + high) / 2 if high < np.inf else 10 * low + 1
        return length, point

    def _extrapolate(self) -> None:
        """Move along the line through the last two solutions, to where it is lowest now."""
        if len(self._past) < 2:
            return
        (before, scores_before), (last, scores_last) = self._past
        move, along = last - before, scores_last - scores_before
        slope = _dot(self._at(self._scores).residual, along) + _dot(self._theta, self._pull * move)
        if slope < 0:
            length, _ = self._search(move, along, slope)
            self._theta, self._scores = self._theta + length * move, self._scores + length * along


def _dot(a: Array, b: Array) -> float:
    """Return the sum of the products of all numbers."""
    return float(a.reshape(-1) @ b.reshape(-1))
