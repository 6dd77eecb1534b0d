"""Figures of results as named PNG files."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from featkit.ablation.cells import CellResult
from featkit.ablation.grid import AXES, Grid
from featkit.ablation.run import AblationResult
from featkit.evaluation import evaluate
from featkit.heads.search import Candidate, SearchResult
from featkit.plots.search import plot_search
from featkit.reports import figures
from featkit.reports.figures import (
    ablation_figures,
    fewshot_figures,
    history_figures,
    odds_text,
    profile_figures,
    run_figures,
    sparsity_figures,
    training_figures,
)
from featkit.studies.fewshot import FewShotScore

PNG = b"\x89PNG"


def report() -> Any:
    y = np.arange(60) % 3
    scores = np.eye(3)[np.where(np.arange(60) % 7, y, (y + 1) % 3)] * 0.8 + 0.2 / 3
    return evaluate(scores, y, ("a", "b", "c"), columns=np.arange(3))


def run(*, tried: list[Candidate] | None = None, metric: str = "top1") -> Any:
    request = SimpleNamespace(backbone="resnet18")
    source = SimpleNamespace(weights="random:0 (untrained)", request=request)
    search = None
    if tried:
        search = SearchResult(tuple(tried), 0, np.empty((0, 0)), metric)
    return SimpleNamespace(
        id="abc", name="My run", head_spec="svm", source=source, report=report(), search=search
    )


HISTORY = [
    {f"{split}_{part}": 0.5 for split in ("train", "val") for part in ("loss", "top1", "top5")}
    | {"epoch": epoch}
    for epoch in (1, 2)
]


def test_a_run_has_a_confusion_matrix_and_a_reliability_diagram() -> None:
    files = run_figures(run())
    assert set(files) == {"confusion.png", "reliability.png"}
    assert all(content.startswith(PNG) for content in files.values())


def test_a_tuned_run_also_has_its_search() -> None:
    tried = [Candidate({"C": value}, 0.5, 1.0, 0.4) for value in (1.0, 10.0, 100.0)]
    assert set(run_figures(run(tried=tried))) == {"confusion.png", "reliability.png", "search.png"}


def test_the_search_shows_the_metric_that_the_best_candidate_was_selected_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Balanced accuracy if a correction was tuned; n is that of the validation set."""
    drawn = []

    def draw(candidates: Any, *, title: str, metric: str, chosen: int) -> Figure:
        drawn.append(([score for _, score in candidates], metric))
        assert chosen == 0
        return plot_search(candidates, title=title, metric=metric, chosen=chosen)

    monkeypatch.setattr(figures, "plot_search", draw)
    tried = [Candidate({"tau": value}, 0.5, 1.0, value / 4) for value in (1.0, 2.0, 3.0)]
    run_figures(run(tried=tried, metric="balanced_accuracy"))
    run_figures(run(tried=tried))
    assert drawn == [
        ([0.25, 0.5, 0.75], "validation balanced accuracy"),
        ([0.5, 0.5, 0.5], "validation top-1 accuracy"),
    ]


