"""Twenty natural mistakes of everyday use, each answered in one line that says what to do."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from featkit.cli import main

FAST = ["--weights", "random", "--resize", "32"]

MISTAKES = {
    "a misspelt command": ("trian photos", "did you mean train"),
    "a misspelt option": ("fit --hed svm", "--head"),
    "a misspelt head": ("fit --head smv", "svm"),
    "a misspelt network": ("train photos --backbone resnet81", "resnet18"),
    "a misspelt name of a run": ("predict flowers-v2 new.png", "did you mean flowers-v1"),
    "a misspelt latest": ("predict latset new.png", "latest"),
    "an ambiguous start of a name": ("runs show flowers-", "give one of flowers-"),
    "the image before the run": ("predict new.png latest", "predict RUN IMAGE"),
    "a file of a run in place of the run": ("predict RUN/card.json new.png", "give the directory"),
    "a folder without images to predict": ("predict latest empty", "contains no images"),
    "two formats at once": ("predict latest new.png --json --csv", "either --json or --csv"),
    "sorting into the folder that is sorted": (
        "predict latest photos --sort-into photos",
        "choose another folder",
    ),
    "a folder that does not exist": ("train phtoos", "neither a folder nor a CSV file"),
    "images without class folders": ("train photos/red", "sort them into"),
    "one class": ("train one", "needs two classes"),
    "one photo per class": ("train single", "give each class at least two images"),
    "train and val, but no test": ("train valonly", "--test-on val"),
    "testing on val beside test images": ("train full --test-on val", "leave out --test-on val"),
    "a name that is in use": ("train photos --name flowers-v1", "--overwrite"),
    "the name latest": ("train photos --name latest", "choose another name"),
    "no time at all": ("train photos --minutes 0", "0.05<=x<=1440"),
    "renaming to a name in use": ("runs rename latest flowers-v1", "choose another name"),
    "removing without being asked": ("runs rm latest", "give --yes"),
    "comparing one run": ("compare latest", "two runs or more"),
    "a file of weights that is not there": ("train photos --weights mine.pth", "mine.pth"),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Return a folder with images in several layouts, and two runs."""
    root = tmp_path_factory.mktemp("mistakes")
    for place, name in enumerate(("blue", "green", "red")):
        for number in range(8):
            pixels = np.full((20, 24, 3), 3 * number, np.uint8)
            pixels[..., 2 - place] += 150
            (root / "photos" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / "photos" / name / f"{number}.png")
    shutil.copytree(root / "photos" / "red", root / "one" / "red")
    for name in ("blue", "red"):
        (root / "single" / name).mkdir(parents=True)
        shutil.copy(root / "photos" / name / "0.png", root / "single" / name / "0.png")
        for split in ("train", "val"):
            shutil.copytree(root / "photos" / name, root / "valonly" / split / name)
        for split in ("train", "val", "test"):
            shutil.copytree(root / "photos" / name, root / "full" / split / name)
    shutil.copy(root / "photos" / "red" / "0.png", root / "new.png")
    (root / "empty").mkdir()
    return root


@pytest.fixture
def runs(workplace, monkeypatch):
    """Work in the folder, with two runs in it."""
    monkeypatch.chdir(workplace)
    if not (workplace / "experiments").exists():
        for name, head in (("flowers-v1", "prototypical"), ("flowers-w1", "knn:k=1")):
            command = ["fit", "--data", "photos", *FAST, "--head", head]
            assert CliRunner().invoke(main, command).exit_code == 0
            done = CliRunner().invoke(main, ["runs", "rename", "latest", name])
            assert done.exit_code == 0, done.output
    return next((workplace / "experiments/runs/photos").iterdir())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_one_helpful_line(mistake, runs, workplace):
    command, said = MISTAKES[mistake]
    arguments = command.replace("RUN", str(runs)).split()
    if arguments[0] == "train" and "--weights" not in arguments and "resnet81" not in arguments:
        arguments += ["--weights", "random"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code in (1, 2), done.output
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.rstrip().endswith(errors[0])
    assert said in errors[0]
    assert done.stdout == ""
    assert len(list((workplace / "experiments/runs/photos").iterdir())) == 2


def test_there_are_twenty_mistakes_or_more():
    assert len(MISTAKES) >= 20
