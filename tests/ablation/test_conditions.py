"""Long-tail gains, accuracy drops and corruption errors of made-up cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featkit.ablation.cells import CellResult
from featkit.ablation.conditions import (
    drops_by_classifier,
    drops_by_classifier_and_perturbation,
    long_tail,
)
from featkit.ablation.effects import analyze_grid
from featkit.ablation.grid import AXES, Grid
from featkit.evaluation import evaluate
from featkit.evaluation.intervals import wilson
from featkit.evaluation.predictions import Predictions
from featkit.reports.ablation import write_report
from featkit.reports.wording import tuning_notes

TAIL_Y = np.repeat([0, 1, 2], [30, 20, 10])
TAIL_GRID = Grid("g", {"balance": ("none", "reweight", "smote"), "subset": ("longtail:if=50",)})
TAIL_ERRORS = {"none": 8, "reweight": 4, "smote": 2}


def analyze(grid, cells):
    return analyze_grid(grid.name, {axis: grid.values(axis) for axis in AXES}, cells)


def tail_cells(val_scores):
    """Return cells with errors in their last images; smote is best on test."""
    cells = []
    for values, score in zip(TAIL_GRID.cells(), val_scores, strict=True):
        first_wrong = len(TAIL_Y) - TAIL_ERRORS[values["balance"]]
        predicted = np.where(np.arange(len(TAIL_Y)) >= first_wrong, 0, TAIL_Y)
        report = evaluate(np.eye(3)[predicted], TAIL_Y, tuple("abc"), train_counts=[200, 50, 4])
        predictions = Predictions(tuple(map(str, range(len(TAIL_Y)))), TAIL_Y, predicted)
        cells.append(
            CellResult(values, "ok", report=report, predictions=predictions, val_score=score)
        )
    return cells


def test_the_best_correction_is_selected_by_validation_score_only():
    rows = long_tail(analyze(TAIL_GRID, tail_cells((0.5, 0.7, 0.6))))
    assert [row.best_on_val for row in rows] == [False, True, False]
    unknown = long_tail(analyze(TAIL_GRID, tail_cells((None, None, None))))
    assert not any(row.best_on_val for row in unknown)


def test_gains_are_over_no_correction_on_the_same_images():
    none, _, smote = long_tail(analyze(TAIL_GRID, tail_cells((0.5, 0.7, 0.6))))
    assert none.gain is None
    assert smote.gain.difference == pytest.approx((8 - 2) / 10 / 3)
    low, high = smote.gain.interval95
    assert low < smote.gain.difference < high
    groups = [smote.groups[name].value for name in ("many", "medium", "few")]
    assert groups == [1.0, 1.0, pytest.approx(0.8)]
    row = smote.to_dict()
    assert (row["gain"], row["gain_low"], row["few"]) == (smote.gain.difference, low, groups[2])


@pytest.mark.parametrize("seeds", [1, 3])
def test_accuracies_on_shots_account_for_groups_of_images(seeds):
    """All images of a patient are right or wrong: their number does not narrow the interval."""
    y = np.tile([0, 1], 200)
    patients = np.repeat(np.arange(20), 20)
    predicted = np.where(np.isin(patients, [2, 3, 5, 7, 11]), 1 - y, y)
    counts = {"train_counts": [500, 10], "groups": patients}
    report = evaluate(np.eye(2)[predicted], y, ("a", "b"), **counts)
    predictions = Predictions(tuple(map(str, range(400))), y, predicted, groups=patients)
    grid = replace(TAIL_GRID, axes={**TAIL_GRID.axes, "seed": tuple(range(seeds))})
    cells = [
        CellResult(values, "ok", report=report, predictions=predictions) for values in grid.cells()
    ]
    row = long_tail(analyze(grid, cells))[0]
    for name in ("many", "few"):
        found = row.groups[name]
        reported = next(each for each in report.groups if each.name == name)
        assert found.value == pytest.approx(reported.top1) == 0.75
        assert found.interval95 == pytest.approx(reported.interval95, abs=0.05)
        assert found.interval95[1] - found.interval95[0] > 2.5 * np.diff(wilson(150, 200))
        assert (found.n, found.seeds) == (200, seeds)


def test_tuned_corrections_are_named_with_the_number_of_values_tried():
    """Only if the grid tunes; the baseline has no option."""
    names = ("none", "logit_adjust", "tau_norm:tau=1", "reweight")
    for tune in (True, False):
        grid = Grid("g", {"balance": names, "subset": ("longtail:if=50",), "tune": (tune,)})
        cells = []
        for values, cell in zip(grid.cells(), [tail_cells((0.5,) * 3)[0]] * 4, strict=True):
            cells.append(replace(cell, values=values))
        rows = long_tail(analyze(grid, cells))
        tried = {row.balance: row.candidates for row in rows}
        assert tried == dict.fromkeys(names, 1) | {"logit_adjust": 12 if tune else 1}
        assert [row.to_dict()["values_tried"] for row in rows] == list(tried.values())
        (note,) = tuning_notes(rows) or [""]
        page = write_report(analyze(grid, cells), commands=["featkit longtail"], versions={})
        assert note in str(page["report.html"])
        assert note in str(page["summary.md"]).replace("\\", "")
        assert (
            note.startswith("Options tuned on the validation set: logit_adjust over 12 values.")
            == tune
        )


def test_without_cells_of_no_correction_there_is_no_gain():
    """A failed cell has no row."""
    _, reweight, smote = tail_cells((0.5, 0.7, 0.6))
    failed = replace(smote, report=None, predictions=None, status="failed")
    rows = long_tail(analyze(TAIL_GRID, [reweight, failed]))
    assert [row.gain for row in rows] == [None]


N = 40
Y = np.arange(N) % 2
ERRORS = {
    ("a", "none"): 4,
    ("a", "fog:level=mild"): 8,
    ("a", "fog:level=strong"): 20,
    ("a", "flip:level=mild"): 6,
    ("b", "none"): 2,
    ("b", "fog:level=mild"): 4,
    ("b", "fog:level=strong"): 10,
    ("b", "flip:level=mild"): 6,
}
"""Number of images, counted from the first, that each network gets wrong."""
ROBUST_GRID = Grid(
    "g", {"backbone": ("a", "b"), "perturb": tuple(dict.fromkeys(spec for _, spec in ERRORS))}
)


def robust_cells():
    cells = []
    for values in ROBUST_GRID.cells():
        wrong = np.arange(N) < ERRORS[values["backbone"], values["perturb"]]
        predicted = np.where(wrong, 1 - Y, Y)
        shift = {"n": N, "mean": 0.5, "low": 0.4, "high": 0.6}
        report = evaluate(
            np.eye(2)[predicted], Y, ("x", "y"), provenance={"cosine_to_clean": shift}
        )
        predictions = Predictions(tuple(map(str, range(N))), Y, predicted)
        cells.append(CellResult(values, "ok", report=report, predictions=predictions))
    return cells


def test_a_drop_is_measured_on_the_same_images():
    rows = drops_by_classifier_and_perturbation(analyze(ROBUST_GRID, robust_cells()))
    (row,) = [
        row
        for row in rows
        if (row.values["backbone"], row.values["perturb"]) == ("a", "fog:level=strong")
    ]
    assert row.drop.difference == pytest.approx(16 / N)
    assert row.drop.interval95[0] < 16 / N < row.drop.interval95[1]
    assert row.relative == pytest.approx(16 / 36)
    assert row.relative_interval95[0] < 16 / 36 < row.relative_interval95[1]
    assert (row.drop.n, row.perturbed.value, row.cosine) == (N, 0.5, (0.5, (0.4, 0.6)))
    columns = row.to_dict()
    assert (columns["family"], columns["level"]) == ("fog", "strong")


def test_the_mean_corruption_error_sums_errors_over_levels_before_it_divides():
    """Hendrycks and Dietterich: fog (4 + 10) / (8 + 20), flip 6 / 6, and their mean."""
    rows = drops_by_classifier(analyze(ROBUST_GRID, robust_cells()), "a")
    a, b = sorted(rows, key=lambda row: row.values["backbone"])
    assert a.mce == 1.0
    assert b.mce == pytest.approx((14 / 28 + 6 / 6) / 2)
    assert b.mce_interval95[0] <= b.mce <= b.mce_interval95[1]
    assert a.worst[0] == b.worst[0] == "fog"
    assert (a.worst[1], b.worst[1]) == (pytest.approx(1 - 14 / 40), pytest.approx(1 - 7 / 40))
    assert (a.clean.value, a.drop.n, a.perturbations) == (0.9, N, 3)


def test_without_the_baseline_there_is_no_corruption_error():
    rows = drops_by_classifier(analyze(ROBUST_GRID, robust_cells()), "c")
    assert {row.mce for row in rows} == {None}


def test_without_clean_cells_there_are_no_drops():
    perturbed = [cell for cell in robust_cells() if cell.values["perturb"] != "none"]
    assert drops_by_classifier(analyze(ROBUST_GRID, perturbed), "a") == []
