"""The same run under several seeds: what of a number is luck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np
from scipy.stats import t

from featkit.evaluation.intervals import Interval


@dataclass(frozen=True)
class OverSeeds:
    """Top-1 over several seeds of the split and of the head.

    Attributes:
        top1: of each seed.
        mean, deviation: their mean and standard deviation (n - 1).
        interval95: of the mean, by Student's t. It says what other seeds would give on average; that the images
            themselves are a sample is what the interval of each run says.
    """

    top1: tuple[float, ...]
    mean: float
    deviation: float
    interval95: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON can hold them."""
        return {**asdict(self), "seeds": len(self.top1)}


def over_seeds(top1: Sequence[float]) -> OverSeeds:
    """Return mean, standard deviation and interval of two or more values of top-1."""
    mean, deviation = float(np.mean(top1)), float(np.std(top1, ddof=1))
    half = float(t.ppf(0.975, len(top1) - 1)) * deviation / sqrt(len(top1))
    return OverSeeds(tuple(top1), mean, deviation, (max(0.0, mean - half), min(1.0, mean + half)))
