"""Inputs of a training from large JPEG files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from featkit.embeddings import store
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
