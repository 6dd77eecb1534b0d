"""Multinomial logistic regression along a regularization path, with a preconditioned L-BFGS solver.

The same code runs on NumPy arrays and on torch tensors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featkit.heads.base import UnfitDataError, single_threaded_blas
from featkit.parallel import blas_threads

Array = Any
"""A NumPy array, or a torch tensor on a device."""

LBFGS_MEMORY = 20
"""Number of past steps that L-BFGS uses."""

REFRESH_FACTOR = 10.0
"""The principal axes are recomputed when the mean curvature of the loss has decreased by this
factor."""

MULTITHREADED_PRODUCT = 5e8
"""Multiplications in a product with the data from which BLAS uses all cores: see
``single_threaded_blas``."""

BLOCK_VALUES = 1 << 25
"""Values read at once from a source that is not an array in memory: 128 MiB of float32."""


class Solution(NamedTuple):
    """The optimum for one value of C.

    Attributes:
        C: inverse regularization strength.
        coef: weights ``(k, d)``, or ``(1, d)`` for two classes.
        intercept: ``(k,)``, or ``(1,)``.
        loss: scikit-learn's objective divided by C and the sum of the sample weights: weighted mean
            of the log loss + ``|coef|^2 / (2 C sum(sample_weight))``.
        n_iter: iterations of the solver, each with two products with the data.
        converged: whether the tolerance was reached.
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
    """Fit multinomial logistic regression with an L2 penalty for several C, warm-started in order.

    The objective is that of scikit-learn's ``LogisticRegression``: the intercepts are not
    penalised, and two classes have one row of weights.

    The solver is L-BFGS (Nocedal and Wright, "Numerical optimization", 2006, algorithm 7.4). Its
    initial Hessian is the Kronecker product of two mean curvatures, of the features and of the
    classes (as in Martens and Grosse, "Optimizing neural networks with Kronecker-factored
    approximate curvature", ICML 2015), plus the exact penalty. The stored pairs of steps and
    gradient differences describe the loss without the penalty, and so remain valid when C changes.
    The line search and the extrapolation from one C to the next operate on the logits ``(n, k)``
    and need no product with the data.

    Args:
        x: features ``(n, d)``: a NumPy array, or an object with ``shape`` and ``dtype`` whose
            slices ``x[a:b]`` are arrays. The latter is read in blocks, twice per iteration; memory
            is then ten times that of an array ``(n, k)``.
        codes: class codes ``(n,)`` in 0..k-1.
        cs: values of C, in any order; solved from the smallest.
        n_classes: k, at least two.
        sample_weight: ``(n,)``, 1 by default.
        tol: relative tolerance, one for all C or one for each. With the gradient g and the inverse
            M of the approximate Hessian, ``g' M g / 2`` estimates how far the objective is from
            its minimum. A fit stops when that falls below ``tol`` times the objective or, if that
            is less, times a hundredth of the decrease of the objective from a model that predicts
            the class priors.
        max_iter: maximum number of iterations for one C.
        device: "cpu" for NumPy, or an argument of ``torch.device``.

    Returns:
        A solution for each C, in the order of ``cs``.

    Raises:
        UnfitDataError: for values of C that are not positive, sample weights that are negative or
            all zero, or class codes out of range.
    """
    weights = _normalised_weights(len(codes), sample_weight)
    _check_cs_and_codes(cs, codes, n_classes)
    dtype = np.dtype(np.float32 if x.dtype == np.float32 else np.float64)
    total_weight = len(codes) if sample_weight is None else float(np.sum(sample_weight))
    tols = np.broadcast_to(tol, len(cs))
    multithreaded = x.shape[0] * x.shape[1] * n_classes > MULTITHREADED_PRODUCT
    solutions: dict[int, Solution] = {}
    with blas_threads(None if multithreaded else 1):
        solver = _Solver(x, codes, n_classes, weights, Backend(device, dtype))
        for position in np.argsort(cs, kind="stable"):
            c = float(cs[position])
            # For two classes, the opposite rows w/2 and -w/2 have half the penalty of the row w.
            penalty = (2 if n_classes == 2 else 1) / (c * total_weight)
            fit = solver.fit(penalty, float(tols[position]), max_iter)
            coef, intercept = solver.weights()
            solutions[int(position)] = Solution(c, coef, intercept, *fit)
    return [solutions[position] for position in range(len(cs))]


