"""Ranges of grey values that become black and white."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.errors import SpecError
from featkit.images.intensity import IntensityRange

NUMBERS = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    "text",
    ["", "4095", "0-4095", "4095:0", "5:5", "a:b", "0:1:2", "nan:1", "0:inf", "-inf:0", ":9"],
)
def test_a_malformed_range_is_refused(text):
    with pytest.raises(SpecError, match="write LOW:HIGH"):
        IntensityRange.parse(text)


@pytest.mark.parametrize(
    ("text", "low", "high"), [("0:4095", 0, 4095), (" -1000 : 400.5", -1e3, 400.5)]
)
def test_a_range_is_parsed(text, low, high):
    assert IntensityRange.parse(text) == IntensityRange(low, high)
    assert str(IntensityRange.parse("0:4095")) == "0:4095"


@given(NUMBERS, NUMBERS)
def test_a_range_survives_its_text(one, other):
    if one < other:
        assert IntensityRange.parse(str(IntensityRange(one, other))) == IntensityRange(one, other)


def test_the_range_of_16_bits_gives_what_decoding_gives_without_a_range():
    values = np.arange(65536, dtype=np.uint16)
    assert (IntensityRange(0, 65535)(values) == (values.astype(np.int64) + 128) // 257).all()


@given(st.lists(NUMBERS, min_size=2, max_size=9))
def test_levels_are_monotonic_and_reach_both_ends(values):
    ordered = np.sort(np.array(values))
    levels = IntensityRange(-10, 10)(ordered).astype(int)
    assert (np.diff(levels) >= 0).all()
    assert (levels[ordered <= -10] == 0).all()
    assert (levels[ordered >= 10] == 255).all()
