"""Augmented views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from featkit.errors import SpecError
from featkit.images import policies
from featkit.images.augment import (
    AUGMENTATIONS,
    add_augmented_views,
    augment_image,
    is_augmented_view,
    original_id,
)

ANY = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_views_follow_their_image_and_only_train_images_have_them(colours):
    images = colours(6)
    wide = add_augmented_views(images, "basic", 2)
    assert wide.ids[:4] == ("0.png", "0.png#view1", "0.png#view2", "1.png")
    assert wide.ids[-2:] == ("4.png", "5.png")
    clean = [row for row, name in enumerate(wide.ids) if not is_augmented_view(name)]
    assert tuple(wide.ids[row] for row in clean) == images.ids
    assert (wide.splits[[row for row in range(len(wide)) if row not in clean]] == "train").all()
    for row in clean:
        np.testing.assert_array_equal(wide.load(row), images.load(images.ids.index(wide.ids[row])))
    sources = [images.ids.index(original_id(name)) for name in wide.ids]
    np.testing.assert_array_equal(wide.labels, images.labels[sources])


@pytest.mark.parametrize("how", AUGMENTATIONS)
def test_a_view_depends_on_content_number_and_seed_only(how, colours):
    wide, again, other = (add_augmented_views(colours(6), how, 3, seed) for seed in (0, 0, 1))
    assert len({wide.key(row) for row in range(len(wide))}) == len(wide)
    assert [wide.key(row) for row in range(8)] == [again.key(row) for row in range(8)]
    np.testing.assert_array_equal(wide.load(2), again.load(2))
    assert wide.key(2) != other.key(2)
    assert wide.key(0) == other.key(0)
    assert not np.array_equal(wide.load(1), wide.load(2))


def test_an_image_is_read_once_for_all_its_views(colours):
    images, read = colours(6), []
    counted = replace(images, load=lambda row: read.append(row) or images.load(row))
    wide = add_augmented_views(counted, "basic", 5)
    for row in range(len(wide)):
        wide.load(row)
    assert read == list(range(6))


@given(
    st.integers(1, 70), st.integers(1, 70), st.sampled_from(AUGMENTATIONS), st.integers(0, 2**32)
)
def test_images_of_any_shape_have_views_of_one_shape(height, width, how, seed):
    """Shifted images keep their shape."""
    pixels = np.full((height, width, 3), 77, np.uint8)
    expected = (height, width, 3) if how == "shift" else (256, 256, 3)
    assert augment_image(pixels, how, np.random.default_rng(seed)).shape == expected


def test_the_autoaugment_policy_equals_that_of_the_paper():
    theirs = AutoAugment()._get_policies(AutoAugmentPolicy.IMAGENET)
    ours = [
        tuple((name, share, strength or 0) for name, share, strength in pair) for pair in theirs
    ]
    assert ours == list(policies._IMAGENET)


@pytest.mark.parametrize("name", policies._OPERATIONS)
def test_operations_at_magnitude_0_change_nothing(name):
    image = Image.fromarray(ANY)
    changed = np.asarray(policies._OPERATIONS[name](image, 0.0))
    strong = np.asarray(policies._OPERATIONS[name](image, 0.5 * policies._WIDE.get(name, 1.0)))
    assert changed.shape == strong.shape == ANY.shape
    if name not in {"AutoContrast", "Equalize", "Invert"}:
        np.testing.assert_array_equal(changed, ANY)
    assert np.array_equal(strong, ANY) == (name in {"Identity", "AutoContrast"})


def test_an_unknown_kind_or_number_is_refused(colours):
    with pytest.raises(
        SpecError, match=r"unknown augmentation 'cutout'.*basic, light, shift, trivial"
    ):
        add_augmented_views(colours(), "cutout", 1)
    with pytest.raises(SpecError, match="views 0: give a number from 1"):
        add_augmented_views(colours(), "basic", 0)
