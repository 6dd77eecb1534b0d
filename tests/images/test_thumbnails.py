"""Small copies of images."""

from __future__ import annotations

import numpy as np

from featkit.images.thumbnails import shrink, square


def test_thumbnails_fit_their_size():
    pixels = np.zeros((40, 100, 3), np.uint8)
    assert shrink(pixels, 50).shape == (20, 50, 3)
    assert square(pixels, 32).shape == (32, 32, 3)
