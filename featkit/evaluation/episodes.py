"""Few-shot episodes: N-way K-shot classification, many times over, on vectors that are already there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from featkit.errors import DataError
from featkit.evaluation.intervals import Interval
from featkit.registry import unknown

Vectors = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]
Rows = NDArray[np.int64]
FitPredict = Callable[[Vectors, Labels, Vectors], Labels]
"""(support ``(way * shot, d)``, its labels, queries ``(way * query, d)``) -> the labels predicted for the queries."""
Judge = Callable[[Rows, Rows], NDArray[np.float64]]
"""Rows of the support ``(b, way, shot)`` and of the queries ``(b, way, query)`` -> ``(b,)`` shares of right answers."""

_BLOCK = 50
"""Episodes computed at a time: their vectors stay in the cache of the processor."""


@dataclass(frozen=True)
class EpisodeResults:
    """How a head fared in a number of episodes.

    Attributes:
        way, shot, query: classes in an episode; support images and query images of each.
        accuracies: ``(episodes,)`` shares of right answers, each on ``way * query`` queries.
        mean: their mean.
        interval95: ``mean`` plus and minus 1.96 standard errors, within 0..1. It says what other episodes from the
            same images would give, as few-shot papers do, and nothing about other images.
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
        """Interval of the mean over episodes."""
        half = 1.96 * float(self.accuracies.std(ddof=1)) / sqrt(len(self.accuracies))
        return max(0.0, self.mean - half), min(1.0, self.mean + half)


def run_episodes(
    x: Vectors,
    y: Labels,
    head: str | FitPredict = "prototypical",
    *,
    way: int = 5,
    shot: int = 5,
    query: int = 15,
    episodes: int = 1000,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> EpisodeResults:
    """Draw episodes and let a head learn each one's support images and name its queries.

    An episode draws ``way`` classes, and of each ``shot + query`` images, all without replacement. The first episodes
    of a seed are the same for any number of them.

    Args:
        x: ``(n, d)`` vectors, none of length zero.
        y: ``(n,)`` labels, any integers.
        head: ``prototypical`` (nearest class mean by angle), ``prototypical:metric=euclidean`` (by distance) or
            ``knn:k=1`` (nearest image by angle), for which many episodes are computed at once; or a function that is
            called for each episode.
        way: classes in an episode.
        shot: support images of each class.
        query: queries of each class.
        episodes: how many; two or more.
        seed: of the draw.
        progress: called with the number of episodes done so far.

    Raises:
        SpecError: if the head is unknown.
        DataError: if fewer than ``way`` classes have ``shot + query`` images, or a number is too small.

    Source: Vinyals et al., "Matching networks for one shot learning", NeurIPS 2016; Snell, Swersky and Zemel,
    "Prototypical networks for few-shot learning", NeurIPS 2017.
    """
    if min(way - 1, shot, query, episodes - 1) < 1:
        raise DataError(
            f"{episodes} episodes of {way} ways, {shot} shots and {query} queries: give at least 2 episodes, 2 ways, "
            "1 shot, 1 query"
        )
    judge = _batched(x, head) if isinstance(head, str) else _one_by_one(x, y, head)
    drawn = _draw(y, (way, shot + query), episodes, seed)
    accuracies = []
    # The matrix products are small: threads that wait for each other would make them several times slower.
    with threadpool_limits(1, user_api="blas"):
        for start in range(0, episodes, _BLOCK):
            block = drawn[start : start + _BLOCK]
            accuracies.append(judge(block[:, :, :shot], block[:, :, shot:]))
            if progress is not None:
                progress(start + len(block))
    return EpisodeResults(way, shot, query, np.concatenate(accuracies))


def _draw(y: Labels, shape: tuple[int, int], episodes: int, seed: int) -> Rows:
    """Return ``(episodes, *shape)`` rows of ``x``: classes of an episode, images of a class."""
    way, images = shape
    members = [np.flatnonzero(y == label) for label in np.unique(y)]
    enough = [rows for rows in members if len(rows) >= images]
    if len(enough) < way:
        raise DataError(
            f"{way} ways need {way} classes of {images} images (shots and queries), but {len(enough)} of "
            f"{len(members)} classes have that many: lower the number of ways, shots or queries"
        )
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            [rng.choice(enough[place], images, replace=False) for place in rng.choice(len(enough), way, replace=False)]
            for _ in range(episodes)
        ]
    )


def _one_by_one(x: Vectors, y: Labels, fit_predict: FitPredict) -> Judge:
    def judge(support: Rows, queries: Rows) -> NDArray[np.float64]:
        pairs = zip(support.reshape(len(support), -1), queries.reshape(len(queries), -1), strict=True)
        return np.array([np.mean(fit_predict(x[known], y[known], x[asked]) == y[asked]) for known, asked in pairs])

    return judge


def _batched(x: Vectors, name: str) -> Judge:
    if name not in _BATCHED:
        raise unknown("few-shot head", name, list(_BATCHED))
    prepare, predict = _BATCHED[name]
    vectors = prepare(x)

    def judge(support: Rows, queries: Rows) -> NDArray[np.float64]:
        episodes, way, query = queries.shape
        predicted = predict(vectors[support], vectors[queries.reshape(episodes, -1)])
        right: NDArray[np.float64] = (predicted == np.repeat(np.arange(way), query)).mean(axis=1)
        return right

    return judge


def _unit(x: Vectors) -> Vectors:
    """Return vectors ``(..., d)`` brought to length 1; one of length 0 stays as it is."""
    lengths = np.linalg.norm(x, axis=-1, keepdims=True)
    scaled: Vectors = x / np.where(lengths > 0, lengths, 1)
    return scaled


def _nearest_mean_by_angle(support: Vectors, queries: Vectors) -> Labels:
    """Name queries ``(b, q, d)`` by the mean of support ``(b, way, shot, d)`` of the smallest angle; ``(b, q)``."""
    similar: Labels = (queries @ _unit(support.mean(axis=2)).swapaxes(1, 2)).argmax(axis=2)
    return similar


def _nearest_mean_by_distance(support: Vectors, queries: Vectors) -> Labels:
    means = support.mean(axis=2)
    # The squared length of the query is the same for every class.
    nearest: Labels = (2 * queries @ means.swapaxes(1, 2) - (means**2).sum(axis=2)[:, None]).argmax(axis=2)
    return nearest


def _nearest_image_by_angle(support: Vectors, queries: Vectors) -> Labels:
    episodes, way, shot, d = support.shape
    similar = queries @ support.reshape(episodes, way * shot, d).swapaxes(1, 2)
    nearest: Labels = similar.argmax(axis=2) // shot
    return nearest


_BATCHED: dict[str, tuple[Callable[[Vectors], Vectors], Callable[[Vectors, Vectors], Labels]]] = {
    "prototypical": (_unit, _nearest_mean_by_angle),
    "prototypical:metric=euclidean": (np.asarray, _nearest_mean_by_distance),
    "knn:k=1": (_unit, _nearest_image_by_angle),
}
