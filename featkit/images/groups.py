"""Groups of images that must not be separated: patients, sites, cameras, videos."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError, SpecError, first_names
from featkit.images.base import SPLITS, ImageSet
from featkit.images.duplicates import duplicate_groups
from featkit.images.names import look_alike

PARENT = "parent"
"""Spec of groups: the name of the folder that the image lies in."""

NO_GROUPS = "none"
"""Spec of groups: images count as independent, even if the source defines groups."""

DUPLICATES = "duplicates"
"""Spec of groups: near duplicates of an image are in its group."""

_MOST_FOLDS = 10
"""Most folds that a split is composed of."""
_TRIES = 5
"""Random assignments of groups that are tried until every class is in every split."""


def assign_groups(images: ImageSet, spec: str) -> ImageSet:
    """Return images with groups that follow from their names.

    Args:
        images: images whose ids are relative paths with slashes.
        spec: ``parent``: the name of the folder of the image, below the folder of its class;
            ``none``: no groups; ``duplicates``: each image with its near duplicates, see
            ``duplicates.duplicate_groups``; else a regular expression that is searched for in the
            id: the group is what its parentheses match, or all that it matches if it has none.

    Raises:
        SpecError: if it is not a valid regular expression.
        DataError: if it does not match every image, or an image lies directly in the folder of its
            class.
    """
    if spec == NO_GROUPS:
        return replace(images, groups=())
    if spec == DUPLICATES:
        groups, note = duplicate_groups(images)
        return replace(images, groups=groups, notes=(*images.notes, note))
    if spec == PARENT:
        return replace(images, groups=tuple(_parents(images)))
    try:
        pattern = re.compile(spec)
    except (re.error, OverflowError, RecursionError) as error:
        raise SpecError(
            f"--group {spec!r} is not a valid regular expression ({error}): give parent, a column "
            "of the CSV file, or an expression such as 'patient([0-9]+)'"
        ) from error
    matched, unmatched = [], []
    for name in images.ids:
        found = pattern.search(name)
        if found is None or not any(found.groups() or (found.group(),)):
            unmatched.append(name)
            continue
        parts = [part for part in found.groups() if part] or [found.group()]
        matched.append("/".join(parts))
    if unmatched:
        raise DataError(
            f"--group {spec!r} matches no text in {len(unmatched)} of {len(images)} names of "
            f"images of {images.name}, such as {unmatched[0]!r}: correct the expression; it is "
            "searched for in the path relative to the data set"
        )
    return replace(images, groups=tuple(matched))


def _parents(images: ImageSet) -> list[str]:
    """Return the name of the folder of each image; raises DataError if it is that of its class."""
    parents = []
    for name, label in zip(images.ids, images.labels.tolist(), strict=True):
        parent = PurePosixPath(name).parent.name
        if not parent or look_alike(parent) == look_alike(images.classes[label]):
            raise DataError(
                f"--group parent needs a folder for each group, but {name!r} of {images.name} lies "
                "directly in the folder of its class or of the data set: sort the images into "
                "<class>/<group>/, or give a regular expression that finds the group in the name"
            )
        parents.append(parent)
    return parents


def check_groups(images: ImageSet) -> None:
    """Refuse image sets of which only some images have a group.

    Raises:
        DataError: naming the first image without one.
    """
    missing = [name for name, group in zip(images.ids, images.groups, strict=True) if not group]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(images)} images of {images.name} have no group, such as "
            f"{missing[0]!r}: give each a group, one of its own if it belongs to no other image"
        )


def crossing_groups(groups: Sequence[str], splits: NDArray[np.str_]) -> list[str]:
    """Return the sorted groups that have images in more than one split."""
    split_of: dict[str, str] = {}
    crossing = set()
    for group, split in zip(groups, splits.tolist(), strict=True):
        if split_of.setdefault(group, split) != split:
            crossing.add(group)
    return sorted(crossing)


def leak_text(groups: Sequence[str], splits: NDArray[np.str_]) -> str:
    """Return how many groups are in more than one split, with names; empty if none is."""
    crossing = crossing_groups(groups, splits)
    if not crossing:
        return ""
    return (
        f"{len(crossing)} of {len(set(groups))} groups have images in more than one split "
        f"({first_names(crossing)})"
    )


def refuse_leak(images: ImageSet) -> None:
    """Refuse splits that separate images of a group.

    Raises:
        DataError: naming the groups.
    """
    text = leak_text(images.groups, images.splits)
    if text:
        raise DataError(
            f"{images.name}: {text}, so that its test images are not independent of the training "
            "images and the accuracy would be too high",
            fixes=[
                "make a new split that keeps groups together with --split 70/15/15",
                "accept it with --allow-group-leak; every report then says so",
            ],
        )


def check_class_groups(
    labels: NDArray[np.int64], groups: Sequence[str], classes: Sequence[str], parts: int
) -> None:
    """Check that groups can be divided into parts with training and test images of each class.

    Args:
        labels: ``(n,)`` positions in ``classes``.
        groups: of the images.
        classes: class names.
        parts: number of folds or splits.

    Raises:
        DataError: if there are fewer groups than parts, or all images of a class are in one group.
    """
    names, codes = np.unique(np.array(groups), return_inverse=True)
    for label, name in enumerate(classes):
        own = codes[labels == label]
        if len(own) and (own == own[0]).all():
            raise DataError(
                f"all {len(own)} images of class {name!r} are in group {str(names[own[0]])!r}, so "
                "that it cannot be both trained and tested: add images of the class in other "
                "groups, or leave the class out"
            )
    if len(names) < parts:
        raise DataError(
            f"there are {len(names)} groups ({first_names(names.tolist())}), too few for {parts} "
            "splits or folds that share none: add images of other groups, or use fewer"
        )


def group_split(
    labels: NDArray[np.int64],
    groups: Sequence[str],
    fractions: Sequence[float],
    seed: int = 0,
) -> NDArray[np.str_]:
    """Return a random split that keeps groups together, ``(n,)`` of ``train``, ``val``, ``test``.

    The test images are some folds of scikit-learn's ``StratifiedGroupKFold`` on all images, the
    validation images some folds on the others. The fractions are met as closely as whole groups
    allow.

    Args:
        labels: ``(n,)``, any integers.
        groups: of the images.
        fractions: of train, val and test, summing to 1.
        seed: of the random assignment.
    """
    _, codes = np.unique(np.array(groups), return_inverse=True)
    splits = np.full(len(labels), SPLITS[0])
    remaining, left = np.arange(len(labels)), 1.0
    for split, fraction in ((SPLITS[2], fractions[2]), (SPLITS[1], fractions[1])):
        if not fraction:
            continue
        drawn = draw_groups(labels[remaining], codes[remaining], fraction / left, seed)
        splits[remaining[drawn]] = split
        remaining, left = remaining[~drawn], left - fraction
    return splits


def draw_groups(
    labels: NDArray[np.int64], groups: NDArray[np.int64], fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Return which images ``(n,)`` to hold out: a stratified fraction in whole groups.

    Up to five random assignments are tried until every class has images in both parts; otherwise it
    is that with the fewest classes that have no image left, then none held out.

    Args:
        labels: ``(n,)``, any integers.
        groups: ``(n,)`` numbers of the groups, two or more.
        fraction: of the images to hold out, above 0 and below 1.
        seed: of the random assignment.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    # As 2 of 7 folds, for example. scikit-learn makes no more folds than there are groups, or
    # images in the largest class.
    most = max(2, min(_MOST_FOLDS, len(np.unique(groups)), int(sizes.max())))
    share = Fraction(fraction).limit_denominator(most)
    folds = max(2, share.denominator)
    wanted = min(max(1, share.numerator), folds - 1)
    candidates = []
    for attempt in range(_TRIES):
        own_seed = seed
        if attempt:
            own_seed = int(np.random.default_rng([seed, attempt]).integers(2**32))
        drawn = group_folds(labels, groups, folds, own_seed) < wanted
        left = len(classes) - len(np.unique(labels[~drawn]))
        out = len(classes) - len(np.unique(labels[drawn]))
        candidates.append((left, out, attempt, drawn))
        if not left and not out:
            break
    return min(candidates, key=lambda each: each[:3])[3]


def hold_out_groups(
    labels: NDArray[np.int64], groups: NDArray[Any], fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Return which training images ``(n,)`` to hold out for validation, in whole groups.

    Args:
        labels: ``(n,)``, any integers.
        groups: ``(n,)``, any values. Of a single group nothing is held out.
        fraction: of the images to hold out.
        seed: of the random assignment.
    """
    codes = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    if codes.max() == 0:
        return np.zeros(len(labels), bool)
    return draw_groups(labels, codes, fraction, seed)


def group_folds(
    labels: NDArray[np.int64], groups: NDArray[np.int64], folds: int, seed: int
) -> NDArray[np.int64]:
    """Return the fold ``(n,)`` of each image, 0..folds-1, by ``StratifiedGroupKFold``.

    Args:
        labels: ``(n,)``, any integers.
        groups: ``(n,)`` numbers of the groups.
        folds: number of folds, two or more.
        seed: of the random assignment.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    fold_of = np.zeros(len(labels), np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    features = np.zeros((len(labels), 1))
    with warnings.catch_warnings():
        # Classes with fewer images than folds are reported by the callers that need them.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fold, (_, rows) in enumerate(splitter.split(features, labels, groups)):
            fold_of[rows] = fold
    return fold_of
