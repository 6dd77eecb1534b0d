"""`featkit heads`."""

from __future__ import annotations

import click

from featkit.cli.options import command

EPILOG = """\b
Examples:
  featkit heads
  featkit fit --head svm:C=9,kernel=rbf
"""


@command(epilog=EPILOG)
def heads() -> None:
    """List heads, plug-ins included, with their hyperparameters and defaults."""
    from featkit.heads import list_heads

    for row in list_heads():
        click.echo(f"{row.name}: {row.summary}")
        click.echo("    " + ", ".join(f"{name}={value}" for name, value in row.options.items()))
