"""Threads return results in order, hold a bounded number of items, and end with the iterator."""

from __future__ import annotations

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from featkit.parallel import in_threads


@given(st.lists(st.integers(), max_size=30), st.integers(1, 4), st.integers(1, 9))
def test_results_come_in_the_order_of_the_items(items, threads, ahead):
    assert list(in_threads(lambda item: 2 * item, items, threads, ahead)) == [
        2 * item for item in items
    ]


def test_the_number_of_items_in_flight_is_bounded():
    started = []
    results = in_threads(started.append, range(1000), threads=2, ahead=5)
    for _ in range(10):
        next(results)
    time.sleep(0.05)
    assert len(started) <= 10 + 5
    results.close()


def test_threads_end_when_the_iterator_is_closed():
    before = threading.active_count()
    results = in_threads(lambda item: item, range(100), threads=3, ahead=6)
    next(results)
    results.close()
    assert threading.active_count() == before
