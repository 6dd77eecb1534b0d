"""`featkit models`."""

from __future__ import annotations

from featkit.cli.options import command, option
from featkit.cli.output import print_text, table

EPILOG = """\b
Examples:
  featkit models
  featkit models --layers resnet50
"""


@command(epilog=EPILOG)
@option(
    "--layers",
    group="Backbone",
    metavar="BACKBONE",
    help="List the layers of this backbone, with output shapes at 224 pixels.",
    show_default=False,
)
def models(layers: str | None) -> None:
    """List backbones, or the layers of one."""
    from featkit.backbones import list_layers, list_models

    if layers:
        rows = [[name, "x".join(map(str, shape))] for name, shape in list_layers(layers)]
        print_text(table(["layer", "output"], rows))
        return
    print_text(
        table(
            ["backbone", "embedding", "parameters", "weights"], [list(row) for row in list_models()]
        )
    )
