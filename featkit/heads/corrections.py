"""Corrections of class imbalance: re-weighting, re-sampling, and adjusting the classifier."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from sklearn.utils.validation import has_fit_parameter

from featkit.errors import MissingExtraError, SpecError
from featkit.heads.base import Floats, fit_with_groups
from featkit.heads.linear import LinearHead
from featkit.heads.mlp import MLPHead
from featkit.heads.prototypical import PrototypicalHead

Labels = NDArray[Any]


@dataclass(frozen=True)
class Correction:
    """No correction: fit the head on the unchanged training data.

    A correction changes how a head is trained (``train``), adjusts the trained head (``adjust``),
    or both. An option whose field has ``search_values`` in its metadata is tuned over these values.
    """

    supported_heads: ClassVar[str] = "every head"

    def applies(self, head: Any) -> bool:
        """Return whether the correction can be used with this unfitted head."""
        return True

    def fit(self, head: Any, x: Floats, y: Labels, seed: int) -> Any:
        """Train and adjust a head.

        Args:
            head: the unfitted head.
            x: training features ``(n, d)``.
            y: labels ``(n,)``.
            seed: for corrections that draw samples.

        Returns:
            The fitted head: the one given, or a different one that replaces it.
        """
        return self.adjust(self.train(head, x, y, seed), x, y)

    def train_with_groups(self, head: Any, x: Floats, y: Labels, seed: int, groups: Any) -> Any:
        """Return the trained head; groups are passed to ``train`` if it accepts them.

        A head may keep the samples of a group together in the folds of its calibration.
        """
        if groups is None or not self.takes_groups():
            return self.train(head, x, y, seed)
        return self.train(head, x, y, seed, groups)

    def takes_groups(self) -> bool:
        """Return whether ``train`` has a parameter ``groups``: that of a plug-in may have none."""
        return "groups" in inspect.signature(self.train).parameters

    def train(self, head: Any, x: Floats, y: Labels, seed: int, groups: Any = None) -> Any:
        """Return the trained head."""
        return fit_with_groups(head, x, y, groups)

    def adjust(self, head: Any, x: Floats, y: Labels) -> Any:
        """Return the trained head after a correction that depends on its training data."""
        return head


# Re-weighting


class Reweight(Correction):
    """Weight samples by the inverse frequency of their class, so that all classes weigh the same.

    The mean weight is 1, so that a penalty such as C keeps its meaning.
    """

    supported_heads = "heads with sample weights: linear, svm, prototypical"

    def applies(self, head: Any) -> bool:
        """Return whether ``fit`` of the head accepts sample weights."""
        return bool(has_fit_parameter(head, "sample_weight"))

    def train(self, head: Any, x: Floats, y: Labels, seed: int, groups: Any = None) -> Any:
        """Return the head, trained with sample weights."""
        codes, counts = class_counts(y)
        weights = self._class_weights(counts)[codes]
        return fit_with_groups(head, x, y, groups, sample_weight=weights / weights.mean())

    def _class_weights(self, counts: NDArray[np.int64]) -> Floats:
        """Return the unnormalised weight of each class ``(k,)``."""
        return 1 / counts


@dataclass(frozen=True)
class Effective(Reweight):
    """Weight samples by the inverse effective number of their class.

    The weight of class c is ``(1 - beta) / (1 - beta^n_c)``, normalised to a mean of 1.
    beta = 0 is no correction; beta close to 1 approaches ``reweight``.

    Source: Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019, eq. 2
    and section 4.
    """

    beta: float = field(default=0.999, metadata={"search_values": (0.9, 0.99, 0.999, 0.9999)})

    def __post_init__(self) -> None:
        check_number("beta", self.beta, upper=1)

    def _class_weights(self, counts: NDArray[np.int64]) -> Floats:
        return (1 - self.beta) / (1 - self.beta**counts)


# Re-sampling


class ClassAware(Correction):
    """Train on class-balanced samples, as many of each class as the largest one has (cRT).

    An epoch of the authors' class-aware sampler has this size: no image is left out. A class is
    sampled in shuffled passes over its images, so that no image is drawn more than once more often
    than another of the same class.

    Classifier re-training (``crt``, Kang et al.) fixes the features and trains the classifier again
    on class-balanced samples. The features of a head are always fixed, and so ``crt`` is an alias.

    Source: Shen, Lin and Huang, "Relay backpropagation for effective learning of deep convolutional
    neural networks", ECCV 2016; Kang et al., "Decoupling representation and classifier for
    long-tailed recognition", ICLR 2020, section 4.1 (cRT).
    """

    def train(self, head: Any, x: Floats, y: Labels, seed: int, groups: Any = None) -> Any:
        """Return the head, trained on the drawn samples."""
        codes, counts = class_counts(y)
        size = self._class_size(counts)
        rng = np.random.default_rng(seed)
        drawn = []
        for code in range(len(counts)):
            members = np.flatnonzero(codes == code)
            drawn.append(_draw(members, size, rng))
        rows = np.sort(np.concatenate(drawn))
        own = None if groups is None else np.asarray(groups)[rows]
        return fit_with_groups(head, x[rows], y[rows], own)

    def _class_size(self, counts: NDArray[np.int64]) -> int:
        """Return the number of samples to draw from each class."""
        return int(counts.max())


class Oversample(ClassAware):
    """Repeat the images of each class up to the size of the largest class.

    A head is trained on a fixed sample, not on a stream of batches, and so this is the same as
    ``class_aware``.
    """


class Undersample(ClassAware):
    """Draw as many images from each class as the smallest class has, without repetition."""

    def _class_size(self, counts: NDArray[np.int64]) -> int:
        return int(counts.min())


class Smote(Correction):
    """Grow each class to the size of the largest by interpolating between neighbours.

    Uses imbalanced-learn with 5 neighbours of the same class, or one fewer than the smallest class
    of two images or more has. The image of a class with a single one, which has no neighbour, is
    repeated. A synthetic sample lies between two samples, which may be of different groups: with
    groups, a head is therefore calibrated on the real samples only.

    Source: Chawla et al., "SMOTE: synthetic minority over-sampling technique", JAIR 2002.
    """

    def train(self, head: Any, x: Floats, y: Labels, seed: int, groups: Any = None) -> Any:
        """Return the head, trained on the real and the synthetic samples.

        Raises:
            MissingExtraError: if imbalanced-learn is not installed.
        """
        try:
            from imblearn.over_sampling import SMOTE
        except ImportError:
            raise MissingExtraError("imbalanced-learn", "longtail") from None
        codes, counts = class_counts(y)
        size = counts.max()
        grown, labels = x, y
        if size > 1:
            several = np.unique(y)[(counts > 1) & (counts < size)].tolist()
            sampler = SMOTE(
                sampling_strategy=dict.fromkeys(several, int(size)),
                k_neighbors=min(5, int(counts[counts > 1].min()) - 1),
                random_state=seed,
            )
            grown, labels = sampler.fit_resample(x, y)
        single = np.repeat(np.flatnonzero(counts[codes] == 1), size - 1)
        own = None
        if groups is not None:
            # Synthetic samples follow the real ones.
            synthetic = np.full(len(labels) - len(y), "")
            own = np.concatenate([np.asarray(groups).astype(np.str_), synthetic])
            own = np.concatenate([own, own[single]])
        grown, labels = np.concatenate([grown, x[single]]), np.concatenate([labels, y[single]])
        return fit_with_groups(head, grown, labels, own)


# Adjustments of the fitted classifier


@dataclass(frozen=True)
class LogitAdjust(Correction):
    """Subtract ``tau`` times the log class prior from the logits of the trained head.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 9.
    """

    supported_heads: ClassVar[str] = "heads whose softmax models the class prior: linear, mlp"
    tau: float = field(
        default=1.0, metadata={"search_values": tuple(step / 4 for step in range(1, 13))}
    )

    def __post_init__(self) -> None:
        check_number("tau", self.tau)

    def applies(self, head: Any) -> bool:
        """Return whether the head has a trained intercept for each class."""
        return isinstance(head, LinearHead | MLPHead)

    def adjust(self, head: Any, x: Floats, y: Labels) -> Any:
        """Return the head with shifted intercepts."""
        _, counts = class_counts(y)
        shift = -self.tau * np.log(counts / counts.sum())
        if len(head.intercept_) == 1:  # binary heads store the difference of the two classes
            shift = np.diff(shift)
        head.intercept_ = (head.intercept_ + shift).astype(head.intercept_.dtype)
        return head


class LogitAdjustLoss(LogitAdjust):
    """Add ``tau`` times the log class prior to the logits in the training loss.

    For a linear head this equals ``logit_adjust``: the intercepts are not penalised, so that the
    two optima differ only in the intercepts, by what the loss adds.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 10.
    """

    supported_heads = "linear"

    def applies(self, head: Any) -> bool:
        """Return whether the head is trained to its optimum, with unpenalised intercepts."""
        return isinstance(head, LinearHead)


class LinearCorrection(Correction):
    """Base class of corrections of the weights of a linear head."""

    supported_heads = "linear"

    def applies(self, head: Any) -> bool:
        """Return whether the head is linear."""
        return isinstance(head, LinearHead)


class BalancedSoftmax(LinearCorrection):
    """Add the log class counts to the logits in the training loss.

    The softmax is invariant to the constant between log counts and log priors, so that this equals
    ``logit_adjust_loss`` with tau = 1.

    Source: Ren et al., "Balanced meta-softmax for long-tailed visual recognition", NeurIPS 2020,
    eq. 4.
    """

    def adjust(self, head: Any, x: Floats, y: Labels) -> Any:
        """Return the head with shifted intercepts."""
        return LogitAdjustLoss(tau=1.0).adjust(head, x, y)


@dataclass(frozen=True)
class TauNorm(LinearCorrection):
    """Divide the weights of each class by their norm to the power ``tau``, and drop the intercepts.

    The weights are those of scaled features. With two classes both norms are equal, so that only
    the intercept changes the predictions.

    Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition",
    ICLR 2020, eq. 5.
    """

    tau: float = field(
        default=1.0, metadata={"search_values": tuple(step / 10 for step in range(11))}
    )

    def __post_init__(self) -> None:
        check_number("tau", self.tau)

    def adjust(self, head: Any, x: Floats, y: Labels) -> Any:
        """Return the head with normalised weights."""
        coef, _ = _per_class_weights(head)
        norms = np.linalg.norm(coef, axis=1, keepdims=True)
        head.coef_ = coef / np.where(norms == 0, 1, norms) ** self.tau
        head.intercept_ = np.zeros(len(coef), coef.dtype)
        return head


class WeightScaling(LinearCorrection):
    """Multiply the logits of each class by a factor trained with a class-balanced loss (LWS).

    The factors minimise the objective of the head, including its penalty, with samples weighted as
    by ``reweight``. Without the penalty they would diverge on separable training data.

    Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition",
    ICLR 2020, section 4.1; scaling the intercept follows the authors' code.
    """

    def adjust(self, head: Any, x: Floats, y: Labels) -> Any:
        """Return the head with scaled weights and intercepts."""
        coef, intercept = _per_class_weights(head)
        head.coef_, head.intercept_ = coef, intercept
        # For two classes, the opposite rows w/2 and -w/2 have half the penalty of the single row.
        strength = (2 if len(coef) == 2 else 1) / (head.C * len(y))
        penalties = strength * (coef.astype(np.float64) ** 2).sum(axis=1)
        logits = head._logits(head._check_features(x)).astype(np.float64)
        factors = _fit_factors(logits, y, penalties)
        head.coef_ = (coef * factors[:, None]).astype(coef.dtype)
        head.intercept_ = (intercept * factors).astype(coef.dtype)
        return head


class NearestMean(Correction):
    """Replace the classifier by the nearest class mean in cosine distance (NCM).

    The features are scaled as by the head.

    Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition",
    ICLR 2020, section 4.1.
    """

    supported_heads = "linear, prototypical"

    def applies(self, head: Any) -> bool:
        """Return whether the head is linear, or a nearest class mean already."""
        return isinstance(head, LinearHead | PrototypicalHead)

    def train(self, head: Any, x: Floats, y: Labels, seed: int, groups: Any = None) -> Any:
        """Return a fitted prototypical head."""
        if not isinstance(head, PrototypicalHead):
            head = PrototypicalHead(scale=head.scale)
        return fit_with_groups(head, x, y, groups)


def class_counts(y: Labels) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return the position ``(n,)`` of each label in the sorted ones, and class sizes ``(k,)``."""
    _, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    return codes, counts


