"""Training rows seen along the axes of their own covariance, in memory or in blocks from a larger source.

The same code runs on NumPy arrays and on torch tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.heads.base import single_threaded_blas

Array = Any
"""A NumPy array, or a torch tensor on a device."""

BLOCK = 1 << 25
"""Numbers read at once from a source that is not an array in memory: 128 MiB of float32."""


class Backend:
    """Where arrays live and what computes with them: NumPy, or torch on a device.

    Attributes:
        xp: the module ``numpy`` or ``torch``, of which only what both call by one name is used.
        dtype: float32 or float64, what is computed in.
    """

    def __init__(self, device: Any, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._device: Any = None
        self.xp: Any = np
        if not (isinstance(device, str) and device == "cpu"):
            import torch  # seconds, so only where a device is asked for

            self.xp, self._device = torch, torch.device(device)

    def send(self, array: Any) -> Array:
        """Return a NumPy array on the device; floats get the type of the computation."""
        array = np.asarray(array)
        array = array.astype(self.dtype, copy=False) if array.dtype.kind == "f" else array
        return array if self._device is None else self.xp.as_tensor(array, device=self._device)

    def fetch(self, array: Array) -> NDArray[np.float64]:
        """Return an array of the device as NumPy's, in float64."""
        return np.asarray(array if self._device is None else array.cpu().numpy(), np.float64)

    def eigh(self, matrix: Array) -> tuple[Array, Array]:
        """Return the eigenvalues, none below zero, and the eigenvectors of a symmetric matrix, found in float64."""
        exact = matrix.astype(np.float64) if self._device is None else matrix.double()
        with single_threaded_blas():  # several are slower here, and very much so on a busy machine
            values, vectors = self.xp.linalg.eigh(exact)
        return self.send(np.maximum(self.fetch(values), 0)), self.send(self.fetch(vectors))


class RotatedRows:
    """Rows ``(n, d)``, centred, along r orthonormal axes, and a column of ones for the intercept.

    An array in memory is turned once and kept. Of anything else, only ``shape`` and slices of rows
    are used, and blocks are read anew at each product. Fewer rows than numbers in a row (n < d)
    need no more than r = n axes.

    Attributes:
        spectrum: mean square of the rows along each axis ``(r + 1, 1)``; that of the ones is 1.
    """

    spectrum: Array

    def __init__(self, x: Any, weights: Array, backend: Backend) -> None:
        self._x, self._backend, self._held = x, backend, None
        n, d = x.shape
        self._step = max(1, BLOCK // d)
        self._centre = 0.0
        self._centre = sum(weights[part].T @ block for part, block in self._blocks())[0]
        self._basis = backend.send(np.eye(d))
        if isinstance(x, np.ndarray) and not isinstance(x, np.memmap):
            self._held = backend.xp.concatenate(
                [backend.send(x) - self._centre, backend.send(np.ones((n, 1)))], 1
            )
            if n < d:
                self._turn(backend.xp.linalg.qr(self._held[:, :-1].T)[0])
        self.rotate(weights)

    def scores(self, theta: Array) -> Array:
        """Return the product ``(n, k)`` with weights ``(r + 1, k)``, of which the last row is the intercepts."""
        if self._held is not None:
            return self._held @ theta
        plain = self._basis @ theta[:-1]
        return (
            self._backend.xp.concatenate([block @ plain for _, block in self._blocks()]) + theta[-1]
        )

    def back(self, residual: Array) -> Array:
        """Return the transposed product ``(r + 1, k)`` with residuals ``(n, k)``."""
        if self._held is not None:
            return self._held.T @ residual
        product = self._basis.T @ sum(block.T @ residual[part] for part, block in self._blocks())
        return self._backend.xp.concatenate([product, residual.sum(0)[None]])

    def rotate(self, weights: Array) -> Array:
        """Turn to the axes of the covariance with these weights of the rows ``(n, 1)``; return the turn ``(r, r)``."""
        share = weights / weights.sum()
        if self._held is not None:
            rows = self._held[:, :-1]
            gram = rows.T @ (rows * share)
        else:
            gram = (
                self._basis.T
                @ sum(block.T @ (block * share[part]) for part, block in self._blocks())
                @ self._basis
            )
        values, turn = self._backend.eigh(gram)
        self._turn(turn)
        self.spectrum = self._backend.xp.concatenate([values, self._backend.send(np.ones(1))])[
            :, None
        ]
        return turn

    def unrotated(self, theta: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the weights ``(k, d)`` and intercepts ``(k,)`` that apply to the rows as they were given."""
        coef = self._backend.fetch(self._basis @ theta[:-1]).T
        return coef, self._backend.fetch(theta[-1]) - coef @ self._backend.fetch(self._centre)

    def _turn(self, turn: Array) -> None:
        self._basis = self._basis @ turn
        if self._held is not None:
            self._held = self._backend.xp.concatenate(
                [self._held[:, :-1] @ turn, self._held[:, -1:]], 1
            )

    def _blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield rows, centred, as many at once as fit, each time with their places."""
        for start in range(0, self._x.shape[0], self._step):
            part = slice(start, start + self._step)
            yield part, self._backend.send(self._x[part]) - self._centre
