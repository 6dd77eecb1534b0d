"""Folders as users have them: what is passed over is said, and one bad entry does not stop the rest."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from featkit.cli import main

FAST = ("--weights", "random", "--resize", "16", "--crop", "16")


def call(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_what_is_passed_over_is_said_once_and_recorded(photos):
    for name in ("red/1.cr2", "red/2.cr2", "green/1.svg"):
        (photos / name).write_bytes(b"x")
    (photos / "__MACOSX" / "red").mkdir(parents=True)
    (photos / "__MACOSX" / "red" / "._0.png").write_bytes(b"x")
    (photos / "empty").mkdir()
    expected = [
        "photos: passed over: 2 .cr2, 1 .svg, 1 __MACOSX/",
        "photos: 1 folder without images: empty",
    ]
    done = call("fit", "--data", photos, *FAST, "--head", "prototypical")
    assert [line for line in done.stderr.splitlines() if line.startswith("photos: ")][
        :2
    ] == expected
    assert sum("passed over" in line for line in done.stderr.splitlines()) == 1
    (run,) = Path("experiments/runs/photos").iterdir()
    recorded = json.loads((run / "results.json").read_text())["provenance"]["images"]
    assert recorded == [line.removeprefix("photos: ") for line in expected]

    done = call("predict", run, photos / "red", "--csv")
    assert f"{photos}/red: passed over: 2 .cr2" in done.stderr
    assert len(done.stdout.splitlines()) == 9


@pytest.mark.skipif(os.name != "posix", reason="needs names that are not UTF-8 and named pipes")
def test_bad_entries_are_skipped_and_the_others_extracted(photos):
    os.mkfifo(photos / "red" / "pipe.png")
    (photos / "red" / "self.png").symlink_to("self.png")
    (photos / "red" / "empty.png").write_bytes(b"")
    with (photos / "red" / "huge.png").open("wb") as file:
        file.truncate(200 * 10**9)
    (photos / "red" / "0.png").rename(photos / "red" / os.fsdecode(b"caf\xe9.png"))
    done = call("extract", "--data", photos, *FAST, "--on-error", "skip")
    assert (
        "4 images skipped: red/empty.png, red/huge.png, red/pipe.png, red/self.png" in done.stderr
    )
    with h5py.File(done.stdout.strip()) as file:
        assert "red/caf\\xe9.png" in file["ids"].asstr()[:].tolist()
    stderr = call("extract", "--data", photos, *FAST, "--cache", "other", code=1).stderr
    assert stderr.splitlines()[-1].startswith("Error: ")


def test_a_missing_file_of_a_table_can_be_skipped(photos):
    lines = [f"red/{n}.png,red\nblue/{n}.png,blue\n" for n in range(9)]  # there are 8 of each
    (photos / "list.csv").write_text("path,label\n" + "".join(lines))
    error = call("extract", "--data", photos / "list.csv", *FAST, code=1).stderr
    assert "2 files listed in" in error
    done = call("extract", "--data", photos / "list.csv", *FAST, "--on-error", "skip")
    assert "2 images skipped: red/8.png, blue/8.png" in done.stderr


def test_an_intensity_range_is_used_by_extract_fit_and_predict(photos):
    rng = np.random.default_rng(0)
    for path in photos.rglob("*.png"):
        level = {"red": 1000, "green": 2000, "blue": 3000}[path.parent.name]
        values = rng.integers(0, 500, (20, 24)) + level
        Image.fromarray(values.astype(np.uint16)).save(path)
    warning = "give --intensity-range 0:4095"
    plain = call("extract", "--data", photos, *FAST)
    assert warning in plain.stderr
    ranged = ("--intensity-range", "0:4095")
    done = call("fit", "--data", photos, *FAST, *ranged, "--head", "knn:k=1")
    assert warning not in done.stderr
    assert len(list(Path("cache").glob("*.h5"))) == 2
    (run,) = Path("experiments/runs/photos").iterdir()
    assert json.loads((run / "card.json").read_text())["recipe"]["intensity"] == "0:4095"
    done = call("predict", run, *sorted((photos / "red").iterdir()), "--csv")
    assert [line.split(",")[1] for line in done.stdout.splitlines()[1:]] == ["red"] * 8
    assert call("extract", "--data", photos, *FAST, *ranged).stderr.count("cache hit") == 1
