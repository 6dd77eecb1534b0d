"""``featkit train`` from a folder of photos to a prediction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import featkit
from featkit.cli import main
from tests.docs.sample import write_weights


@pytest.mark.slow
def test_a_folder_becomes_a_named_run_with_report_and_model(photos, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    command = ["train", str(photos), "--weights", "random", "--resize", "32", "--minutes", "0.5"]
    done = CliRunner().invoke(main, [*command, "--name", "flowers-v1", "--bundle"])
    assert done.exit_code == 0, (done.output, done.exception)
    for label in ("accuracy", "confuses", "next", "predict", "look at"):
        assert any(line.startswith(label) for line in done.stdout.splitlines())
    assert "95% CI" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if "/" not in line)
    (run,) = Path("experiments/runs/photos").iterdir()
    names = {path.name for path in run.iterdir()}
    assert {"report.html", "model.onnx", "train.json", "backbone.safetensors"} <= names
    recorded = json.loads((run / "train.json").read_text())
    assert len(recorded["attempts"]) + len(recorded["skipped"]) >= 5
    assert recorded["others"].keys() == {pair["b"] for pair in recorded["pairs"]}
    monkeypatch.chdir(tmp_path)
    predicted = CliRunner().invoke(main, ["predict", "flowers-v1", str(photos / "red"), "--csv"])
    assert predicted.exit_code == 0
    assert len(predicted.stdout.splitlines()) == 9

    again = CliRunner().invoke(main, [*command, "--name", "flowers-v1"])
    assert "--overwrite" in again.stderr
    monkeypatch.chdir(tmp_path / "work")
    third = CliRunner().invoke(
        main, [*command, "--name", "flowers-v1", "--overwrite", "--seed", "1", "--json"]
    )
    assert third.exit_code == 0, third.output
    found = json.loads(third.stdout)
    assert found["name"] == "flowers-v1"
    assert Path(found["path"]).is_dir()
    assert not run.exists()


@pytest.mark.slow
def test_a_second_network_is_tried_if_its_weights_are_there(photos, tmp_path, monkeypatch):
    """Its features are extracted after those of the first, whose speed alone is measured."""
    write_weights(tmp_path)
    monkeypatch.setenv("FEATKIT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    result = featkit.train(photos, minutes=0.5, resize="32")
    names = [attempt.name for attempt in result.trained.selection.attempts]
    assert {name.rpartition(" ")[2] for name in names} == {"resnet18", "resnet50"}
