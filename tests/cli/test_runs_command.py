"""``featkit runs``, and the names of runs in other commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from featkit.cli import main
from featkit.runs.card import read_card

FAST = ["--weights", "random", "--resize", "32"]


def call(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


@pytest.fixture
def runs(photos, tmp_path, monkeypatch):
    """Return what ``fit --json`` prints of two runs, made in a folder that is left again."""
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    command = ["fit", "--data", photos, *FAST, "--name", "flowers", "--json"]
    found = call(*command, "--head", "prototypical", "--head", "knn:k=1")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return json.loads(found.stdout)


def test_the_json_of_fit_names_a_run_that_other_commands_find(runs, photos, tmp_path):
    first = runs[0]
    assert first["name"] == "flowers, prototypical"
    path = tmp_path / "work" / first["path"]
    assert path.is_dir()
    for reference in (first["run"], first["run"][:5], first["name"], path):
        shown = json.loads(call("runs", "show", reference, "--json").stdout)
        assert (shown["run"], shown["path"]) == (first["run"], str(path))
        assert "red" in call("predict", reference, photos / "red" / "0.png").stdout
    # Both runs were written within one second.
    assert json.loads(call("runs", "show", "latest", "--json").stdout)["run"] == runs[-1]["run"]


def test_runs_are_listed_renamed_and_removed(runs, tmp_path):
    lines = call("runs", "ls").stdout.splitlines()
    assert len(lines) == 3
    assert "flowers, prototypical" in lines[1] + lines[2]
    listed = json.loads(call("runs", "ls", "--json").stdout)
    assert {each["run"] for each in listed} == {each["run"] for each in runs}
    assert all(low <= each["top1"] <= high for each in listed for low, high in [each["interval95"]])
    first = runs[0]["run"]
    call("runs", "rename", first, "flowers-v1")
    path = Path(call("runs", "show", "flowers-v1", "--path").stdout.strip())
    assert read_card(path).name == "flowers-v1"  # the checksum is right again
    assert "choose another name" in call("runs", "rename", "latest", "flowers-v1", code=1).stderr
    call("compare", "flowers-v1", runs[1]["run"])
    call("runs", "rm", "flowers-v1", "--yes")
    assert not path.exists()
    assert "did you mean" in call("runs", "show", "flowers-v1", code=1).stderr
    assert len(call("runs", "ls").stdout.splitlines()) == 2


def test_val_images_are_tested_on_only_when_asked_and_it_is_recorded(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for kind in ("red", "blue"):
            (tmp_path / "two" / split).mkdir(parents=True, exist_ok=True)
            target = tmp_path / "two" / split / kind
            target.mkdir()
            for file in (photos / kind).iterdir():
                if (int(file.stem) < 5) == (split == "train"):
                    (target / file.name).write_bytes(file.read_bytes())
    command = ["fit", "--data", "two", *FAST, "--head", "prototypical", "--json"]
    assert "--test-on val" in call(*command, code=1).stderr
    found = json.loads(call(*command, "--test-on", "val").stdout)
    assert found["n"] == 6
    assert found["provenance"]["n_train"] == 10
    assert any("val images are the test images" in note for note in found["provenance"]["images"])
