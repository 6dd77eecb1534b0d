"""Few-shot evaluation: episodes, and learning curves over the number of training images."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from featkit.embeddings.base import Embeddings
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.shards import RunTasks
from featkit.errors import DataError, FeatkitError, RunError
from featkit.evaluation import Predictions, run_episodes
from featkit.evaluation.effects import SEED, average, score_cells
from featkit.evaluation.intervals import Interval
from featkit.heads import make_head
from featkit.images.subsets import k_shot
from featkit.runs.splits import without_views
from featkit.storage import read_json, write_file

RESULTS_FILE = "results.json"

BATCHED = ("prototypical", "prototypical:metric=euclidean", "knn:k=1")
"""Heads that are computed for many episodes at once; all others are fitted in each episode."""


@dataclass(frozen=True)
class FewShotScore:
    """Accuracy of a head with few training images per class.

    Attributes:
        head: spec of the head.
        shot: training images per class.
        mean, interval95: mean accuracy over the draws and its 95% confidence interval.
        draws: number of episodes, or of random training sets of a learning curve.
        n: number of test images of a learning curve, or of images that episodes are drawn from.
    """

    head: str
    shot: int
    mean: float
    interval95: Interval
    draws: int
    n: int | None = None


@dataclass(frozen=True)
class EpisodeConfig:
    """Definition of the episodes of a few-shot evaluation.

    Attributes:
        way: classes per episode.
        query: query images per class.
        episodes: number of episodes.
        seed: of the random episodes and of the heads.
    """

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
    """Yield the accuracy of each head in episodes drawn from all images, whatever their split.

    Args:
        embeddings: features; augmented views are left out.
        heads: specs of heads.
        shots: numbers of support images per class.
        setting: definition of the episodes.
        progress: called with the number of finished episodes of the current head and shot.

    Raises:
        SpecError: if a head is unknown.
        DataError: if too few classes have enough images.
    """
    clean = without_views(embeddings)
    for shot in shots:
        for head in heads:
            result = run_episodes(
                clean.x,
                clean.y,
                head if head in BATCHED else _fit_predict(head, setting.seed),
                way=setting.way,
                shot=shot,
                query=setting.query,
                episodes=setting.episodes,
                seed=setting.seed,
                progress=progress,
                groups=clean.groups,
            )
            yield FewShotScore(
                head, shot, result.mean, result.interval95, setting.episodes, len(clean)
            )


def _fit_predict(head: str, seed: int) -> Callable[[Any, Any, Any], NDArray[np.int64]]:
    """Return a function that fits the head on an episode's support and predicts its queries."""

    def fit_predict(support: Any, labels: Any, queries: Any) -> NDArray[np.int64]:
        predicted: NDArray[np.int64] = (
            make_head(head, seed=seed).fit(support, labels).predict(queries)
        )
        return predicted

    return fit_predict


def learning_curve(
    embeddings: Embeddings,
    heads: Sequence[str],
    shots: Sequence[int],
    draws: int = 5,
    seed: int = 0,
) -> Iterator[FewShotScore]:
    """Yield the test accuracy of each head fitted on k random training images per class.

    The interval covers the choice of training images and that of test images, as for seeds in
    ``evaluation.effects.average``; with two draws that of test images only.

    Args:
        embeddings: features; augmented views are left out.
        heads: specs of heads.
        shots: values of k; of a class with fewer images all are used.
        draws: number of random training sets per k, two or more.
        seed: of the random training sets and of the heads.

    Raises:
        DataError: if there are no test images, fewer than two classes or fewer than two draws.
    """
    train, test = without_views(embeddings.part("train")), embeddings.part("test")
    if not len(test) or len(np.unique(train.y)) < 2 or draws < 2:
        raise DataError(
            f"{len(test)} test images, {draws} draws: a learning curve needs test images, two "
            "classes and two draws"
        )
    for shot in shots:
        subsets = []
        for draw in range(draws):
            rows = k_shot(train.y, shot, seed + draw, take_fewer=True)
            subsets.append(train.take(rows))
        for head in heads:
            cells = []
            for draw, subset in enumerate(subsets):
                fitted = make_head(head, seed=seed).fit(subset.x, subset.y)
                predictions = Predictions(
                    test.ids, test.y, fitted.predict(test.x), groups=test.groups
                )
                cells.append(({SEED: draw}, predictions))
            mean = average(score_cells(cells))
            yield FewShotScore(head, shot, mean.value, mean.interval95, draws, len(test))


def curve_shots(labels: NDArray[np.int64]) -> list[int]:
    """Return numbers of training images per class for a learning curve: 1, 2, 5, 10, 20, ...

    The last one is the first that reaches the median number of images per class, or the number of
    images of the largest class if that is smaller.

    Args:
        labels: ``(n,)`` labels of the training images.
    """
    if not len(labels):
        return [1]
    typical = float(np.median(np.unique(labels, return_counts=True)[1]))
    shots: list[int] = []
    for scale in 10 ** np.arange(8):
        for step in (1, 2, 5):
            shots.append(int(step * scale))
            if shots[-1] >= typical:
                return available_shots(labels, shots)
    return shots


def available_shots(labels: NDArray[np.int64], shots: Sequence[int]) -> list[int]:
    """Return numbers of training images per class, none of which is larger than every class.

    Larger ones stand for all images, and become the number of images of the largest class.

    Args:
        labels: ``(n,)`` labels of the training images.
        shots: the numbers.
    """
    largest = int(np.bincount(labels).max(initial=1))
    return list(dict.fromkeys(min(shot, largest) for shot in shots))


