"""The grid of a long-tail study."""

from __future__ import annotations

import pytest

from featkit.errors import SpecError
from featkit.heads import CORRECTIONS
from featkit.studies.longtail import longtail_grid


def test_the_grid_has_every_factor_and_every_correction():
    grid = longtail_grid({}, (10.0, 50.0), {})
    assert grid.values("subset") == ("longtail:if=10", "longtail:if=50")
    assert grid.values("balance") == tuple(CORRECTIONS.names())
    assert grid.values("tune") == (True,)


def test_given_subsets_and_corrections_replace_the_default_ones():
    grid = longtail_grid({"subset": ("all",), "balance": ("none", "reweight")}, (10.0,), {})
    assert (grid.values("subset"), grid.values("balance")) == (("all",), ("none", "reweight"))


def test_an_imbalance_factor_below_1_is_an_error():
    with pytest.raises(SpecError, match=r"imbalance factor 0\.5"):
        longtail_grid({}, (0.5,), {})
