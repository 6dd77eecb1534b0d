"""``featkit plot`` and ``featkit report`` as a user runs them."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.text import Text
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
    (folder / "profile").mkdir()
    (folder / "profile" / "profile.json").write_text(json.dumps(PROFILE), encoding="utf-8")
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
    "learning-curve": (["RUN"], 4),
    "pareto": (["PROFILE"], 2),
    "perturbations": (["IMAGE"], None),
}
PROFILE = {
    "networks": [
        {"spec": "resnet18", "median_ms": 40.0, "n": 40, "top1": 0.9, "interval95": [0.77, 0.96]},
        {"spec": "a/b/int8", "median_ms": 11.0, "n": 40, "top1": 0.8, "interval95": [0.65, 0.9]},
        {"spec": "resnet50", "median_ms": 90.0},
    ]
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_writes_a_figure_and_its_numbers(made, tmp_path, kind):
    folder, directory = made
    arguments, rows = KINDS[kind]
    places = {"RUN": directory, "IMAGE": folder / "new.png", "PROFILE": folder / "profile"}
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


WIDTHS = {
    "projection": 3.35,
    "confusion": 3.35,
    "reliability": 6.9,
    "mistakes": 6.9,
    "cam": 3.35,
    "neighbours": 6.9,
    "filters": 6.9,
    "feature-maps": 6.9,
    "learning-curve": 3.35,
    "pareto": 3.35,
    "perturbations": 3.35,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_style_for_articles(made, tmp_path, kind):
    folder, directory = made
    places = {"RUN": directory, "IMAGE": folder / "new.png", "PROFILE": folder / "profile"}
    target, *more = [places.get(each, each) for each in KINDS[kind][0]]
    images = [each for each in more if each == folder / "new.png"]
    if kind == "perturbations":
        target, images = None, [folder / "new.png"]
    drawn = featkit.plot(
        kind,
        target,
        images,
        out=tmp_path / "figure.pdf",
        style="paper",
        method="pca",
        count=2,
        cache=folder / "cache",
    )
    assert drawn.notes[0].startswith("caption: ")
    content = (tmp_path / "figure.pdf").read_bytes()
    (box,) = re.findall(rb"/MediaBox \[([^]]*)\]", content)
    _, _, width, height = map(float, box.split())
    assert width == pytest.approx(72 * WIDTHS[kind], abs=0.5)
    assert height <= 72 * 9.5, "higher than a page"
    assert b"/Subtype /Type3" not in content
    sizes = {text.get_fontsize() for text in drawn.figure.findobj(Text) if text.get_text()}
    assert sizes <= {8.0} or min(sizes) >= 6.0
    assert max(sizes, default=8.0) <= 8.0


def test_a_learning_curve_is_also_read_from_a_few_shot_study(made, tmp_path):
    folder, _ = made
    featkit.fewshot(
        "digits",
        backbone="resnet18",
        weights="random",
        resize="64",
        limit="train=80,test=40",
        way=2,
        shot=1,
        query=2,
        episodes=5,
        curve=(1, 2),
        draws=2,
        cache=folder / "cache",
        out=tmp_path,
    )
    (study,) = (tmp_path / "digits").glob("fewshot-*")
    drawn = featkit.plot("learning-curve", study)
    assert [(row["head"], row["images per class"]) for row in drawn.rows] == [
        ("prototypical", 1),
        ("knn:k=1", 1),
        ("prototypical", 2),
        ("knn:k=1", 2),
    ]
    values = json.loads((study / "results.json").read_text(encoding="utf-8"))
    assert [row["top1"] for row in drawn.rows] == [each["mean"] for each in values["curve"]]


def test_a_profile_is_also_read_from_its_table(made, tmp_path):
    folder, _ = made
    table = tmp_path / "measured.csv"
    table.write_text(
        "spec,median_ms,n,top1,interval95_low,interval95_high\n"
        "resnet18,40.0,40,0.9,0.77,0.96\na/b/int8,11.0,40,0.8,0.65,0.9\nresnet50,90.0,,,,\n",
        encoding="utf-8",
    )
    assert featkit.plot("pareto", table).rows == featkit.plot("pareto", folder / "profile").rows


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
        (["plot", "pareto"], "featkit profile"),
        (["plot", "pareto", "nowhere"], "nowhere"),
        (["plot", "pareto", "RUN"], "cannot be read as a profile"),
        (["plot", "pareto", "IMAGE"], "cannot be read as a profile"),
        (["plot", "learning-curve", "nowhere"], "there is no run nowhere"),
        (["plot", "learning-curve", "PROFILE"], "cannot be read as a few-shot study"),
        (["plot", "confusion", "RUN", "--style", "poster"], "poster"),
        (["plot", "cam", "RUN", "DAMAGED"], "damaged.png"),
        (["plot", "perturbations", "DAMAGED"], "damaged.png"),
        (["plot", "feature-maps", "RUN", "DAMAGED"], "damaged.png"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(made, tmp_path, monkeypatch, arguments, message):
    folder, directory = made
    (folder / "damaged.png").write_bytes((folder / "new.png").read_bytes()[:200])
    monkeypatch.chdir(tmp_path)
    places = {
        "RUN": directory,
        "IMAGE": folder / "new.png",
        "PROFILE": folder / "profile",
        "DAMAGED": folder / "damaged.png",
    }
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
