"""``featkit suggest`` and ``featkit neighbours``: printed tables, written files and errors."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from featkit import api
from featkit.cli import main
from featkit.runs.directory import save_run

FAST = {"backbone": "resnet18", "weights": "random", "resize": "32"}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with images of three colours, a run on them, and its cache."""
    root = tmp_path_factory.mktemp("fitted")
    rng = np.random.default_rng(0)
    for place, name in enumerate(("blue", "green", "red")):
        (root / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 60, (20, 24, 3), dtype=np.uint8)
            pixels[..., 2 - place] += 150
            Image.fromarray(pixels).save(root / "photos" / name / f"{number}.png")
    run = api.fit(root / "photos", cache=root / "cache", **FAST)
    return root, save_run(run, root / "runs", {})


@pytest.fixture(autouse=True)
def _in_an_empty_folder(fitted, tmp_path, monkeypatch):
    """Run in an empty folder that has the features of the run as its cache."""
    (tmp_path / "work").mkdir()
    shutil.copytree(fitted[0] / "cache", tmp_path / "work" / "cache")
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def run(fitted):
    """The directory of the run."""
    return fitted[1]


@pytest.fixture
def photos(fitted):
    """The images that the run was fitted on."""
    return fitted[0] / "photos"


@pytest.fixture
def without_photos(photos):
    """Hide the images that the run was fitted on."""
    hidden = photos.rename(photos.with_name("hidden"))
    yield
    hidden.rename(photos)


