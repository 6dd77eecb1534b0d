"""`featkit heads`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from featkit.cli.options import command

EPILOG = """\b
Examples:
  featkit heads
  featkit fit --head svm:C=9,kernel=rbf
"""


@command(epilog=EPILOG)
def heads() -> None:
    """List heads and class-imbalance corrections, including plug-ins, with their options."""
    from featkit.heads import list_corrections, list_heads

    for head in list_heads():
        click.echo(f"{head.name}{'' if head.builtin else ' (plug-in)'}: {head.summary}")
        click.echo("    " + _options_text(head.options))
    click.echo("\nClass-imbalance corrections (--balance):")
    for correction in list_corrections():
        names = ", ".join([correction.name, *correction.aliases])
        click.echo(f"{names}: {correction.summary.replace('``', '')}")
        if correction.options:
            click.echo("    " + _options_text(correction.options))


def _options_text(options: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={'none' if value is None else value}" for name, value in options.items()
    )
