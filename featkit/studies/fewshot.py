"""Few images of each class: episodes with new classes every time, and learning curves over the images of train."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from featkit.embeddings.base import Embeddings
from featkit.errors import DataError
from featkit.evaluation import run_episodes
from featkit.evaluation.intervals import Interval
from featkit.heads import make_head
from featkit.images.subsets import k_shot
from featkit.runs.splits import without_views

BATCHED = ("prototypical", "prototypical:metric=euclidean", "knn:k=1")
"""Heads of which many episodes are computed at once; any other is fitted for each of them."""


@dataclass(frozen=True)
class FewShotScore:
    """A head's accuracy with few images of each class.

    Attributes:
        head: its spec.
        shot: images of each class that it learned from.
        mean, interval95: over ``draws``: episodes, or draws of train images (then Student's t).
        draws: how many.
    """

    head: str
    shot: int
    mean: float
    interval95: Interval
    draws: int


@dataclass(frozen=True)
class EpisodeConfig:
    """What an episode is: ``way`` classes, ``query`` images of each to be named; how many episodes; the seed."""

    way: int = 5
    query: int = 15
    episodes: int = 1000
    seed: int = 0


def episode_scores(
    embeddings: Embeddings,
    heads: Sequence[str],
    shots: Sequence[int],
    setting: EpisodeConfig,
    progress: Callable[[int], object] | None = None,
) -> Iterator[FewShotScore]:
    """Yield each head's accuracy in episodes that draw from all images, whatever their split.

    Args:
        embeddings: the vectors; augmented views are left out.
        heads: specs.
        shots: support images of each class.
        setting: the rest of what an episode is.
        progress: called with the number of episodes done so far, of one head and shot.

    Raises:
        SpecError: if a head is unknown.
        DataError: if too few classes have enough images.
    """
    clean = without_views(embeddings)
    for shot in shots:
        for head in heads:
            found = run_episodes(
                clean.x,
                clean.y,
                head if head in BATCHED else _fit_predict(head, setting.seed),
                way=setting.way,
                shot=shot,
                query=setting.query,
                episodes=setting.episodes,
                seed=setting.seed,
                progress=progress,
            )
            yield FewShotScore(head, shot, found.mean, found.interval95, setting.episodes)


def _fit_predict(head: str, seed: int) -> Callable[[Any, Any, Any], NDArray[np.int64]]:
    return lambda support, labels, queries: (
        make_head(head, seed=seed).fit(support, labels).predict(queries)
    )


def learning_curve(
    embeddings: Embeddings,
    heads: Sequence[str],
    shots: Sequence[int],
    draws: int = 5,
    seed: int = 0,
) -> Iterator[FewShotScore]:
    """Yield each head's top-1 on the test images after learning from k train images of each class.

    Args:
        embeddings: the vectors.
        heads: specs.
        shots: the values of k; a class with fewer images gives all it has.
        draws: how often the images are drawn anew; two or more.
        seed: of the draws and the heads.

    Raises:
        DataError: if there are no test images, or fewer than two draws.
    """
    train, test = without_views(embeddings.part("train")), embeddings.part("test")
    if not len(test) or len(np.unique(train.y)) < 2 or draws < 2:
        raise DataError(
            f"{len(test)} test images, {draws} draws: a learning curve needs a test image and two draws"
        )
    for shot in shots:
        drawn = [
            train.take(k_shot(train.y, shot, seed + draw, take_fewer=True)) for draw in range(draws)
        ]
        for head in heads:
            top1 = [
                float(
                    np.mean(
                        make_head(head, seed=seed).fit(part.x, part.y).predict(test.x) == test.y
                    )
                )
                for part in drawn
            ]
            mean, half = (
                float(np.mean(top1)),
                float(t.ppf(0.975, draws - 1) * np.std(top1, ddof=1)) / sqrt(draws),
            )
            yield FewShotScore(
                head, shot, mean, (max(0.0, mean - half), min(1.0, mean + half)), draws
            )


def to_json(
    setting: EpisodeConfig,
    fingerprint: str,
    episodes: Sequence[FewShotScore],
    curve: Sequence[FewShotScore],
) -> str:
    """Return everything as indented JSON."""
    values = {
        "setting": asdict(setting),
        "fingerprint": fingerprint,
        "episodes": [asdict(score) for score in episodes],
        "curve": [asdict(score) for score in curve],
    }
    return json.dumps(values, indent=2)