@pytest.fixture
def unlabelled(tmp_path):
    """A folder of nine images of mixed colours."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for number in range(9):
        pixels = rng.integers(0, 200, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def call(*arguments, code=0):
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == code, (done.output, done.exception)
    return done


def read(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def last_line(done):
    return done.stderr.strip().splitlines()[-1]


# featkit suggest ----------------------------------------------------------------------------------


def test_suggest_prints_the_first_and_writes_all_of_them(run, unlabelled):
    """Also of a name that a terminal or a spreadsheet might obey."""
    (unlabelled / "0.png").rename(unlabelled / "=cmd()\n\x1b[31m<b>.png")
    done = call("suggest", run, unlabelled, "--n", 8, "--top", 7, "--out", "out")
    assert done.stdout.startswith("8 images to label next, of 9 unlabelled images")
    assert "... and 1 more in suggestions.csv" in done.stdout
    rows = read("out/suggest-unlabelled/suggestions.csv")
    assert [int(row["rank"]) for row in rows] == list(range(1, 9))
    assert len({row["path"] for row in rows}) == 8
    margins = [float(row["margin"]) for row in rows]
    assert margins == sorted(margins)
    text = Path("out/suggest-unlabelled/suggestions.csv").read_text()
    assert "\x1b" not in done.output + text
    assert len(text.splitlines()) == 9
    with Image.open("out/suggest-unlabelled/contact.png") as sheet:
        assert sheet.width > 1000
    found = json.loads(call("suggest", run, unlabelled, "--n", 8, "--json").stdout)
    assert [row["rank"] for row in found["suggestions"]] == list(range(1, 9))


def test_suggest_leaves_out_and_counts_known_images_and_copies(run, unlabelled, photos):
    for number in range(3):
        shutil.copy(photos / "red" / f"{number}.png", unlabelled / f"known{number}.png")
    shutil.copy(unlabelled / "0.png", unlabelled / "copy.png")
    found = api.suggest(run, unlabelled, n=5)
    assert found.pool == 9
    assert sum(found.known.values()) == 3
    assert found.copies == 1
    assert found.notes[0].startswith("images of the run's own data are left out: ")
    assert found.notes[1].startswith("1 images are left out: they are copies")
    assert not [image for image in found.images if "known" in image.path]


def test_suggest_lists_all_images_where_there_are_fewer_than_asked_for(run, unlabelled):
    found = api.suggest(run, unlabelled, n=100)
    assert [image.rank for image in found.images] == list(range(1, 10))
    assert sorted(image.margin_rank for image in found.images) == list(range(1, 10))
    assert found.notes == [
        "there are only 9 unlabelled images, fewer than the 100 asked for: all are listed"
    ]


def test_suggest_needs_images_that_are_not_in_the_data_yet(run, photos):
    done = call("suggest", run, photos, code=1)
    assert "none of the 24 images can be suggested: 24 are in the run's own data" in done.stderr
    assert not Path("experiments").exists()


def test_suggest_refuses_a_folder_without_images(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "contains no images" in last_line(call("suggest", run, tmp_path / "empty", code=1))


def test_suggest_refuses_a_folder_that_does_not_exist(run):
    assert "nowhere" in last_line(call("suggest", run, "nowhere", code=1))


@pytest.mark.parametrize("command", ["suggest", "neighbours"])
def test_a_folder_that_is_no_run_is_refused(command, unlabelled):
    line = last_line(call(command, unlabelled, unlabelled, code=1))
    assert line.startswith("Error: ")
    assert "run" in line


@pytest.mark.parametrize("command", ["suggest", "neighbours"])
@pytest.mark.usefixtures("without_photos")
def test_a_run_without_its_images_and_features_is_refused(command, run, unlabelled):
    shutil.rmtree("cache")
    line = last_line(call(command, run, unlabelled, code=1))
    assert "the images of " in line
    assert "are no longer at " in line


@pytest.mark.usefixtures("without_photos")
def test_a_run_without_its_images_is_enough_if_its_features_are_cached(run, unlabelled):
    assert len(api.suggest(run, unlabelled).images) == 9
    done = call("neighbours", run, unlabelled / "0.png", "--out", "similar.png")
    assert "12 of 12 similar images cannot be read" in done.stderr
    assert Path("similar.png").stat().st_size > 1000


def test_suggest_stops_at_an_unreadable_image_or_skips_and_counts_it(run, unlabelled):
    (unlabelled / "9.png").write_bytes(b"not an image")
    assert "9.png" in last_line(call("suggest", run, unlabelled, code=1))
    found = api.suggest(run, unlabelled, on_error="skip")
    assert found.pool == 9
    assert [Path(name).name for name in found.unreadable] == ["9.png"]


# featkit neighbours -------------------------------------------------------------------------------


def test_the_nearest_image_of_a_training_image_is_itself(run, photos):
    similar = api.neighbours(run, photos, k=1)
    found = {row["image"]: row for row in similar.rows()}
    for name in similar.train.ids:
        row = found[str(photos / name)]
        assert row["similar"] == name
        assert row["cosine"] == pytest.approx(1, abs=1e-5)


def test_neighbours_prints_a_table_and_writes_picture_and_csv(run, unlabelled):
    done = call("neighbours", run, unlabelled / "0.png", "--k", 3, "--out", "similar.png")
    assert len(done.stdout.strip().splitlines()) == 4
    rows = read("similar.csv")
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    cosines = [float(row["cosine"]) for row in rows]
    assert cosines == sorted(cosines, reverse=True)
    call("neighbours", run, unlabelled / "0.png", "--k", 3, "--out", "table.csv")
    assert Path("table.csv").read_text() == Path("similar.csv").read_text()
    printed = call("neighbours", run, unlabelled / "0.png", "--k", 3, "--csv").stdout
    assert printed == Path("table.csv").read_text()


def test_each_query_is_decoded_once(run, unlabelled, monkeypatch):
    from featkit.images import files

    read_files = []
    read = files.read_bytes

    def counted(path):
        read_files.append(Path(path))
        return read(path)

    monkeypatch.setattr(files, "read_bytes", counted)
    api.plot("neighbours", run, unlabelled, out="similar.png", count=1)
    assert sorted(path for path in read_files if path.parent == unlabelled) == sorted(
        unlabelled.iterdir()
    )


def test_neighbours_returns_all_training_images_where_there_are_fewer_than_k(run, unlabelled):
    similar = api.neighbours(run, unlabelled / "0.png", k=1000)
    assert len(similar.rows()) == len(similar.train)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere.png"], "nowhere.png"),
        (["0.png", "--out", "similar.txt"], "similar.txt"),
    ],
    ids=["missing image", "unknown ending"],
)
def test_bad_arguments_of_neighbours_are_one_line(run, unlabelled, arguments, problem):
    name, *rest = arguments
    done = call("neighbours", run, unlabelled / name, *rest, code=1)
    assert problem in last_line(done)
    assert not Path("similar.txt").exists()


def test_neighbours_prints_either_json_or_csv(run, unlabelled):
    call("neighbours", run, unlabelled / "0.png", "--json", "--csv", code=2)
    found = json.loads(call("neighbours", run, unlabelled / "0.png", "--json").stdout)
    assert len(found["similar"]) == 12
