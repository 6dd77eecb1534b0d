"""Augmentation policies: AutoAugment, RandAugment and TrivialAugment.

Magnitudes are in 0..1, relative to the range that each paper gives for an operation. New borders
are black.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Random = np.random.Generator
Operation = Callable[[Image.Image, float], Image.Image]


def trivialaugment(image: Image.Image, rng: Random) -> Image.Image:
    """Apply one random operation at a random magnitude.

    Source: Müller and Hutter, ICCV 2021, wide search space.
    """
    return _apply(image, rng.choice(_NAMES), rng.integers(31) / 30, _WIDE, rng)


def randaugment(image: Image.Image, rng: Random) -> Image.Image:
    """Apply two random operations at magnitude 9 of 30 (Cubuk et al., NeurIPS 2020)."""
    for name in rng.choice(_NAMES, 2):
        image = _apply(image, name, 9 / 30, _NARROW, rng)
    return image


def autoaugment(image: Image.Image, rng: Random) -> Image.Image:
    """Apply one of the 25 pairs of operations of the ImageNet policy.

    Source: Cubuk et al., CVPR 2019.
    """
    for name, probability, magnitude in _IMAGENET[rng.integers(len(_IMAGENET))]:
        if rng.random() < probability:
            image = _apply(image, name, magnitude / 9, _NARROW, rng)
    return image


def _apply(
    image: Image.Image, name: str, magnitude: float, largest: Mapping[str, float], rng: Random
) -> Image.Image:
    """Apply an operation; the sign of the magnitude is random if the operation has a direction."""
    value = magnitude * largest.get(name, 1.0)
    if name in _SIGNED and rng.random() < 0.5:
        value = -value
    return _OPERATIONS[name](image, value)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _translate(image: Image.Image, across: float, down: float) -> Image.Image:
    return _affine(image, 1, 0, -across * image.width, 0, 1, -down * image.height)


_NAMES = (
    *(
        "Identity",
        "ShearX",
        "ShearY",
        "TranslateX",
        "TranslateY",
        "Rotate",
        "Brightness",
        "Color",
        "Contrast",
    ),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
_SIGNED = {*_NAMES[1:10]}
_NARROW = {
    **dict.fromkeys(("ShearX", "ShearY"), 0.3),
    **dict.fromkeys(("TranslateX", "TranslateY"), 150 / 331),
    **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.9),
    "Rotate": 30.0,
    "Posterize": 4.0,
}
_WIDE = {
    **dict.fromkeys(("ShearX", "ShearY", "Brightness", "Color", "Contrast", "Sharpness"), 0.99),
    **dict.fromkeys(("TranslateX", "TranslateY"), 32 / 224),
    "Rotate": 135.0,
    "Posterize": 6.0,
}
_OPERATIONS: dict[str, Operation] = {
    "Identity": lambda image, value: image,
    "ShearX": lambda image, value: _affine(image, 1, value, 0, 0, 1, 0),
    "ShearY": lambda image, value: _affine(image, 1, 0, 0, value, 1, 0),
    "TranslateX": lambda image, value: _translate(image, value, 0),
    "TranslateY": lambda image, value: _translate(image, 0, value),
    "Rotate": lambda image, value: image.rotate(value),
    "Brightness": lambda image, value: ImageEnhance.Brightness(image).enhance(1 + value),
    "Color": lambda image, value: ImageEnhance.Color(image).enhance(1 + value),
    "Contrast": lambda image, value: ImageEnhance.Contrast(image).enhance(1 + value),
    "Sharpness": lambda image, value: ImageEnhance.Sharpness(image).enhance(1 + value),
    "Posterize": lambda image, value: ImageOps.posterize(image, 8 - round(value)),
    "Solarize": lambda image, value: ImageOps.solarize(image, round(256 * (1 - value))),
    "AutoContrast": lambda image, value: ImageOps.autocontrast(image),
    "Equalize": lambda image, value: ImageOps.equalize(image),
    "Invert": lambda image, value: ImageOps.invert(image),
}
_IMAGENET = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)
"""Table 9 of the AutoAugment paper: name, probability and magnitude (0..9) of both operations of
each pair.
"""
