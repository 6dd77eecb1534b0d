"""Compose images with several labels from photographs of Caltech-101.

    FEATKIT_TEST_DATA=... python experiments/multilabel/compose.py FOLDER

Two photographs side by side are one image, which has the labels of both, or one label if both are
of the same class. The 20 classes with the most photographs are used; train images are composed of
train photographs, test images of test photographs, and no photograph is used twice. Writes 1,000
train and 400 test images of 224 pixels height and ``labels.csv`` (``path,label,split``, such as
``brain;piano``) to the folder.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from featkit.storage import csv_text, write_file

CLASSES = 20
IMAGES = {"train": 1000, "test": 400}
HEIGHT, WIDTH = 224, 112
"""Size in pixels of one photograph: a crop of its middle."""


def main() -> None:
    """Compose the images into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    source = Path(os.environ["FEATKIT_TEST_DATA"], "caltech101")
    compose(source, options.folder, options.seed)


def compose(source: Path, folder: Path, seed: int = 0) -> None:
    """Write composed images and ``labels.csv`` to ``folder``.

    Args:
        source: Caltech-101, with a folder ``train`` and ``test`` of class folders.
        folder: made if it does not exist.
        seed: of the pairs.
    """
    photographs = {
        name: sorted((source / "train" / name).iterdir())
        for name in sorted(path.name for path in (source / "train").iterdir())
    }
    classes = sorted(photographs, key=lambda name: (-len(photographs[name]), name))[:CLASSES]
    rows = []
    for number, (split, count) in enumerate(IMAGES.items()):
        rng = np.random.default_rng([seed, number])
        files = [path for name in classes for path in sorted((source / split / name).iterdir())]
        drawn = rng.permutation(len(files))[: 2 * count].reshape(count, 2)
        (folder / split).mkdir(parents=True, exist_ok=True)
        for index, pair in enumerate(tqdm(drawn.tolist(), desc=split)):
            left, right = (files[position] for position in pair)
            name = f"{split}/{index:04d}.jpg"
            side_by_side(left, right).save(folder / name, quality=90)
            labels = sorted({left.parent.name, right.parent.name})
            rows.append({"path": name, "label": ";".join(labels), "split": split})
    write_file(folder / "labels.csv", csv_text(rows))


def side_by_side(left: Path, right: Path) -> Image.Image:
    """Return the middles of two photographs, each ``HEIGHT`` by ``WIDTH``, beside each other."""
    image = Image.new("RGB", (2 * WIDTH, HEIGHT))
    for place, path in enumerate((left, right)):
        with Image.open(path) as photograph:
            part = ImageOps.fit(photograph.convert("RGB"), (WIDTH, HEIGHT))
        image.paste(part, (place * WIDTH, 0))
    return image


if __name__ == "__main__":
    main()
