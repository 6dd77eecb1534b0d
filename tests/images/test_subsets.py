"""Laws of parts of the training images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.errors import DataError
from featkit.images.subsets import k_shot

LABELS = st.lists(st.integers(-3, 5), min_size=1, max_size=80).map(np.array)


@given(LABELS, st.integers(1, 12), st.integers(0, 9))
def test_each_class_gives_k_rows_or_all_it_has_and_a_smaller_k_is_part_of_a_larger(
    labels: np.ndarray, k: int, seed: int
) -> None:
    """Rows come in order, none twice."""
    rows = k_shot(labels, k, seed, take_fewer=True)
    assert (np.diff(rows) > 0).all()
    for label in np.unique(labels):
        assert np.sum(labels[rows] == label) == min(k, np.sum(labels == label))
    assert set(rows) <= set(k_shot(labels, k + 1, seed, take_fewer=True))


def test_the_seed_decides_which() -> None:
    """And nothing else does."""
    labels = np.arange(300) % 3
    np.testing.assert_array_equal(k_shot(labels, 5, 1), k_shot(labels, 5, 1))
    assert not np.array_equal(k_shot(labels, 5, 1), k_shot(labels, 5, 2))


def test_a_class_with_fewer_images_is_named() -> None:
    """By its name where there is one."""
    labels = np.array([0, 0, 0, 1, 2, 2, 2])
    with pytest.raises(DataError, match="class dog has 1 images, fewer than the 3 asked for"):
        k_shot(labels, 3, classes=["cat", "dog", "emu"])
    with pytest.raises(DataError, match=r"class 1 has 1 images, .* \(1 of 3 classes do\)"):
        k_shot(labels, 3)
    with pytest.raises(DataError, match="at least 1"):
        k_shot(labels, 0)
