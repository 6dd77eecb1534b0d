"""Results of studies as tables and figures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from featkit.app.studies import (
    display_rows,
    find_studies,
    heat_map_png,
    pareto_png,
    read_table,
)
from featkit.errors import DataError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PNG = b"\x89PNG"


def test_studies_are_found_in_a_folder_and_in_those_below():
    names = [study.name for study in find_studies([EXPERIMENTS])]
    assert {"caltech101_heads", "caltech101_longtail", "caltech101_robustness"} <= set(names)
    (single,) = find_studies([EXPERIMENTS / "caltech101_heads"])
    assert single.report is not None
    assert [path.name for path in single.tables] == ["results.csv"]


def test_runs_are_not_studies(project, runs):
    assert find_studies([runs[0]]) == []


@pytest.mark.parametrize("name", ["caltech101_heads", "caltech101_robustness", "main_job"])
def test_values_in_percent_stand_with_their_intervals(name):
    study = find_studies([EXPERIMENTS / name])[0]  # the folder itself comes before those in it
    table = read_table(study.tables[0])
    rows, in_percent = display_rows(table)
    assert "top1" in in_percent
    assert len(rows) == len(table.rows)
    low, high = table.intervals["top1"]
    assert rows[0]["top1"] == pytest.approx(100 * table.rows[0]["top1"])
    expected = f"{100 * table.rows[0][low]:.1f} to {100 * table.rows[0][high]:.1f}"
    assert rows[0]["top1 95% CI"] == expected
    assert not {low, high} & set(rows[0])


def test_columns_with_one_value_are_left_out():
    table = read_table(EXPERIMENTS / "caltech101_heads" / "results.csv")
    assert "status" in table.constant
    assert "status" not in table.columns


def test_networks_with_latency_have_a_pareto_plot():
    path = EXPERIMENTS / "compression" / "resnet18.csv"
    assert pareto_png(path).startswith(PNG)
    assert heat_map_png(read_table(path), "networks") is None
    assert pareto_png(EXPERIMENTS / "main_job" / "results.csv") is None


def test_one_row_per_network_and_head_has_a_heat_map(tmp_path):
    lines = ["data,backbone,head,top1,low,high"]
    for backbone in ("resnet18", "resnet50"):
        for head in ("linear", "svm"):
            lines.append(f"/a/photos,{backbone},{head},0.9,0.8,0.95")
    (tmp_path / "results.csv").write_text("\n".join(lines))
    assert heat_map_png(read_table(tmp_path / "results.csv"), "heads").startswith(PNG)


def test_cells_with_several_rows_have_no_heat_map_of_their_own(tmp_path):
    lines = ["backbone,head,seed,top1,low,high"]
    lines += [f"resnet{n},linear,{seed},0.9,0.8,0.95" for n in (18, 50) for seed in (0, 1)]
    (tmp_path / "results.csv").write_text("\n".join(lines))
    assert heat_map_png(read_table(tmp_path / "results.csv"), "heads") is None


@pytest.mark.parametrize("content", [b"", b"a,b\n", b"\xff\xfe\x00", b'a,b\n"x'])
def test_a_file_that_is_no_table_is_reported(tmp_path, content):
    (tmp_path / "results.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"results\.csv"):
        read_table(tmp_path / "results.csv")


def test_a_table_that_is_gone_is_reported(tmp_path):
    shutil.rmtree(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path / "results.csv")
