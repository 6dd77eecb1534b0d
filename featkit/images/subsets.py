"""Parts of the training images: labels to row numbers."""

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
"""``subset(labels, seed, classes=None)`` gives row numbers; ``classes`` are names for an error."""


def k_shot(
    labels: Labels,
    k: int,
    seed: int = 0,
    *,
    classes: Sequence[str] | None = None,
    take_fewer: bool = False,
) -> Rows:
    """Return the rows of k images of each class, drawn at random, in order.

    With one seed the rows of a smaller k are among those of a larger one: a learning curve grows by adding images.

    Args:
        labels: ``(n,)``, any integers.
        k: images of each class.
        seed: of the draw.
        classes: names for the error, where labels are positions in them.
        take_fewer: whether a class with fewer than k images gives all that it has.

    Raises:
        DataError: if k is below 1, or a class has fewer than k images and ``take_fewer`` is not set.
    """
    if k < 1:
        raise DataError(f"{k} images of each class: give at least 1")
    found, sizes = np.unique(labels, return_counts=True)
    short = found[sizes < k]
    if len(short) and not take_fewer:
        raise DataError(
            f"class {_name(short[0], classes)} has {sizes[sizes < k][0]} images, fewer than the {k} asked for "
            f"({len(short)} of {len(found)} classes do): ask for fewer, or take what there is"
        )
    return _draw(labels, np.full(len(found), k), np.random.default_rng(seed))


def longtail(
    labels: Labels,
    factor: float | None = None,
    seed: int = 0,
    *,
    profile: str = "exponential",
    classes: Sequence[str] | None = None,
) -> Rows:
    """Return rows whose class sizes fall from ``n_max`` to ``n_max / factor``, drawn at random, in order.

    The seed puts the classes in order and draws their images. The class at place ``r`` of ``C`` keeps ``n_max w_r``
    images, rounded, with the largest ``n_max`` for which no class needs more than it has:

    - ``exponential``: ``w_r = factor^(-r / (C - 1))`` (Cao et al. 2019).
    - ``step``: 1 for the first half of the classes, ``1 / factor`` for the others (Cao et al. 2019).
    - ``pareto``: ``w_r = (r + 1)^(-1 / alpha)``, the sizes by rank of a Pareto distribution, as Liu et al. 2019 draw
      them; its shape ``alpha = log(C) / log(factor)`` is the one that gives the factor.
    - ``natural``: all rows, as they are; takes no factor.

    Where every class has the same number of images, the rows of a larger factor are among those of a smaller one.

    Args:
        labels: ``(n,)``, any integers.
        factor: imbalance factor, largest class over smallest, from 1 up.
        seed: of the order of the classes and of the draw.
        profile: one of ``PROFILES``.
        classes: names for the error, where labels are positions in them.

    Raises:
        SpecError: if the profile is unknown, the factor is missing or below 1, or ``natural`` is given one.
        DataError: if a class would be left without an image; it names the largest factor possible.

    Source: Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss", NeurIPS 2019,
    section 4; Liu et al., "Large-scale long-tailed recognition in an open world", CVPR 2019, section 4.
    """
    _check_profile(profile, factor)
    if factor is None:
        return np.arange(len(labels))
    found, sizes = np.unique(labels, return_counts=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(found))
    share, sizes = PROFILES[profile], sizes[order]
    weights = share(len(found), factor)
    if not _suffice(sizes, weights):
        largest = max(f for f in range(1, sizes[0] + 1) if _suffice(sizes, share(len(found), f)))
        raise DataError(
            f"imbalance factor {factor:g} would leave class {_name(found[order[-1]], classes)} without an image: with "
            f"this order of classes (seed {seed}) the largest possible one is {largest}"
        )
    counts = np.empty(len(found), np.int64)
    counts[order] = np.round(np.floor(_largest(sizes, weights)) * weights)
    return _draw(labels, counts, rng)


def parse_subset(text: str) -> Subset:
    """Read ``longtail:if=50,profile=step`` or ``kshot:k=5`` as a function of labels and seed that gives rows.

    Raises:
        SpecError: if the name, an option or a value is unknown, listing the known ones.
    """
    spec = Spec.parse(text)
    if spec.name not in _SUBSETS:
        raise unknown("subset", spec.name, list(_SUBSETS))
    function, known = _SUBSETS[spec.name]
    for option in spec.options:
        if option not in known:
            raise unknown(f"option of subset {spec.name}", option, list(known))
    if spec.argument is not None:
        raise SpecError(f"subset {text!r}: write options as {spec.name}:key=value; known: {', '.join(known)}")
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
"""Size of each class relative to the largest ``(C,)``, falling, by the number of classes and the imbalance factor."""

_SUBSETS: dict[str, tuple[Subset, dict[str, str]]] = {
    "longtail": (longtail, {"if": "factor", "profile": "profile"}),
    "kshot": (k_shot, {"k": "k", "take_fewer": "take_fewer"}),
}
"""Functions by name, and their parameters by the name of an option."""


_ROUNDING = 1e-9
"""20 / (1 / 50) may come out below 1,000."""


def _check_profile(profile: str, factor: Any) -> None:
    if profile == "natural":
        if factor is not None:
            raise SpecError("profile natural takes all images as they are: leave the imbalance factor out")
    elif profile not in PROFILES:
        raise unknown("profile", profile, [*PROFILES, "natural"])
    elif isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < np.inf:
        raise SpecError(f"imbalance factor {factor}: give a number from 1 up, as longtail:if=50")


def _check_options(text: str, options: dict[str, Any]) -> None:
    """Refuse, before any label is seen, what the functions would refuse later or not understand."""
    if not text.startswith("kshot"):
        _check_profile(str(options.get("profile", "exponential")), options.get("factor"))
    elif type(options.get("k")) is not int or options["k"] < 1:
        raise SpecError(f"subset {text!r}: give the images of each class, from 1 up, as kshot:k=5")
    elif type(options.get("take_fewer", False)) is not bool:
        raise SpecError(f"subset {text!r}: take_fewer is true or false")


def _largest(sizes: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    """Return the largest ``n_max`` of which no class, ``n_max`` times its weight, is above its size."""
    return float(np.min(sizes / weights)) + _ROUNDING


def _suffice(sizes: NDArray[np.int64], weights: NDArray[np.float64]) -> bool:
    """Return whether ``n_max`` leaves the smallest class an image."""
    return bool(_largest(sizes, weights) * weights[-1] >= 1)


def _draw(labels: Labels, counts: NDArray[np.int64], rng: np.random.Generator) -> Rows:
    """Return up to ``counts[c]`` rows of each class in the order of its label; more counts only add rows."""
    shuffled = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return np.sort(np.concatenate([rows[:count] for rows, count in zip(shuffled, counts, strict=True)]))


def _name(label: np.int64, classes: Sequence[str] | None) -> object:
    return classes[int(label)] if classes else label
