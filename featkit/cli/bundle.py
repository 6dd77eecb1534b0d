"""``featkit bundle``."""

from __future__ import annotations

from pathlib import Path

import click

from featkit.cli.options import UserPath, command
from featkit.cli.output import note, print_line, size

EPILOG = """\b
Examples:
  featkit bundle latest
  cp -r "$(featkit bundle flowers-v1)" /media/usb/flowers
  featkit predict /media/usb/flowers new.jpg
"""


@command(epilog=EPILOG)
@click.argument("run", type=UserPath())
def bundle(run: Path) -> None:
    """Put the weights of the network into the directory of a run.

    The directory is then all that another machine with featkit needs in order to predict. The
    weights are stored as safetensors, their SHA-256 in the card of the run. Prints the directory.
    """
    from featkit import api

    file = api.bundle(run)
    note(f"the run has its network: {file.name}, {size(file.stat().st_size)}")
    print_line(file.parent)
