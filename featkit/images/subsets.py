"""Subsets of the training images: k-shot and long-tailed samples, as row numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError, SpecError
from featkit.registry import Spec, unknown

Labels = NDArray[np.int64]
Rows = NDArray[np.int64]
Subset = Callable[..., Rows]
"""``subset(labels, seed, classes=None)`` returns row numbers; ``classes`` are names for error
messages.
"""


def k_shot(
    labels: Labels,
    k: int,
    seed: int = 0,
    *,
    classes: Sequence[str] | None = None,
    take_fewer: bool = False,
) -> Rows:
    """Return the rows of k random images of each class, ascending.

    With the same seed, the rows of a smaller k are a subset of those of a larger one, as a learning
    curve needs.

    Args:
        labels: ``(n,)``, any integers.
        k: number of images of each class.
        seed: of the random sample.
        classes: class names for error messages, indexed by label.
        take_fewer: whether to take all images of a class that has fewer than k.

    Raises:
        DataError: if k is below 1, or a class has fewer than k images and ``take_fewer`` is not
            set.
    """
    if k < 1:
        raise DataError(f"cannot take {k} images of each class: give at least 1")
    found, sizes = np.unique(labels, return_counts=True)
    short = found[sizes < k]
    if len(short) and not take_fewer:
        raise DataError(
            f"class {_name(short[0], classes)} has {sizes[sizes < k][0]} images, fewer than k={k} "
            f"({len(short)} of {len(found)} classes have fewer): choose a smaller k, or set "
            "take_fewer=true"
        )
    return _sample_rows(labels, np.full(len(found), k), np.random.default_rng(seed))


def longtail(
    labels: Labels,
    factor: float | None = None,
    seed: int = 0,
    *,
    profile: str = "exponential",
    classes: Sequence[str] | None = None,
) -> Rows:
    """Return the rows of a random long-tailed sample of the classes, ascending.

    Class sizes fall from ``n_max`` to ``n_max / factor``.

    The seed determines the order of the classes and their sample. The class at rank ``r`` of ``C``
    keeps ``n_max * w_r`` images, rounded, with the largest ``n_max`` that no class size prevents:

    - ``exponential``: ``w_r = factor^(-r / (C - 1))`` (Cao et al. 2019).
    - ``step``: 1 for the first half of the classes, ``1 / factor`` for the others (Cao et al.
        2019).
    - ``pareto``: ``w_r = (r + 1)^(-1 / alpha)``, the sizes by rank of a Pareto distribution, as Liu
      et al. 2019 draw them; its shape ``alpha = log(C) / log(factor)`` is the one that gives the
      factor.
    - ``natural``: all rows; takes no factor.

    If all classes have the same size, the rows of a larger factor are a subset of those of a
    smaller one.

    Args:
        labels: ``(n,)``, any integers.
        factor: imbalance factor: size of the largest class divided by that of the smallest, at
            least 1.
        seed: of the order of the classes and of the sample.
        profile: one of ``PROFILES``.
        classes: class names for error messages, indexed by label.

    Raises:
        SpecError: if the profile is unknown, the factor is missing or below 1, or ``natural`` has a
            factor.
        DataError: if a class would have no image; the message contains the largest possible factor.

    Source: Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss",
    NeurIPS 2019, section 4; Liu et al., "Large-scale long-tailed recognition in an open world",
    CVPR 2019, section 4.
    """
    _check_profile(profile, factor)
    if factor is None:
        return np.arange(len(labels))
    found, sizes = np.unique(labels, return_counts=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(found))
    share, sizes = PROFILES[profile], sizes[order]
    weights = share(len(found), factor)
    if not _leaves_no_class_empty(sizes, weights):
        largest = max(
            f for f in range(1, sizes[0] + 1) if _leaves_no_class_empty(sizes, share(len(found), f))
        )
        raise DataError(
            f"imbalance factor {factor:g} leaves no image of class "
            f"{_name(found[order[-1]], classes)}: with this order of classes (seed {seed}) the "
            f"largest possible one is {largest}"
        )
    counts = np.empty(len(found), np.int64)
    counts[order] = np.round(np.floor(_largest_class_size(sizes, weights)) * weights)
    return _sample_rows(labels, counts, rng)


def parse_subset(text: str) -> Subset:
    """Parse ``longtail:if=50,profile=step`` or ``kshot:k=5`` as a function of labels and seed.

    Raises:
        SpecError: if the name or an option is unknown, or a value is invalid.
    """
    spec = Spec.parse(text)
    if spec.name not in _SUBSETS:
        raise unknown("subset", spec.name, list(_SUBSETS))
    function, known = _SUBSETS[spec.name]
    for option in spec.options:
        if option not in known:
            raise unknown(f"option of subset {spec.name}", option, list(known))
    if spec.argument is not None:
        raise SpecError(
            f"subset {text!r}: write options as {spec.name}:key=value; known: {', '.join(known)}"
        )
    options = {known[option]: value for option, value in spec.options.items()}
    _check_options(text, options)

    def subset(labels: Labels, seed: int = 0, classes: Sequence[str] | None = None) -> Rows:
        return function(labels, seed=seed, classes=classes, **options)

    return subset


def _exponential(classes: int, factor: float) -> NDArray[np.float64]:
    return np.geomspace(1, 1 / factor, classes)


def _step(classes: int, factor: float) -> NDArray[np.float64]:
    return np.where(np.arange(classes) < max(classes // 2, 1), 1.0, 1 / factor)


def _pareto(classes: int, factor: float) -> NDArray[np.float64]:
    power = np.log(factor) / np.log(max(classes, 2))
    weights: NDArray[np.float64] = np.arange(1, classes + 1) ** -power
    return weights


PROFILES: dict[str, Callable[[int, float], NDArray[np.float64]]] = {
    "exponential": _exponential,
    "step": _step,
    "pareto": _pareto,
}
"""Functions of the number of classes and the imbalance factor that return the relative class sizes
``(C,)``, descending from 1."""

_SUBSETS: dict[str, tuple[Subset, dict[str, str]]] = {
    "longtail": (longtail, {"if": "factor", "profile": "profile"}),
    "kshot": (k_shot, {"k": "k", "take_fewer": "take_fewer"}),
}
"""Functions by subset name, and their parameters by option name."""


_ROUNDING = 1e-9
"""Added before rounding down, because 20 / (1 / 50) may be below 1,000 in floating point."""


def _check_profile(profile: str, factor: Any) -> None:
    if profile == "natural":
        if factor is not None:
            raise SpecError("profile natural takes all images: leave out the imbalance factor")
    elif profile not in PROFILES:
        raise unknown("profile", profile, [*PROFILES, "natural"])
    elif (
        isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < np.inf
    ):
        raise SpecError(
            f"imbalance factor {factor}: give a number of at least 1, such as longtail:if=50"
        )


def _check_options(text: str, options: dict[str, Any]) -> None:
    """Check option values before any labels are known, so that errors come early."""
    if not text.startswith("kshot"):
        _check_profile(str(options.get("profile", "exponential")), options.get("factor"))
    elif type(options.get("k")) is not int or options["k"] < 1:
        raise SpecError(
            f"subset {text!r}: give the number of images of each class, at least 1, such as "
            "kshot:k=5"
        )
    elif type(options.get("take_fewer", False)) is not bool:
        raise SpecError(f"subset {text!r}: write take_fewer=true or take_fewer=false")


def _largest_class_size(sizes: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    """Return the largest ``n_max`` with ``n_max * weight`` at most the size of every class."""
    return float(np.min(sizes / weights)) + _ROUNDING


def _leaves_no_class_empty(sizes: NDArray[np.int64], weights: NDArray[np.float64]) -> bool:
    """Return whether the smallest class keeps an image with the largest possible ``n_max``."""
    return bool(_largest_class_size(sizes, weights) * weights[-1] >= 1)


def _sample_rows(labels: Labels, counts: NDArray[np.int64], rng: np.random.Generator) -> Rows:
    """Return up to ``counts[c]`` random rows of each class, ascending.

    A larger count only adds rows.
    """
    shuffled = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return np.sort(
        np.concatenate([rows[:count] for rows, count in zip(shuffled, counts, strict=True)])
    )


def _name(label: np.int64, classes: Sequence[str] | None) -> object:
    return classes[int(label)] if classes else label
