"""Small copies of images, for figures and reports."""

from __future__ import annotations

import numpy as np
from PIL import Image

from featkit.images.base import Pixels


def shrink(pixels: Pixels, side: int) -> Pixels:
    """Return an image scaled down so that its longer side is at most ``side`` pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    return np.asarray(image)


def square(pixels: Pixels, side: int) -> Pixels:
    """Return the central square of an image, resized to ``(side, side, 3)``."""
    height, width = pixels.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    central = Image.fromarray(pixels[top : top + edge, left : left + edge])
    return np.asarray(central.resize((side, side), Image.Resampling.BILINEAR))