def read_learning_curve(directory: Path) -> list[FewShotScore]:
    """Read the learning curve of a few-shot study.

    Args:
        directory: of the study, with its ``results.json``.

    Raises:
        DataError: if the file is missing or damaged, or the study has no learning curve.
    """
    try:
        values = read_json(directory / RESULTS_FILE)
        scores = [_read_score(each) for each in values["curve"]]
    except (OSError, LookupError, AttributeError, TypeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{directory} cannot be read as a few-shot study ({reason}): give a run directory, or "
            "the folder that `featkit fewshot --curve` wrote"
        ) from error
    if not scores:
        raise DataError(
            f"{directory} has no learning curve: repeat `featkit fewshot` with --curve 1,2,5,10"
        )
    return scores


def _read_score(values: Mapping[str, Any]) -> FewShotScore:
    low, high = values["interval95"]
    n = values.get("n")
    return FewShotScore(
        head=str(values["head"]),
        shot=int(values["shot"]),
        mean=float(values["mean"]),
        interval95=(float(low), float(high)),
        draws=int(values["draws"]),
        n=None if n is None else int(n),
    )


@dataclass(frozen=True)
class FewShotPlan:
    """What to evaluate: episodes of every head and number of shots, and a learning curve.

    Attributes:
        heads: specs of heads.
        shots: support images per class of the episodes.
        curve: train images per class of the learning curve.
        draws: random draws per point of the curve.
        config: definition of the episodes.
    """

    heads: tuple[str, ...]
    shots: tuple[int, ...]
    curve: tuple[int, ...]
    draws: int
    config: EpisodeConfig


@dataclass(frozen=True)
class FewShotTask:
    """One head with one number of images per class, for another process.

    Attributes:
        file: embeddings, see ``save_embeddings``.
        plan: what is evaluated.
        head: spec of the head.
        shot: images per class.
        curve: whether it is a point of the learning curve, not episodes.
    """

    file: Path
    plan: FewShotPlan
    head: str
    shot: int
    curve: bool


def run_fewshot_task(task: FewShotTask) -> FewShotScore | FeatkitError:
    """Return the score of a task, or the error that the user can fix."""
    plan = task.plan
    try:
        embeddings = load_embeddings(task.file)
        if task.curve:
            draws, seed = plan.draws, plan.config.seed
            return next(learning_curve(embeddings, [task.head], [task.shot], draws, seed))
        return next(episode_scores(embeddings, [task.head], [task.shot], plan.config))
    except FeatkitError as error:
        return error


def scores_elsewhere(
    embeddings: Embeddings,
    plan: FewShotPlan,
    run: RunTasks,
    folder: Path,
    *,
    progress: bool = False,
) -> tuple[list[FewShotScore], list[FewShotScore]]:
    """Return the scores of episodes and the points of the learning curve, from other processes.

    Args:
        embeddings: features.
        plan: what to evaluate.
        run: runs a function on tasks in other processes.
        folder: a folder that they share, for a temporary file of the features.
        progress: whether to show a progress bar on stderr.

    Raises:
        SpecError, DataError: as ``episode_scores`` and ``learning_curve`` do.
        RunError: if a task killed the processes that ran it.
    """
    file = folder.absolute() / f".fewshot-{uuid.uuid4().hex}.npz"
    tasks = []
    for curve, shots in ((False, plan.shots), (True, plan.curve)):
        for shot, head in product(shots, plan.heads):
            tasks.append(FewShotTask(file, plan, head, shot, curve))
    scores: dict[int, FewShotScore] = {}
    try:
        save_embeddings(file, embeddings)
        with (
            closing(run(run_fewshot_task, tasks)) as finished,
            tqdm(total=len(tasks), unit="head", disable=not progress) as bar,
        ):
            for each in finished:
                if each.worker_died:
                    raise RunError(
                        f"evaluating {tasks[each.index].head} ended several workers: they were "
                        "killed or ran out of memory"
                    )
                if isinstance(each.result, FeatkitError):
                    raise each.result
                scores[each.index] = each.result
                bar.update()
    finally:
        file.unlink(missing_ok=True)
    ordered = [scores[index] for index in range(len(tasks))]
    episodes = len(plan.shots) * len(plan.heads)
    return ordered[:episodes], ordered[episodes:]


def save_embeddings(file: Path, embeddings: Embeddings) -> None:
    """Write embeddings for other processes; no text of users is executed when it is read."""
    arrays: dict[str, Any] = {
        "x": embeddings.x,
        "y": embeddings.y,
        "ids": np.array(embeddings.ids, dtype=np.str_),
        "classes": np.array(embeddings.classes, dtype=np.str_),
        "splits": embeddings.splits,
        "recipe": np.array(embeddings.recipe.to_json()),
    }

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(stream, **arrays)

    if embeddings.groups is not None:
        arrays["groups"] = embeddings.groups
    write_file(file, write)


@lru_cache(maxsize=1)
def load_embeddings(file: Path) -> Embeddings:
    """Read what ``save_embeddings`` wrote; the tasks of a process mostly need the same file."""
    with np.load(file, allow_pickle=False) as found:
        return Embeddings(
            x=found["x"],
            y=found["y"],
            ids=tuple(found["ids"].tolist()),
            classes=tuple(found["classes"].tolist()),
            splits=found["splits"],
            recipe=Recipe.from_json(str(found["recipe"])),
            groups=found.get("groups", None),
        )


def to_json(
    setting: EpisodeConfig,
    fingerprint: str,
    episodes: Sequence[FewShotScore],
    curve: Sequence[FewShotScore],
    *,
    groups: int | None = None,
) -> str:
    """Return the content of ``results.json``."""
    values = {
        "setting": asdict(setting),
        "fingerprint": fingerprint,
        **({} if groups is None else {"groups": groups}),
        "episodes": [asdict(score) for score in episodes],
        "curve": [asdict(score) for score in curve],
    }
    return json.dumps(values, indent=2)
