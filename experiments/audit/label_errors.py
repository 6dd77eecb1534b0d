"""Measure what removing label errors with an audit changes: plant errors, audit, fit again.

    FEATKIT_TEST_DATA=... FEATKIT_WEIGHTS=... python experiments/audit/label_errors.py

A part of the training labels is changed, to any other class (``random``) or to the class with the
most similar mean feature vector (``similar``). ``featkit audit --apply labels --out clean.csv``
corrects the list of images, and a linear head is fitted on the list without errors, with errors
(before) and corrected (after). Test labels are not changed. Finished cells are kept in ``--work``:
an interrupted run continues.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featkit import api
from featkit.errors import DataError
from featkit.evaluation.effects import CellScores, Effect, adjusted, average, effects, score_cells
from featkit.evaluation.predictions import Predictions
from featkit.images.base import ImageSet
from featkit.storage import csv_text, write_file

ERRORS = (("random", 0.05), ("random", 0.1), ("similar", 0.1))
"""Kinds of planted errors, and the fraction of the training labels that is changed."""
SEEDS = (0, 1, 2)
MOST_TRAIN = {"caltech101": 20}
"""Train images of each class that are used, so that all cells take minutes; others use all."""
VERSIONS = ("after", "before", "no errors")
PAIRS = (("after", "before"), ("no errors", "after"))
NETWORK = "resnet18"
HERE = Path(__file__).parent

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Cell:
    """Data, kind and fraction of planted errors, and the seed that selected them."""

    data: str
    kind: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        """Name for files."""
        return f"{self.data}-{self.kind}-{self.fraction}-{self.seed}"


def plant_errors(images: ImageSet, x: NDArray[np.float32], cell: Cell) -> Labels:
    """Return the labels ``(n,)`` with a fraction of those of the training images changed."""
    rng = np.random.default_rng(cell.seed)
    labels, k = images.labels.copy(), len(images.classes)
    train = images.rows("train")
    rows = rng.choice(train, round(cell.fraction * len(train)), replace=False)
    if cell.kind == "random":
        labels[rows] = (labels[rows] + rng.integers(1, k, len(rows))) % k
        return labels
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([unit[train][labels[train] == each].mean(axis=0) for each in range(k)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    similarity = means @ means.T
    np.fill_diagonal(similarity, -np.inf)
    labels[rows] = similarity.argmax(axis=1)[labels[rows]]
    return labels


def used_rows(images: ImageSet, most: int | None) -> Labels:
    """Return the rows of the test images and of at most ``most`` train images of each class."""
    if most is None:
        return np.arange(len(images))
    rng = np.random.default_rng(0)
    rows = [np.flatnonzero(images.splits != "train")]
    train = images.rows("train")
    for label in range(len(images.classes)):
        rows.append(rng.permutation(train[images.labels[train] == label])[:most])
    return np.sort(np.concatenate(rows))


def write_list(path: Path, images: ImageSet, labels: Labels) -> None:
    """Write images as ``path,label,split``."""
    rows = []
    for row, file in enumerate(images.files):
        label, split = images.classes[labels[row]], str(images.splits[row])
        rows.append({"path": file, "label": label, "split": split})
    write_file(path, csv_text(rows))


def read_labels(path: Path) -> dict[str, str]:
    """Return the label of each listed image."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["path"]: row["label"] for row in csv.DictReader(file)}


def fit(path: Path, cache: Path) -> dict[str, list[str]]:
    """Fit a linear head on listed images; return ids, classes and predictions on the test set."""
    run = api.fit(path, backbone=NETWORK, head="linear", cache=cache, progress=True)
    rows = run.prediction_rows()
    return {name: [str(row[name]) for row in rows] for name in ("id", "true", "predicted")}


def measure(cell: Cell, images: ImageSet, x: NDArray[np.float32], work: Path, cache: Path) -> None:
    """Plant errors, audit, and fit before and after; write the results as one JSON file."""
    target = work / f"{cell.name}.json"
    if target.exists():
        return
    true = work / f"{cell.data}.csv"
    noisy, clean = work / f"noisy-{cell.data}.csv", work / f"clean-{cell.data}.csv"
    labels = plant_errors(images, x, cell)
    write_list(noisy, images, labels)
    api.audit(noisy, backbone=NETWORK, cache=cache, apply="labels", out=clean, progress=True)
    right, wrong, corrected = map(read_labels, (true, noisy, clean))
    changed = [name for name in wrong if wrong[name] != corrected[name]]
    planted = [name for name in wrong if wrong[name] != right[name]]
    result = {
        "train": int((images.splits == "train").sum()),
        "planted": len(planted),
        "relabelled": len(changed),
        "planted_and_relabelled": sum(wrong[name] != corrected[name] for name in planted),
        "right_again": sum(corrected[name] == right[name] for name in planted),
        "before": fit(noisy, cache),
        "after": fit(clean, cache),
    }
    write_file(target, json.dumps(result))
    for listed in (noisy, clean):
        for path in cache.glob(f"{listed.stem}-*.h5"):
            path.unlink()
    print(cell.name, {name: result[name] for name in list(result)[:5]}, flush=True)