def test_a_learning_curve_says_what_n_is(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    monkeypatch.setattr(figures, "plot_curve", lambda lines, **given: drawn.update(given))
    monkeypatch.setattr(figures, "png_bytes", lambda figure: PNG)
    fewshot_figures([FewShotScore("knn", 1, 0.5, (0.4, 0.6), 5, 270)], "photos")
    assert drawn["x_label"] == "number of training images per class"
    assert drawn["y_label"] == "top-1 accuracy (%)"
    assert drawn["title"].endswith("95% CI over draws and test images, n = 270 test images")
    fewshot_figures([FewShotScore("knn", 1, 0.5, (0.4, 0.6), 2, 270)], "photos")
    assert drawn["title"].endswith("95% CI over test images, n = 270 test images")


def test_a_training_also_has_curves() -> None:
    assert set(training_figures(run(), HISTORY)) == {
        "curves.png",
        "confusion.png",
        "reliability.png",
    }
    assert set(history_figures({"a": HISTORY, "b": HISTORY}, title="two runs")) == {"curves.png"}


def test_without_a_learning_curve_there_is_no_file() -> None:
    scores = [FewShotScore("knn", shot, 0.5, (0.4, 0.6), 5) for shot in (1, 2, 4)]
    assert fewshot_figures([], "photos") == {}
    assert fewshot_figures(scores, "photos")["curve.png"].startswith(PNG)


def test_networks_without_an_accuracy_are_left_out_of_the_pareto_plot() -> None:
    timing = SimpleNamespace(median_ms=3.0)
    unknown, known = (SimpleNamespace(timing=timing, report=each) for each in (None, report()))
    assert profile_figures([unknown], ["a"], "title") == {}
    assert set(profile_figures([unknown, known], ["a", "b"], "title")) == {"pareto.png"}


def test_pruning_steps_are_a_curve() -> None:
    rows = [{"sparsity": share, "top1": 0.9, "low": 0.8, "high": 0.95} for share in (0.0, 0.5, 0.8)]
    assert sparsity_figures({"pruned": rows}, "svm on photos")["steps.png"].startswith(PNG)


def ablation_result(cells: list[CellResult]) -> Any:
    axes = {name: list(dict.fromkeys(cell.values[name] for cell in cells)) for name in AXES}
    return AblationResult(Grid("study", axes), tuple(cells))


def grid_cell(**values: Any) -> CellResult:
    given = {**AXES, "data": "photos", "weights": "random", **values}
    return CellResult(given, "ok", data="photos", report=report())


def drawn_heatmap(cells: list[CellResult], monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return the arguments that the heat map of a grid is drawn from."""
    drawn = SimpleNamespace()

    def draw(values: Any, rows: Any, columns: Any, **given: Any) -> Figure:
        drawn.__dict__.update(given, values=values, rows=rows, columns=columns)
        return Figure()

    monkeypatch.setattr(figures, "plot_heatmap", draw)
    ablation_figures(ablation_result(cells))
    return drawn


def test_a_grid_with_failed_cells_has_a_heat_map() -> None:
    failed = CellResult({**AXES, "head": "knn", "seed": 1}, "failed", "out of memory")
    cells = [grid_cell(head="svm", train_perturb="fog", tune=True), failed]
    assert ablation_figures(ablation_result(cells))["heatmap.png"].startswith(PNG)


@pytest.mark.parametrize(
    ("axis", "other", "names"),
    [
        ("balance", "reweight", ["no correction", "reweight"]),
        ("layer", "layer3", ["default layer", "layer3"]),
        ("precision", "int8", ["automatic precision", "int8"]),
        ("subset", "longtail:if=5", ["all training images", "longtail:if=5"]),
        ("train_perturb", "fog", ["trained on clean images", "trained on fog"]),
        ("tune", True, ["not tuned", "tuned"]),
        ("backbone", "resnet50", ["ResNet-18", "ResNet-50"]),
        ("head", "svm", ["ResNet-18"]),
    ],
)
def test_rows_of_the_heat_map_are_named_after_what_varies(
    axis: str, other: Any, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [grid_cell(), grid_cell(**{axis: other})]
    drawn = drawn_heatmap(cells, monkeypatch)
    assert drawn.rows == names
    network = "" if axis == "backbone" else "ResNet-18, "
    assert drawn.title == f"study: photos, {network}random (untrained)"


def test_data_without_a_result_has_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [grid_cell(), CellResult({**AXES, "data": "missing"}, "failed")]
    assert drawn_heatmap(cells, monkeypatch).rows == [
        "photos, random (untrained)",
        "missing, imagenet",
    ]


def test_the_heat_map_shows_the_metric_that_the_study_compares_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uneven = replace(report(), balanced_accuracy=0.25, balanced_interval95=(0.2, 0.3))
    cells = [replace(grid_cell(balance=name), report=uneven) for name in ("none", "reweight")]
    drawn = drawn_heatmap(cells, monkeypatch)
    assert drawn.label == "balanced accuracy"
    np.testing.assert_array_equal(drawn.values, [[0.25], [0.25]])
    np.testing.assert_array_equal(drawn.intervals[0, 0], [0.2, 0.3])
    drawn = drawn_heatmap([replace(cell, report=uneven) for cell in (grid_cell(),)], monkeypatch)
    assert drawn.label == "top-1 accuracy"
    assert drawn.values == uneven.top1


@pytest.mark.parametrize(("odds", "text"), [(1.26, "1.3 : 1"), (9.94, "9.9 : 1"), (12.4, "12 : 1")])
def test_odds_have_two_digits(odds: float, text: str) -> None:
    assert odds_text(odds) == text
