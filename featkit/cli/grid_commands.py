"""Options, table and dry run of the commands that run a grid: ablate, longtail, robustness."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.arguments import MAX_SEED
from featkit.cli.options import (
    BACKBONE_HELP,
    Decorator,
    augment_option,
    cache_option,
    cluster_option,
    compute_options,
    crop_option,
    group_leak_option,
    group_option,
    integers,
    intensity_option,
    json_option,
    limit_option,
    option,
    out_option,
    pool_option,
    resize_option,
    split_option,
    stack,
    views_option,
)
from featkit.cli.output import between, interactive, print_text, table, visible_lines
from featkit.cli.table_files import check_table_options, prints_table, table_options, write_tables
from featkit.errors import visible

if TYPE_CHECKING:
    from featkit.ablation.cells import CellResult
    from featkit.ablation.effects import Findings
    from featkit.ablation.estimate import Estimate
    from featkit.ablation.grid import Grid
    from featkit.ablation.run import AblationResult

grid_options = stack(
    option(
        "--jobs",
        group="Compute",
        type=integers(1),
        help="Heads fitted in parallel, one process each.",
        show_default="one per core",
    ),
    cluster_option,
    option(
        "--dry-run",
        group="Output",
        is_flag=True,
        help="Only print the number of cells, the missing cache files and the estimated time; no "
        "network runs.",
    ),
    option(
        "--measure",
        group="Output",
        is_flag=True,
        help="Measure the throughput of networks for the time that --dry-run estimates.",
    ),
    cache_option,
    compute_options,
    out_option,
    table_options,
    json_option,
)
"""Options of execution and output of a grid."""


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
    "data": lambda default: _axis(
        "data", "SPEC", "Data set, as --data of `featkit fit`.", default, "Data"
    ),
    "seed": lambda default: _axis(
        "seed", "N", "Random seed.", default, "Data", type=integers(0, MAX_SEED)
    ),
    "subset": lambda default: _axis(
        "subset",
        "SPEC",
        "Subset of train to fit on: longtail:if=50 (imbalance factor), kshot:k=5.",
        default,
        "Data",
    ),
    "perturb": lambda default: _axis(
        "perturb",
        "SPEC",
        "Corruption of the test images, such as fog:level=strong.",
        default,
        "Data",
    ),
    "train_perturb": lambda default: _axis(
        "train-perturb",
        "SPEC",
        "Corrupted copies of train images to add to train, such as mixed:level=mild.",
        default,
        "Data",
    ),
    "backbone": lambda default: _axis("backbone", "SPEC", BACKBONE_HELP, default, "Backbone"),
    "weights": lambda default: _axis(
        "weights", "SPEC", "Weights: imagenet, random[:SEED] or a file.", default, "Backbone"
    ),
    "layer": lambda default: _axis(
        "layer", "NAME", "Layer to take features from.", default, "Backbone"
    ),
    "precision": lambda default: _axis(
        "precision",
        "NAME",
        "Numeric precision of feature extraction.",
        default,
        "Backbone",
        type=click.Choice(["auto", "fp32", "bf16", "int8", "int8-openvino"]),
    ),
    "head": lambda default: _axis(
        "head", "SPEC", "Head, as --head of `featkit fit`, or all.", default, "Head"
    ),
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
    "group": group_option,
    "allow_group_leak": group_leak_option,
    "limit": limit_option,
    "intensity_range": intensity_option,
    "augment": augment_option,
    "views": views_option,
    "pool": pool_option,
    "resize": resize_option,
    "crop": crop_option,
}


def axis_options(*names: str, **defaults: str) -> Decorator:
    """Return the options of axes (repeatable) and of settings that are the same in all cells.

    Args:
        names: of axes and settings.
        defaults: text for the help, where a command's default is not that of the axis.
    """
    shown = {**_DEFAULTS, **defaults}
    return stack(
        *(_FIXED[name] if name in _FIXED else _OPTIONS[name](shown[name]) for name in names)
    )


def print_grid(grid: Grid, options: Mapping[str, Any], baseline: str = "") -> AblationResult | None:
    """Run a grid and print its table; with ``--dry-run``, print the estimate and return None."""
    from featkit import api
    from featkit.ablation.tables import best_first

    options = {**options, "progress": interactive()}
    if options["measure"] and not options["dry_run"]:
        raise click.UsageError("--measure needs --dry-run")
    check_table_options(options)
    if options["dry_run"]:
        print_text(_estimate_text(*api.estimate_study(grid, options)))
        return None

    def show(result: AblationResult) -> None:
        if options["as_json"]:
            results = Path(options["out"], grid.name, grid.id, "results.json")
            print_text(results.read_text(encoding="utf-8"))
        elif not prints_table(options):
            print_text(_table(best_first(result.cells), result.findings))

    result = api.run_study(grid, options, baseline, command=_command_line(), on_result=show)
    write_tables(result, options, baseline)
    return result


def _command_line() -> str:
    """Return the command as typed; for a call from Python, the name of the command."""
    if Path(sys.argv[0]).name in ("featkit", "__main__.py"):
        return shlex.join(["featkit", *sys.argv[1:]])
    return click.get_current_context().command_path


def _estimate_text(estimate: Estimate, jobs: int) -> str:
    """Return the lines of a dry run."""
    lines = [
        f"{estimate.cells} cells, {estimate.finished} of them finished, "
        f"{estimate.fits} heads to fit"
    ]
    for reason, count in estimate.skipped.items():
        lines.append(f"{count} skipped: {reason}")
    for reason, count in estimate.unavailable.items():
        lines.append(f"{count} unavailable: {' '.join(reason.split())}")
    lines.append(f"{estimate.files} cache files found")
    for network in estimate.networks:
        speed = ""
        if network.rate:
            speed = f", {network.rate:.3g} images/s measured on {network.measured}"
        lines.append(
            f"{network.files} cache files to extract with {network.name}: "
            f"{network.images:,} images{speed}"
        )
    if estimate.fit_seconds is not None:
        lines.append(f"{estimate.fit_seconds:.1f} s per fit, mean of the finished cells")
    seconds = estimate.seconds(jobs)
    time = _unknown_time(estimate) if seconds is None else f"about {seconds:.0f} s"
    lines.append(f"time with {jobs} jobs: {time}")
    return visible_lines(lines)


def _unknown_time(estimate: Estimate) -> str:
    """Say what is missing for an estimate of the time."""
    if all(network.seconds is not None for network in estimate.networks):
        return "unknown until a head of this grid is fitted"
    return "unknown; --measure measures the throughput of networks, if there are enough images"


def _numbers(findings: Findings) -> tuple[str, ...]:
    """Return the headers of ``_number_cells``."""
    from featkit.evaluation.metrics import MEAN_AVERAGE_PRECISION

    if findings.metric == MEAN_AVERAGE_PRECISION:
        return ("mAP %", "95% CI", "macro F1 %", "n", "fit s")
    return ("top-1 %", "95% CI", "balanced %", "n", "fit s")


def _table(cells: Sequence[CellResult], findings: Findings) -> str:
    """Return the table of cells, with values that all of them share in a line above."""
    from featkit.reports.wording import metric_name

    numbers = _numbers(findings)
    places = [_place(cell, findings) for cell in cells]
    varying, constant = [], []
    for axis, value in places[0].items():
        if len({place[axis] for place in places}) > 1:
            varying.append(axis)
        elif value:
            constant.append(f"{axis} {value}")
    rows = []
    for cell, place in zip(cells, places, strict=True):
        rows.append([*_number_cells(cell), *(place[axis] for axis in varying)])
        if findings.standings:
            rows[-1].insert(len(numbers), _standing(cell, findings))
    lines = [visible(", ".join(constant)), ""] if constant else []
    compared = ["compared"] if findings.standings else []
    lines.append(table([*numbers, *compared, *varying], rows, right=numbers))
    if findings.standings:
        lines.append(
            f"best: highest {metric_name(findings)} on the same test and training set; tied: not "
            "significantly different from the best (paired tests over all seeds, Holm correction)"
        )
    lines.extend(visible(problem) for problem in _problems(cells))
    return "\n".join(lines)


def _problems(cells: Sequence[CellResult]) -> Iterable[str]:
    """Return each reason for which cells have no result once."""
    return dict.fromkeys(f"{cell.status}: {cell.reason}" for cell in cells if cell.reason)


def _standing(cell: CellResult, findings: Findings) -> str:
    standing = findings.standing(cell.values) if cell.report else None
    if standing is None:
        return ""
    tied = "tied" if standing.is_tied else ""
    return "best" if standing.is_best else tied


def _place(cell: CellResult, findings: Findings) -> dict[str, str]:
    """Return the values of a cell on the axes, as text."""
    place = {axis: str(value) for axis, value in cell.values.items()}
    place["backbone"] = findings.shown("backbone", place["backbone"])
    place["data"] = cell.data or place["data"]
    place["weights"] = cell.weights or place["weights"]
    return place


def _number_cells(cell: CellResult) -> list[str]:
    report = cell.report
    if report is None:
        return [cell.status, "", "", "", ""]
    return [
        f"{100 * report.headline.value:.1f}",
        between(report.headline.interval95),
        f"{100 * report.second.value:.1f}",
        str(report.n),
        f"{report.cost['fit_seconds']:.1f}",
    ]
