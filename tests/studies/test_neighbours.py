"""The training images that are most similar to given files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featkit


def photo(path: Path, number: int) -> None:
    """Write a JPEG file that is large for a network that needs 32 pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=90)


@pytest.mark.parametrize("decode", ["scaled", "full"])
def test_a_training_photo_is_most_similar_to_itself(tmp_path: Path, decode: str) -> None:
    """It is decoded as for the features of the run."""
    for number in range(12):
        split = "test" if number < 4 else "train"
        photo(tmp_path / "photos" / split / "ab"[number % 2] / f"{number}.jpg", number)
    run = featkit.fit(
        tmp_path / "photos",
        backbone="resnet18",
        weights="random",
        resize="32",
        crop="32",
        precision="fp32",
        device="cpu",
        head="prototypical",
        decode=decode,
        cache=tmp_path / "cache",
    )
    query = tmp_path / "photos" / "train" / "a" / "6.jpg"
    found = featkit.neighbours(run, [query], k=1, cache=tmp_path / "cache", device="cpu")
    (row,) = found.rows()
    assert row["similar"] == "train/a/6.jpg"
    assert row["cosine"] == pytest.approx(1, abs=1e-6)
