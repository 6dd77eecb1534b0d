"""`featkit heads`."""

from __future__ import annotations

import click

EPILOG = """\b
Examples:
  featkit heads
  featkit fit --head svm:C=9,kernel=rbf
"""


@click.command(epilog=EPILOG)
def heads() -> None:
    """List the heads and their options."""
    from featkit.heads import list_heads

    for row in list_heads():
        click.echo(f"{row.name}: {row.summary}")
        click.echo("    " + ", ".join(f"{name}={value}" for name, value in row.options.items()))
