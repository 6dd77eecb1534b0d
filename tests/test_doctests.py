"""The examples of docstrings run and give what they show."""

from __future__ import annotations

import doctest
import shutil
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

import featkit

PACKAGE = Path(featkit.__file__).parent
NETWORK = {"weights": "random", "resize": 32}
RUNS = "experiments/runs"


def modules_with_examples():
    """Return the modules that have an example which is run."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        if any(">>> " in line and "+SKIP" not in line for line in lines):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            found.append(".".join(parts))
    return found


@pytest.fixture
def workplace(photos, monkeypatch):
    """Work in a folder with images, one that is new, and two runs, as the examples expect."""
    folder = photos.parent
    monkeypatch.chdir(folder)
    (folder / "unlabelled").mkdir()
    for level in (60, 120, 180):
        Image.new("RGB", (24, 20), (level, 0, 0)).save(folder / "unlabelled" / f"{level}.png")
    shutil.copy(photos / "red" / "0.png", folder / "new.png")
    featkit.fit("photos", head="prototypical", name="colours", out=RUNS, **NETWORK)
    featkit.fit("photos", head="knn:k=1", name="neighbour", out=RUNS, **NETWORK)


@pytest.mark.slow
@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_run(name, workplace, capsys):
    names = {"featkit": featkit}
    found = doctest.testmod(import_module(name), extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert found.failed == 0, capsys.readouterr().out
    assert found.attempted > 0
