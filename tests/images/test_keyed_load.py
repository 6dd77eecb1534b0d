"""Pixels come with the key of the bytes that they were decoded from, whatever happens to the file."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from featkit.errors import DataError
from featkit.images import load_images
from featkit.images.augment import add_augmented_views
from featkit.images.base import ImageSet, cache_last_row
from featkit.images.perturb import perturb_images, perturb_split

VARIANTS = {
    "files": lambda images: images,
    "some rows": lambda images: images.take(np.arange(0, len(images), 2)),
    "augmented": lambda images: add_augmented_views(images, "basic", 2),
    "perturbed": lambda images: perturb_images(images, "fog:level=mild"),
    "perturbed test images": lambda images: perturb_split(images, "fog:level=mild", "test"),
    "perturbed rows": lambda images: perturb_images(
        images.take(np.arange(6)), "fog:level=mild", splits=("train", "test")
    ),
}


def replace_images(folder) -> None:
    for path in sorted(folder.rglob("*.png")):
        Image.new("RGB", (20, 24), "white").save(path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_key_is_that_of_the_pixels(variant, photos):
    images = VARIANTS[variant](load_images(str(photos)))
    for row in range(len(images)):
        pixels, key = images.load_with_key(row)
        np.testing.assert_array_equal(pixels, images.load(row))
        assert key == images.key(row)
        np.testing.assert_array_equal(images.load_unchanged(row, key), pixels)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_that_was_replaced_after_its_key_was_computed_is_refused(variant, photos):
    images = VARIANTS[variant](load_images(str(photos)))
    keys = [images.key(row) for row in range(len(images))]
    replace_images(photos)
    for row, key in enumerate(keys):
        with pytest.raises(DataError, match=r"\.png.* was changed while it was in use"):
            images.load_unchanged(row, key)


def test_the_key_does_not_come_from_another_reading_of_the_file(photos, monkeypatch):
    """The file is replaced after it was read, and has its old content when it is read again."""
    images = load_images(str(photos))
    before = images.key(0)
    path = photos / images.ids[0]
    content = path.read_bytes()
    Image.new("RGB", (20, 24), "white").save(path)
    pixels, key = images.load_with_key(0)
    path.write_bytes(content)
    assert (pixels == 255).all()
    assert key != before
    assert images.key(0) == before


def test_a_plain_function_of_a_plug_in_is_checked_by_a_key_computed_afterwards(photos):
    files = load_images(str(photos))
    decode, key_of = files.load, files.key
    plain = ImageSet(
        "plug-in",
        files.ids,
        files.labels,
        files.classes,
        files.splits,
        files.split,
        load=lambda row: decode(row),
        key=lambda row: key_of(row),
    )
    images = perturb_images(plain.take(np.arange(4)), "fog:level=mild", splits=("train", "test"))
    keys = [images.key(row) for row in range(4)]
    images.load_unchanged(0, keys[0])
    replace_images(photos)
    with pytest.raises(DataError, match="was changed"):
        images.load_unchanged(1, keys[1])


def test_a_cached_image_keeps_its_own_key(photos):
    images = load_images(str(photos))
    load_with_key = cache_last_row(images.load_with_key)
    first = load_with_key(0)
    replace_images(photos)
    assert load_with_key(0) is first
    assert load_with_key(1)[1] == images.key(1)
