from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models import ResNet50_Weights
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import InterpolationMode

from featkit.backbones import base
from featkit.backbones.base import Preprocess
from featkit.backbones.load import override
from featkit.errors import SpecError

SIZES = [
    (300, 240),
    (240, 301),
    (8, 8),
    (1, 1),
    (7, 31),
    (255, 257),
    (224, 224),
    (64, 64),
    (333, 500),
    (3, 200),
]


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )


def network_input(preprocess: Preprocess, image: np.ndarray) -> np.ndarray:
    return preprocess.normalise(preprocess(image).transpose(2, 0, 1)[None].astype(np.float32))[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("weights", "resize"), [(w, {"1": 256, "2": 232}[w.name[-1]]) for w in ResNet50_Weights]
)
def test_preprocessing_equals_the_transform_of_torchvisions_weights(size, weights, resize):
    image = random_image(*size)
    theirs = weights.transforms()(Image.fromarray(image)).numpy()
    np.testing.assert_allclose(
        network_input(Preprocess(resize=resize), image), theirs, atol=1e-6, rtol=0
    )


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    resize=st.integers(1, 70),
    crop=st.integers(1, 70),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_preprocessing_equals_torchvision_even_if_the_crop_is_larger_than_the_image(
    height, width, resize, crop, interpolation
):
    image = random_image(height, width)
    transform = ImageClassification(
        crop_size=crop, resize_size=resize, interpolation=InterpolationMode[interpolation.upper()]
    )
    ours = network_input(Preprocess(resize, (crop, crop), interpolation), image)
    np.testing.assert_allclose(ours, transform(Image.fromarray(image)).numpy(), atol=1e-6, rtol=0)


def test_a_very_long_image_is_not_resized_completely():
    strip = np.full((1, 100_000, 3), 200, dtype=np.uint8)
    assert (Preprocess()(strip) == 200).all()


def test_resizing_only_the_visible_part_equals_resizing_everything(monkeypatch):
    image = random_image(5, 333)
    for preprocess in (Preprocess(64, (56, 56)), Preprocess(40, (56, 56))):
        whole = preprocess(image).astype(int)
        monkeypatch.setattr(base, "_MAX_PIXELS", 0)
        assert np.abs(preprocess(image) - whole).max() <= 1
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("resize", "crop", "expected"),
    [
        (None, None, (256, (224, 224))),
        ("256", None, (256, (224, 224))),
        ("64", None, (64, (64, 64))),
        ("512", "448", (512, (448, 448))),
        (None, "200", (256, (200, 200))),
        ("224x224", None, ((224, 224), (224, 224))),
        ("100x200", None, ((100, 200), (100, 200))),
        ("100x200", "none", ((100, 200), (100, 200))),
        ("100x200", "96", ((100, 200), (96, 96))),
    ],
)
def test_sizes_are_overridden(resize, crop, expected):
    changed = override(Preprocess(), resize, crop)
    assert (changed.resize, changed.crop) == expected


@pytest.mark.parametrize(
    "text", ["0", "-1", "", "big", "1.5", "224x", "x224", "2x2x2", "0x5", "10000", "٣"]
)
def test_a_malformed_resize_is_rejected(text):
    with pytest.raises(SpecError, match=r"resize .* is not N or HEIGHTxWIDTH"):
        override(Preprocess(), text, None)


@pytest.mark.parametrize("text", ["0", "-1", "", "None", "224x224"])
def test_a_malformed_crop_is_rejected(text):
    with pytest.raises(SpecError, match=r"crop .* is not N or none"):
        override(Preprocess(), None, text)


@pytest.mark.parametrize(("resize", "crop"), [(None, "257"), ("32", "33"), ("100x200", "101")])
def test_a_crop_larger_than_the_image_is_rejected(resize, crop):
    with pytest.raises(SpecError, match="larger"):
        override(Preprocess(), resize, crop)


def test_crop_none_requires_a_fixed_image_size():
    with pytest.raises(SpecError, match="different sizes"):
        override(Preprocess(), "256", "none")


@pytest.mark.parametrize("size", SIZES)
def test_fast_preprocessing_differs_by_at_most_one_level(size):
    image = random_image(*size)
    exact, near = Preprocess()(image), Preprocess().fast(image)
    assert near.shape == exact.shape
    assert np.abs(exact.astype(int) - near).max() <= 1
