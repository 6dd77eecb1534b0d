"""Measures of the quality of images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from featkit.images.quality import MEASURES, measure

RNG = np.random.default_rng(0)
SCENE = RNG.integers(0, 256, (120, 200, 3), dtype=np.uint8)


def value(pixels: np.ndarray, name: str) -> float:
    return float(measure(pixels)[MEASURES.index(name)])


def test_size_and_aspect_are_those_of_the_pixels() -> None:
    assert value(SCENE, "size") == pytest.approx(np.log2(24000))
    assert value(SCENE, "aspect") == pytest.approx(np.log2(200 / 120))
    assert value(SCENE.transpose(1, 0, 2), "aspect") == pytest.approx(-np.log2(200 / 120))


def test_dark_and_bright_are_on_both_sides_of_grey() -> None:
    grey = np.full((40, 40, 3), 128, np.uint8)
    assert value(grey, "brightness") == pytest.approx(0, abs=0.02)
    assert value(grey // 16, "brightness") < -3
    assert value(255 - grey // 16, "brightness") > 3
    assert value(grey // 16, "brightness") == pytest.approx(-value(255 - grey // 16, "brightness"))


def test_blur_lowers_sharpness_and_contrast_does_not() -> None:
    levels = []
    for radius in (0, 1, 2, 4):
        blurred = Image.fromarray(SCENE).filter(ImageFilter.GaussianBlur(radius))
        levels.append(value(np.asarray(blurred), "sharpness"))
    assert levels == sorted(levels, reverse=True)
    assert levels[0] - levels[2] > 1
    assert value(SCENE // 2, "sharpness") == pytest.approx(levels[0], abs=0.05)


def test_information_is_the_entropy_of_grey_levels() -> None:
    assert value(np.full((40, 40, 3), 7, np.uint8), "information") == 0
    halves = np.zeros((40, 40, 3), np.uint8)
    halves[:20] = 255
    assert value(halves, "information") == pytest.approx(1)
    assert 6 < value(SCENE, "information") < 8


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 900, 3), (2, 5, 3)])
def test_tiny_images_have_measures(shape: tuple[int, int, int]) -> None:
    values = measure(np.full(shape, 255, np.uint8))
    assert np.isfinite(values[[0, 2, 3, 4]]).all()
    assert np.isnan(values[1])  # nothing in it could be blurred
