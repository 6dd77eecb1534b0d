"""Measure how much a random split overstates accuracy on images that come in groups.

    FEATKIT_TEST_DATA=... FEATKIT_WEIGHTS=... python experiments/groups/planted.py

Of 20 classes of Caltech-101, eight photographs each are augmented five times; a photograph and its
copies are one group, as the pictures of one animal or the sections of one biopsy are. Heads are
fitted and evaluated with a random split of the images, which ignores the groups, and with a split
that keeps groups together, over ten seeds. The accuracy of the same classifiers on 20 other
photographs of each class, one picture of each, shows which of the two is right.

Takes about four minutes on one core. Writes ``results.csv``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

import featkit
from featkit.evaluation.clusters import Clusters, proportion_interval
from featkit.evaluation.effects import SEED, average, score_cells
from featkit.evaluation.predictions import Predictions
from featkit.images import load_images
from featkit.images.augment import augment_image
from featkit.runs.fit import Run
from featkit.storage import csv_text, write_file

HERE = Path(__file__).parent
CLASSES, PHOTOGRAPHS, COPIES, NEW = 20, 8, 5, 20
SEEDS = 10
HEADS = ("linear", "knn:k=1")
SPLITS = {"random split of images": "none", "split that keeps groups together": "parent"}


def main() -> None:
    """Plant groups, fit heads with both splits, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--out", type=Path, default=HERE / "results.csv")
    options = parser.parse_args()
    source = Path(os.environ["FEATKIT_TEST_DATA"], "caltech101")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(source, Path(folder), options.backbone)
    write_file(options.out, csv_text(rows))


def measure(source: Path, work: Path, backbone: str) -> list[dict[str, Any]]:
    """Return one row for each head and split."""
    plant(source, work / "grouped", work / "new")
    cache = work / "cache"
    new = featkit.extract(work / "new", backbone, cache=cache, split="50/0/50", progress=True)
    featkit.extract(work / "grouped", backbone, group="parent", cache=cache, progress=True)
    rows = []
    for head in HEADS:
        for name, group in SPLITS.items():
            runs, on_new = [], []
            for seed in range(SEEDS):
                run = featkit.fit(
                    work / "grouped",
                    backbone=backbone,
                    head=head,
                    group=group,
                    seed=seed,
                    cache=cache,
                )
                runs.append(run)
                on_new.append(Predictions(new.ids, new.y, run.head.predict(new.x)))
            rows.append({"head": head, "split": name, **summarise(runs, on_new)})
    return rows


def plant(source: Path, grouped: Path, new: Path) -> None:
    """Write ``grouped/<class>/<photograph>/<copy>.png`` and ``new/<class>/<photograph>.png``."""
    images = load_images(source)
    train = images.rows("train")
    sizes = np.bincount(images.labels[train], minlength=len(images.classes))
    chosen = np.flatnonzero(sizes >= PHOTOGRAPHS + NEW)[:CLASSES]
    rng = np.random.default_rng(0)
    for label in tqdm(chosen.tolist(), unit="class"):
        rows = rng.permutation(train[images.labels[train] == label])
        for number, row in enumerate(rows[:PHOTOGRAPHS].tolist()):
            pixels = images.load(row)
            copies = [augment_image(pixels, "light", rng) for _ in range(COPIES)]
            folder = grouped / images.classes[label] / f"{images.classes[label]}-{number}"
            save(folder, [pixels, *copies])
        fresh = []
        for row in rows[PHOTOGRAPHS : PHOTOGRAPHS + NEW].tolist():
            # One picture in six is as it was taken, as in the groups.
            pixels = images.load(row)
            is_original = rng.random() < 1 / (COPIES + 1)
            fresh.append(pixels if is_original else augment_image(pixels, "light", rng))
        save(new / images.classes[label], fresh)


def save(folder: Path, pictures: Sequence[Any]) -> None:
    """Write pictures as numbered PNG files."""
    folder.mkdir(parents=True)
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{number}.png")


def summarise(runs: Sequence[Run], on_new: Sequence[Predictions]) -> dict[str, Any]:
    """Return reported and true accuracy of the classifiers of several seeds, in percent.

    The groups are those of the photographs also for the random split: the interval is not to blame
    for its error.
    """
    reported, covered, naive = [], 0, 0
    true = [float(np.mean(each.correct)) for each in on_new]
    for seed, run in enumerate(runs):
        found = run.predictions
        groups = np.array([name.split("/")[1] for name in found.ids])
        with_groups = Predictions(found.ids, found.y, found.predicted, groups=groups)
        reported.append(({SEED: seed}, with_groups))
        low, high = proportion_interval(found.correct, Clusters.of(groups, len(groups)))
        covered += low <= true[seed] <= high
        low, high = proportion_interval(found.correct)
        naive += low <= true[seed] <= high
    mean = average(score_cells(reported))
    truth = average(score_cells([({SEED: seed}, each) for seed, each in enumerate(on_new)]))
    return {
        "reported top-1 (%)": f"{100 * mean.value:.1f}",
        "reported 95% CI": percent(mean.interval95),
        "test images": mean.n,
        "groups": mean.groups,
        "top-1 on new photographs (%)": f"{100 * truth.value:.1f}",
        "new 95% CI": percent(truth.interval95),
        "new photographs": truth.n,
        "seeds": len(runs),
        "seeds whose interval over images contains the accuracy on new photographs": naive,
        "seeds whose interval over groups contains it": covered,
    }


def percent(interval: tuple[float, float]) -> str:
    """Return an interval in percent."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


if __name__ == "__main__":
    main()
