"""Synthetic images that excite a network as photographs do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def smooth_noise(count: int, size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Return coloured noise of which low frequencies dominate: uint8 ``(count, h, w, 3)``.

    The amplitude falls a little faster with the frequency f than the 1 / f of natural images
    (Field, "Relations between the statistics of natural images and the response properties of
    cortical cells", JOSA A 4, 1987). It excites a network as much as photographs do, so that
    saturation shows; white noise does not.
    """
    height, width = size
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = np.maximum(frequency, 1 / max(size)) ** -1.5

    def layers(number: int) -> NDArray[np.float64]:
        white = np.fft.rfft2(rng.standard_normal((count, number, height, width)))
        smooth = np.fft.irfft2(white * amplitude, size)
        scaled: NDArray[np.float64] = smooth / smooth.std(axis=(2, 3), keepdims=True)
        return scaled.transpose(0, 2, 3, 1)

    # One layer of brightness and a weaker one of each colour.
    values = 127 + 55 * (layers(1) + 0.5 * layers(3))
    return np.clip(values, 0, 255).astype(np.uint8)
