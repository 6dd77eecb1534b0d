"""Commands and options in the texts of the package: each of them exists, and values are quoted."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

import featkit
from featkit.cli import main

ROOT = Path(featkit.__file__).parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
QUOTED = re.compile(r"`(featkit [^`]+)`")
EXAMPLE = re.compile(r"^ +(featkit .+)$", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
QUOTING = {"quote", "join"}
"""Names of functions whose result a shell reads as it is meant."""
FOREIGN = {
    # of click, of every program, and of other programs
    *("--help", "--help-all", "--version", "--quiet", "--verbose"),
    *("--resources", "--scheduler-file", "--nthreads", "--nworkers", "--nproc-per-node"),
}


def texts(path):
    """Return every text in a file: its line, and the text with VALUE for what is filled in.

    Also returns the expressions that are filled in, in their order.
    """
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [each.value if isinstance(each, ast.Constant) else "\0" for each in node.values]
            filled = [each.value for each in node.values if isinstance(each, ast.FormattedValue)]
            yield node.lineno, "".join(parts), filled
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner
        ):
            yield node.lineno, node.value, []


def commands(path):
    for line, text, filled in texts(path):
        for found in (*QUOTED.finditer(text), *EXAMPLE.finditer(text)):
            if "[^" in found.group(1):
                continue  # a regular expression
            first = text[: found.start(1)].count("\0")
            count = found.group(1).count("\0")
            yield line, found.group(1).replace("\0", "VALUE"), filled[first : first + count]


def parse(words):
    """Parse the words of a command as the command line does; values are not converted."""
    command, context, groups = main, click.Context(main), [main]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        if found is None and re.search(r"VALUE|[A-Z|]", words[0]):
            return  # any of several commands
        assert found is not None, words[0]
        command, words = found, words[1:]
        groups.append(command)
    context = click.Context(command, resilient_parsing=True)
    known = {}
    for each in command.get_params(context):
        known.update(dict.fromkeys((*each.opts, *each.secondary_opts), each))
    arguments, place = [], 0
    while place < len(words):
        name, equals, _ = words[place].partition("=")
        place += 1
        if not re.match(r"--?[a-z]", name):
            arguments.append(name)
            continue
        assert name in known, f"{command.name} has no {name}"
        if getattr(known[name], "is_flag", False) or getattr(known[name], "count", False):
            assert not equals, f"{name} is a flag"
        elif not equals:
            place += 1  # its value, which may be left out in a sentence
    takes = any(isinstance(each, click.Argument) for each in command.params)
    is_group = isinstance(command, click.Group)
    assert takes or is_group or not arguments, f"{command.name} takes no {arguments}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if "featkit " in (ROOT / path).read_text(encoding="utf-8")]
)
def test_every_command_in_a_text_exists_with_its_options(path):
    for line, command, _ in commands(path):
        words = shlex.split(command.replace("...", ""), comments=True)
        try:
            parse(words[1:])
        except AssertionError as error:
            pytest.fail(f"{path}:{line}: `{command}`: {error}")


@pytest.mark.parametrize(
    "path", [path for path in FILES if "`featkit " in (ROOT / path).read_text(encoding="utf-8")]
)
def test_values_in_a_command_are_quoted_for_a_shell(path):
    for line, command, filled in commands(path):
        for value in filled:
            if ast.unparse(value) == "ctx.invoked_subcommand":
                continue  # a name of featkit's own
            called = value.func if isinstance(value, ast.Call) else None
            name = getattr(called, "attr", getattr(called, "id", ""))
            assert name in QUOTING, f"{path}:{line}: `{command}`: quote {ast.unparse(value)}"


def test_every_option_in_a_text_is_one_of_a_command():
    known = set(FOREIGN)
    pending = [main]
    while pending:
        command = pending.pop()
        context = click.Context(command)
        for each in command.get_params(context):
            known.update((*each.opts, *each.secondary_opts))
        if isinstance(command, click.Group):
            pending.extend(
                command.get_command(context, name) for name in command.list_commands(context)
            )
    for path in FILES:
        for line, text, _ in texts(path):
            unknown = set(OPTION.findall(text)) - known
            assert not unknown, f"{path}:{line}: {unknown}"
