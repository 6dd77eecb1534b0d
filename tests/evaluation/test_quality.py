"""Limits of image quality by robust statistics."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import median_abs_deviation

from featkit.evaluation.quality import LIMIT, outliers, quality_limits

BOTH = ((True, True),)


def test_limits_are_median_and_scaled_mad() -> None:
    values = np.random.default_rng(0).normal(3, 2, (500, 1))
    (limit,) = quality_limits(values, ("x",), (0.01,), BOTH)
    deviation = median_abs_deviation(values[:, 0], scale="normal")
    assert limit.median == np.median(values)
    assert limit.deviation == pytest.approx(deviation, rel=1e-4)
    assert limit.low == pytest.approx(limit.median - LIMIT * limit.deviation)


def test_a_third_of_bad_images_does_not_hide_them() -> None:
    """Mean and standard deviation would find none."""
    values = np.r_[np.random.default_rng(0).normal(size=200), np.full(90, 12.0)][:, None]
    (limit,) = quality_limits(values, ("x",), (0.01,), BOTH)
    assert np.flatnonzero(outliers(values[:, 0], limit)).tolist() == list(range(200, 290))
    assert np.abs(12 - values.mean()) < LIMIT * values.std()


def test_sides_and_floors_and_missing_values() -> None:
    """Images that are all alike have a deviation of 0."""
    values = np.array([[1.0], [1.0], [1.0], [1.0], [1.3], [2.0], [0.0], [np.nan]])
    (limit,) = quality_limits(values, ("x",), (0.1,), ((False, True),))
    assert limit.low is None
    assert outliers(values[:, 0], limit) == pytest.approx([0, 0, 0, 0, 0, 10, 0, 0])
