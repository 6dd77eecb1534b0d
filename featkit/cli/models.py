"""`featkit models`."""

from __future__ import annotations

import click

from featkit.cli.options import table

EPILOG = """\b
Examples:
  featkit models
  featkit models --layers resnet50
"""


@click.command(epilog=EPILOG)
@click.option(
    "--layers", metavar="BACKBONE", help="List the layers that --layer takes, with their output at 224 pixels."
)
def models(layers: str | None) -> None:
    """List the backbones, or the layers of one."""
    from featkit.backbones import list_layers, list_models

    if layers:
        rows = [[name, "x".join(map(str, shape))] for name, shape in list_layers(layers)]
        click.echo(table(["layer", "output"], rows))
        return
    click.echo(table(["backbone", "embedding", "parameters", "weights"], [list(row) for row in list_models()]))
