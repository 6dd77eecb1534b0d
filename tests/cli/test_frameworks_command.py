"""Networks in Keras from the command line; run in a process of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from featkit.cli import main

pytestmark = pytest.mark.keras

IMAGES = ("--data", "digits", "--limit", "train=60,test=40")
SMALL = (*IMAGES, "--resize", "16", "--weights", "random")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def predictions(directory: Path) -> list[str]:
    return (directory / "predictions.csv").read_text().splitlines()


def test_a_network_trained_in_one_framework_is_used_in_the_other(tmp_path):
    from PIL import Image

    call(
        "finetune",
        *SMALL,
        "--backbone",
        "keras:resnet18,stem=small",
        "--epochs",
        "2",
        "--mode",
        "full",
    )
    (run,) = (path.parent for path in Path("experiments/runs/digits").glob("*/card.json"))
    card = json.loads((run / "results.json").read_text())
    assert "in TensorFlow" in card["provenance"]["weights"]
    image = np.kron(np.eye(8, dtype=np.uint8) * 200, np.ones((4, 4), np.uint8))
    Image.fromarray(image).save("new.png")
    assert "new.png" in call("predict", run, "new.png").output  # in torch
    accuracies = {}
    for spec in (str(run), f"keras:{run}"):
        options = ("--backbone", spec, "--precision", "fp32", "--head", "prototypical", "--json")
        done = call("fit", *IMAGES, *options)
        accuracies[spec] = json.loads(done.stdout)
    first, second = accuracies.values()
    assert first["confusion"] == second["confusion"]
    assert first["nll"] == pytest.approx(second["nll"], rel=1e-4)
    student = ("--student", "keras:resnet18,stem=small", "--weights", "random")
    done = call("distill", *IMAGES, *student, "--teacher", run, "--epochs", "1", code=1)
    assert "distillation trains in torch" in done.stderr
    call("export", run, "--out", "network.onnx")
    call("quantize", run, *IMAGES)


@pytest.mark.slow
def test_frameworks_are_compared_on_one_page():
    done = call(
        "compare-frameworks",
        *SMALL,
        *("--backbone", "resnet18:stem=small", "--mode", "shallow", "--mode", "full"),
        *("--seeds", "2", "--epochs", "2", "--images", "8", "--repeats", "3", "--augment", "none"),
        "--json",
    )
    result = json.loads(done.stdout)
    assert [each["stage"] for each in result["stages"]][-1] == "avgpool"
    assert all(each["relative"] < 1e-4 for each in result["stages"])
    assert [each["mode"] for each in result["trainings"]] == ["shallow", "full"]
    for training in result["trainings"]:
        assert training["loss_difference"] < 1e-2
        assert training["effect"]["n"] == 40
        assert len(training["runs"]) == 4
    (page,) = Path("experiments/runs/frameworks").glob("*/report.html")
    text = page.read_text()
    assert "TensorFlow compared with torch" in text
    assert "data:image/png;base64," in text


def test_mistakes_are_one_line():
    done = call("compare-frameworks", *IMAGES, "--backbone", "timm:resnet10t", code=1)
    assert done.stderr.startswith("Error: unknown backbone of both frameworks 'timm:resnet10t'")
    done = call("extract", *SMALL, "--backbone", "keras:resnet18", "--device", "cuda", code=1)
    assert len(done.stderr.strip().splitlines()) <= 2
    done = call(
        "finetune",
        *IMAGES,
        "--backbone",
        "keras:applications/resnet50",
        "--weights",
        "random",
        code=1,
    )
    assert "cannot be fine-tuned: use keras:resnet50" in done.stderr