def predictions(values: dict[str, list[str]]) -> Predictions:
    """Return predictions as featkit compares them."""
    return Predictions(values["id"], np.array(values["true"]), np.array(values["predicted"]))


def summarize(data: list[str], work: Path) -> list[dict[str, object]]:
    """Return counts, accuracies and paired differences by data set and kind of errors.

    Only finished cells count; p-values are adjusted for all comparisons (Holm).
    """
    rows: list[dict[str, object]] = []
    compared: list[Effect] = []
    for name in data:
        reference = json.loads((work / f"{name}-true.json").read_text())
        for kind, fraction in ERRORS:
            cells, counts = [], []
            for seed in SEEDS:
                path = work / f"{Cell(name, kind, fraction, seed).name}.json"
                if not path.exists():
                    continue
                result = json.loads(path.read_text())
                counts.append(result)
                for version in VERSIONS:
                    values = reference if version == "no errors" else result[version]
                    cells.append(({"labels": version, "seed": seed}, predictions(values)))
            if not cells:
                continue
            scored = score_cells(cells)
            compared += effects(scored, "labels", PAIRS)
            rows.append(describe(name, kind, fraction, counts, scored))
    corrected = adjusted(compared)
    for place, row in enumerate(rows):
        for each in corrected[place * len(PAIRS) : (place + 1) * len(PAIRS)]:
            prefix = f"{each.a} - {each.b}"
            low, high = each.interval95
            row |= {
                prefix: round(100 * each.difference, 2),
                f"{prefix} low95": round(100 * low, 2),
                f"{prefix} high95": round(100 * high, 2),
                f"{prefix} p_holm": float(f"{each.p_holm:.2g}"),
            }
    return rows


def describe(
    name: str, kind: str, fraction: float, counts: list[dict[str, int]], scored: list[CellScores]
) -> dict[str, object]:
    """Return counts and accuracies of one data set and kind of errors."""
    total = {field: sum(each[field] for each in counts) for field in list(counts[0])[:5]}
    row: dict[str, object] = {
        "data": name,
        "errors": kind,
        "fraction": fraction,
        "seeds": len(counts),
        "train": counts[0]["train"],
        "planted": counts[0]["planted"],
        "recall": round(total["planted_and_relabelled"] / total["planted"], 3),
        "precision": round(total["planted_and_relabelled"] / total["relabelled"], 3),
        "right_again": round(total["right_again"] / total["planted"], 3),
    }
    for version in ("before", "after", "no errors"):
        mean = average([cell for cell in scored if cell.place["labels"] == version])
        row["n"] = mean.n
        row[version] = round(100 * mean.value, 2)
        row[f"{version} low95"] = round(100 * mean.interval95[0], 2)
        row[f"{version} high95"] = round(100 * mean.interval95[1], 2)
    return row


def main() -> None:
    """Measure and write ``results.csv``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", nargs="+", default=["caltech101", "eurosat"], help="[%(default)s]"
    )
    parser.add_argument(
        "--summarize", action="store_true", help="measure nothing, summarize finished cells"
    )
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="[%(default)s]")
    parser.add_argument("--work", type=Path, default=Path("experiments/runs/label_errors"))
    arguments = parser.parse_args()
    if not {"FEATKIT_TEST_DATA", "FEATKIT_WEIGHTS"} <= os.environ.keys():
        print("FEATKIT_TEST_DATA and FEATKIT_WEIGHTS are not set: nothing is measured")
        return
    work = arguments.work
    for name in [] if arguments.summarize else arguments.data:
        folder = str(Path(os.environ["FEATKIT_TEST_DATA"], name))
        embeddings = api.extract(folder, NETWORK, cache=arguments.cache, progress=True)
        images = api.load_images(folder)
        if embeddings.ids != images.ids:
            raise DataError(f"{folder} was changed while its features were extracted")
        rows = used_rows(images, MOST_TRAIN.get(name))
        images, x = images.take(rows), embeddings.x[rows]
        write_list(work / f"{name}.csv", images, images.labels)
        if not (work / f"{name}-true.json").exists():
            reference = fit(work / f"{name}.csv", arguments.cache)
            write_file(work / f"{name}-true.json", json.dumps(reference))
        for kind, fraction in ERRORS:
            for seed in SEEDS:
                cell = Cell(name, kind, fraction, seed)
                measure(cell, images, x, work, arguments.cache)
    write_file(HERE / "results.csv", csv_text(summarize(arguments.data, work)))


if __name__ == "__main__":
    main()
