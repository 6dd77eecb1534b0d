"""Help texts, shell completion and interruption."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from featkit.api import PLOT_KINDS
from featkit.cli import main
from featkit.cli.main import COMMANDS, SECTIONS
from featkit.cli.messages import has_colour
from featkit.cli.options import GROUPS


def help_of(*command):
    done = CliRunner().invoke(main, [*command, "--help"], terminal_width=100)
    assert done.exit_code == 0, done.output
    return done.output


def test_every_command_has_a_short_help_in_a_section():
    for section, commands in SECTIONS.items():
        assert f"{section}:" in help_of()
        for name, text in commands.items():
            assert name in help_of()
            assert len(text) <= 60
            assert text.endswith(".")


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_listed_in_groups_with_a_default_in_one_form(name):
    text = help_of(name)
    assert "Examples:" in text
    if isinstance(main.get_command(click.Context(main), name), click.Group):
        return
    headings = re.findall(r"^(\w[\w ]*):$", text, flags=re.MULTILINE)
    groups = [heading for heading in headings if heading in GROUPS]
    assert groups == [group for group in GROUPS if group in groups]
    assert "Options:" not in text
    assert "[default: (" not in text
    assert "x>=" not in text


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_help_fits_on_60_lines_of_100_columns(name):
    lines = help_of(*[name] if name else []).splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 101  # of an example, which is not wrapped


def test_help_all_explains_what_the_help_only_lists():
    short = help_of("fit")
    done = CliRunner().invoke(main, ["fit", "--help-all"], terminal_width=100)
    assert done.exit_code == 0
    names = short.partition("Advanced, explained by --help-all:")[2].partition("Examples")[0]
    for name in ("--batch-size", "--limit", "--crop"):
        assert name in names
        assert f"\n  {name} " in done.output
        assert f"\n  {name} " not in short
    assert "Advanced" not in done.output


@pytest.mark.parametrize("width", [80, 100])
def test_the_short_help_of_plot_lists_all_kinds(width):
    done = CliRunner().invoke(main, ["plot", "--help"], terminal_width=width)
    block = done.output.partition("KIND is")[2].partition("TARGET")[0]
    listed = re.findall(r"[\w-]+", block.partition("run")[2])
    kinds = set(listed) - {"network", "study", "image"}
    assert kinds == set(PLOT_KINDS)
    assert "Kinds for a run" not in done.output


def test_quiet_leaves_results_warnings_and_errors(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["fit", "--data", str(photos), "--weights", "random", "--resize", "32"]
    command += ["--head", "prototypical"]
    loud = CliRunner().invoke(main, command)
    quiet = CliRunner().invoke(main, [*command, "--quiet"])
    assert "run: experiments" in loud.stderr
    assert all(line.startswith("warning: ") for line in quiet.stderr.splitlines())
    assert quiet.stdout.splitlines()[:2] == loud.stdout.splitlines()[:2]
    verbose = CliRunner().invoke(main, [*command, "-v"])
    assert re.search(r"^\[\d+\.\d s\] run: ", verbose.stderr, re.MULTILINE)


def test_messages_have_colour_on_terminals_only_and_not_with_no_color(monkeypatch):
    assert not has_colour()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert has_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colour()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_by_one_clause(name):
    command = main.get_command(click.Context(main), name)
    commands = command.commands.values() if isinstance(command, click.Group) else [command]
    for each in commands:
        for option in each.params:
            if isinstance(option, click.Option):
                assert option.help, option.name
                assert option.help.endswith("."), option.name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_a_shell(shell, monkeypatch):
    monkeypatch.setattr(
        "click.shell_completion.BashComplete._check_version", staticmethod(lambda: None)
    )
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert "_FEATKIT_COMPLETE" in done.stdout
