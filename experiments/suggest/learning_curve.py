"""Measure learning curves of ``featkit suggest`` and of random choice.

    FEATKIT_TEST_DATA=... FEATKIT_WEIGHTS=... python experiments/suggest/learning_curve.py

Starts with five labelled images of each class, and labels ten batches, each chosen by the
classifier that was fitted on the images labelled before: a linear head on ResNet-18 features with
its temperature, as ``featkit fit`` makes it. With ``--validate`` the constants of the method are
compared over five batches: a fifth of the train images of each class is held out for the
evaluation, and the test images are not used. Finished curves are kept in ``--work``: an
interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from featkit.embeddings.base import Embeddings
from featkit.embeddings.pipeline import Compute
from featkit.evaluation.audit import unit_rows
from featkit.evaluation.calibration import apply_temperature
from featkit.evaluation.effects import CellScores, Effect, adjusted, average, effects, score_cells
from featkit.evaluation.predictions import Predictions
from featkit.evaluation.selection import CANDIDATES, select_batch
from featkit.plots.curve import Line, plot_curve
from featkit.plots.files import png_bytes
from featkit.runs.features import FeatureSet, load_features
from featkit.runs.fit import FitConfig, FittedHead, fit_head
from featkit.storage import csv_text, write_file

HERE = Path(__file__).parent
BATCH = {"caltech101": 100, "eurosat": 20}
ROUNDS, VALIDATION_ROUNDS = 10, 5
START = 5
"""Labelled images of each class at the start."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """Images to choose from.

    Attributes:
        p: ``(m, k)`` their calibrated probabilities.
        x: ``(m, d)`` their features.
        labelled: ``(l, d)`` features of the labelled images.
    """

    p: NDArray[np.float64]
    x: NDArray[np.float32]
    labelled: NDArray[np.float32]


Choose = Callable[[Pool, int, int], Rows]
"""From a pool, a number and a seed to rows of the pool."""


def choose_random(pool: Pool, n: int, seed: int) -> Rows:
    """Choose images at random."""
    return np.random.default_rng(seed).choice(len(pool.x), n, replace=False)


def choose_uncertain(pool: Pool, n: int, seed: int, *, candidates: float) -> Rows:
    """Choose as ``featkit suggest`` does; with one candidate per image by margin alone."""
    return select_batch(pool.p, pool.x, n, candidates=candidates, seed=seed)


def choose_core_set(pool: Pool, n: int, seed: int) -> Rows:
    """Choose by distance alone: k-center greedy, Sener and Savarese, ICLR 2018."""
    unit = unit_rows(pool.x)
    distance = 1 - (unit @ unit_rows(pool.labelled).T).max(axis=1)
    chosen = []
    for _ in range(n):
        farthest = int(distance.argmax())
        chosen.append(farthest)
        distance = np.minimum(distance, 1 - unit @ unit[farthest])
    return np.array(chosen, np.int64)


STRATEGIES: dict[str, Choose] = {
    "random": choose_random,
    "suggest": partial(choose_uncertain, candidates=CANDIDATES),
    "margin": partial(choose_uncertain, candidates=1),
    "core-set": choose_core_set,
    "2 candidates": partial(choose_uncertain, candidates=2),
    "10 candidates": partial(choose_uncertain, candidates=10),
}
VALIDATED = ("random", "margin", "2 candidates", "suggest", "10 candidates", "core-set")
"""Strategies that are compared on held-out train images."""
TESTED = ("random", "suggest", "margin")
"""Strategies that are compared on the test images."""


def hold_out(source: FeatureSet, seed: int) -> FeatureSet:
    """Return the train images with a fifth of each class as test images."""
    train = source.embeddings.part("train")
    rng = np.random.default_rng(seed)
    splits = np.full(len(train), "train", dtype="<U5")
    for label in np.unique(train.y):
        rows = rng.permutation(np.flatnonzero(train.y == label))
        splits[rows[: max(1, len(rows) // 5)]] = "test"
    return replace(source, embeddings=replace(train, splits=splits))


def first_images(train: Embeddings, seed: int) -> Rows:
    """Return the rows that are labelled at the start."""
    rng = np.random.default_rng(seed)
    rows = []
    for label in np.unique(train.y):
        rows.append(rng.permutation(np.flatnonzero(train.y == label))[:START])
    return np.concatenate(rows)


def fit(source: FeatureSet, train: Embeddings, labelled: Rows, seed: int) -> FittedHead:
    """Fit a linear head and its temperature on the labelled images."""
    known = train.take(labelled).append(source.embeddings.part("test"))
    return fit_head(replace(source, embeddings=known), "linear", seed, FitConfig())


def probabilities(fitted: FittedHead, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return calibrated probabilities."""
    scores = np.asarray(fitted.head.predict_proba(x), np.float64)
    return apply_temperature(scores, fitted.temperature) if fitted.temperature else scores


def measure_curve(
    source: FeatureSet, strategy: str, seed: int, rounds: int, batch: int
) -> dict[str, object]:
    """Return the number of labelled images and the predictions on the test images by round."""
    train, test = source.embeddings.part("train"), source.embeddings.part("test")
    labelled = first_images(train, seed)
    counts, predicted = [], []
    for number in tqdm(range(rounds + 1), desc=f"{source.data} {strategy}, seed {seed}"):
        fitted = fit(source, train, labelled, seed)
        scores = probabilities(fitted, test.x)
        counts.append(len(labelled))
        predicted.append(fitted.head.classes_[scores.argmax(axis=1)].tolist())
        others = np.setdiff1d(np.arange(len(train)), labelled)
        x = train.x[others]
        pool = Pool(probabilities(fitted, x), x, train.x[labelled])
        chosen = STRATEGIES[strategy](pool, batch, 1000 * seed + number)
        labelled = np.concatenate([labelled, others[chosen]])
    ids, y = list(test.ids), test.y.tolist()
    return {"labelled": counts, "ids": ids, "y": y, "predicted": predicted}


