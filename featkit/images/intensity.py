"""Intensity range: which values of a 16-bit or floating-point image are black and white."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featkit.errors import SpecError


@dataclass(frozen=True)
class IntensityRange:
    """Values of grey pixels with more than 8 bits that become black and white.

    Attributes:
        low: value that becomes 0; smaller ones do too.
        high: value that becomes 255; larger ones do too.
    """

    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> IntensityRange:
        """Parse ``0:4095``.

        Raises:
            SpecError: unless these are two finite numbers, the first one smaller.
        """
        try:
            low, high = (float(part) for part in text.split(":"))
        except ValueError:
            low = high = math.nan
        if not -math.inf < low < high < math.inf:
            raise SpecError(
                f"intensity range {text!r}: write LOW:HIGH, the values that become black and "
                "white, such as 0:4095 for 12 bits"
            )
        return cls(low, high)

    def __str__(self) -> str:
        return f"{self.low:.17g}:{self.high:.17g}"

    def __call__(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Return values as uint8, rounded to the nearest level.

        Raises:
            ValueError: if a value is not a number.
        """
        scaled = (values.astype(np.float64) - self.low) * (255 / (self.high - self.low))
        if np.isnan(scaled).any():
            raise ValueError("some pixels are not numbers (NaN)")
        return np.floor(np.clip(scaled, 0, 255) + 0.5).astype(np.uint8)
