"""Answers that are withheld."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.errors import DataError, SpecError
from featkit.evaluation.scoring import reject, rejection_threshold

CONFIDENCE = st.lists(st.floats(0.5, 1), min_size=1, max_size=40)


def scores(confidence):
    return np.column_stack([confidence, 1 - np.array(confidence)])


@given(CONFIDENCE, st.floats(0, 0.99))
def test_at_most_the_share_asked_for_lies_below_the_threshold(confidence, share):
    threshold = rejection_threshold(scores(confidence), share)
    assert np.mean(np.array(confidence) < threshold) <= share


@given(CONFIDENCE)
def test_a_share_of_nothing_answers_always(confidence):
    table, y = scores(confidence), np.zeros(len(confidence), np.int64)
    found = reject(table, y, np.arange(2), share=0, threshold=rejection_threshold(table, 0))
    assert (found.answered, found.coverage, found.top1) == (len(confidence), 1, 1)


def test_only_answers_are_judged():
    y = np.array([0, 1, 1, 0])
    found = reject(scores([0.9, 0.8, 0.6, 0.7]), y, np.arange(2), share=0.5, threshold=0.75)
    assert (found.answered, found.coverage, found.top1) == (2, 0.5, 0.5)
    none = reject(scores([0.9]), y[:1], np.arange(2), share=0.5, threshold=0.95)
    assert (none.answered, none.top1, none.interval95) == (0, None, None)


def test_a_share_out_of_range_and_no_images_are_refused():
    with pytest.raises(SpecError, match="cannot reject a share"):
        rejection_threshold(scores([0.9]), 1)
    with pytest.raises(DataError, match="no val images"):
        rejection_threshold(np.empty((0, 2)), 0.1)
