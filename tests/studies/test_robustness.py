"""The grid of a robustness study."""

from __future__ import annotations

import pytest

from featkit.errors import SpecError
from featkit.studies.robustness import robustness_grid


def test_the_grid_has_the_clean_images_and_every_family_at_every_level():
    assert len(robustness_grid({}, (), (), {}).values("perturb")) == 1 + 21 * 3
    grid = robustness_grid({}, ("fog",), ("mild",), {})
    assert grid.values("perturb") == ("none", "fog:level=mild")


def test_an_unknown_level_is_an_error():
    with pytest.raises(SpecError, match="unknown level 'hard'"):
        robustness_grid({}, (), ("hard",), {})
