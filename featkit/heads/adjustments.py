"""Corrections for imbalanced training data that change a head which is fitted as usual: its weights and intercepts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from featkit.heads.base import Floats, softmax
from featkit.heads.corrections import Correction, Labels, check_option, counted
from featkit.heads.linear import LinearHead
from featkit.heads.mlp import MLPHead


@dataclass(frozen=True)
class LogitAdjust(Correction):
    """The logit of a class loses ``tau`` times the logarithm of its share of the training rows, after fitting.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 9.
    """

    takes: ClassVar[str] = "a head whose soft-max learns how frequent a class is: linear, mlp"
    tau: float = field(default=1.0, metadata={"tried": tuple(step / 4 for step in range(1, 13))})

    def __post_init__(self) -> None:
        check_option("tau", self.tau)

    def applies(self, head: Any) -> bool:
        """Return whether there is a learned intercept for each class."""
        return isinstance(head, LinearHead | MLPHead)

    def adjust(self, head: Any, x: Floats, y: Labels) -> Any:
        """Return the head, its intercepts shifted."""
        _, counts = counted(y)
        shift = -self.tau * np.log(counts / counts.sum())
        if len(head.intercept_) == 1:  # of two classes, a head keeps the difference
            shift = np.diff(shift)
        head.intercept_ = (head.intercept_ + shift).astype(head.intercept_.dtype)
        return head


class LogitAdjustLoss(LogitAdjust):
    """The loss sees logits to which ``tau`` times the logarithm of the share of each class is added.

    For a linear head this is ``logit_adjust``: the penalty leaves the intercepts free, so that those of the two optima
    differ by what the loss adds, and nothing else differs.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 10.
    """

    takes = "linear"

    def applies(self, head: Any) -> bool:
        """Return whether the head is fitted to its optimum, with free intercepts."""
        return isinstance(head, LinearHead)


class Linear(Correction):
    """A correction of the weights of a linear head."""

    takes = "linear"

    def applies(self, head: Any) -> bool:
        """Return whether the head is linear."""
        return isinstance(head, LinearHead)


class BalancedSoftmax(Linear):
    """The loss sees logits to which the logarithm of the number of rows of each class is added.

    Numbers and shares differ by a factor that the soft-max does not see: this is ``logit_adjust_loss`` with tau 1.

    Source: Ren et al., "Balanced meta-softmax for long-tailed visual recognition", NeurIPS 2020, eq. 4.
    """

    def adjust(self, head: Any, x: Floats, y: Labels) -> Any:
        """Return the head, its intercepts shifted."""
        return LogitAdjustLoss(tau=1.0).adjust(head, x, y)


@dataclass(frozen=True)
class TauNorm(Linear):
    """The weights of a class are divided by the power ``tau`` of their length; there is no intercept.

    The weights are those on scaled vectors. Those of two classes have the same length, and so only lose the intercept.

    Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020, eq. 5.
    """

    tau: float = field(default=1.0, metadata={"tried": tuple(step / 10 for step in range(11))})

    def __post_init__(self) -> None:
        check_option("tau", self.tau)

    def adjust(self, head: Any, x: Floats, y: Labels) -> Any:
        """Return the head with normalised weights."""
        coef, _ = _of_each_class(head)
        lengths = np.linalg.norm(coef, axis=1, keepdims=True)
        head.coef_ = coef / np.where(lengths == 0, 1, lengths) ** self.tau
        head.intercept_ = np.zeros(len(coef), coef.dtype)
        return head


class WeightScaling(Linear):
    """The logits of each class are multiplied by a factor, learned with all classes counting the same (LWS).

    The factors minimise the objective of the head itself, its penalty included, with rows weighted as by ``reweight``;
    without the penalty, they would grow for ever where the head tells all training rows apart.

    Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020, section 4.1;
    that the intercept is scaled too, the authors' code.
    """

    def adjust(self, head: Any, x: Floats, y: Labels) -> Any:
        """Return the head with scaled weights and intercepts."""
        coef, intercept = _of_each_class(head)
        head.coef_, head.intercept_ = coef, intercept
        # With two classes, the opposite rows w/2 and -w/2 have half the penalty of the single row w.
        strength = (2 if len(coef) == 2 else 1) / (head.C * len(y))
        penalties = strength * (coef.astype(np.float64) ** 2).sum(axis=1)
        factors = _best_factors(head._logits(head._rows(x)).astype(np.float64), y, penalties)
        head.coef_ = (coef * factors[:, None]).astype(coef.dtype)
        head.intercept_ = (intercept * factors).astype(coef.dtype)
        return head


def _best_factors(logits: NDArray[np.float64], y: Labels, penalties: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the factors ``(k,)`` of the logits ``(n, k)`` with the lowest class-balanced log loss plus penalty."""
    codes, counts = counted(y)
    weights = 1 / (counts[codes] * len(counts))
    own = (np.arange(len(codes)), codes)

    def objective(factors: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scaled = factors * logits
        top = scaled.max(axis=1)
        losses = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1)) - scaled[own]
        residual = softmax(scaled)
        residual[own] -= 1
        gradient = weights @ (residual * logits) + penalties * factors
        return float(weights @ losses + penalties @ factors**2 / 2), gradient

    found = minimize(objective, np.ones(len(counts)), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return np.asarray(found.x, np.float64)


def _of_each_class(head: LinearHead) -> tuple[Floats, Floats]:
    """Return weights ``(k, d)`` and intercepts ``(k,)``; the single row of two classes is halved between them."""
    coef, intercept = head.coef_, head.intercept_
    if len(coef) == 1:
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    return coef, intercept
