"""Show the messages of featkit's logger on stderr."""

from __future__ import annotations

import logging

import click


class EchoHandler(logging.Handler):
    """Print log records on stderr, warnings with a prefix."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        click.echo(f"{prefix}{record.getMessage()}", err=True)


_HANDLER = EchoHandler()


def show_messages() -> None:
    """Print what featkit logs from now on; calling it again changes nothing."""
    logger = logging.getLogger("featkit")
    logger.setLevel(logging.INFO)
    if _HANDLER not in logger.handlers:
        logger.addHandler(_HANDLER)
