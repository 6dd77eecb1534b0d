"""The command line: one thin file for each verb, imported when it is needed."""

from featkit.cli.main import main

__all__ = ["main"]
