"""Corrections for imbalanced training data that change what a head is fitted on: weights of rows, rows drawn anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import has_fit_parameter

from featkit.errors import MissingExtraError, SpecError
from featkit.heads.base import Floats, UnfitDataError
from featkit.heads.linear import LinearHead
from featkit.heads.prototypical import PrototypicalHead

Labels = NDArray[Any]


@dataclass(frozen=True)
class Correction:
    """No correction: the head is fitted on the rows as they are.

    A correction is a way to train a head, a way to adjust one that is trained, or both. An option whose field has
    ``tried`` in its metadata can be searched: these are the values.
    """

    takes: ClassVar[str] = "every head"

    def applies(self, head: Any) -> bool:
        """Return whether the head has what the correction works on; in words, it is one that ``takes`` names."""
        return True

    def fit(self, head: Any, x: Floats, y: Labels, seed: int) -> Any:
        """Return a head fitted on rows ``(n, d)`` with labels ``(n,)``: the one given, or what takes its place."""
        return self.adjust(self.train(head, x, y, seed), x, y)

    def train(self, head: Any, x: Floats, y: Labels, seed: int) -> Any:
        """Return the head, fitted."""
        return head.fit(x, y)

    def adjust(self, head: Any, x: Floats, y: Labels) -> Any:
        """Return the fitted head, changed by what its training rows say."""
        return head


class Reweight(Correction):
    """Each row counts by the inverse frequency of its class: all classes have the same weight.

    The mean weight is 1, so that a penalty such as C means what it does without.
    """

    takes = "a head whose fit takes sample_weight: linear, svm, prototypical"

    def applies(self, head: Any) -> bool:
        """Return whether rows can be weighted."""
        return bool(has_fit_parameter(head, "sample_weight"))

    def train(self, head: Any, x: Floats, y: Labels, seed: int) -> Any:
        """Return the head, fitted on weighted rows."""
        codes, counts = counted(y)
        weights = self._of_classes(counts)[codes]
        return head.fit(x, y, sample_weight=weights / weights.mean())

    def _of_classes(self, counts: NDArray[np.int64]) -> Floats:
        """Return the weight of a row of each class ``(k,)``, up to a factor."""
        return 1 / counts


@dataclass(frozen=True)
class Effective(Reweight):
    """Each row counts by the inverse effective number of its class, ``(1 - beta) / (1 - beta^n_c)``; the mean is 1.

    A beta of 0 is no correction, one near 1 is ``reweight``.

    Source: Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019, eq. 2 and section 4.
    """

    beta: float = field(default=0.999, metadata={"tried": (0.9, 0.99, 0.999, 0.9999)})

    def __post_init__(self) -> None:
        check_option("beta", self.beta, below=1)

    def _of_classes(self, counts: NDArray[np.int64]) -> Floats:
        return (1 - self.beta) / (1 - self.beta**counts)


class ClassAware(Correction):
    """Every class gives its share of n rows: whole shuffled passes over its images, then a part of one.

    Source: Shen, Lin and Huang, "Relay backpropagation for effective learning of deep convolutional neural networks",
    ECCV 2016 (class-aware sampling).
    """

    def train(self, head: Any, x: Floats, y: Labels, seed: int) -> Any:
        """Return the head, fitted on rows drawn anew."""
        codes, counts = counted(y)
        rng, size = np.random.default_rng(seed), self._size(counts)
        drawn = [_passes(np.flatnonzero(codes == code), size, rng) for code in range(len(counts))]
        rows = np.sort(np.concatenate(drawn))
        return head.fit(x[rows], y[rows])

    def _size(self, counts: NDArray[np.int64]) -> int:
        """Return how many rows each class gives."""
        return round(float(counts.mean()))


class Oversample(ClassAware):
    """Every class gives as many rows as the largest has, repeating its images."""

    def _size(self, counts: NDArray[np.int64]) -> int:
        return int(counts.max())


class Undersample(ClassAware):
    """Every class gives as many rows as the smallest has, none twice."""

    def _size(self, counts: NDArray[np.int64]) -> int:
        return int(counts.min())


class Retrain(ClassAware):
    """The classifier is trained again on class-aware samples (cRT).

    With frozen vectors the classifier is the linear head, and its optimum does not depend on where it starts: this is
    ``class_aware``.

    Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020, section 4.1.
    """

    takes = "linear"

    def applies(self, head: Any) -> bool:
        """Return whether the head is linear."""
        return isinstance(head, LinearHead)


class Smote(Correction):
    """Every class grows to the size of the largest by points between neighbours of it (imbalanced-learn).

    Of each image the 5 nearest of its class are neighbours, or one fewer than the smallest class has images.

    Source: Chawla et al., "SMOTE: synthetic minority over-sampling technique", JAIR 2002.
    """

    def train(self, head: Any, x: Floats, y: Labels, seed: int) -> Any:
        """Return the head, fitted on the rows and those made up.

        Raises:
            MissingExtraError: if imbalanced-learn is not installed.
            UnfitDataError: if a class has a single row.
        """
        try:
            from imblearn.over_sampling import SMOTE
        except ImportError:
            raise MissingExtraError("imbalanced-learn", "longtail") from None
        _, counts = counted(y)
        if counts.min() < 2:
            label = np.unique(y)[counts.argmin()]
            raise UnfitDataError(f"smote needs two images of each class, but class {label} has 1: choose oversample")
        return head.fit(*SMOTE(k_neighbors=min(5, int(counts.min()) - 1), random_state=seed).fit_resample(x, y))


class NearestMean(Correction):
    """The nearest class mean takes the place of the head, by the angle between vectors scaled as by the head (NCM).

    Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020, section 4.1.
    """

    takes = "linear, prototypical"

    def applies(self, head: Any) -> bool:
        """Return whether the head is a linear layer, or class means already."""
        return isinstance(head, LinearHead | PrototypicalHead)

    def train(self, head: Any, x: Floats, y: Labels, seed: int) -> Any:
        """Return the class means as a head; a prototypical head is one as it is."""
        means = head if isinstance(head, PrototypicalHead) else PrototypicalHead(scale=head.scale)
        return means.fit(x, y)


def counted(y: Labels) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return the place ``(n,)`` of each label among the sorted ones, and how many rows each of these has ``(k,)``."""
    _, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    return codes, counts


def check_option(name: str, value: Any, below: float = np.inf) -> None:
    """Refuse an option that is not a number from 0 up, below the limit.

    Raises:
        SpecError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
        raise SpecError(f"{name}={value}: give a number from 0 up, below {below:g}")


def _passes(rows: NDArray[np.intp], size: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return ``size`` of the rows: each as often as the others, give or take one."""
    passes = np.tile(rows, (-(-size // len(rows)), 1))
    return rng.permuted(passes, axis=1).ravel()[:size]
