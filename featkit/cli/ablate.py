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
    header = [
        "top-1 %",
        "95 % interval",
        "balanced %",
        "fit s",
        "head",
        "backbone",
        "weights",
        "layer",
        "data",
        "seed",
        "n",
    ]
    rows = []
    for cell in cells:
        values = cell.values
        place = [
            values["head"],
            values["backbone"],
            cell.weights or values["weights"],
            values["layer"] or "",
            cell.data,
            values["seed"],
        ]
        if cell.report:
            low, high = (100 * end for end in cell.report.interval95)
            report = cell.report
            numbers = [
                f"{100 * report.top1:.1f}",
                f"{low:.1f} to {high:.1f}",
                f"{100 * report.balanced_accuracy:.1f}",
                f"{report.cost['fit_seconds']:.1f}",
            ]
            rows.append([*numbers, *place, report.n])
        else:
            rows.append([cell.status, "", "", "", *place, ""])
    drawn = table(header, rows, right=("top-1 %", "balanced %", "fit s", "n"))
    reasons = dict.fromkeys(f"{cell.status}: {cell.reason}" for cell in cells if cell.reason)
    return "\n".join([drawn, *reasons])


def _heat_map(grid: Grid, cells: list[Cell]) -> bytes:
    """Draw the mean top-1 over seeds; with one seed, its interval as well."""
    import numpy as np

    from featkit.plots.files import png_bytes
    from featkit.plots.heatmap import plot_heatmap

    rows = list(dict.fromkeys(_place(cell, grid) for cell in cells))
    columns = list(dict.fromkeys(str(cell.values["head"]) for cell in cells))
    found: dict[tuple[int, int], list[Cell]] = {}
    for cell in cells:
        found.setdefault((rows.index(_place(cell, grid)), columns.index(str(cell.values["head"]))), []).append(cell)
    means = np.full((len(rows), len(columns)), np.nan)
    ends = np.full((len(rows), len(columns), 2), np.nan)
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
        rows,
        columns,
        title=grid.name + (f", mean of {seeds} seeds" if seeds > 1 else ""),
        label="top-1",
        intervals=ends if seeds == 1 else None,
        missing=missing.tolist(),
    )
    return png_bytes(figure)


def _place(cell: Cell, grid: Grid) -> str:
    """Return the cell's row in the heat map: its backbone and weights, and each other axis that varies."""
    weights = str(cell.values["weights"])
    parts = [str(cell.values["backbone"]), weights + (" (untrained)" if weights.startswith("random") else "")]
    parts = [cell.data, *parts] if len(grid.axes["data"]) > 1 else parts
    parts += [str(cell.values["layer"])] if len(grid.axes["layer"]) > 1 else []
    return " ".join(part for part in parts if part)
