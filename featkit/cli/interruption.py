"""Commands that are stopped by Ctrl-C, SIGTERM or a closed terminal, or run out of memory."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click

from featkit.errors import FeatkitError, visible

_SIGNALS = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP.


class Terminated(KeyboardInterrupt):
    """The process was asked to end by a signal; whatever cleans up after Ctrl-C does so now too.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


class Interrupted(click.ClickException):
    """An interruption, with the exit code that shells expect: 128 and the number of the signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # type: ignore[misc]  # click types it as the same for all


@contextmanager
def signals_raised() -> Iterator[None]:
    """Raise ``Terminated`` in the main thread for signals that would end the process at once.

    Signals that the program which called the command line handles or ignores, as nohup does, are
    left alone.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, _raise_terminated)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(number)


@contextmanager
def interruptions_reported(resume: bool = False) -> Iterator[None]:
    """Convert an interruption to one line: what was kept, and how to continue.

    Args:
        resume: whether the command continues only with ``--resume``.

    Raises:
        Interrupted: if the block was interrupted.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        number = interrupt.signal if isinstance(interrupt, Terminated) else signal.SIGINT
        reason = "interrupted" if number == signal.SIGINT else "terminated"
        # Functions that keep something when they are interrupted add a note to the exception.
        kept = getattr(interrupt, "__notes__", [])
        if kept:
            option = " with --resume" if resume else ""
            text = f"{reason}; {'; '.join(kept)}: run the same command again{option} to continue"
        else:
            text = f"{reason}; what was finished is kept: run the same command again to continue"
        _end_progress_bar()
        raise Interrupted(visible(text), number) from interrupt


def _end_progress_bar() -> None:
    """End the line of a progress bar, or of the ``^C`` that a terminal shows."""
    if sys.stderr.isatty():
        click.echo(err=True)


@contextmanager
def exhaustion_reported() -> Iterator[None]:
    """Convert errors that any line of the program may raise.

    Raises:
        FeatkitError: if memory or the stack of the interpreter was exhausted.
    """
    try:
        yield
    except MemoryError as error:
        raise _out_of_memory(str(error)) from error
    except RecursionError as error:
        raise FeatkitError(
            "an input is nested too deeply to be read: check the files that were given"
        ) from error
    except RuntimeError as error:
        # torch has no common type: OutOfMemoryError on GPUs, a plain RuntimeError on the CPU.
        if "out of memory" not in str(error) and "allocate memory" not in str(error):
            raise
        raise _out_of_memory(str(error)) from error


def _out_of_memory(detail: str) -> FeatkitError:
    reason = detail.partition("\n")[0].strip()
    return FeatkitError(
        f"out of memory ({reason})" if reason else "out of memory",
        fixes=[
            "lower --batch-size",
            "lower --jobs",
            "use fewer images with --limit",
            "free memory",
        ],
    )
