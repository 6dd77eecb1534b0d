"""What perturbations cost, from cells that were made up."""

from __future__ import annotations

import numpy as np
import pytest

from featkit.ablation.cells import CellResult
from featkit.ablation.grid import Grid
from featkit.errors import SpecError
from featkit.evaluation import evaluate
from featkit.evaluation.gains import gain
from featkit.evaluation.predictions import Predictions
from featkit.studies.robustness import head_rows, level_rows, robustness_grid

N = 40
Y = np.arange(N) % 2
WRONG = {
    ("a", "none"): 4,
    ("a", "fog:level=mild"): 8,
    ("a", "fog:level=strong"): 20,
    ("a", "flip:level=mild"): 6,
    ("b", "none"): 2,
    ("b", "fog:level=mild"): 4,
    ("b", "fog:level=strong"): 10,
    ("b", "flip:level=mild"): 6,
}
"""How many of the first images each network has wrong."""


def made_up():
    grid = Grid(
        "g", {"backbone": ("a", "b"), "perturb": tuple(dict.fromkeys(spec for _, spec in WRONG))}
    )
    return [cell(values) for values in grid.cells()]


def cell(values):
    predicted = np.where(np.arange(N) < WRONG[values["backbone"], values["perturb"]], 1 - Y, Y)
    shift = {"n": N, "mean": 0.5, "low": 0.4, "high": 0.6}
    report = evaluate(np.eye(2)[predicted], Y, ("x", "y"), provenance={"cosine_to_clean": shift})
    return CellResult(
        values,
        "ok",
        report=report,
        predictions=Predictions(tuple(map(str, range(N))), Y, predicted),
    )


def test_a_drop_is_that_on_the_same_images():
    (row,) = [
        r
        for r in level_rows(made_up())
        if (r.values["backbone"], r.family, r.level) == ("a", "fog", "strong")
    ]
    right = np.arange(N) >= 20
    assert (row.drop, row.drop_interval95) == gain(np.arange(N) >= 4, right)
    assert row.relative_drop == pytest.approx(16 / 36)
    assert row.relative_drop_interval95[0] < 16 / 36 < row.relative_drop_interval95[1]
    assert (row.n, row.top1, row.cosine) == (N, 0.5, 0.5)


def test_the_mean_corruption_error_sums_over_levels_before_it_divides():
    """Hendrycks and Dietterich: fog (4 + 10) / (8 + 20), flip 6 / 6, and their mean."""
    a, b = head_rows(made_up(), "a")
    assert a.mce == 1.0
    assert b.mce == pytest.approx((14 / 28 + 6 / 6) / 2)
    assert b.mce_interval95[0] <= b.mce <= b.mce_interval95[1]
    assert (b.worst_family, b.worst_top1) == ("fog", pytest.approx(1 - 7 / 40))
    assert (a.worst_family, a.worst_top1) == ("fog", pytest.approx(1 - 14 / 40))
    assert (a.clean, a.n, a.perturbations) == (0.9, N, 3)


def test_without_the_baseline_or_the_clean_images_there_is_no_such_number():
    perturbed = [each for each in made_up() if each.values["perturb"] != "none"]
    assert {row.mce for row in head_rows(perturbed, "c")} == {None}
    assert {row.clean for row in head_rows(perturbed, "a")} == {None}
    assert {row.drop for row in level_rows(perturbed)} == {None}


def test_the_grid_has_the_clean_images_and_every_family_at_every_level():
    assert len(robustness_grid({}, (), (), {}).values("perturb")) == 1 + 21 * 3
    assert robustness_grid({}, ("fog",), ("mild",), {}).values("perturb") == (
        "none",
        "fog:level=mild",
    )
    with pytest.raises(SpecError, match="unknown level 'hard'"):
        robustness_grid({}, (), ("hard",), {})
