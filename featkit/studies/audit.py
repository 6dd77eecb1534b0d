"""An audit: what may be wrong with the images of a source and their labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from featkit.embeddings.base import Embeddings
from featkit.evaluation.audit import (
    LabelErrors,
    NearDuplicates,
    Neighbours,
    Track,
    exact_duplicates,
    find_label_errors,
    near_duplicates,
    nearest_neighbours,
    neighbour_class_frequencies,
    pool_probabilities,
    small_classes,
    stratified_folds,
)
from featkit.heads import make_head
from featkit.runs.features import FeatureSet, cached_keys, leaks
from featkit.runs.splits import without_views

Rows = NDArray[np.int64]

FEW = 20
"""A class with fewer training images is a few-shot one (Liu et al., "Large-scale long-tailed recognition in an open
world", CVPR 2019)."""

_HEAD = "linear"
_FOLDS = 3
# Chosen on ResNet-18 vectors of all Caltech-101 with 3 % of the labels made wrong; experiments/benchmarks/README.md
# says among what, and what it comes to on other data, networks and errors.
_HEAD_FLOOR, _VOTE_FLOOR = 0.001, 0.01


@dataclass(frozen=True)
class Audit:
    """What was found in n images; rows are those of ``embeddings``.

    Attributes:
        data: name of the images.
        embeddings: their vectors, labels and names.
        identical: rows of each content that occurs more than once.
        leaks: rows of test whose content is in train or val too, ``(l,)``.
        near: pairs of different contents that are nearly the same picture.
        suspects: images whose label is probably wrong; of identical images the first stands for all.
        small: classes with few images in train, or none in test.
        sizes: ``(k, 2)`` images of each class in train and in test.
        few: what counted as few.
        notes: what a reader must know, such as how many images could not be judged.
    """

    data: str
    embeddings: Embeddings
    identical: list[Rows]
    leaks: Rows
    near: NearDuplicates
    suspects: LabelErrors
    small: Rows
    sizes: Rows
    few: int
    notes: tuple[str, ...] = ()


def audit(source: FeatureSet, *, few: int = FEW, progress: bool = False) -> Audit:
    """Look for copies, near copies, wrong labels and small classes among all images: train, val and test.

    Labels are judged by a linear head on the folds that an image is not in, and by the labels of its nearest
    neighbours; identical images are taken as one, so that no image vouches for itself. Nothing is chosen by what is
    found.

    Args:
        source: the vectors.
        few: a class with fewer training images is reported.
        progress: whether to show progress on stderr.

    Raises:
        CacheError: if the cache file is gone or damaged.
        DataError: if there are fewer than two different images.
    """
    source = replace(source, embeddings=without_views(source.embeddings))
    embeddings, keys = source.embeddings, cached_keys(source)
    kept = np.sort(np.unique(keys, return_index=True)[1])
    bar = partial(tqdm, disable=not progress, leave=False)
    neighbours = nearest_neighbours(
        embeddings.x[kept], track=partial(bar, desc="neighbours", unit="block")
    )
    near = near_duplicates(neighbours)
    track = partial(bar, desc="labels", unit="fold")
    found, notes = _suspects(embeddings.take(kept), neighbours, source.request.seed, track)
    small, sizes = small_classes(embeddings.y, embeddings.splits, len(embeddings.classes), few)
    return Audit(
        data=source.data,
        embeddings=embeddings,
        identical=exact_duplicates(keys),
        leaks=leaks(source),
        near=replace(near, pairs=kept[near.pairs]),
        suspects=replace(found, rows=kept[found.rows]),
        small=small,
        sizes=sizes,
        few=few,
        notes=notes,
    )


def _suspects(
    embeddings: Embeddings, neighbours: Neighbours, seed: int, track: Track
) -> tuple[LabelErrors, tuple[str, ...]]:
    """Return the suspect labels, and what a reader must know; classes too small for the folds are left out."""
    y, k = embeddings.y, len(embeddings.classes)
    judged = np.flatnonzero(np.bincount(y, minlength=k)[y] >= _FOLDS)
    left_out = len(y) - len(judged)
    notes = (
        [f"{left_out} labels not judged: fewer than {_FOLDS} images in their class"]
        if left_out
        else []
    )
    if len(np.unique(y[judged])) < 2:
        none = np.empty(0, np.int64)
        return LabelErrors(none, none, np.empty(0)), (
            *notes,
            "no label judged: fewer than two classes are large enough",
        )
    part = embeddings.take(judged)
    probabilities, warnings = out_of_fold(part.x, part.y, k, seed=seed, track=track)
    p = pool(probabilities, neighbour_class_frequencies(neighbours, y, k)[judged])
    found = find_label_errors(p, part.y)
    return replace(found, rows=judged[found.rows]), (*notes, *warnings)


def out_of_fold(
    x: NDArray[np.float32], y: Rows, k: int, *, seed: int = 0, track: Track = iter
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return probabilities ``(n, k)`` by a linear head that has not seen the row, and the heads' warnings.

    Args:
        x: vectors ``(n, d)``.
        y: labels ``(n,)``, at least three of each class that occurs.
        k: number of classes.
        seed: of the folds.
        track: passes the folds on, and may show how many are done.
    """
    fold = stratified_folds(y, _FOLDS, seed)
    probabilities = np.zeros((len(y), k))
    warnings: dict[str, None] = {}
    for number in track(range(_FOLDS)):
        inside = fold == number
        head = make_head(_HEAD, seed=seed).fit(x[~inside], y[~inside])
        probabilities[np.ix_(inside, head.classes_)] = head.predict_proba(x[inside])
        warnings |= dict.fromkeys(head.warnings_)
    return probabilities, tuple(warnings)


def pool(probabilities: NDArray[np.float64], votes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what the head and the neighbours say together, each ``(n, k)``."""
    return pool_probabilities([(probabilities, _HEAD_FLOOR), (votes, _VOTE_FLOOR)])
