"""Text that commands print: notes on stderr, tables and numbers on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click


def note(text: str) -> None:
    """Print a line about progress or a default to stderr."""
    click.echo(text, err=True)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str] = ()) -> str:
    """Format rows as a plain table; the columns named in ``right`` are right-aligned."""
    from prettytable import PrettyTable, TableStyle

    drawn = PrettyTable(list(header))
    drawn.set_style(TableStyle.PLAIN_COLUMNS)
    drawn.align = "l"
    for name in right:
        drawn.align[name] = "r"
    drawn.add_rows([list(row) for row in rows])
    drawn.left_padding_width, drawn.right_padding_width = 0, 2
    return "\n".join(line.rstrip() for line in drawn.get_string().splitlines())


def between(interval: tuple[float, float]) -> str:
    """Format an interval of fractions in percent, as ``80.1 to 85.3``."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def size(count: float) -> str:
    """Format a number of bytes, such as ``12.3 MB`` (10^6 bytes)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    import json

    click.echo(json.dumps(value, indent=2, allow_nan=False))


def interactive() -> bool:
    """Return whether stderr is a terminal, on which progress bars make sense."""
    return sys.stderr.isatty()


def printable(text: str) -> str:
    """Return a text with control characters escaped, which a terminal might obey."""
    parts = []
    for char in text:
        parts.append(char if char.isprintable() else char.encode("unicode_escape").decode())
    return "".join(parts)
