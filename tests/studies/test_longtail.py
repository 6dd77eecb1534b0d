"""What corrections are worth, from cells that were made up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featkit.ablation.cells import CellResult
from featkit.ablation.grid import Grid
from featkit.errors import SpecError
from featkit.evaluation import evaluate
from featkit.evaluation.gains import balanced_gain
from featkit.evaluation.predictions import Predictions
from featkit.studies.longtail import longtail_grid, tail_rows

Y = np.repeat([0, 1, 2], [30, 20, 10])


def cells(val_scores):
    grid = Grid("g", {"balance": ("none", "reweight", "smote"), "subset": ("longtail:if=50",)})
    wrong = {"none": 8, "reweight": 4, "smote": 2}
    made = []
    for values, score in zip(grid.cells(), val_scores, strict=True):
        predicted = np.where(np.arange(60) >= 60 - wrong[values["balance"]], 0, Y)
        report = evaluate(np.eye(3)[predicted], Y, tuple("abc"), train_counts=[200, 50, 4])
        predictions = Predictions(tuple(map(str, range(60))), Y, predicted)
        made.append(
            CellResult(values, "ok", report=report, predictions=predictions, val_score=score)
        )
    return made


def test_val_alone_says_which_correction_is_best():
    """smote is best on test."""
    rows = tail_rows(cells((0.5, 0.7, 0.6)))
    assert [row.best_on_val for row in rows] == [False, True, False]
    assert not any(row.best_on_val for row in tail_rows(cells((None, None, None))))


def test_gains_are_over_none_on_the_same_images():
    made = cells((0.5, 0.7, 0.6))
    none, _, smote = tail_rows(made)
    right = [each.predictions.predicted == Y for each in made]
    assert (none.gain, none.gain_interval95) == (None, None)
    assert (smote.gain, smote.gain_interval95) == balanced_gain(Y, right[2], right[0])
    assert (smote.many[0], smote.medium[0], smote.few[0]) == (1.0, 1.0, pytest.approx(0.8))


def test_without_none_there_is_no_gain_and_what_failed_has_no_row():
    _, reweight, smote = cells((0.5, 0.7, 0.6))
    rows = tail_rows([reweight, replace(smote, report=None, status="failed")])
    assert [row.gain for row in rows] == [None]


def test_the_grid_has_every_factor_and_every_correction():
    grid = longtail_grid({}, (10.0, 50.0), {})
    assert grid.values("subset") == ("longtail:if=10", "longtail:if=50")
    assert len(grid.values("balance")) == 14
    with pytest.raises(SpecError, match=r"imbalance factor 0\.5"):
        longtail_grid({}, (0.5,), {})
