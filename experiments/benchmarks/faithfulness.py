"""Measure how faithful class activation maps are, for every head.

    python experiments/benchmarks/faithfulness.py --data DATA --weights imagenet [--images 100]

Deletes the most important pixels of test images first, and adds them to a blurred image first
(Petsiuk, Das and Saenko, BMVC 2018), in the order of the class activation map of the predicted
class and in the order of a random map of the same resolution. Prints the mean areas under the
probability of the class, and the one-sided p-value of a paired Wilcoxon test that the map is more
faithful than the random one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

import featkit
from featkit.backbones.explain import resize_maps
from featkit.studies.explain import RunExplainer, faithfulness

HEADS = ("linear", "svm", "knn", "mlp", "prototypical")
SIDE = 7
"""Edge of the feature maps of a ResNet for images of 224 pixels."""
STEPS = 10


def main() -> None:
    """Print one line per head."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--heads", nargs="+", default=list(HEADS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    print(f"{'head':14}{'n':>5}{'deletion':>22}{'insertion':>22}")
    print(f"{'':19}{'map / random / p':>22}{'map / random / p':>22}")
    for head in options.heads:
        run = featkit.fit(
            options.data,
            backbone=options.backbone,
            weights=options.weights,
            head=head,
            cache=options.cache,
        )
        deletion, insertion = measure(run, options.images, options.seed)
        texts = [
            f"{np.mean(own):.3f} / {np.mean(random):.3f} / {p:.1g}"
            for own, random, p in (
                (*deletion, wilcoxon(*deletion, alternative="less").pvalue),
                (*insertion, wilcoxon(*insertion, alternative="greater").pvalue),
            )
        ]
        print(f"{head:14}{len(deletion[0]):>5}{texts[0]:>22}{texts[1]:>22}", flush=True)


def measure(
    run: Any, count: int, seed: int
) -> tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]:
    """Return the deletion and the insertion areas, each of the map and of a random map."""
    explainer = RunExplainer(featkit.load_run(run))
    images = run.source.request.load_images()
    rng = np.random.default_rng(seed)
    rows = rng.choice(images.rows("test"), count, replace=False)
    deletion: tuple[list[float], list[float]] = ([], [])
    insertion: tuple[list[float], list[float]] = ([], [])
    for row in rows:
        pixels = explainer.prepare(images.load(int(row)))
        found = explainer.explain(pixels[None])[0]
        noise = rng.normal(size=(1, SIDE, SIDE)).astype(np.float32)
        for place, heat in enumerate((found.heat, resize_maps(noise, pixels.shape[:2])[0])):
            column = explainer.column(found.label)
            scores = faithfulness(explainer.predict, pixels, heat, column, steps=STEPS)
            deletion[place].append(scores.deletion)
            insertion[place].append(scores.insertion)
    return deletion, insertion


if __name__ == "__main__":
    main()
