"""Augmented views: additional training images, identified by image id and number."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featkit.errors import SpecError
from featkit.images.base import ImageSet, Pixels, cache_last_row, partly_changed
from featkit.images.policies import autoaugment, randaugment, trivialaugment
from featkit.registry import unknown

Transform = Callable[[Image.Image, np.random.Generator], Image.Image]

AUGMENTATIONS = ("basic", "light", "shift", "trivial", "auto", "rand")
MOST_VIEWS = 100
_AREA, _LIGHT_AREA, _RATIO = (0.08, 1.0), (0.5, 1.0), (3 / 4, 4 / 3)
_EDGE = 256
_MARK = "#view"
_NAME = re.compile(rf"{_MARK}[1-9]\d*$")


def add_augmented_views(images: ImageSet, how: str, views: int, seed: int = 0) -> ImageSet:
    """Return the images with augmented views after each training image.

    A view has the id of its image with ``#view1``, ``#view2``, ... appended, and the same label and
    split. It depends on the content of the image, its number and the seed only.

    Args:
        images: the images.
        how: ``basic``: random resized crop and horizontal flip; ``light``: the same with crops of
            at least half the area; ``shift``: for small images, translation by up to an eighth with
            black borders and horizontal flip; ``trivial``, ``auto``, ``rand``: as ``basic``,
            followed by TrivialAugment, AutoAugment or RandAugment.
        views: number of views of each training image.
        seed: of the random transformations.

    Raises:
        SpecError: if ``how`` is unknown, or ``views`` is not in 1..100.
    """
    if how not in AUGMENTATIONS:
        raise unknown("augmentation", how, list(AUGMENTATIONS))
    if not 1 <= views <= MOST_VIEWS:
        raise SpecError(f"--views {views}: give a number from 1 to {MOST_VIEWS}")
    counts = np.where(images.splits == "train", views + 1, 1)
    rows = np.repeat(np.arange(len(images)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    numbers = np.arange(len(rows)) - first  # 0 is the image itself
    expanded = images.take(rows)
    key_of_original = cache_last_row(images.key)
    load_original = cache_last_row(images.load_with_key)

    def view_key(row: int, original: str) -> str:
        if numbers[row] == 0:
            return original
        return _sha256(f"{original} {how} {seed} {numbers[row]}")

    def key(row: int) -> str:
        return view_key(row, key_of_original(int(rows[row])))

    def load_with_key(row: int) -> tuple[Pixels, str]:
        original, original_key = load_original(int(rows[row]))
        own_key = view_key(row, original_key)
        if numbers[row] == 0:
            return original, own_key
        pixels = augment_image(original, how, np.random.default_rng(int(own_key, 16)))
        return pixels, own_key

    def unchanged(row: int) -> int | None:
        return None if numbers[row] else int(rows[row])

    ids = []
    for name, number in zip(expanded.ids, numbers, strict=True):
        ids.append(name if number == 0 else f"{name}#view{number}")
    load, sized_key = partly_changed(images, unchanged, load_with_key, key)
    return replace(expanded, ids=tuple(ids), load=load, key=sized_key)


def is_augmented_view(name: str) -> bool:
    """Return whether an id is that of an augmented view."""
    return bool(_NAME.search(name))


def has_augmented_views(names: Iterable[str]) -> bool:
    """Return whether one of the ids is that of an augmented view."""
    return any(_MARK in name and is_augmented_view(name) for name in names)


def are_augmented_views(names: Iterable[str]) -> NDArray[np.bool_]:
    """Return which of the ids ``(n,)`` are those of augmented views."""
    return np.array([found is not None for found in map(_NAME.search, names)], bool)


def original_id(name: str) -> str:
    """Return the id of the image that a view was made from; the id itself if it is not a view."""
    return _NAME.sub("", name) if _MARK in name else name


def augment_image(pixels: Pixels, how: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return one augmented view of an image.

    Args:
        pixels: uint8 ``(h, w, 3)``.
        how: augmentation, see ``add_augmented_views``.
        rng: source of the random transformations.

    Returns:
        uint8 ``(256, 256, 3)``; of the size of the image for ``shift``.
    """
    image = Image.fromarray(pixels)
    if how == "shift":
        image = _random_shift(image, rng)
    else:
        image = _random_resized_crop(image, rng, _LIGHT_AREA if how == "light" else _AREA)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    policies: dict[str, Transform] = {
        "trivial": trivialaugment,
        "auto": autoaugment,
        "rand": randaugment,
    }
    return np.asarray(policies[how](image, rng) if how in policies else image)


def _random_shift(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image translated by up to an eighth of its size, with black borders.

    Source: He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2.
    """
    across, down = (round(edge / 8) for edge in image.size)
    left, top = int(rng.integers(-across, across + 1)), int(rng.integers(-down, down + 1))
    return image.crop((left, top, left + image.width, top + image.height))


def _random_resized_crop(
    image: Image.Image, rng: np.random.Generator, areas: tuple[float, float]
) -> Image.Image:
    """Return a crop of random area and aspect ratio (Szegedy et al. 2015), resized to a square.

    As in torchvision, the central square is used if ten random crops do not fit into the image.
    """
    for _ in range(10):
        area = image.width * image.height * rng.uniform(*areas)
        ratio = np.exp(rng.uniform(*np.log(_RATIO)))
        width, height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < width <= image.width and 0 < height <= image.height:
            left, top = (
                rng.integers(image.width - width + 1),
                rng.integers(image.height - height + 1),
            )
            break
    else:
        width = height = min(image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
    box = (left, top, left + width, top + height)
    return image.resize((_EDGE, _EDGE), Image.Resampling.BILINEAR, box=box)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
