"""Help texts, shell completion and interruption."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from featkit.cli import main
from featkit.cli.main import COMMANDS, SECTIONS
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
