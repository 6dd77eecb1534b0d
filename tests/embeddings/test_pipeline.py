"""Reading ahead in threads: in order, bounded, and over when the work is over."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.embeddings.pipeline import Compute, batches, in_threads
from featkit.errors import DecodeError


@given(st.lists(st.integers(), max_size=30), st.integers(1, 4), st.integers(1, 9))
def test_results_come_in_the_order_of_the_items(items, threads, ahead):
    assert list(in_threads(lambda item: 2 * item, items, threads, ahead)) == [2 * item for item in items]


def test_no_more_than_a_few_items_are_ever_waiting():
    begun = []
    results = in_threads(begun.append, range(1000), threads=2, ahead=5)
    for _ in range(10):
        next(results)
    time.sleep(0.05)
    assert len(begun) <= 10 + 5
    results.close()


def test_threads_end_with_the_work():
    before = threading.active_count()
    results = in_threads(lambda item: item, range(100), threads=3, ahead=6)
    next(results)
    results.close()
    assert threading.active_count() == before


@given(st.integers(0, 20), st.sets(st.integers(0, 19)), st.integers(1, 7))
def test_batches_hold_every_readable_row_once_and_in_order(count, broken, size):
    def load(row):
        if row in broken:
            raise DecodeError(str(row))
        return np.full((2, 2, 3), row, np.uint8)

    skipped: list[int] = []
    found = list(batches(count, load, Compute(batch_size=size, workers=2, on_error="skip"), skipped))
    rows = [row for part, _ in found for row in part.tolist()]
    assert rows == [row for row in range(count) if row not in broken]
    assert skipped == [row for row in range(count) if row in broken]
    assert all(len(part) == size for part, _ in found[:-1])
    for part, pixels in found:
        np.testing.assert_array_equal(pixels[:, 0, 0, 0], part)


def test_the_first_unreadable_image_is_raised():
    def load(row):
        raise DecodeError(f"image {row}")

    with pytest.raises(DecodeError, match="image 0"):
        list(batches(3, load, Compute(), []))
