"""Inputs of a training from large JPEG files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from featkit.embeddings import store
from featkit.embeddings.verify import verify
from featkit.training.data import make_inputs
from featkit.training.finetune import initial_model
from featkit.training.prepare import prepare
from tests.training.conftest import COMPUTE


@pytest.mark.parametrize(
    ("mode", "augment"), [("shallow", None), ("shallow", "basic"), ("deep", None)]
)
def test_cached_inputs_of_large_photos_are_decoded_in_full(make_config, tmp_path, mode, augment):
    """As augmented views are, and the images of the evaluation."""
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (70, 80, 3), dtype=np.uint8)
        path = tmp_path / "photos" / ("test" if number < 2 else "train") / "ab"[number % 2]
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path / f"{number}.jpg")
    data = {"data": str(tmp_path / "photos"), "limit": None, "resize": "8", "crop": "8"}
    prepared = prepare(make_config(mode=mode, augment=augment, val=0.3, **data), COMPUTE)
    assert prepared.config.request.decode is None  # the run id is that of earlier versions
    make_inputs(prepared, initial_model(prepared).body, COMPUTE)
    (path,) = (tmp_path / "cache").glob("*.h5")
    assert store.describe(path).recipe.decode == "full"


@pytest.fixture
def split_photos(tmp_path):
    """Return a folder of 12 images in ``train`` and 4 in ``test``, of two classes."""
    for number in range(16):
        pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        path = tmp_path / "photos" / ("test" if number < 4 else "train") / "ab"[number % 2]
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def cached(make_config, split_photos, tmp_path):
    """Return a function that caches the inputs of a training, and returns the file."""

    def make(mode, augment):
        data = {"data": str(split_photos), "limit": None}
        prepared = prepare(make_config(mode=mode, augment=augment, val=0.3, **data), COMPUTE)
        make_inputs(prepared, initial_model(prepared).body, COMPUTE)
        (path,) = (tmp_path / "cache").glob("*.h5")
        return path

    return make


@pytest.mark.parametrize(
    ("mode", "augment"), [("shallow", None), ("shallow", "basic"), ("deep", "light")]
)
def test_the_file_of_a_training_has_no_problems(cached, mode, augment):
    """It holds neither test images nor only the images of its request."""
    assert verify(cached(mode, augment), COMPUTE) == []


@pytest.mark.parametrize("augment", [None, "basic"])
def test_changes_of_the_images_of_a_training_are_named(cached, split_photos, augment):
    path = cached("shallow", augment)
    Image.new("RGB", (9, 9), "red").save(split_photos / "train" / "a" / "4.png")
    (split_photos / "train" / "b" / "5.png").unlink()
    Image.new("RGB", (9, 9), "pink").save(split_photos / "train" / "a" / "new.png")
    Image.new("RGB", (9, 9), "blue").save(split_photos / "test" / "a" / "new.png")
    lines = [line.removeprefix(f"{path}: ") for line in verify(path, COMPUTE)]
    changes = ["train/a/new.png is new", "train/a/4.png is changed", "train/b/5.png is removed"]
    assert lines == [f"{change} since the file was made" for change in changes]
