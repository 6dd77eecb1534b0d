"""``featkit plot`` and ``featkit report`` as a user runs them."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import featkit
from featkit.cli.main import main


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plot")
    featkit.fit(
        "digits",
        backbone="resnet18",
        weights="random",
        resize="64",
        limit="train=80,test=40",
        head="linear",
        cache=folder / "cache",
        out=folder / "runs",
    )
    (directory,) = (folder / "runs" / "digits").glob("*/")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "new.png")
    return folder, str(directory)


def invoke(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


KINDS = {
    "projection": (["RUN", "--method", "pca", "--colour", "error"], 40),
    "confusion": (["RUN"], None),
    "reliability": (["RUN"], None),
    "mistakes": (["RUN", "--count", "2"], 2),
    "cam": (["RUN", "IMAGE", "--label", "7"], 1),
    "neighbours": (["RUN", "IMAGE", "--count", "4"], 4),
    "filters": (["RUN"], 64),
    "feature-maps": (["RUN", "IMAGE"], 60),
    "perturbations": (["IMAGE"], None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_writes_a_figure_and_its_numbers(made, tmp_path, kind):
    folder, directory = made
    arguments, rows = KINDS[kind]
    places = {"RUN": directory, "IMAGE": folder / "new.png"}
    arguments = [places.get(each, each) for each in arguments]
    options = ["--out", tmp_path / "figure.png"]
    if kind != "perturbations":
        options += ["--cache", folder / "cache"]
    done = invoke("plot", kind, *arguments, *options)
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "figure.png") as image:
        assert min(image.size) > 100
    with (tmp_path / "figure.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert found
    assert rows is None or len(found) == rows


@pytest.mark.parametrize(("ending", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_format_is_that_of_the_ending_and_reproducible(made, tmp_path, ending, start):
    contents = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.{ending}"
        assert invoke("plot", "confusion", made[1], "--out", path).exit_code == 0
        contents.append(path.read_bytes())
    assert contents[0].startswith(start)
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plot", "sunburst", "RUN"], "unknown kind of plot"),
        (["plot", "confusion", "RUN", "--out", "figure.bmp"], ".pdf"),
        (["plot", "cam", "RUN"], "needs an image"),
        (["plot", "confusion"], "needs a run directory"),
        (["plot", "curves", "RUN"], "not the run of a trained network"),
        (["plot", "confusion", "nowhere"], "nowhere"),
        (["plot", "cam", "RUN", "nowhere.png"], "nowhere.png"),
        (["plot", "cam", "RUN", "IMAGE", "--label", "zebra"], "zebra"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(made, tmp_path, monkeypatch, arguments, message):
    folder, directory = made
    monkeypatch.chdir(tmp_path)
    places = {"RUN": directory, "IMAGE": folder / "new.png"}
    done = invoke(*[places.get(each, each) for each in arguments])
    assert done.exit_code in (1, 2)
    assert message in done.output
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_the_report_is_written_where_it_is_asked_for(made, tmp_path):
    folder, directory = made
    out = tmp_path / "page.html"
    done = invoke(
        "report", directory, "--out", out, "--projection", "pca", "--cache", folder / "cache"
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out)
    assert "Embedding map" in out.read_text(encoding="utf-8")
