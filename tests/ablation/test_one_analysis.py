"""The CSV files and the summary print the same number for the same comparison."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from featkit.ablation.cells import CellResult
from featkit.ablation.grid import Grid
from featkit.ablation.run import AblationResult
from featkit.ablation.tables import result_files
from featkit.evaluation import Predictions, evaluate
from featkit.evaluation.effects import effects, score_cells
from featkit.reports.summary import summary_markdown

CLASSES = ("a", "b", "c")
TAIL_Y = np.repeat([0, 1, 2], [30, 20, 10])


def cell(
    values: dict[str, Any], y: np.ndarray, predicted: np.ndarray, val: float | None = 0.5
) -> CellResult:
    shift = {"n": len(y), "mean": 0.5, "low": 0.4, "high": 0.6}
    report = evaluate(
        np.eye(3)[predicted],
        y,
        CLASSES,
        train_counts=[200, 50, 4],
        provenance={"cosine_to_clean": shift},
        cost={"fit_seconds": 1.0, "predict_seconds": 1.0},
    )
    predictions = Predictions(tuple(map(str, range(len(y)))), y, predicted)
    return CellResult(values, "ok", report=report, predictions=predictions, val_score=val)


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
"""Number of the 40 test images, from the first on, that each backbone has wrong."""
PERTURBATIONS = ["none", "fog:level=mild", "fog:level=strong", "flip:level=mild"]


def perturbed_cells(seeds: tuple[int, ...] = (0,)) -> list[CellResult]:
    y = np.arange(40) % 2
    cells = []
    for backbone, perturb, seed in product("ab", PERTURBATIONS, seeds):
        wrong = np.arange(40) < WRONG[backbone, perturb] + seed
        values = {"backbone": backbone, "head": "knn", "perturb": perturb, "seed": seed}
        cells.append(cell(values, y, np.where(wrong, 1 - y, y)))
    return cells


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+\.\d", text)]


def percent(row: dict[str, str], name: str) -> list[float]:
    """Return a value and its interval in a CSV row, as a summary prints them."""
    return [round(100 * float(row[column]), 1) for column in (name, f"{name}_low", f"{name}_high")]


def test_csv_and_summary_have_the_same_long_tail_gain_and_interval() -> None:
    """Over three seeds: both are about the correction, not about a single seed."""
    rng = np.random.default_rng(0)
    grid = Grid(
        "tail", {"subset": ("longtail:if=50",), "balance": ("none", "reweight"), "seed": (0, 1, 2)}
    )
    cells = []
    for values in grid.cells():
        accuracy = 0.6 if values["balance"] == "none" else 0.75
        predicted = np.where(rng.random(60) < accuracy, TAIL_Y, (TAIL_Y + 1) % 3)
        cells.append(cell(dict(values), TAIL_Y, predicted))
    result = AblationResult(grid, tuple(cells))

    (row,) = [
        row
        for row in csv.DictReader(str(result_files(result)["longtail.csv"]).splitlines())
        if row["balance"] == "reweight"
    ]
    summary = summary_markdown(result.findings, ["6 cells"], ["featkit longtail"])
    table = summary.split("## Long tail")[1].split("\n## ")[0]
    (line,) = [line for line in table.splitlines() if "reweight" in line]

    assert numbers(line.split("|")[-5]) == percent(row, "gain")
    assert numbers(line.split("|")[-7]) == percent(row, "balanced_accuracy")
    assert row["seeds"] == "3"


def test_csv_and_summary_have_the_same_drop_and_interval() -> None:
    grid = Grid(
        "robustness",
        {"backbone": ("a", "b"), "perturb": tuple(PERTURBATIONS), "seed": (0, 1, 2)},
    )
    made = {
        tuple(each.values[axis] for axis in ("backbone", "perturb", "seed")): each
        for each in perturbed_cells((0, 1, 2))
    }
    cells = []
    for values in grid.cells():
        source = made[values["backbone"], values["perturb"], values["seed"]]
        cells.append(replace(source, values=dict(values)))
    result = AblationResult(grid, tuple(cells))

    rows = list(csv.DictReader(str(result_files(result, "a")["robustness_heads.csv"]).splitlines()))
    summary = summary_markdown(result.findings, ["24 cells"], ["featkit robustness"])
    table = summary.split("## Robustness")[1].split("\n## ")[0]
    for row in rows:
        (line,) = [line for line in table.splitlines() if f"backbone {row['backbone']}" in line]
        assert percent(row, "drop") == numbers(line.split("|")[-5])


def test_one_seed_and_the_mean_over_seeds_answer_different_questions() -> None:
    """The interval over three seeds is narrower than that of each seed, which averages nothing."""
    rng = np.random.default_rng(1)
    y = np.zeros(400, int)
    cells = []
    for balance, seed in product(("none", "reweight"), range(3)):
        accuracy = 0.6 if balance == "none" else 0.7
        predicted = np.where(rng.random(400) < accuracy, 0, 1)
        cells.append(
            (
                {"balance": balance, "seed": seed},
                Predictions(list(map(str, range(400))), y, predicted),
            )
        )
    scored = score_cells(cells)
    (mean,) = effects(scored, "balance", [("reweight", "none")])
    (single,) = effects(
        [each for each in scored if each.place["seed"] == 0], "balance", [("reweight", "none")]
    )
    assert mean.seeds == 3
    assert np.ptp(mean.interval95) < np.ptp(single.interval95)
