"""The grid: its cells, what happens when one fails, and the files it leaves."""

from __future__ import annotations

import csv
import io
import json

import pytest

from featkit.embeddings.pipeline import Compute
from featkit.errors import SpecError
from featkit.studies import ablate
from featkit.studies.ablate import Grid, default_axes, ranked, read_grid, run_cells, to_csv, to_json


@pytest.fixture
def grid(photos):
    axes = {"data": (str(photos),), "weights": ("random",), "head": ("knn:k=1", "prototypical"), "seed": (0, 1)}
    return Grid("colours", default_axes(axes), {"resize": "32"})


def cells_of(grid, tmp_path):
    return list(run_cells(grid, tmp_path / "cache", Compute()))


def test_cells_are_the_product_with_heads_innermost(grid):
    places = [(cell["seed"], cell["head"]) for cell in grid.cells()]
    assert places == [(0, "knn:k=1"), (0, "prototypical"), (1, "knn:k=1"), (1, "prototypical")]


def test_every_cell_has_its_report_and_vectors_are_extracted_once(grid, tmp_path):
    cells = cells_of(grid, tmp_path)
    assert [cell.status for cell in cells] == ["ok"] * 4
    assert all("untrained" in cell.weights for cell in cells)
    assert len(list((tmp_path / "cache").glob("*.h5"))) == 1


def test_what_fails_is_a_row_with_its_reason_and_the_others_go_on(photos, tmp_path):
    axes = {
        "data": (str(photos),),
        "weights": ("random", "nowhere.pth"),
        "head": ("knn:k=1", "nonsense"),
    }
    cells = cells_of(Grid("broken", default_axes(axes), {"resize": "32"}), tmp_path)
    assert [cell.status for cell in cells] == ["ok", "failed", "skipped", "skipped"]
    assert "unknown head 'nonsense'" in cells[1].reason
    assert "nowhere.pth" in cells[2].reason
    assert next(cell.status for cell in ranked(cells)) == "ok"


def test_an_unexpected_failure_is_a_row_too(grid, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise MemoryError("no room\nfor this")

    monkeypatch.setattr(ablate, "fit_run", fail)
    assert {(cell.status, cell.reason) for cell in cells_of(grid, tmp_path)} == {
        ("failed", "MemoryError: no room for this")
    }


def test_the_csv_has_a_line_for_each_cell(grid, tmp_path):
    cells = cells_of(grid, tmp_path)
    rows = list(csv.DictReader(io.StringIO(to_csv(cells))))
    assert [row["head"] for row in rows] == [cell.values["head"] for cell in cells]
    assert all(float(row["low"]) <= float(row["top1"]) <= float(row["high"]) for row in rows)


def test_the_json_is_the_same_from_run_to_run(grid, tmp_path):
    first, second = (to_json(grid, cells_of(grid, tmp_path)) for _ in range(2))
    assert first == second
    assert json.loads(first)["cells"][0]["report"]["n"] == 4


def write(tmp_path, text):
    (tmp_path / "grid.toml").write_text(text)
    return tmp_path / "grid.toml"


def test_a_grid_file_is_read(tmp_path):
    grid = read_grid(write(tmp_path, '[axes]\nhead = ["svm"]\nseed = [1, 2]\n[fixed]\nlimit = "train=5"\n'))
    assert (grid.name, grid.axes["head"], grid.axes["seed"], grid.fixed) == (
        "grid",
        ("svm",),
        (1, 2),
        {"limit": "train=5"},
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[axes", "cannot be read as a grid"),
        ("[axis]\n", "did you mean axes"),
        ("[axes]\nheads = []\n", "did you mean head"),
        ("[axes]\nhead = []\n", "at least one value"),
        ('[axes]\nhead = "svm"\n', "must be a list"),
        ('[fixed]\nheads = "svm"\n', "unknown fixed option"),
        ("axes = 3\n", "must be a table"),
    ],
)
def test_a_malformed_grid_is_refused(tmp_path, text, message):
    with pytest.raises(SpecError, match=message):
        read_grid(write(tmp_path, text))


def test_a_missing_grid_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"gone\.toml"):
        read_grid(tmp_path / "gone.toml")
