"""Few-shot evaluation: N-way K-shot episodes on precomputed features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError
from featkit.evaluation.intervals import Interval
from featkit.parallel import blas_threads
from featkit.registry import unknown

Features = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]
Rows = NDArray[np.int64]
FitPredict = Callable[[Features, Labels, Features], Labels]
"""Function of support features ``(way * shot, d)``, their labels and query features ``(way * query,
d)`` that returns the predicted labels of the queries."""
EpisodeEvaluator = Callable[[Rows, Rows], NDArray[np.float64]]
"""Function of support rows ``(b, way, shot)`` and query rows ``(b, way, query)`` that returns
accuracies ``(b,)``.
"""

_BLOCK = 50
"""Episodes per batch: their features fit into the processor cache."""


@dataclass(frozen=True)
class EpisodeResults:
    """Accuracies of a head over few-shot episodes.

    Attributes:
        way: number of classes in an episode.
        shot, query: number of support and of query images of each class.
        accuracies: ``(episodes,)`` accuracy of each episode on ``way * query`` queries.
        mean: mean accuracy.
        interval95: ``mean`` plus and minus 1.96 standard errors, within 0..1. As in few-shot
            papers, it covers the sampling of episodes from the same images, not the sampling of
            images.
    """

    way: int
    shot: int
    query: int
    accuracies: NDArray[np.float64] = field(repr=False)

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return float(self.accuracies.mean())

    @property
    def interval95(self) -> Interval:
        """95 % interval of the mean over episodes."""
        half = 1.96 * float(self.accuracies.std(ddof=1)) / sqrt(len(self.accuracies))
        return max(0.0, self.mean - half), min(1.0, self.mean + half)


def run_episodes(
    x: Features,
    y: Labels,
    head: str | FitPredict = "prototypical",
    *,
    way: int = 5,
    shot: int = 5,
    query: int = 15,
    episodes: int = 1000,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
    groups: NDArray[Any] | None = None,
) -> EpisodeResults:
    """Evaluate a head on random few-shot episodes.

    An episode samples ``way`` classes, and ``shot + query`` images of each, without replacement.
    The first episodes of a seed are the same for any number of episodes.

    Args:
        x: ``(n, d)`` features, no row of which is zero.
        y: ``(n,)`` labels, any integers.
        head: ``prototypical`` (nearest class mean by cosine), ``prototypical:metric=euclidean`` or
            ``knn:k=1`` (nearest image by cosine), which are computed for many episodes at once; or
            a function that is called for each episode.
        way: number of classes in an episode.
        shot: number of support images of each class.
        query: number of query images of each class.
        episodes: number of episodes, two or more.
        seed: of the sampling.
        progress: called with the number of finished episodes.
        groups: ``(n,)`` group of each image, such as its patient: no group has support and query
            images in the same episode. None if the images are independent.

    Raises:
        SpecError: if the head is unknown.
        DataError: if fewer than ``way`` classes have ``shot + query`` images, or a number is too
            small.

    Source: Vinyals et al., "Matching networks for one shot learning", NeurIPS 2016; Snell, Swersky
    and Zemel, "Prototypical networks for few-shot learning", NeurIPS 2017.
    """
    if min(way - 1, shot, query, episodes - 1) < 1:
        raise DataError(
            f"cannot run {episodes} episodes of {way} ways, {shot} shots and {query} queries: give "
            "at least 2 episodes, 2 ways, 1 shot and 1 query"
        )
    evaluate = _batched(x, head) if isinstance(head, str) else _one_by_one(x, y, head)
    if groups is None:
        sampled = _sample_episodes(y, (way, shot + query), episodes, seed)
    else:
        sampled = _sample_grouped_episodes(y, groups, (way, shot, query), episodes, seed)
    accuracies = []
    # The matrix products are small: with several BLAS threads they are several times slower.
    with blas_threads(1):
        for start in range(0, episodes, _BLOCK):
            block = sampled[start : start + _BLOCK]
            accuracies.append(evaluate(block[:, :, :shot], block[:, :, shot:]))
            if progress is not None:
                progress(start + len(block))
    return EpisodeResults(way, shot, query, np.concatenate(accuracies))


def _sample_episodes(y: Labels, shape: tuple[int, int], episodes: int, seed: int) -> Rows:
    """Return row numbers ``(episodes, way, images)``, where ``shape`` is ``(way, images)``."""
    way, images = shape
    members = [np.flatnonzero(y == label) for label in np.unique(y)]
    enough = [rows for rows in members if len(rows) >= images]
    if len(enough) < way:
        raise DataError(
            f"{way} ways need {way} classes of {images} images (shots and queries), but only "
            f"{len(enough)} of {len(members)} classes have that many: use fewer ways, shots or "
            "queries"
        )
    rng = np.random.default_rng(seed)
    sampled = np.empty((episodes, way, images), np.int64)
    for episode in range(episodes):
        for index, label in enumerate(rng.choice(len(enough), way, replace=False)):
            sampled[episode, index] = rng.choice(enough[label], images, replace=False)
    return sampled


def _sample_grouped_episodes(
    y: Labels, groups: NDArray[Any], shape: tuple[int, int, int], episodes: int, seed: int
) -> Rows:
    """Return row numbers ``(episodes, way, shot + query)`` whose supports share no group.

    In each episode every group is at random on the side of the support or of the queries, for all
    classes. Classes without enough images on both sides are left out of the episode.

    Raises:
        DataError: if 100 random divisions have fewer than ``way`` classes.
    """
    way, shot, query = shape
    _, codes = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(y == label) for label in np.unique(y)]
    rng = np.random.default_rng(seed)
    sampled = np.empty((episodes, way, shot + query), np.int64)
    for episode in range(episodes):
        for _ in range(_MOST_DRAWS):
            sides = _random_sides(codes, members, shot, query, rng)
            if len(sides) >= way:
                break
        else:
            raise DataError(
                f"{way} ways need {way} classes with {shot} support and {query} query images in "
                f"different groups, but a random division of the {codes.max() + 1} groups has "
                f"{len(sides)}: use fewer ways, shots or queries"
            )
        for index, chosen in enumerate(rng.choice(len(sides), way, replace=False)):
            support, queries = sides[chosen]
            sampled[episode, index, :shot] = rng.choice(support, shot, replace=False)
            sampled[episode, index, shot:] = rng.choice(queries, query, replace=False)
    return sampled


_MOST_DRAWS = 100
"""Random divisions of the groups that are tried for an episode."""


def _random_sides(
    groups: Rows, members: list[Rows], shot: int, query: int, rng: np.random.Generator
) -> list[tuple[Rows, Rows]]:
    """Return support and query candidates, of different groups, of each class with enough of both.

    Args:
        groups: ``(n,)`` numbers of the groups.
        members: rows of each class.
        shot: number of support images.
        query: number of query images.
        rng: source of the random division.
    """
    for_support = rng.random(int(groups.max()) + 1) < rng.uniform(0.2, 0.8)
    sides = []
    for rows in members:
        chosen = for_support[groups[rows]]
        support, queries = rows[chosen], rows[~chosen]
        if len(support) >= shot and len(queries) >= query:
            sides.append((support, queries))
    return sides


def _one_by_one(x: Features, y: Labels, fit_predict: FitPredict) -> EpisodeEvaluator:
    def evaluate(support: Rows, queries: Rows) -> NDArray[np.float64]:
        accuracies = np.empty(len(support))
        for episode in range(len(support)):
            fit_rows, query_rows = support[episode].ravel(), queries[episode].ravel()
            predicted = fit_predict(x[fit_rows], y[fit_rows], x[query_rows])
            accuracies[episode] = np.mean(predicted == y[query_rows])
        return accuracies

    return evaluate


def _batched(x: Features, name: str) -> EpisodeEvaluator:
    if name not in _BATCHED:
        raise unknown("few-shot head", name, list(_BATCHED))
    prepare, predict = _BATCHED[name]
    features = prepare(x)

    def evaluate(support: Rows, queries: Rows) -> NDArray[np.float64]:
        episodes, way, query = queries.shape
        predicted = predict(features[support], features[queries.reshape(episodes, -1)])
        accuracies: NDArray[np.float64] = (predicted == np.repeat(np.arange(way), query)).mean(
            axis=1
        )
        return accuracies

    return evaluate


def _unit(x: Features) -> Features:
    """Return features ``(..., d)`` scaled to length 1; zeros stay zero."""
    lengths = np.linalg.norm(x, axis=-1, keepdims=True)
    scaled: Features = x / np.where(lengths > 0, lengths, 1)
    return scaled


def _nearest_mean_by_angle(support: Features, queries: Features) -> Labels:
    """Return the class 0..way-1 of the nearest class mean by cosine, ``(b, q)``.

    Args:
        support: ``(b, way, shot, d)`` unit vectors.
        queries: ``(b, q, d)`` unit vectors.
    """
    nearest: Labels = (queries @ _unit(support.mean(axis=2)).swapaxes(1, 2)).argmax(axis=2)
    return nearest


def _nearest_mean_by_distance(support: Features, queries: Features) -> Labels:
    means = support.mean(axis=2)
    # The squared length of the query is the same for every class, so it is left out.
    nearest: Labels = (2 * queries @ means.swapaxes(1, 2) - (means**2).sum(axis=2)[:, None]).argmax(
        axis=2
    )
    return nearest


def _nearest_image_by_angle(support: Features, queries: Features) -> Labels:
    episodes, way, shot, d = support.shape
    similar = queries @ support.reshape(episodes, way * shot, d).swapaxes(1, 2)
    nearest: Labels = similar.argmax(axis=2) // shot
    return nearest


_BATCHED: dict[
    str, tuple[Callable[[Features], Features], Callable[[Features, Features], Labels]]
] = {
    "prototypical": (_unit, _nearest_mean_by_angle),
    "prototypical:metric=euclidean": (np.asarray, _nearest_mean_by_distance),
    "knn:k=1": (_unit, _nearest_image_by_angle),
}
