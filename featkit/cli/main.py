"""The ``featkit`` command: its subcommands, and how errors are reported."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from io import TextIOWrapper
from itertools import chain
from typing import Any

import click

from featkit import __version__
from featkit.cli.interruption import exhaustion_reported, interruptions_reported, signals_raised
from featkit.errors import FeatkitError, OptionsError, StorageError, visible

SECTIONS: dict[str, dict[str, str]] = {
    "Everyday use": {
        "train": "Train the best classifier of photos within minutes.",
        "predict": "Classify new images with a run.",
        "runs": "List, show, rename and remove runs.",
        "bundle": "Put the weights of the network into a run.",
        "app": "Try, train, clean and compare in a browser.",
    },
    "Features": {
        "extract": "Extract features of images into the cache.",
        "cache": "List, verify, export and remove cached features.",
    },
    "Heads and evaluation": {
        "fit": "Fit a head and evaluate it on the test set.",
        "compare": "Compare runs with paired tests.",
        "neighbours": "Find training images that resemble given images.",
        "report": "Write the report of a run as one HTML page.",
        "plot": "Draw a picture of a run, a network or an image.",
    },
    "Studies": {
        "ablate": "Run a grid of backbones, heads and options.",
        "fewshot": "Evaluate heads on few-shot episodes.",
        "longtail": "Compare class-imbalance corrections.",
        "robustness": "Evaluate heads on corrupted test images.",
        "compare-frameworks": "Compare torch and TensorFlow on the same network.",
        "audit": "Find duplicates, label errors and poor images.",
        "suggest": "Suggest which unlabelled images to label next.",
    },
    "Training and compression": {
        "finetune": "Fine-tune a network, or train it from scratch.",
        "distill": "Distill a teacher network into a smaller student.",
        "prune": "Prune channels or weights of a network.",
        "quantize": "Quantize a network to int8.",
        "profile": "Measure size, speed and accuracy of networks.",
        "export": "Export a run to one ONNX or PyTorch file.",
    },
    "Utilities": {
        "models": "List backbones and their layers.",
        "heads": "List heads and their options.",
        "doctor": "Show versions, devices, weights and cache.",
        "cluster": "Check the workers of a Dask cluster.",
        "completion": "Print the script for shell completion.",
    },
}
"""Commands with their short help, in the sections of ``featkit --help``."""

COMMANDS = tuple(chain.from_iterable(SECTIONS.values()))

EPILOG = """\b
Examples:
  featkit train photos
  featkit predict latest new.jpg
  featkit fit --data photos --backbone resnet50 --head svm
