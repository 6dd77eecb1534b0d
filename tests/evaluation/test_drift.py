"""Embedding drift."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.errors import DataError
from featkit.evaluation.drift import drift


def features(n=30, d=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@given(scale=st.floats(0.01, 100), seed=st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_scaled_features_have_no_drift(scale, seed):
    found = drift(features(seed=seed), np.float32(scale) * features(seed=seed))
    assert found.mean_cosine == pytest.approx(1)
    assert found.worst_cosine == pytest.approx(1)
    assert found.neighbours_kept == 1
    assert found.n == 30


def test_a_rotation_changes_cosines_and_keeps_neighbours():
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    found = drift(features(), features() @ rotation)
    assert found.mean_cosine < 0.9
    assert found.neighbours_kept == 1


def test_the_smallest_cosine_is_reported():
    moved = features()
    moved[3] *= -1
    assert drift(features(), moved).worst_cosine == pytest.approx(-1)


def test_unrelated_features_share_neighbours_at_chance_level():
    found = drift(features(400, seed=0), features(400, seed=1))
    assert found.neighbours_kept == pytest.approx(10 / 399, abs=0.01)


def test_features_of_different_dimensions_have_no_cosine():
    found = drift(features(), np.hstack([features(), features()]))
    assert (found.mean_cosine, found.worst_cosine, found.neighbours_kept) == (None, None, 1)


def test_different_numbers_of_images_raise():
    with pytest.raises(DataError, match="30 and 29 images"):
        drift(features(), features(29))
