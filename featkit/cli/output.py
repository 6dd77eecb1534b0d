"""Text that commands print: notes on stderr, tables and numbers on stdout.

Commands print with these functions only, which escape what a terminal might obey. A name that is
part of a text of several lines must be escaped by ``visible`` where it is put in, since a line
break in it could not be told from one of the text; ``table`` does so for its cells.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click

from featkit.errors import visible


def note(text: str) -> None:
    """Print a line about progress or a default to stderr, unless --quiet was given."""
    if not is_quiet():
        click.echo(visible(text), err=True)


def is_quiet() -> bool:
    """Return whether the command was called with --quiet."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get("featkit.quiet"))


def print_line(value: object) -> None:
    """Print one line on stdout; a line break in it is escaped."""
    click.echo(visible(str(value)))


def print_text(text: str, *, end: str = "\n") -> None:
    """Print a text of several lines on stdout."""
    click.echo(visible_lines(text.split("\n")) + end, nl=False)


def visible_lines(lines: Iterable[str]) -> str:
    """Join lines to a text; line breaks inside of them are escaped."""
    return "\n".join(visible(line) for line in lines)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str] = ()) -> str:
    """Format rows as a plain table; the columns named in ``right`` are right-aligned."""
    from prettytable import PrettyTable, TableStyle

    drawn = PrettyTable(list(header))
    drawn.set_style(TableStyle.PLAIN_COLUMNS)
    drawn.align = "l"
    for name in right:
        drawn.align[name] = "r"
    for row in rows:
        drawn.add_row([visible(str(cell)) for cell in row])
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


def age(modified: float) -> str:
    """Format the time since a POSIX time stamp, such as ``3 d``."""
    seconds = max(0.0, time.time() - modified)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    import json

    print_text(json.dumps(value, indent=2, allow_nan=False))


def interactive() -> bool:
    """Return whether stderr is a terminal, on which progress bars make sense."""
    return sys.stderr.isatty() and not is_quiet()
