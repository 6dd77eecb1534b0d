"""Example data with the names that README and the pages use: photos, tables, weights and runs.

Commands run on it as they are written, but for images of 32 pixels (`quick`), which takes seconds
where 224 pixels take minutes. The weights are random ones in files with the names of torchvision's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image

from featkit.cli import main
from featkit.storage import csv_text

COLOURS = {
    "daisy": (230, 230, 230),
    "iris": (90, 60, 190),
    "poppy": (200, 40, 30),
    "rose": (220, 120, 150),
    "sunflower": (230, 190, 30),
    "tulip": (60, 160, 70),
}
"""Classes and the colour of their images."""
PER_CLASS = 75
"""Images of a class: `longtail --if 50` needs 50 training images of the largest one."""
RESIZE = "32"


def write_image(path: Path, colour: Iterable[int], rng: np.random.Generator) -> None:
    """Write an image of coarse noise around a colour, which varies."""
    noise = rng.normal(0, 45, (6, 6, 3)).repeat(7, axis=0).repeat(6, axis=1)
    centre = np.array(tuple(colour)) + rng.normal(0, 35, 3)
    pixels = (centre + noise).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_images(folder: Path) -> None:
    """Write the folders of images and the tables that name them."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for number in range(PER_CLASS):
            write_image(folder / "photos" / name / f"{number:02}.jpg", colour, rng)
        for number in range(24):
            patient = f"patient{number // 4}"
            path = folder / "scans" / name / patient / f"{patient}_{number % 4:02}.jpg"
            write_image(path, colour, rng)
            write_image(folder / "xrays" / name / path.name, colour, rng)
        for number in range(12):
            split = "train" if number < 8 else "test"
            write_image(
                folder / "sets" / "caltech101" / split / name / f"{number}.jpg", colour, rng
            )
        for number in range(3):
            write_image(folder / "holiday" / f"{name}{number}.jpg", colour, rng)
        for number in range(20):
            write_image(folder / "unlabelled" / f"{name}{number}.jpg", colour, rng)
    for place in ("new.jpg", "holiday/beach/last.jpg"):
        write_image(folder / place, COLOURS["poppy"], rng)
    write_tables(folder, rng)
    write_grid(folder / "grid.toml")


def write_tables(folder: Path, rng: np.random.Generator) -> None:
    """Write lists of images: with splits, with groups, and with several labels."""
    scans = sorted((folder / "scans").rglob("*.jpg"))
    rows = []
    for path in scans:
        patient, number = path.stem.split("_")
        name = path.relative_to(folder).as_posix()
        known = {"path": name, "label": path.parts[-3], "group": f"{path.parts[-3]} {patient}"}
        rows.append({**known, "patient": known["group"], "camera": f"camera {int(patient[-1])}"})
    write_csv(folder / "labels.csv", rows)
    pets = []
    for path in sorted((folder / "photos").rglob("*.jpg")):
        number = int(path.stem)
        if number < 24:
            split = "train" if number < 16 else "test"
            name = f"../photos/{path.parent.name}/{path.name}"
            pets.append({"path": name, "label": path.parent.name, "split": split})
    write_csv(folder / "pets" / "labels.csv", pets)
    scenes = []
    names = sorted(COLOURS)[:4]
    for number in range(96):
        chosen = [name for name in names if rng.random() < 0.5] or [names[number % 4]]
        colour = np.mean([COLOURS[name] for name in chosen], axis=0)
        write_image(folder / "scenes" / f"{number}.png", colour, rng)
        scenes.append({"path": f"{number}.png", "label": ";".join(chosen)})
    write_csv(folder / "scenes" / "labels.csv", scenes)


def write_grid(path: Path) -> None:
    """Write a grid of two heads on the photos."""
    path.write_text(
        f'name = "grid"\n[axes]\ndata = ["photos"]\nbackbone = ["resnet18"]\n'
        f'head = ["knn", "prototypical"]\n[fixed]\nresize = "{RESIZE}"\n',
        encoding="utf-8",
    )


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows as a table."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(csv_text(rows), encoding="utf-8")


def write_weights(folder: Path) -> None:
    """Write random weights of two networks under the names that are looked for, and checkpoints."""
    torch.manual_seed(0)
    (folder / "weights").mkdir()
    for name in ("resnet18", "resnet50"):
        state = getattr(torchvision.models, name)(weights=None).state_dict()
        torch.save(state, folder / "weights" / f"{name}.pth")
    torch.save({"state_dict": state, "epoch": 3}, folder / "last.ckpt")
    torch.save({"model": state, "ema": state}, folder / "last.pth")


def decide(folder: Path) -> None:
    """Write a decisions file, as a person who has looked at the findings of `audit`."""
    rows = [
        {"path": "daisy/01.jpg", "action": "relabel", "label": "iris"},
        {"path": "rose/02.jpg", "action": "drop", "label": ""},
        {"path": "rose/03.jpg", "action": "keep", "label": ""},
    ]
    write_csv(folder / "decisions.csv", rows)


QUICK = {"resize": RESIZE, "epochs": "1"}
"""Options that every command gets that has them, unless it says otherwise."""


def quick(line: str) -> str:
    """Return a command with the options of ``QUICK``."""
    words = shlex.split(line, comments=True)
    if words[0] != "featkit":
        return line
    command: click.Command = main
    for word in words[1:]:
        if not isinstance(command, click.Group):
            break
        inner = command.get_command(click.Context(command), word)
        assert inner is not None, line
        command = inner
    known = {option.name for option in command.params}
    if words[1] == "quantize" and "--data" not in words:
        known.discard("resize")  # a run has its own images and network
    for name, value in QUICK.items():
        if name in known and not re.search(rf"--{name}|\.toml", line):
            words += [f"--{name}", value]
    return shlex.join(words).replace("'>'", ">")


def run_featkit(line: str) -> None:
    """Run a command of featkit that the example data needs."""
    result = CliRunner().invoke(main, shlex.split(quick(line))[1:])
    assert result.exit_code == 0, f"{line}\n{result.output}"