def read_cells(path: Path, strategy: str, seed: int) -> list[tuple[dict[str, object], Predictions]]:
    """Return the cells of one finished curve."""
    values = json.loads(path.read_text())
    y = np.array(values["y"])
    cells = []
    for count, predicted in zip(values["labelled"], values["predicted"], strict=True):
        place = {"strategy": strategy, "seed": seed, "labelled": count}
        cells.append((place, Predictions(values["ids"], y, np.array(predicted))))
    return cells


def at(scored: list[CellScores], count: int, strategy: str | None = None) -> list[CellScores]:
    """Return the cells with a number of labelled images, and of one strategy if it is given."""
    found = []
    for cell in scored:
        named = strategy is None or cell.place["strategy"] == strategy
        if named and cell.place["labelled"] == count:
            found.append(cell)
    return found


def summarize(
    cells: list[tuple[dict[str, object], Predictions]], strategies: tuple[str, ...], metric: str
) -> list[dict[str, object]]:
    """Return accuracy and paired differences by strategy and number of labelled images.

    Every strategy is compared with random choice, and ``suggest`` with the margin alone. p-values
    are adjusted for all comparisons of the metric (Holm).
    """
    scored = score_cells(cells, metric)
    counts = sorted({int(str(cell.place["labelled"])) for cell in scored})
    pairs = [(name, "random") for name in strategies if name != "random"]
    pairs.append(("suggest", "margin"))
    compared: list[Effect] = []
    for count in counts[1:]:
        compared += effects(at(scored, count), "strategy", pairs)
    found: dict[tuple[int, object], list[Effect]] = {}
    for place, effect in enumerate(adjusted(compared)):
        found.setdefault((counts[1 + place // len(pairs)], effect.a), []).append(effect)
    rows = []
    for name in strategies:
        for count in counts:
            mean = average(at(scored, count, name))
            row = {"metric": metric, "strategy": name, "labelled": count, "n": mean.n}
            row |= {"seeds": mean.seeds, **in_points("accuracy", mean.value, mean.interval95)}
            for effect in found.get((count, name), []):
                column = f"minus {effect.b}"
                row |= in_points(column, effect.difference, effect.interval95)
                row[f"{column} p_holm"] = float(f"{effect.p_holm:.2g}")
            rows.append(row)
    return rows


def in_points(name: str, value: float, interval95: tuple[float, float]) -> dict[str, float]:
    """Return a value and its interval in percent, by the name of the column."""
    low, high = interval95
    numbers = {name: value, f"{name} low95": low, f"{name} high95": high}
    return {column: round(100 * number, 2) for column, number in numbers.items()}


def draw(path: Path, rows: list[dict[str, object]], title: str) -> None:
    """Draw top-1 accuracy over the number of labelled images, one line per strategy."""
    lines = []
    for name in dict.fromkeys(str(row["strategy"]) for row in rows):
        own = [row for row in rows if row["strategy"] == name and row["metric"] == "top-1"]
        values = [[row[f"accuracy{end}"] for end in ("", " low95", " high95")] for row in own]
        accuracy = np.array(values, float) / 100
        counts = np.array([row["labelled"] for row in own], float)
        lines.append(Line(name, counts, accuracy[:, 0], accuracy[:, 1:]))
    figure = plot_curve(
        lines,
        title=title,
        x_label="labelled images",
        y_label=f"top-1 accuracy (%), n = {rows[0]['n']} test images",
        scale="linear",
    )
    write_file(path, png_bytes(figure))


def main() -> None:
    """Measure and write a CSV file and a figure for each data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", default=list(BATCH), help="[%(default)s]")
    parser.add_argument("--validate", action="store_true", help="compare on held-out train images")
    parser.add_argument("--seeds", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="[%(default)s]")
    parser.add_argument("--work", type=Path, default=Path("experiments/runs/learning_curve"))
    arguments = parser.parse_args()
    if not {"FEATKIT_TEST_DATA", "FEATKIT_WEIGHTS"} <= os.environ.keys():
        print("FEATKIT_TEST_DATA and FEATKIT_WEIGHTS are not set: nothing is measured")
        return
    strategies = VALIDATED if arguments.validate else TESTED
    part = "validation" if arguments.validate else "test"
    rounds = VALIDATION_ROUNDS if arguments.validate else ROUNDS
    for name in arguments.data:
        folder = str(Path(os.environ["FEATKIT_TEST_DATA"], name))
        request = {"data": folder, "backbone": "resnet18"}
        source = load_features(request, arguments.cache, Compute(progress=True))
        cells = []
        for seed in range(arguments.seeds):
            for strategy in strategies:
                path = arguments.work / f"{name}-{part}-{strategy}-{seed}.json"
                if not path.exists():
                    used = hold_out(source, seed) if arguments.validate else source
                    curve = measure_curve(used, strategy, seed, rounds, BATCH[name])
                    write_file(path, json.dumps(curve))
                cells += read_cells(path, strategy, seed)
        rows = []
        for metric in ("top-1", "balanced accuracy"):
            rows += summarize(cells, strategies, metric)
        write_file(HERE / f"{name}_{part}.csv", csv_text(rows))
        if not arguments.validate:
            title = f"{name}: linear head on ResNet-18, {arguments.seeds} seeds, 95% CI"
            draw(HERE / f"{name}.png", rows, title)


if __name__ == "__main__":
    main()
