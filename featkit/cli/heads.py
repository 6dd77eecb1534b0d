"""`featkit heads`."""

from __future__ import annotations

import click

from featkit.cli.options import table

EPILOG = """\b
Examples:
  featkit heads
  featkit fit --head svm:C=9,kernel=rbf
"""


@click.command(epilog=EPILOG)
def heads() -> None:
    """List the heads and their options."""
    from featkit.heads import describe_heads

    click.echo(table(["head", "what it is", "options"], [list(row) for row in describe_heads()]))
