"""The commands, examples and links of the documents are valid."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from featkit.cli import main
from featkit.images import load_images

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands():
    lines = [line for block in fenced("sh") for line in block.splitlines()]
    helps = [f"featkit {name} --help" for name in main.list_commands(None)]
    for name in main.list_commands(None):
        epilog = main.get_command(None, name).epilog
        lines += [line.strip() for line in epilog.splitlines()]
    return helps + [line for line in lines if line.startswith("featkit ")]


@pytest.mark.parametrize("line", commands())
def test_every_documented_command_exists(line, monkeypatch):
    """The options are parsed; the command is not run."""
    words = shlex.split(line, comments=True)[1:]
    command, context = main, click.Context(main)
    while isinstance(command, click.Group) and words[0] != "--help":
        command, words = command.get_command(context, words[0]), words[1:]
        assert command is not None, line
    if "--help" not in words:
        command.make_context("featkit", list(words))


def test_the_examples_of_the_readme_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = fenced("python")
    # These need what others, or commands, leave behind.
    reading, deployed = (
        next(block for block in blocks if name in block) for name in ("h5py", "onnxruntime")
    )
    for block in [block for block in blocks if block not in (reading, deployed)] + [reading]:
        exec(compile(block, "README.md", "exec"), {})
    assert "top-1 0." in capsys.readouterr().out
    export_digits()
    exec(compile(deployed, "README.md", "exec"), {})
    name, probability = capsys.readouterr().out.split()
    assert name in map(str, range(10))
    assert 0.1 < float(probability) <= 1


def export_digits():
    """Write ``model.onnx`` and ``new.jpg`` from the cache of the examples."""
    arguments = [
        "fit",
        "--data",
        "digits",
        "--backbone",
        "resnet18",
        "--weights",
        "random",
        "--resize",
        "32",
    ]
    assert CliRunner().invoke(main, [*arguments, "--head", "prototypical"]).exit_code == 0
    (run,) = Path("experiments/runs/digits").iterdir()
    assert (
        CliRunner()
        .invoke(main, ["export", str(run), "--out", "model.onnx", "--check", "20"])
        .exit_code
        == 0
    )
    Image.fromarray(load_images("digits").load(0)).save("new.jpg")


def test_readme_points_at_files_that_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_contributing_names_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in re.findall(r"`((?:featkit|tests|experiments)/[\w/.]+)`", text):
        assert (ROOT / target).exists(), target
