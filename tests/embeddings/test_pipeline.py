"""The pipeline reads each image once and passes it to every network that needs it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.embeddings.pipeline import Compute, PipelineTarget, run
from featkit.errors import DecodeError


def means(pixels):
    return pixels.mean((1, 2)).astype(np.float32)


@given(
    st.lists(st.frozensets(st.integers(0, 19)), min_size=1, max_size=3),
    st.sets(st.integers(0, 19)),
    st.integers(1, 7),
    st.booleans(),
)
def test_each_image_is_read_once_and_reaches_every_network_that_needs_it(
    rows_of_networks, broken, size, on_cpu
):
    read = []

    def load(row):
        read.append(row)
        if row in broken:
            raise DecodeError(str(row))
        return np.full((2, 2, 3), row, np.uint8)

    targets = [PipelineTarget(lambda pixels: pixels, means, rows) for rows in rows_of_networks]
    compute = Compute(batch_size=size, workers=2, on_error="skip")
    batches = list(run(load, targets, compute, on_cpu=on_cpu))
    everything = frozenset().union(*rows_of_networks)
    assert sorted(read) == sorted(everything)
    assert {row for batch in batches for row in batch.failed} == everything & broken
    assert sum(batch.size for batch in batches) == len(everything)
    for place, rows in enumerate(rows_of_networks):
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
