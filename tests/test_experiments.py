"""The studies in experiments/ can be started: files parse, commands and their options are valid."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from featkit.ablation.grid import check_specs, read_grid
from featkit.cli import main
from featkit.heads import CORRECTIONS, make_head, parse_correction
from featkit.images.perturb import parse_perturbation
from featkit.runs.trainings import read_training_study

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
GRIDS = []
TRAININGS = []
for file in sorted(EXPERIMENTS.glob("*.toml")):
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    (GRIDS if "axes" in table else TRAININGS).append(file.name)
SCRIPTS = sorted(file.name for file in EXPERIMENTS.glob("*.sh"))

# Programs of a script that would compute, or read what is computed: the first one writes down its
# arguments, one command a line, and prints a path as the real one does.
RECORDER = """#!/bin/sh
{ printf '%s\\037' "$@"; echo; } >> "$RECORD"
echo runs/stub
"""
SILENT = "#!/bin/sh\necho runs/stub\n"


@pytest.mark.parametrize("name", GRIDS)
def test_the_grids_parse(name, monkeypatch, tmp_path):
    monkeypatch.setenv("FEATKIT_TEST_DATA", str(tmp_path))
    grid = read_grid(EXPERIMENTS / name)
    check_specs(grid)
    assert grid.values("data")


@pytest.mark.parametrize("name", TRAININGS)
def test_the_trainings_parse(name, monkeypatch, tmp_path):
    monkeypatch.setenv("FEATKIT_TEST_DATA", str(tmp_path))
    assert len(read_training_study(EXPERIMENTS / name, tmp_path).configs) > 1


@pytest.mark.skipif(shutil.which("sh") is None, reason="runs shell scripts")
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_commands_of_the_scripts_are_valid(name, tmp_path, monkeypatch):
    """Each script is run with programs that only write down how they are called."""
    record = run_with_stubs(name, tmp_path)
    commands = record.read_text(encoding="utf-8").splitlines()
    assert commands
    monkeypatch.chdir(ROOT)
    for line in commands:
        check_command(line.split("\037")[:-1])


def run_with_stubs(name, folder):
    """Run a script in a copy of experiments/ without results; return the file of its commands."""
    programs, record = folder / "programs", folder / "commands"
    programs.mkdir()
    for program in ("featkit", "cp", "cat", "cut", "ls", "python", "sed", "xargs"):
        text = RECORDER if program == "featkit" else SILENT
        (programs / program).write_text(text, encoding="utf-8")
        (programs / program).chmod(0o755)
    copy = folder / "experiments"
    copy.mkdir()
    for file in EXPERIMENTS.iterdir():
        if file.is_file():
            shutil.copy(file, copy)
        else:
            (copy / file.name / "runs").mkdir(parents=True)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "RECORD": str(record),
        "FEATKIT_TEST_DATA": "data",
    }
    done = subprocess.run(
        ["sh", f"experiments/{name}"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return record


def check_command(words):
    """Parse the options of a command as click does, and heads, corrections and corruptions."""
    command, context = main, click.Context(main)
    while isinstance(command, click.Group):
        command, words = command.get_command(context, words[0]), words[1:]
        assert command is not None, words
    options = command.make_context("featkit", list(words)).params
    for head in as_list(options.get("head")):
        make_head(head)
    for balance in as_list(options.get("balance")):
        if command.name != "finetune":
            CORRECTIONS.make(parse_correction(balance))
    for option in ("perturb", "train_perturb"):
        for perturbation in as_list(options.get(option)):
            parse_perturbation(perturbation)


def as_list(value):
    return [value] if isinstance(value, str) else list(value or [])


@pytest.mark.parametrize(
    ("data", "network", "message"),
    [
        ("nosuch", "resnet18", "'nosuch' is neither a folder nor a CSV file"),
        ("digits", "resnet101", "resnet101-63fe2227.pth is not on this machine"),
    ],
)
def test_a_study_without_its_data_or_weights_says_how_to_get_them(
    data, network, message, tmp_path, monkeypatch
):
    arguments = ["--get", "ask for them", "--weights", network, "--without", "the rest runs"]
    monkeypatch.setattr(sys, "argv", ["require.py", data, *arguments])
    monkeypatch.setenv("FEATKIT_OFFLINE", "1")
    monkeypatch.setenv("FEATKIT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(EXPERIMENTS / "require.py"), run_name="__main__")
    assert message in left.value.code
    assert "\n" not in left.value.code
    assert ("ask for them" if data == "nosuch" else "the rest runs") in left.value.code
