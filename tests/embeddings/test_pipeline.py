"""Reading ahead in threads: in order, bounded, and over when the work is over."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.embeddings.pipeline import Compute, PipelineTarget, run
from featkit.errors import DecodeError
from featkit.parallel import in_threads


@given(st.lists(st.integers(), max_size=30), st.integers(1, 4), st.integers(1, 9))
def test_results_come_in_the_order_of_the_items(items, threads, ahead):
    assert list(in_threads(lambda item: 2 * item, items, threads, ahead)) == [
        2 * item for item in items
    ]


def test_the_number_of_items_in_flight_is_bounded():
    begun = []
    results = in_threads(begun.append, range(1000), threads=2, ahead=5)
    for _ in range(10):
        next(results)
    time.sleep(0.05)
    assert len(begun) <= 10 + 5
    results.close()


def test_threads_end_when_the_iterator_is_closed():
    before = threading.active_count()
    results = in_threads(lambda item: item, range(100), threads=3, ahead=6)
    next(results)
    results.close()
    assert threading.active_count() == before


def means(pixels):
    return pixels.mean((1, 2)).astype(np.float32)


@given(
    st.lists(st.frozensets(st.integers(0, 19)), min_size=1, max_size=3),
    st.sets(st.integers(0, 19)),
    st.integers(1, 7),
    st.booleans(),
)
def test_each_image_is_read_once_and_reaches_every_network_that_needs_it(
    wanted, broken, size, on_cpu
):
    read = []

    def load(row):
        read.append(row)
        if row in broken:
            raise DecodeError(str(row))
        return np.full((2, 2, 3), row, np.uint8)

    targets = [PipelineTarget(lambda pixels: pixels, means, rows) for rows in wanted]
    compute = Compute(batch_size=size, workers=2, on_error="skip")
    batches = list(run(load, targets, compute, on_cpu=on_cpu))
    everything = frozenset().union(*wanted)
    assert sorted(read) == sorted(everything)
    assert {row for batch in batches for row in batch.failed} == everything & broken
    assert sum(batch.size for batch in batches) == len(everything)
    for place, rows in enumerate(wanted):
        outputs = [batch.outputs[place] for batch in batches if batch.outputs[place]]
        found = [row for rows, _ in outputs for row in rows.tolist()]
        assert found == sorted(rows - broken)
        assert [value for _, vectors in outputs for value in vectors[:, 0]] == found


def test_the_first_unreadable_image_is_raised():
    def load(row):
        raise DecodeError(f"image {row}")

    with pytest.raises(DecodeError, match="image 0"):
        list(
            run(
                load,
                [PipelineTarget(lambda pixels: pixels, means, frozenset(range(3)))],
                Compute(),
                on_cpu=True,
            )
        )