"""


class CommandGroup(click.Group):
    """Commands in sections; the module of a command is imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"featkit.cli.{name}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is meant; name the nearest for an unknown one."""
        name = args[0]
        if name in COMMANDS or name.startswith("-"):
            return super().resolve_command(ctx, args)
        close = get_close_matches(name.lower(), COMMANDS, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else "`featkit --help` lists all"
        ctx.fail(f"there is no command {name!r}: {hint}")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section of the help for each group of commands; no command is imported."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line; signals that end the process are reported like Ctrl-C."""
        with signals_raised():
            return super().main(*args, **extra)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the arguments before the command; ``invoke`` parses the others."""
        with interruptions_reported():
            return super().make_context(*args, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments before the command."""
        with _visible_usage_errors():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; report errors in one line, with exit code 1."""
        try:
            with _visible_usage_errors(), exhaustion_reported(), _system_errors_reported():
                return super().invoke(ctx)
        except OptionsError as error:
            command = _running(self, ctx)
            usage = click.Context(command, ctx, command.name) if command else ctx
            raise click.UsageError(_message(error, self, ctx), usage) from error
        except FeatkitError as error:
            raise click.ClickException(_message(error, self, ctx)) from error
        except KeyboardInterrupt as interrupt:
            with interruptions_reported(resume="--resume" in _option_names(self, ctx)):
                raise interrupt


@contextmanager
def _visible_usage_errors() -> Iterator[None]:
    """Escape what a terminal might obey in the arguments that click's own errors quote."""
    try:
        yield
    except click.ClickException as error:
        # Newer versions of click raise the help of `featkit cache` as an error of many lines.
        if not isinstance(error, _HELP_AS_ERROR):
            # The attribute is final for type checkers only.
            vars(error)["message"] = visible(error.message)
        raise


_HELP_AS_ERROR = getattr(click.exceptions, "NoArgsIsHelpError", ())


@contextmanager
def _system_errors_reported() -> Iterator[None]:
    """Convert errors of the system to a FeatkitError that names the file.

    Code that reads or writes a known file raises its own error. This one is for paths that the
    system refuses in any call: longer than it allows, on a disk that was removed, in a folder that
    may not be read.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of the output has ended; click handles it
            raise
        where = f" {error.filename}" if error.filename is not None else ""
        reason = error.strerror or str(error) or type(error).__name__
        raise StorageError(
            f"cannot access{where}: {reason}; check the path, its disk and its permissions"
        ) from error


def _message(error: FeatkitError, group: click.Group, ctx: click.Context) -> str:
    """Return the message of an error, without advice to use options that the command lacks.

    A message that names such an option all the same says so: the library does not know which
    command it works for.
    """
    known = _option_names(group, ctx)
    fixes = [fix for fix in error.fixes if _named_options(fix) <= known]
    text = error.text(fixes)
    missing = sorted(_named_options(text) - known)
    if missing:
        text += f" (`featkit {ctx.invoked_subcommand}` has no {' or '.join(missing)})"
    return text


def _named_options(text: str) -> set[str]:
    """Return the options in a text, but not those of commands in backticks."""
    return set(_OPTION.findall(_QUOTED_COMMAND.sub("", text)))


_QUOTED_COMMAND = re.compile(r"`featkit [^`]*`")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def _running(group: click.Group, ctx: click.Context) -> click.Command | None:
    """Return the subcommand that is running."""
    return group.get_command(ctx, ctx.invoked_subcommand or "")


def _option_names(group: click.Group, ctx: click.Context) -> set[str]:
    """Return the option names of the subcommand that is running."""
    command = _running(group, ctx)
    commands = list(command.commands.values()) if isinstance(command, click.Group) else [command]
    names: set[str] = set()
    for each in commands:
        for parameter in each.params if each else []:
            names.update(parameter.opts)
    return names


@click.group(
    cls=CommandGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="featkit")
@click.option("-v", "--verbose", is_flag=True, help="Show the log messages of TensorFlow.")
def main(verbose: bool) -> None:
    """Extract image features with pretrained networks, fit classifiers on them, and evaluate both.

    Results are printed on stdout, progress and defaults on stderr. Exit codes: 0 success, 1 error
    (reported in one line), 2 wrong usage, 130 interrupted by Ctrl-C, 143 ended by SIGTERM.
    """
    from featkit.cli.messages import shown_messages

    if verbose:
        # Read when TensorFlow is imported; see ``featkit.backbones.keras.import_keras``.
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    limit_threads()
    keep_freed_memory()
    escape_unencodable_output()
    click.get_current_context().with_resource(shown_messages())


def limit_threads() -> None:
    """Tell OpenMP and BLAS of a container's CPU quota, before they are loaded: they do not see it.

    Without that they start a thread for every core of the machine, which then wait for each other.
    """
    from featkit.storage import available_cores, cpu_quota

    if cpu_quota() is not None:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, str(available_cores()))


def escape_unencodable_output() -> None:
    """Print characters that the encoding of stdout lacks as escapes, as stderr does by default."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Configure glibc to keep freed memory for the next batch.

    By default it returns the blocks of activations, megabytes each, to the system and maps them
    again page by page for every layer, which takes 2 to 11% of the time of a bf16 forward pass. A
    program may change this, a library should not. Does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    import ctypes

    if hasattr(ctypes.CDLL(None), "mallopt"):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
