"""What the verbs that run a matrix share: their options, live progress, the table, the files."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import (
    BACKBONE_HELP,
    Decorator,
    F,
    augment_option,
    cache_option,
    compute_options,
    crop_option,
    json_option,
    limit_option,
    make_compute,
    option,
    out_option,
    pool_option,
    resize_option,
    split_option,
    stack,
    views_option,
)
from featkit.cli.output import between, note, table
from featkit.errors import FeatkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from featkit.ablation.cells import CellResult
    from featkit.ablation.grid import Grid
    from featkit.ablation.run import AblationConfig, AblationResult, Progress

_NUMBERS = ("top-1 %", "95 % interval", "balanced %", "n", "fit s")


grid_options = stack(
    option(
        "--jobs",
        group="Compute",
        type=click.IntRange(min=1),
        help="Heads fitted in parallel, one process each.",
        show_default="one per core",
    ),
    option(
        "--dry-run",
        group="Output",
        is_flag=True,
        help="Only report the number of cells, the cache files to make, and the estimated time.",
    ),
    cache_option,
    compute_options,
    out_option,
    json_option,
)
"""How a grid is run, and where its results go."""


def _axis(name: str, metavar: str, help: str, default: str, group: str, **settings: Any) -> Any:
    """Return the repeatable option of an axis."""
    return option(
        f"--{name}",
        group=group,
        multiple=True,
        metavar=metavar,
        help=f"{help} Repeatable.",
        show_default=default,
        **settings,
    )


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "data": lambda default: _axis("data", "SPEC", "Data set, as for `featkit fit`.", default, "Data"),
    "seed": lambda default: _axis(
        "seed", "N", "Random seed.", default, "Data", type=click.IntRange(min=0)
    ),
    "subset": lambda default: _axis(
        "subset", "SPEC", "Subset of train: longtail:if=50, kshot:k=5.", default, "Data"
    ),
    "perturb": lambda default: _axis(
        "perturb", "SPEC", "Corruption of the test images.", default, "Data"
    ),
    "train_perturb": lambda default: _axis(
        "train-perturb", "SPEC", "Corrupted copies added to train: mixed:level=mild.", default, "Data"
    ),
    "backbone": lambda default: _axis("backbone", "SPEC", BACKBONE_HELP, default, "Backbone"),
    "weights": lambda default: _axis(
        "weights", "SPEC", "imagenet, random[:SEED] or a weights file.", default, "Backbone"
    ),
    "layer": lambda default: _axis(
        "layer", "NAME", "Layer whose output is used.", default, "Backbone"
    ),
    "precision": lambda default: _axis(
        "precision",
        "NAME",
        "auto, fp32, bf16, int8 or int8-openvino.",
        default,
        "Backbone",
        type=click.Choice(["auto", "fp32", "bf16", "int8", "int8-openvino"]),
    ),
    "head": lambda default: _axis("head", "SPEC", "Head, or all.", default, "Head"),
    "balance": lambda default: _axis(
        "balance", "SPEC", "Class-imbalance correction.", default, "Head"
    ),
    "tune": lambda default: option(
        "--tune", group="Head", is_flag=True, help="Tune hyperparameters on the validation set."
    ),
}
_DEFAULTS = {
    "data": "digits",
    "seed": "0",
    "subset": "all",
    "perturb": "none",
    "train_perturb": "none",
    "backbone": "resnet18",
    "weights": "imagenet",
    "layer": "global average pooling",
    "precision": "auto",
    "head": "linear",
    "balance": "none",
    "tune": "off",
}
_FIXED = {
    "split": split_option,
    "limit": limit_option,
    "augment": augment_option,
    "views": views_option,
    "pool": pool_option,
    "resize": resize_option,
    "crop": crop_option,
}


def axis_options(*names: str, **defaults: str) -> Decorator[F]:
    """Return the options of axes (repeatable) and of settings that are the same in all cells.

    Args:
        names: of axes and settings.
        defaults: text for the help, where a command's default is not that of the axis.
    """
    shown = {**_DEFAULTS, **defaults}
    return stack(*(_FIXED[name] if name in _FIXED else _OPTIONS[name](shown[name]) for name in names))


def given_axes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the axes that were given."""
    from featkit.ablation.grid import AXES

    axes = {axis: options[axis] for axis in AXES if options.get(axis)}
    if "tune" in axes:
        axes["tune"] = (True,)
    return axes


