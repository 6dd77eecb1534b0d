"""Measure how faithful class activation maps are, for every head.

    python experiments/benchmarks/faithfulness.py --data DATA --weights imagenet [--images 100]

Deletes the most important pixels of test images first, and adds them to a blurred image first
(Petsiuk, Das and Saenko, BMVC 2018), in the order of the class activation map of the predicted
class and in the order of random maps of the same resolution. Prints the mean areas under the
probability of the class, and the one-sided p-value of a paired Wilcoxon test that the map is more
faithful than a random one, whose area is the mean over several random maps. The scores of each
image are appended to a CSV file, so that an interrupted measurement goes on.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

import featkit
from featkit.backbones.explain import resize_maps
from featkit.runs.directory import SavedRun
from featkit.studies.explain import RunExplainer, curve_areas, faithfulness, masked_images

HEADS = ("linear", "svm", "knn", "mlp", "prototypical")
SIDE = 7
"""Edge of the feature maps of a ResNet for images of 224 pixels."""
STEPS = 10
COLUMNS = ("head", "image", "deletion", "deletion_random", "insertion", "insertion_random")


def main() -> None:
    """Measure what is not in the file yet, and print one line per head."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--random-maps", type=int, default=5, help="for each image [%(default)s]")
    parser.add_argument("--heads", nargs="+", default=list(HEADS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("faithfulness.csv"))
    options = parser.parse_args()

    if not options.out.exists():
        options.out.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    missing = [
        head
        for head in options.heads
        if len(scores_of(options.out, head)["image"]) < options.images
    ]
    if missing:
        measure(missing, options)
    print(f"{'head':14}{'n':>5}{'deletion':>22}{'insertion':>22}")
    print(f"{'':19}{'map / random / p':>22}{'map / random / p':>22}")
    for head in options.heads:
        scores = scores_of(options.out, head)
        texts = [
            comparison(scores["deletion"], scores["deletion_random"], "less"),
            comparison(scores["insertion"], scores["insertion_random"], "greater"),
        ]
        print(f"{head:14}{len(scores['image']):>5}{texts[0]:>22}{texts[1]:>22}", flush=True)


def scores_of(path: Path, head: str) -> dict[str, list[Any]]:
    """Return the columns of the file for one head."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["head"] == head:
                for name, values in columns.items():
                    values.append(row[name] if name in ("head", "image") else float(row[name]))
    return columns


def comparison(own: list[float], random: list[float], alternative: str) -> str:
    """Return the means and the p-value of the one-sided test."""
    p = wilcoxon(own, random, alternative=alternative).pvalue
    return f"{np.mean(own):.3f} / {np.mean(random):.3f} / {p:.1g}"


def measure(heads: list[str], options: argparse.Namespace) -> None:
    """Append the scores of the images that have none yet.

    The images masked in the order of the random map go through the network once for all heads.
    """
    explainers = {head: RunExplainer(fitted_run(head, options)) for head in heads}
    first = next(iter(explainers.values()))
    images = fitted_run(heads[0], options).request.load_images()
    rng = np.random.default_rng(options.seed)
    rows = rng.choice(images.rows("test"), options.images, replace=False)
    done = {head: set(scores_of(options.out, head)["image"]) for head in heads}
    with options.out.open("a", newline="", encoding="utf-8") as file:
        for row in rows:
            noise = rng.normal(size=(options.random_maps, SIDE, SIDE)).astype(np.float32)
            name = images.ids[row]
            missing = [head for head in heads if name not in done[head]]
            if not missing:
                continue
            pixels = first.prepare(images.load(int(row)))
            features = [
                first.features(masked_images(pixels, heat, STEPS))
                for heat in resize_maps(noise, pixels.shape[:2])
            ]
            for head in missing:
                explainer = explainers[head]
                found = explainer.explain(pixels[None])[0]
                column = explainer.column(found.label)
                own = faithfulness(explainer.predict, pixels, found.heat, column, steps=STEPS)
                random = [
                    curve_areas(explainer.probabilities(rows)[:, column]) for rows in features
                ]
                scores = (
                    own.deletion,
                    np.mean([areas.deletion for areas in random]),
                    own.insertion,
                    np.mean([areas.insertion for areas in random]),
                )
                csv.writer(file).writerow([head, name, *scores])
                file.flush()


def fitted_run(head: str, options: argparse.Namespace) -> SavedRun:
    """Return the run of a head, fitted by an earlier call or now."""
    folder = options.out.with_suffix("") / head
    found = sorted(folder.glob("*/*/card.json"))
    if not found:
        featkit.fit(
            options.data,
            backbone=options.backbone,
            weights=options.weights,
            head=head,
            cache=options.cache,
            out=folder,
        )
        found = sorted(folder.glob("*/*/card.json"))
    return featkit.load_run(found[0].parent)


if __name__ == "__main__":
    main()
