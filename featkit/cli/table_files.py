"""The options ``--latex`` and ``--markdown``: tables for a publication."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import UserPath, option, stack
from featkit.cli.output import note, print_text

if TYPE_CHECKING:
    from featkit.ablation.run import AblationResult
    from featkit.runs.compare import RunComparison

_FORMATS = ("latex", "markdown")
_STDOUT = Path("-")

table_options = stack(
    option(
        "--latex",
        group="Output",
        type=UserPath(dir_okay=False, allow_dash=True),
        metavar="FILE|-",
        help="Write the table for LaTeX (booktabs) with intervals, the best in bold and ties with "
        "it marked; -: print it instead of the plain table.",
    ),
    option(
        "--markdown",
        group="Output",
        type=UserPath(dir_okay=False, allow_dash=True),
        metavar="FILE|-",
        help="Write the same table as Markdown; -: print it instead of the plain table.",
    ),
)
"""Options of commands whose table can be published."""


def check_table_options(options: Mapping[str, Any]) -> None:
    """Check the options before anything is computed.

    Raises:
        UsageError: if two outputs are to be printed, or there will be no table.
    """
    given = [f"--{name}" for name in _FORMATS if options[name]]
    printed = [f"--{name} -" for name in _FORMATS if options[name] == _STDOUT]
    if options["as_json"]:
        printed.append("--json")
    if len(printed) > 1:
        raise click.UsageError(f"{' and '.join(printed)} both print: give one of them a file")
    if given and options.get("dry_run"):
        raise click.UsageError(f"--dry-run has no results: leave out {' and '.join(given)}")


def prints_table(options: Mapping[str, Any]) -> bool:
    """Return whether one of the tables is printed instead of the plain one."""
    return any(options[name] == _STDOUT for name in _FORMATS)


def write_tables(
    result: AblationResult | RunComparison, options: Mapping[str, Any], baseline: str = ""
) -> None:
    """Write or print the tables that the options ask for.

    Raises:
        StorageError: if a file cannot be written.
    """
    from featkit import api
    from featkit.storage import write_file

    for name in _FORMATS:
        path = options[name]
        if not path:
            continue
        text = api.publication_table(result, format=name, baseline=baseline)
        if path == _STDOUT:
            print_text(text, end="")
        else:
            write_file(path, text)
            note(f"written: {path}")
