"""The commands, examples and links of the documents are valid."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from featkit.backbones.base import Preprocess
from featkit.cli import main
from featkit.compression.onnx_reader import to_model_input
from featkit.images import load_images
from featkit.images.decode import decode_file
from featkit.images.perturb import PERTURBATIONS

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_example_of_folds_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = fenced("python", (ROOT / "docs" / "folds.md").read_text(encoding="utf-8"))
    exec(compile(block, "folds.md", "exec"), {})
    assert capsys.readouterr().out.startswith("top-1 0.")


@pytest.mark.parametrize(
    ("size", "resize", "crop"),
    [((301, 217), 256, (224, 224)), ((217, 217), 256, (224, 224)), ((131, 500), 256, (224, 224))]
    + [((side, side + 7), 256, (224, 224)) for side in range(64, 400, 23)]
    + [((40, 30), (9, 17), (8, 8)), ((50, 41), 5, (8, 8)), ((41, 50), 5, (7, 10))],
)
def test_the_onnx_example_prepares_images_as_featkit_does(
    size, resize, crop, tmp_path, monkeypatch
):
    """Sides that are no multiple of the edge, an upright photo stored sideways, small images."""
    preprocess = Preprocess(resize=resize, crop=crop)
    properties = {
        "preprocessing": json.dumps(asdict(preprocess)),
        "classes": '["cat", "dog"]',
        "threshold": "0.1",
    }
    seen = {}

    class Session:
        def __init__(self, path):
            self.custom_metadata_map = properties

        def get_modelmeta(self):
            return self

        def run(self, names, inputs):
            seen.update(inputs)
            return [np.array([[0.2, 0.8]])]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[274] = 6
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save("new.jpg", exif=exif)
    deployed = next(block for block in fenced("python") if "onnxruntime" in block)
    exec(compile(deployed, "README.md", "exec"), {})
    expected = to_model_input(preprocess(decode_file("new.jpg"))[None])
    np.testing.assert_allclose(seen["images"], expected, atol=1e-6)


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


def test_readme_has_the_number_of_corruptions():
    assert f"# {len(PERTURBATIONS)} corruptions" in README


def test_contributing_names_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in re.findall(r"`((?:featkit|tests|experiments)/[\w/.]+)`", text):
        assert (ROOT / target).exists(), target
