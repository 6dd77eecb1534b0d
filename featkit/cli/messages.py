"""Show the messages of featkit's logger on stderr."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import click

from featkit.errors import visible


class EchoHandler(logging.Handler):
    """Print log records on stderr, warnings with a prefix.

    A record with the attribute ``once`` is printed once: a command may list the same images several
    times.
    """

    def __init__(self) -> None:
        super().__init__()
        self._printed: set[str] = set()
        self._start = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if getattr(record, "once", False):
            if record.getMessage() in self._printed:
                return
            self._printed.add(record.getMessage())
        prefix = ""
        if record.levelno >= logging.WARNING:
            prefix = click.style("warning: ", fg="yellow") if has_colour() else "warning: "
        elif logging.getLogger("featkit").level == logging.DEBUG:
            prefix = f"[{time.monotonic() - self._start:.1f} s] "
        with _beside_progress_bars():
            click.echo(f"{prefix}{visible(record.getMessage())}", err=True)


def _beside_progress_bars() -> AbstractContextManager[object]:
    """Return a context in which progress bars are off the terminal, and drawn again after it."""
    if "tqdm" not in sys.modules or not sys.stderr.isatty():
        return nullcontext()
    from tqdm import tqdm

    bars: AbstractContextManager[object] = tqdm.external_write_mode(file=sys.stderr)
    return bars


def has_colour() -> bool:
    """Return whether messages have colours: on terminals, unless NO_COLOR is set."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


@contextmanager
def shown_messages() -> Iterator[None]:
    """Print what featkit logs until the block ends.

    The logger is left as it was: a program that calls the command line as a function, such as a
    test, does not get these messages from later calls of the Python API.
    """
    logger = logging.getLogger("featkit")
    level, propagate, handler = logger.level, logger.propagate, EchoHandler()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    if not logging.getLogger().handlers:
        # ONNX Runtime calls logging.basicConfig when its quantization is imported: that handler
        # would print each message again. Handlers of the calling program still get them.
        logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
