"""Measure how many synthetic label errors and near duplicates an audit finds, compared with cleanlab.

    FEATKIT_TEST_DATA=... FEATKIT_WEIGHTS=... python experiments/benchmarks/audit.py [--repeats 3] [--cache cache]

3 % of all labels are changed, either at random (``random``) or to the class with the nearest mean feature vector
(``nearest``). Labels that were wrong before count as false positives. cleanlab, if it is installed, gets the same
labels: with featkit's probabilities in each of its filters, and with ``--whole`` its complete method
(``CleanLearning``: cross-validated logistic regression on standardised features). Nothing is measured without real
images and weights.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featkit import Compute, Embeddings, extract, load_backbone, load_images
from featkit.embeddings.extract import embed
from featkit.evaluation.audit import (
    find_label_errors,
    near_duplicates,
    nearest_neighbours,
    neighbour_class_frequencies,
)
from featkit.images.base import Pixels
from featkit.studies.audit import out_of_fold_probabilities, pool_with_neighbours

try:
    from cleanlab.classification import CleanLearning
    from cleanlab.filter import find_label_issues
except ImportError:
    find_label_issues = None

ERROR_RATE = 0.03
FILTERS = (
    "prune_by_noise_rate",
    "prune_by_class",
    "both",
    "confident_learning",
    "low_normalized_margin",
    "low_self_confidence",
)
Flags = NDArray[np.bool_]


def add_label_errors(embeddings: Embeddings, how: str, seed: int) -> NDArray[np.int64]:
    """Return the labels with 3 % of them changed."""
    x, y, k = embeddings.x, embeddings.y.copy(), len(embeddings.classes)
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(y), round(ERROR_RATE * len(y)), replace=False)
    if how == "random":
        y[rows] = (y[rows] + rng.integers(1, k, len(rows))) % k
        return y
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([unit[y == label].mean(axis=0) for label in range(k)])
    similar = unit[rows] @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    similar[np.arange(len(rows)), y[rows]] = -np.inf
    y[rows] = similar.argmax(axis=1)
    return y


def scores(flagged: Flags, wrong: Flags) -> tuple[float, float, float]:
    """Return precision, recall and F1."""
    hits = int((flagged & wrong).sum())
    return (
        hits / max(1, flagged.sum()),
        hits / wrong.sum(),
        2 * hits / (flagged.sum() + wrong.sum()),
    )


def flags(rows: NDArray[np.int64], n: int) -> Flags:
    """Return ``(n,)``, true at ``rows``."""
    found = np.zeros(n, bool)
    found[rows] = True
    return found


def methods(
    x: NDArray[np.float32], y: NDArray[np.int64], k: int, whole: bool
) -> Iterator[tuple[str, Callable[[], Flags]]]:
    """Yield each method that finds label errors; cleanlab's filters use the probabilities of featkit's."""
    pooled: list[NDArray[np.float64]] = []

    def ours() -> Flags:
        frequencies = neighbour_class_frequencies(nearest_neighbours(x), y, k)
        pooled.append(pool_with_neighbours(out_of_fold_probabilities(x, y, k)[0], frequencies))
        return flags(find_label_errors(pooled[0], y).rows, len(y))

    def theirs() -> Flags:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=400))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return CleanLearning(head).find_label_issues(x, y)["is_label_issue"].to_numpy()

    yield "featkit", ours
    if find_label_issues is not None:
        for name in FILTERS:
            yield (
                f"cleanlab {name}",
                lambda name=name: find_label_issues(y, pooled[0], filter_by=name, n_jobs=1),
            )
        if whole:
            yield "cleanlab CleanLearning", theirs


def label_errors(embeddings: Embeddings, how: str, seeds: range, whole: bool) -> None:
    """Print precision, recall and F1 of each method, averaged over seeds."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for seed in seeds:
        y = add_label_errors(embeddings, how, seed)
        for name, find in methods(embeddings.x, y, len(embeddings.classes), whole):
            start = time.perf_counter()
            flagged = find()
            values = (*scores(flagged, y != embeddings.y), time.perf_counter() - start)
            found.setdefault(name, []).append(values)
    for name, values in found.items():
        precision, recall, f1, seconds = map(statistics.mean, zip(*values, strict=True))
        spread = (
            f"{min(value[2] for value in values):.3f} to {max(value[2] for value in values):.3f}"
        )
        print(
            f"  {how:8} {name:31} {precision:.3f} {recall:.3f} {f1:.3f} ({spread}) {seconds:5.1f} s",
            flush=True,
        )


def _jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer).convert("RGB")


def _crop(image: Image.Image) -> Image.Image:
    w, h = image.size
    return image.crop((w // 20, h // 20, w - w // 20, h - h // 20))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 50": _jpeg,
    "resized to 80 %": lambda image: image.resize((image.width * 4 // 5, image.height * 4 // 5)),
    "20 % brighter": lambda image: image.point(lambda value: min(255, value * 6 // 5)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "5 % cut off each side": _crop,
}


def modified_copies(data: str, embeddings: Embeddings, network: str, count: int = 100) -> None:
    """Print the fraction of modified copies that are found as near duplicates of their originals."""
    images = load_images(data)
    rows = np.random.default_rng(0).choice(len(embeddings), count, replace=False)
    place = {name: row for row, name in enumerate(images.ids)}
    originals = images.take(np.array([place[embeddings.ids[row]] for row in rows]))
    for name, change in CHANGES.items():

        def load(row: int, change: Callable[[Image.Image], Image.Image] = change) -> Pixels:
            return np.asarray(change(Image.fromarray(originals.load(row))))

        todo = [(load_backbone(network), embeddings.recipe.precision, frozenset(range(count)))]
        x = np.empty((count, embeddings.x.shape[1]), np.float32)
        for batch in embed(replace(originals, load=load), todo, Compute(device="cpu")):
            batch_rows, features = batch.outputs[0]
            x[batch_rows] = features
        found = near_duplicates(nearest_neighbours(np.concatenate([embeddings.x, x])))
        pairs = set(map(tuple, found.pairs.tolist()))
        hits = sum((row, len(embeddings) + copy) in pairs for copy, row in enumerate(rows.tolist()))
        print(
            f"  {name:22} {hits / count:.2f} found, {len(pairs) - hits} other pairs, ratio {found.ratio:.3f}",
            flush=True,
        )


def main() -> None:
    """Measure label errors and near duplicates on each data set and network."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument(
        "--first-seed", type=int, default=2, help="0 and 1 were used to select the method"
    )
    options.add_argument("--data", nargs="+", default=["caltech101", "eurosat"])
    options.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    options.add_argument("--cache", type=Path, default=Path("cache"))
    options.add_argument(
        "--whole", action="store_true", help="also run CleanLearning, which takes minutes"
    )
    chosen = options.parse_args()
    if not {"FEATKIT_TEST_DATA", "FEATKIT_WEIGHTS"} <= os.environ.keys():
        print("FEATKIT_TEST_DATA and FEATKIT_WEIGHTS are not set: nothing is measured")
        return
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.repeats)
    for name in chosen.data:
        for network in chosen.networks:
            data = str(Path(os.environ["FEATKIT_TEST_DATA"], name))
            embeddings = extract(data, network, cache=chosen.cache)
            print(f"{name}, {network}: precision, recall, F1 (range), means of {chosen.repeats}")
            for how in ("random", "nearest"):
                label_errors(embeddings, how, seeds, chosen.whole)
            modified_copies(data, embeddings, network)


if __name__ == "__main__":
    main()
