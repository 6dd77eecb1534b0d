"""The command line: one module per command, imported when it is used."""

from featkit.cli.main import main

__all__ = ["main"]
