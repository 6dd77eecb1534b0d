"""`featkit runs ls|show|rm|rename`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featkit.cli.options import Command, UserPath, json_option, option
from featkit.cli.output import (
    age,
    between,
    note,
    print_json,
    print_line,
    print_text,
    size,
    table,
    visible_lines,
)
from featkit.errors import FeatkitError

if TYPE_CHECKING:
    from featkit.runs.summary import RunSummary

EPILOG = """\b
Examples:
  featkit runs ls
  featkit runs show latest
  featkit runs rename latest flowers-v2
  featkit runs rm flowers-v1 0123456789ab

\b
A run is referred to by its name, its id, the start of one of them, the path of its directory, or
as `latest`. Runs are looked for in experiments/runs and in every folder that a run was written to.
"""


@click.group(epilog=EPILOG)
def runs() -> None:
    """List, show, rename and remove runs."""


@runs.command("ls", cls=Command)
@option(
    "--out",
    group="Output",
    type=UserPath(file_okay=False),
    metavar="DIR",
    help="List the runs in this folder only.",
    show_default="all known folders",
)
@json_option
def list_all(out: Path | None, as_json: bool) -> None:
    """List the runs, newest first."""
    from featkit.runs.registry import list_runs
    from featkit.runs.summary import summarise_run

    found: list[RunSummary] = []
    for entry in list_runs(None if out is None else [out]):
        try:
            found.append(summarise_run(entry.path))
        except FeatkitError as error:
            note(f"warning: {error}")
    if as_json:
        print_json([summary.to_dict() for summary in found])
        return
    if not found:
        note("no runs yet: `featkit train PHOTOS` makes one")
        return
    print_text(_table(found))


def _table(summaries: Sequence[RunSummary]) -> str:
    from featkit.evaluation.metrics import TOP1

    columns = ["name", "run", "data", "head", "top-1 %", "95% CI", "n", "age", "size"]
    rows = []
    for each in summaries:
        mark = "" if each.metric == TOP1 else f" {each.metric}"
        top1, interval = f"{100 * each.top1:.1f}{mark}", between(each.interval95)
        what = [each.name or "-", each.run, each.data, f"{each.head} on {each.backbone}"]
        rows.append([*what, top1, interval, each.n, _age(each.created), size(each.bytes)])
    return table(columns, rows, right=columns[4:])


@runs.command("show", cls=Command)
@click.argument("run", type=UserPath())
@option("--path", "path_only", group="Output", is_flag=True, help="Print its directory only.")
@json_option
def show(run: Path, path_only: bool, as_json: bool) -> None:
    """Show a run: what it was fitted on, how good it is, and where it is."""
    from featkit.runs.registry import find_run
    from featkit.runs.summary import summarise_run

    if path_only:
        print_line(find_run(run).resolve())
        return
    summary = summarise_run(find_run(run))
    if as_json:
        print_json(summary.to_dict())
        return
    images = f"images in {summary.folds} folds" if summary.folds else "test images"
    lines = [
        f"name      {summary.name or '-'}",
        f"run       {summary.run}",
        f"path      {summary.path}",
        f"data      {summary.data}, {summary.classes} classes",
        f"model     {summary.head} on {summary.backbone}",
        f"{summary.metric:<9} {100 * summary.top1:.1f}% (95% CI {between(summary.interval95)}, "
        f"n = {summary.n} {images})",
        f"written   {_to_seconds(summary.created)} ({_age(summary.created)} ago)",
        f"size      {size(summary.bytes)}, {'with' if summary.bundled else 'without'} the weights "
        "of the network",
    ]
    print_text(visible_lines(lines))


@runs.command("rename", cls=Command)
@click.argument("run", type=UserPath())
@click.argument("name")
def rename(run: Path, name: str) -> None:
    """Give a run another name.

    Id, path and files of the run stay as they are.
    """
    from featkit.api import rename_run

    renamed = rename_run(run, name)
    note(f"{renamed} is now named {name}")


@runs.command("rm", cls=Command)
@click.argument("runs", nargs=-1, required=True, type=UserPath(), metavar="RUN...")
@option("--yes", "-y", group="Output", is_flag=True, help="Do not ask for confirmation.")
def remove(runs: tuple[Path, ...], yes: bool) -> None:
    """Remove runs with all files in their directories.

    Cached features are kept, so that `featkit fit` makes a run again quickly.
    """
    from featkit.runs.registry import find_run
    from featkit.runs.summary import remove_run

    paths = list(dict.fromkeys(find_run(run) for run in runs))
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody can be asked whether to remove them: give --yes")
        for path in paths:
            print_line(path)
        click.confirm("Remove these directories?", abort=True)
    for path in paths:
        remove_run(path)
        note(f"removed {path}")


def _to_seconds(created: str) -> str:
    """Return a date and time without the fraction of its second."""
    try:
        return datetime.fromisoformat(created).isoformat(timespec="seconds")
    except ValueError:
        return created


def _age(created: str) -> str:
    """Return the time since a date, such as ``3 d``; a dash if it cannot be read."""
    try:
        written = datetime.fromisoformat(created)
    except ValueError:
        return "-"
    if written.tzinfo is None:
        written = written.replace(tzinfo=UTC)
    return age(written.timestamp())