def given_fixed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given and are the same in all cells."""
    from featkit.ablation.grid import FIXED

    return {name: options[name] for name in FIXED if options.get(name) is not None}


def run_grid(grid: Grid, options: Mapping[str, Any], baseline: str = "") -> AblationResult | None:
    """Run a grid, print its table, leave its files; with ``--dry-run``, say what it would take, and return None."""
    from featkit.ablation.run import run_grid
    from featkit.ablation.tables import best_first
    from featkit.reports.ablation import ablation_files
    from featkit.storage import publish

    with _work(options) as work:
        if options["dry_run"]:
            click.echo(_estimated(grid, work))
            return None
        begun, start = any((work.out / grid.name / "cells").glob("*")), time.perf_counter()
        matrix = run_grid(grid, work)
    seconds = _wall_seconds(work, grid, None if begun else time.perf_counter() - start)
    directory = work.out / grid.name / grid.id
    files = ablation_files(matrix, command=_command(), baseline=baseline, wall_seconds=seconds)
    publish(directory, files)
    click.echo(files["results.json"] if options["as_json"] else _table(best_first(matrix.cells)))
    note(f"{', '.join(files)}: {directory}")
    if not any(cell.report for cell in matrix.cells):
        why = next(cell.reason for cell in matrix.cells if cell.status != "ok")
        raise FeatkitError(f"not one of the {len(matrix.cells)} cells has a result: {why}")
    return matrix


def _wall_seconds(work: AblationConfig, grid: Grid, seconds: float | None) -> float | None:
    """Return how long the matrix took when it was made in one go, now or before.

    Of one that was gone on with, the time of the last part would say little.
    """
    file = work.out / grid.name / "cells" / "wall.json"
    if seconds is not None:
        file.write_text(json.dumps({grid.id: seconds}), encoding="utf-8")
        return seconds
    try:
        known: float | None = json.loads(file.read_text(encoding="utf-8")).get(grid.id)
    except (OSError, ValueError):
        return None
    return known


def _command() -> str:
    """Return what was typed; of a call from Python, the verb."""
    typed = Path(sys.argv[0]).name in ("featkit", "__main__.py")
    return shlex.join(["featkit", *sys.argv[1:]]) if typed else click.get_current_context().command_path


@contextmanager
def _work(options: Mapping[str, Any]) -> Iterator[AblationConfig]:
    """Give where and how to work, with live progress where a person watches."""
    from tqdm import tqdm

    from featkit.ablation.run import AblationConfig
    from featkit.storage import available_cores

    compute = make_compute(options)
    with tqdm(unit="cell", disable=options["dry_run"] or not compute.progress) as bar:

        def show(progress: Progress) -> None:
            if bar.total is None:  # what is on disk already says nothing of the time left
                bar.reset(progress.total)
                bar.initial = bar.n = progress.done
            bar.set_postfix(running=progress.running, failed=progress.failed, refresh=False)
            bar.update(progress.done - bar.n)
            bar.refresh()

        yield AblationConfig(options["out"], options["cache"], compute, options["jobs"] or available_cores(), note, show)


def _estimated(grid: Grid, work: AblationConfig) -> str:
    from featkit.ablation.estimate import SAMPLE, estimate

    found = estimate(grid, work)
    lines = [f"{found.cells} cells, {found.finished} of them finished, {found.fits} heads to fit"]
    lines += [f"{count} skipped: {why}" for why, count in found.skipped.items()]
    lines += [f"{count} cannot be made: {' '.join(why.split())}" for why, count in found.unavailable.items()]
    lines += [f"{found.files} cache files are there"]
    for network in found.networks:
        speed = f", {network.rate:.0f} images/s measured on {SAMPLE}" if network.rate else ""
        lines += [f"{network.files} cache files to make with {network.name}: {network.images:,} images{speed}"]
    if found.fit_seconds is not None:
        lines += [f"{found.fit_seconds:.1f} s for a fit, the mean of those on disk"]
    seconds = found.seconds(work.jobs)
    about = "not known before a head of this matrix was fitted" if seconds is None else f"about {seconds:.0f} s"
    return "\n".join([*lines, f"time with {work.jobs} jobs: {about}"])


def _table(cells: Sequence[CellResult]) -> str:
    """Draw the cells; what is the same in all of them stands once, above."""
    places = [_axes_of(cell) for cell in cells]
    varying = [name for name in places[0] if len({place[name] for place in places}) > 1]
    same = ", ".join(f"{name} {value}" for name, value in places[0].items() if name not in varying and value != "")
    rows = [[*_numbers(cell), *(place[name] for name in varying)] for cell, place in zip(cells, places, strict=True)]
    drawn = table([*_NUMBERS, *varying], rows, right=_NUMBERS)
    reasons = dict.fromkeys(f"{cell.status}: {cell.reason}" for cell in cells if cell.reason)
    return "\n".join([f"{same}\n" if same else "", drawn, *reasons]).lstrip("\n")


def _axes_of(cell: CellResult) -> dict[str, str]:
    """Return the place of a cell as a person reads it."""
    shown = {"data": cell.data, "weights": cell.weights or str(cell.values["weights"])}
    return {axis: shown.get(axis) or str(value) for axis, value in cell.values.items()}


def _numbers(cell: CellResult) -> list[str]:
    report = cell.report
    if report is None:
        return [cell.status, "", "", "", ""]
    return [
        f"{100 * report.top1:.1f}",
        between(report.interval95),
        f"{100 * report.balanced_accuracy:.1f}",
        str(report.n),
        f"{report.cost['fit_seconds']:.1f}",
    ]
