"""`featkit ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import cache_option, compute_options, json_option, make_compute, note, out_option, table
from featkit.errors import FeatkitError

if TYPE_CHECKING:
    from featkit.studies.ablate import Cell, Grid

EPILOG = """\b
Examples:
  featkit ablate
  featkit ablate --data photos --backbone resnet18 --backbone resnet50
  featkit ablate --head linear --head svm:C=1 --head svm:C=100
  featkit ablate grid.toml

\b
grid.toml:
  [axes]
  data = ["photos"]
  backbone = ["resnet18", "resnet50"]
  head = ["linear", "knn:k=5,metric=cosine"]
  seed = [0, 1, 2]
  [fixed]
  limit = "train=2000"
"""


_NUMBERS = ("top-1 %", "95 % interval", "balanced %", "n", "fit s")


@click.command(epilog=EPILOG)
@click.argument("grid", required=False, type=click.Path(path_type=Path))
@click.option("--data", multiple=True, metavar="SPEC", help="Repeatable. [that of the newest cache, else digits]")
@click.option("--backbone", multiple=True, metavar="SPEC", help="Repeatable. [resnet18]")
@click.option("--weights", multiple=True, metavar="WHICH", help="Repeatable. [imagenet and random]")
@click.option("--layer", multiple=True, metavar="NAME", help="Repeatable.")
@click.option("--head", multiple=True, metavar="SPEC", help="Repeatable. [all five]")
@click.option("--seed", multiple=True, type=click.IntRange(min=0), help="Repeatable. [0]")
@cache_option
@compute_options
@out_option
@json_option
def ablate(grid: Path | None, cache: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Compare backbones and heads in one table.

    Runs every combination of data, backbone, weights, layer, head and seed, best first. A combination
    that fails is a row with its reason. Writes results.csv, results.json and heatmap.png.
    """
    from tqdm import tqdm

    from featkit.studies.ablate import AXES, ranked, run_cells, to_csv, to_json
    from featkit.studies.publish import publish

    axes = {axis: options[axis] for axis in AXES if options[axis]}
    chosen = _grid(grid, axes, cache)
    compute = make_compute(options)
    cells = []
    for cell in tqdm(
        run_cells(chosen, cache, compute), total=len(chosen.cells()), unit="cell", disable=not compute.progress
    ):
        cells.append(cell)
    best_first = ranked(cells)
    directory = out / chosen.name / chosen.id
    files = {"results.csv": to_csv(best_first), "results.json": to_json(chosen, best_first)}
    publish(directory, {**files, "heatmap.png": _heat_map(chosen, cells)})
    click.echo(files["results.json"] if as_json else _table(best_first))
    note(f"results.csv, results.json and heatmap.png: {directory}")
    if not any(cell.report for cell in cells):
        raise FeatkitError(f"not one of the {len(cells)} cells has a result: the reasons are in the table")


def _grid(path: Path | None, axes: dict[str, Any], cache: Path) -> Grid:
    from featkit.embeddings.request import resolve
    from featkit.studies.ablate import Grid, default_axes, read_grid

    if path is None:
        if "data" not in axes:
            request, newest = resolve({}, cache)
            note(f"data not given: {request.data}" + (f", as in {newest}" if newest else ""))
            axes = {**axes, "data": (request.data,)}
        return Grid("ablate", default_axes(axes))
    if axes:
        raise click.UsageError(f"the axes are in {path}: leave out {', '.join('--' + axis for axis in axes)}")
    return read_grid(path)


def _table(cells: list[Cell]) -> str:
    """Draw the cells; what is the same in all of them stands once, above."""
    places = [_axes_of(cell) for cell in cells]
    varying = [name for name in places[0] if len({str(place[name]) for place in places}) > 1]
    same = ", ".join(f"{name} {value}" for name, value in places[0].items() if name not in varying and value != "")
    rows = [[*_numbers(cell), *(place[name] for name in varying)] for cell, place in zip(cells, places, strict=True)]
    drawn = table([*_NUMBERS, *varying], rows, right=_NUMBERS)
    reasons = dict.fromkeys(f"{cell.status}: {cell.reason}" for cell in cells if cell.reason)
    return "\n".join([f"{same}\n" if same else "", drawn, *reasons]).lstrip("\n")


def _axes_of(cell: Cell) -> dict[str, Any]:
    values = cell.values
    return {
        "data": cell.data,
        "head": values["head"],
        "backbone": values["backbone"],
        "weights": cell.weights or values["weights"],
        "layer": values["layer"],
        "seed": values["seed"],
    }


def _numbers(cell: Cell) -> list[str]:
    report = cell.report
    if report is None:
        return [cell.status, "", "", "", ""]
    low, high = (100 * end for end in report.interval95)
    return [
        f"{100 * report.top1:.1f}",
        f"{low:.1f} to {high:.1f}",
        f"{100 * report.balanced_accuracy:.1f}",
        str(report.n),
        f"{report.cost['fit_seconds']:.1f}",
    ]


def _heat_map(grid: Grid, cells: list[Cell]) -> bytes:
    """Draw the mean top-1 over seeds; with one seed, its interval as well."""
    import numpy as np

    from featkit.plots.files import png_bytes
    from featkit.plots.heatmap import plot_heatmap

    rows, same = _row_names(cells)
    places = list(dict.fromkeys(rows))
    columns = list(dict.fromkeys(str(cell.values["head"]) for cell in cells))
    found: dict[tuple[int, int], list[Cell]] = {}
    for row, cell in zip(rows, cells, strict=True):
        found.setdefault((places.index(row), columns.index(str(cell.values["head"]))), []).append(cell)
    means = np.full((len(places), len(columns)), np.nan)
    ends = np.full((len(places), len(columns), 2), np.nan)
    missing = np.full(means.shape, "", dtype=object)
    for place, group in found.items():
        reports = [cell.report for cell in group if cell.report]
        if reports:
            means[place] = np.mean([report.top1 for report in reports])
            ends[place] = reports[0].interval95
        else:
            missing[place] = group[0].status
    seeds = len(grid.axes["seed"])
    figure = plot_heatmap(
        means,
        places,
        columns,
        title=f"{grid.name}: {same}" + (f", mean of {seeds} seeds" if seeds > 1 else ""),
        label="top-1",
        intervals=ends if seeds == 1 else None,
        missing=missing.tolist(),
    )
    return png_bytes(figure)


def _row_names(cells: list[Cell]) -> tuple[list[str], str]:
    """Return each cell's row in the heat map, made of what varies, and what does not, for the title."""
    parts = [
        [cell.data, str(cell.values["backbone"]), _weights(str(cell.values["weights"])), str(cell.values["layer"])]
        for cell in cells
    ]
    varying = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    same = " ".join(name for name, varies in zip(parts[0], varying, strict=True) if name and not varies)
    rows = [" ".join(name for name, varies in zip(part, varying, strict=True) if name and varies) for part in parts]
    return [row or part[1] for row, part in zip(rows, parts, strict=True)], same


def _weights(name: str) -> str:
    return f"{name} (untrained)" if name.startswith("random") else name
