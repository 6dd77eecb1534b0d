"""Augmented views: further images, each made from one train image and found again under its name and number."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featkit.errors import SpecError
from featkit.images.base import ImageSet, Pixels, cache_last_row
from featkit.images.policies import autoaugment, randaugment, trivialaugment
from featkit.registry import unknown

Change = Callable[[Image.Image, np.random.Generator], Image.Image]

AUGMENTATIONS = ("basic", "light", "shift", "trivial", "auto", "rand")
MOST_VIEWS = 100
_AREA, _LIGHT_AREA, _RATIO = (0.08, 1.0), (0.5, 1.0), (3 / 4, 4 / 3)
_EDGE = 256
_NAME = re.compile(r"#view[1-9]\d*$")


def add_augmented_views(images: ImageSet, how: str, views: int, seed: int = 0) -> ImageSet:
    """Return the images with some augmented views after each train image.

    A view has the name of its image with ``#view1``, ... behind it, its label, and is a train image too. What it
    looks like is decided by the content of the image, its number and the seed.

    Args:
        images: the images.
        how: ``basic``: a random resized crop, then flipped or not; ``light``: the same with crops of at least half the
            area; ``shift``: shifted by up to an eighth on black, then flipped or not, for small images; ``trivial``,
            ``auto``, ``rand``: as basic, then TrivialAugment, AutoAugment or RandAugment.
        views: how many of each train image.
        seed: other views.

    Raises:
        SpecError: if the kind is unknown, or the number is not in 1..100.
    """
    if how not in AUGMENTATIONS:
        raise unknown("augmentation", how, list(AUGMENTATIONS))
    if not 1 <= views <= MOST_VIEWS:
        raise SpecError(f"--views {views} is not in 1..{MOST_VIEWS}")
    counts = np.where(images.splits == "train", views + 1, 1)
    rows = np.repeat(np.arange(len(images)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    numbers = np.arange(len(rows)) - first
    wide = images.take(rows)
    pixels, digest = cache_last_row(images.load), cache_last_row(images.key)

    def key(place: int) -> str:
        clean = digest(int(rows[place]))
        return clean if numbers[place] == 0 else _sha256(f"{clean} {how} {seed} {numbers[place]}")

    def load(place: int) -> Pixels:
        clean = pixels(int(rows[place]))
        return clean if numbers[place] == 0 else augment_image(clean, how, np.random.default_rng(int(key(place), 16)))

    names = (name if number == 0 else f"{name}#view{number}" for name, number in zip(wide.ids, numbers, strict=True))
    return replace(wide, ids=tuple(names), load=load, key=key)


def is_augmented_view(name: str) -> bool:
    """Return whether an id is that of an augmented view."""
    return bool(_NAME.search(name))


def original_id(name: str) -> str:
    """Return the id of the image that a view was made from; that of an image as it is."""
    return _NAME.sub("", name)


def augment_image(pixels: Pixels, how: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return one augmented view of an image ``(h, w, 3)``: uint8 ``(256, 256, 3)``; of its own size if shifted."""
    image = Image.fromarray(pixels)
    if how == "shift":
        image = _shifted(image, rng)
    else:
        image = _resized_crop(image, rng, _LIGHT_AREA if how == "light" else _AREA)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    policies: dict[str, Change] = {"trivial": trivialaugment, "auto": autoaugment, "rand": randaugment}
    return np.asarray(policies[how](image, rng) if how in policies else image)


def _shifted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image moved on black by up to an eighth of its edges (He et al. 2016, section 4.2)."""
    across, down = (round(edge / 8) for edge in image.size)
    left, top = int(rng.integers(-across, across + 1)), int(rng.integers(-down, down + 1))
    return image.crop((left, top, left + image.width, top + image.height))


def _resized_crop(image: Image.Image, rng: np.random.Generator, areas: tuple[float, float]) -> Image.Image:
    """Return a crop of random area and shape (Szegedy et al. 2015) as a square; after ten misfits, the centre."""
    for _ in range(10):
        area = image.width * image.height * rng.uniform(*areas)
        ratio = np.exp(rng.uniform(*np.log(_RATIO)))
        width, height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < width <= image.width and 0 < height <= image.height:
            left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
            break
    else:
        width = height = min(image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
    box = (left, top, left + width, top + height)
    return image.resize((_EDGE, _EDGE), Image.Resampling.BILINEAR, box=box)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
