"""Measures of the quality of images: brightness, sharpness, information, size."""

from __future__ import annotations

from math import log2, log10, nan

import numpy as np
from numpy.typing import NDArray

from featkit.images.base import Pixels
from featkit.images.thumbnails import shrink

SIDE = 256
"""Larger images are shrunk to this longer side first, about what networks see."""

MEASURES = ("brightness", "sharpness", "information", "size", "aspect")
"""Names of the measures, in the order of ``measure``."""

_GREY = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""


def measure(pixels: Pixels) -> NDArray[np.float64]:
    """Return the measures of one image ``(5,)``, on scales where equal steps look alike.

    These are, in the order of ``MEASURES``:

    - the mean grey value as log-odds of its fraction of white, so that dark and bright images are
      as far from the median as they look;
    - the variance of the Laplacian over the variance of the grey values, as a decimal logarithm:
      small for blurred images, whatever their contrast; NaN for an image of a single grey value,
      which has no edges that could be blurred;
    - the entropy of the histogram of grey values in bits, 0 to 8;
    - width times height, as binary logarithm;
    - width over height, as binary logarithm.

    The first three are those of the image shrunk to ``SIDE``.

    Args:
        pixels: uint8 RGB ``(h, w, 3)``.

    Source: Pech-Pacheco, Cristóbal, Chamorro-Martínez and Fernández-Valdivia, "Diatom autofocusing
    in brightfield microscopy", ICPR 2000, for the variance of the Laplacian.
    """
    height, width = pixels.shape[:2]
    grey = shrink(pixels, SIDE).astype(np.float64) @ _GREY
    fraction = (float(grey.mean()) + 0.5) / 256
    counts = np.bincount(grey.astype(np.int64).ravel(), minlength=256)
    shares = counts[counts > 0] / grey.size
    return np.array(
        [
            np.log(fraction / (1 - fraction)),
            _sharpness(grey),
            -float(np.sum(shares * np.log2(shares))),
            log2(width * height),
            log2(width / height),
        ]
    )


def _sharpness(grey: NDArray[np.float64]) -> float:
    variance = float(grey.var())
    if variance < 1:
        return nan
    return log10((_laplacian_variance(grey) + 0.01) / variance)


def _laplacian_variance(grey: NDArray[np.float64]) -> float:
    """Return the variance of the difference of each pixel from its four neighbours."""
    if min(grey.shape) < 3:
        return 0.0
    neighbours = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.var(neighbours - 4 * grey[1:-1, 1:-1]))