def check_number(name: str, value: Any, upper: float = np.inf) -> None:
    """Check that an option is a number in ``[0, upper)``.

    Raises:
        SpecError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < upper:
        limit = "" if upper == np.inf else f" and < {upper:g}"
        raise SpecError(f"{name}={value}: must be a number >= 0{limit}")


def _draw(rows: NDArray[np.intp], size: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw ``size`` rows in shuffled passes over all of them."""
    n_passes = -(-size // len(rows))
    passes = np.tile(rows, (n_passes, 1))
    return rng.permuted(passes, axis=1).ravel()[:size]


def _fit_factors(
    logits: NDArray[np.float64], y: Labels, penalties: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return factors ``(k,)`` of logits ``(n, k)`` that minimise the class-balanced objective."""
    codes, counts = class_counts(y)
    weights = 1 / (counts[codes] * len(counts))
    true_class = (np.arange(len(codes)), codes)

    def objective(factors: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scaled = factors * logits
        losses = logsumexp(scaled, axis=1) - scaled[true_class]
        residual = softmax(scaled, axis=1)
        residual[true_class] -= 1
        gradient = weights @ (residual * logits) + penalties * factors
        return float(weights @ losses + penalties @ factors**2 / 2), gradient

    start = np.ones(len(counts))
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return np.asarray(found.x, np.float64)


def _per_class_weights(head: LinearHead) -> tuple[Floats, Floats]:
    """Return weights ``(k, d)`` and intercepts ``(k,)``, halving the single row of two classes."""
    coef, intercept = head.coef_, head.intercept_
    if len(coef) == 1:
        coef = np.concatenate([-coef, coef]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    return coef, intercept