def _check_cs_and_codes(
    cs: Sequence[float] | NDArray[Any], codes: NDArray[np.integer[Any]], n_classes: int
) -> None:
    if len(cs) == 0 or not np.all(np.asarray(cs) > 0):
        raise UnfitDataError(f"values of C must be positive, but cs is {list(cs)}")
    if n_classes < 2 or np.min(codes) < 0 or np.max(codes) >= n_classes:
        raise UnfitDataError(
            f"class codes must be in 0..{n_classes - 1}, but are {np.min(codes)}..{np.max(codes)}"
        )


def _normalised_weights(n: int, sample_weight: NDArray[Any] | None) -> NDArray[np.float64]:
    """Return sample weights ``(n,)`` that sum to 1."""
    weights = np.ones(n) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if weights.shape != (n,) or not (weights >= 0).all() or not weights.sum() > 0:
        raise UnfitDataError(
            f"sample_weight must have {n} non-negative values that are not all zero"
        )
    normalised: NDArray[np.float64] = weights / weights.sum()
    return normalised


class _LossTerms(NamedTuple):
    """The loss at given logits, its derivative ``(n, k)`` by them, and probabilities ``(n, k)``."""

    loss: float
    residual: Array
    probabilities: Array


class _Solver:
    """State of the solver: weights ``theta (r + 1, k)``, their logits ``(n, k)``, L-BFGS pairs.

    The weights refer to the r principal axes of ``RotatedRows``; the last row is the intercepts.
    """

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
        self._true_class = (
            backend.send(np.arange(len(codes))),
            backend.send(codes.astype(np.int64)),
        )
        self._rows = RotatedRows(x, self._weights, backend)
        n_axes = len(self._rows.spectrum)
        self._is_penalised = backend.send(np.append(np.ones(n_axes - 1), 0.0)[:, None])
        # Start from the class priors; a class without samples gets a tiny one.
        priors = np.bincount(codes, weights, k)
        self._prior_loss = -float(priors @ np.log(np.where(priors > 0, priors, 1)))
        self._theta = backend.send(np.zeros((n_axes, k)))
        self._theta[-1] = backend.send(np.log(np.maximum(priors, np.finfo(backend.dtype).eps)))
        self._logits = self._rows.product(self._theta)
        self._pairs: deque[tuple[Array, Array]] = deque(maxlen=LBFGS_MEMORY)
        self._previous: deque[tuple[Array, Array]] = deque(maxlen=2)
        self._curvature_at_refresh = 1.0

    def weights(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return weights and intercepts for the original features."""
        coef, intercept = self._rows.to_original_axes(self._theta)
        coef, intercept = coef - coef.mean(0), intercept - intercept.mean()
        if len(coef) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        return coef.astype(self._backend.dtype), intercept.astype(self._backend.dtype)

    def fit(self, penalty: float, tol: float, max_iter: int) -> tuple[float, int, bool]:
        """Minimise the objective; return its value, the iterations, and whether it converged."""
        self._penalty = penalty * self._is_penalised
        self._extrapolate()
        # The logits are updated by sums of steps; recompute them to remove the rounding errors.
        self._logits = self._rows.product(self._theta)
        terms = self._loss(self._logits)
        precondition = self._preconditioner(terms)
        loss_gradient, step = self._rows.transposed_product(terms.residual), 0
        while True:
            gradient = loss_gradient + self._penalty * self._theta
            objective = terms.loss + _dot(self._theta, self._penalty * self._theta) / 2
            remaining = _dot(gradient, precondition(gradient)) / 2
            converged = remaining <= tol * self._objective_scale(objective)
            if converged or step == max_iter:
                break
            direction, direction_logits, slope = self._lbfgs_direction(gradient, precondition)
            length, terms = self._line_search(direction, direction_logits, slope)
            self._theta = self._theta + length * direction
            self._logits = self._logits + length * direction_logits
            previous, loss_gradient = loss_gradient, self._rows.transposed_product(terms.residual)
            self._pairs.append((length * direction, loss_gradient - previous))
            step += 1
        self._previous.append((self._theta, self._logits))
        return objective, step, converged

    def _objective_scale(self, objective: float) -> float:
        """Return the value that the tolerance is relative to.

        Under a strong penalty the objective is almost constant, and hardly depends on the weights.
        Its decrease from the model that predicts the class priors grows as their square; with a
        hundredth of it, 99.9 % of the predictions were those of the exact optimum. The machine
        epsilon is a lower limit, for data of a single class, whose loss is zero.
        """
        decrease = self._prior_loss - objective
        return max(min(objective, decrease / 100), float(np.finfo(self._backend.dtype).eps))

    def _loss(self, logits: Array) -> _LossTerms:
        """Return the loss at given logits, without cancellation for probabilities close to 1.

        With logits relative to that of the true class, neither ``1 - p`` nor ``log p`` loses
        precision for p near 1.
        """
        margins = logits - logits[self._true_class][:, None]
        top = self._xp.amax(margins, 1)[:, None]
        powers = self._xp.exp(margins - top)
        true = powers[self._true_class][:, None]
        powers[self._true_class] = 0
        others = powers.sum(1)[:, None]
        losses = top + self._xp.where(top == 0, self._xp.log1p(others), self._xp.log(true + others))
        powers /= true + others
        residual = self._weights * powers
        residual[self._true_class] = -(self._weights * others / (true + others))[:, 0]
        powers[self._true_class] = (true / (true + others))[:, 0]
        loss = float((self._weights * losses).sum(dtype=self._xp.float64))
        return _LossTerms(loss, residual, powers)

    def _preconditioner(self, terms: _LossTerms) -> Callable[[Array], Array]:
        """Return the product with the inverse approximate Hessian; refresh the axes if due."""
        shared = self._backend.fetch(terms.probabilities.T @ (self._weights * terms.probabilities))
        np.fill_diagonal(shared, 0)
        class_curvature = np.diag(shared.sum(1)) - shared
        trace = np.trace(class_curvature)
        if 0 < trace < self._curvature_at_refresh / REFRESH_FACTOR:
            self._curvature_at_refresh = float(trace)
            self._rotate(self._rows.rotate(-terms.residual[self._true_class][:, None]))
        # A constant added to all classes does not change the loss, so that no gradient has this
        # component; a high curvature in its direction suppresses rounding errors.
        with single_threaded_blas():
            values, vectors = np.linalg.eigh(class_curvature + trace / len(class_curvature))
        class_spectrum = self._backend.send(np.maximum(values, 0))
        vectors = self._backend.send(vectors)
        scale = self._rows.spectrum * class_spectrum + self._penalty
        # The intercepts have no penalty that keeps the scale away from zero.
        scale[-1:] = self._xp.clip(class_spectrum, 1e-6 * class_spectrum[-1], None)
        return lambda gradient: ((gradient @ vectors) / scale) @ vectors.T

    def _rotate(self, rotation: Array) -> None:
        """Express weights, pairs and previous solutions in new axes."""

        def rotated(theta: Array) -> Array:
            return self._xp.concatenate([rotation.T @ theta[:-1], theta[-1:]])

        self._theta = rotated(self._theta)
        pairs = [(rotated(step), rotated(change)) for step, change in self._pairs]
        self._pairs = deque(pairs, LBFGS_MEMORY)
        self._previous = deque([(rotated(theta), logits) for theta, logits in self._previous], 2)

    def _lbfgs_direction(
        self, gradient: Array, precondition: Callable[[Array], Array]
    ) -> tuple[Array, Array, float]:
        """Return the search direction, its logits, and the slope of the objective along it."""
        pairs = []
        for step, loss_change in self._pairs:
            change = loss_change + self._penalty * step
            curvature = _dot(step, change)
            if curvature > 0:
                pairs.append((step, change, curvature))
        direction, products = -gradient, []
        for step, change, curvature in reversed(pairs):
            product = _dot(step, direction) / curvature
            direction = direction - product * change
            products.append(product)
        direction = precondition(direction)
        for (step, change, curvature), product in zip(pairs, reversed(products), strict=True):
            direction = direction + (product - _dot(change, direction) / curvature) * step
        slope = _dot(gradient, direction)
        if slope >= 0 and self._pairs:
            # Not a descent direction, because of rounding: restart from the gradient.
            self._pairs.clear()
            return self._lbfgs_direction(gradient, precondition)
        return direction, self._rows.product(direction), slope

    def _line_search(
        self, direction: Array, direction_logits: Array, slope: float
    ) -> tuple[float, _LossTerms]:
        """Return the step length and the loss there; the slope is reduced to a third at most.

        The objective is convex along the line. Newton's method for a zero of the slope, safeguarded
        by the interval between lengths known to be too short and too long, therefore converges.
        """
        low, high, length = 0.0, np.inf, 1.0
        penalty_slope = _dot(self._theta, self._penalty * direction)
        penalty_curvature = _dot(direction, self._penalty * direction)
        relative = direction_logits - direction_logits[self._true_class][:, None]
        for _ in range(20):
            terms = self._loss(self._logits + length * direction_logits)
            current = (
                _dot(terms.residual, direction_logits) + penalty_slope + length * penalty_curvature
            )
            if abs(current) <= abs(slope) / 3:
                break
            low, high = (length, high) if current < 0 else (low, length)
            mean = (terms.probabilities * relative).sum(1)[:, None]
            curvature = _dot(self._weights * terms.probabilities * relative, relative - mean)
            length -= current / (curvature + penalty_curvature)
            if not low < length < min(high, 10 * low + 1):
                length = (low + high) / 2 if high < np.inf else 10 * low + 1
        return length, terms

    def _extrapolate(self) -> None:
        """Move along the line through the last two solutions to its minimum for the new penalty."""
        if len(self._previous) < 2:
            return
        (before, logits_before), (last, logits_last) = self._previous
        direction, direction_logits = last - before, logits_last - logits_before
        slope = _dot(self._loss(self._logits).residual, direction_logits)
        slope += _dot(self._theta, self._penalty * direction)
        if slope < 0:
            length, _ = self._line_search(direction, direction_logits, slope)
            self._theta = self._theta + length * direction
            self._logits = self._logits + length * direction_logits


class Backend:
    """The array library and device of the computation: NumPy, or torch on a device.

    Attributes:
        xp: the module ``numpy`` or ``torch``; only functions that have the same name in both are
            used.
        dtype: float32 or float64, the type of the computation.
    """

    def __init__(self, device: Any, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._device: Any = None
        self.xp: Any = np
        if not (isinstance(device, str) and device == "cpu"):
            import torch  # takes seconds, so only if a device is given

            self.xp, self._device = torch, torch.device(device)

    def send(self, array: Any) -> Array:
        """Return a NumPy array on the device; floats are converted to ``dtype``."""
        array = np.asarray(array)
        array = array.astype(self.dtype, copy=False) if array.dtype.kind == "f" else array
        return array if self._device is None else self.xp.as_tensor(array, device=self._device)

    def fetch(self, array: Array) -> NDArray[np.float64]:
        """Return an array of the device as a NumPy array in float64."""
        return np.asarray(array if self._device is None else array.cpu().numpy(), np.float64)

    def eigh(self, matrix: Array) -> tuple[Array, Array]:
        """Return eigenvalues, clipped at zero, and eigenvectors, computed in float64."""
        exact = matrix.astype(np.float64) if self._device is None else matrix.double()
        # Several threads are slower here, by a lot on a busy machine.
        with single_threaded_blas():
            values, vectors = self.xp.linalg.eigh(exact)
        return self.send(np.maximum(self.fetch(values), 0)), self.send(self.fetch(vectors))


class RotatedRows:
    """Centred features ``(n, d)`` in r principal axes, with a column of ones for the intercept.

    An array in memory is rotated once and kept. Of any other source only ``shape`` and slices of
    rows are used, and blocks are read for each product. For n < d, r = n axes are enough.

    Attributes:
        spectrum: mean square of the rows along each axis ``(r + 1, 1)``; 1 for the column of ones.
    """

    spectrum: Array

    def __init__(self, x: Any, weights: Array, backend: Backend) -> None:
        self._x, self._backend, self._held = x, backend, None
        n, d = x.shape
        self._block_rows = max(1, BLOCK_VALUES // d)
        self._centre = 0.0
        self._centre = sum(weights[part].T @ block for part, block in self.blocks())[0]
        self._basis = backend.send(np.eye(d))
        if isinstance(x, np.ndarray) and not isinstance(x, np.memmap):
            ones = backend.send(np.ones((n, 1)))
            self._held = backend.xp.concatenate([backend.send(x) - self._centre, ones], 1)
            if n < d:
                self._apply(backend.xp.linalg.qr(self._held[:, :-1].T)[0])
        self.rotate(weights)

    def product(self, theta: Array) -> Array:
        """Return the logits ``(n, k)`` for weights ``(r + 1, k)``, intercepts last."""
        if self._held is not None:
            return self._held @ theta
        plain = self._basis @ theta[:-1]
        blocks = [block @ plain for _, block in self.blocks()]
        return self._backend.xp.concatenate(blocks) + theta[-1]

    def transposed_product(self, residual: Array) -> Array:
        """Return the product ``(r + 1, k)`` of the transposed rows with residuals ``(n, k)``."""
        if self._held is not None:
            return self._held.T @ residual
        product = self._basis.T @ sum(block.T @ residual[part] for part, block in self.blocks())
        return self._backend.xp.concatenate([product, residual.sum(0)[None]])

    def rotate(self, weights: Array) -> Array:
        """Rotate to the principal axes under weights ``(n, 1)``; return the rotation ``(r, r)``."""
        share = weights / weights.sum()
        if self._held is not None:
            rows = self._held[:, :-1]
            covariance = rows.T @ (rows * share)
        else:
            plain = sum(block.T @ (block * share[part]) for part, block in self.blocks())
            covariance = self._basis.T @ plain @ self._basis
        values, rotation = self._backend.eigh(covariance)
        self._apply(rotation)
        one = self._backend.send(np.ones(1))
        self.spectrum = self._backend.xp.concatenate([values, one])[:, None]
        return rotation

    def to_original_axes(self, theta: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weights ``(k, d)`` and intercepts ``(k,)`` for the original features."""
        coef = self._backend.fetch(self._basis @ theta[:-1]).T
        return coef, self._backend.fetch(theta[-1]) - coef @ self._backend.fetch(self._centre)

    def to_principal_axes(self, coef: Any, intercept: Any) -> Array:
        """Return weights ``(r + 1, k)`` for those of the original features ``(k, d)``, ``(k,)``."""
        weights = self._backend.send(np.asarray(coef).T)
        own = self._backend.send(np.asarray(intercept)) + self._centre @ weights
        return self._backend.xp.concatenate([self._basis.T @ weights, own[None]])

    def plain(self, theta: Array) -> tuple[Array, Array]:
        """Return the weights ``(d, k)`` for rows of ``blocks``, and the intercepts ``(k,)``."""
        return self._basis @ theta[:-1], theta[-1]

    def rotated(self, product: Array) -> Array:
        """Return the product ``(r, k)`` of the transposed rows, from that of rows of ``blocks``."""
        return self._basis.T @ product

    def _apply(self, rotation: Array) -> None:
        self._basis = self._basis @ rotation
        if self._held is not None:
            rotated = self._held[:, :-1] @ rotation
            self._held = self._backend.xp.concatenate([rotated, self._held[:, -1:]], 1)

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield blocks of centred rows with their positions."""
        for start in range(0, self._x.shape[0], self._block_rows):
            part = slice(start, start + self._block_rows)
            yield part, self._backend.send(self._x[part]) - self._centre


def _dot(a: Array, b: Array) -> float:
    """Return the sum of the elementwise product."""
    return float(a.reshape(-1) @ b.reshape(-1))
