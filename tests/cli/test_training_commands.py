"""Commands that train: finetune and distill."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image

from featkit.app.runs import run_name
from featkit.cli import main
from featkit.runs.names import network_name
from featkit.training import loop

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SMALL = (
    "--backbone",
    "resnet18:stem=small",
    "--weights",
    "random",
    "--resize",
    "16",
    "--epochs",
    "2",
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def call(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def run_of(done):
    return Path(
        next(line for line in done.stderr.splitlines() if line.startswith("run: ")).removeprefix(
            "run: "
        )
    )


def test_a_trained_network_can_be_used_as_a_backbone(photos, tmp_path):
    """It predicts, also after it was moved; heads are fitted on its embeddings; runs are compared."""
    done = call("finetune", "--data", photos, "--mode", "deep", "--views", "1", *SMALL)
    run = run_of(done)
    assert "top-1" in done.stdout
    assert {"network.safetensors", "history.csv", "curves.png", "card.json", "head.skops"} <= {
        path.name for path in run.iterdir()
    }
    with (run / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    Image.open(run / "curves.png").verify()
    image = next(photos.glob("red/*.png"))
    before = json.loads(call("predict", run, image, "--json").stdout)
    fitted = call("fit", "--data", photos, "--backbone", run, "--head", "prototypical")
    assert "deep" in next(Path("cache").glob("photos-resnet18*deep*.h5")).name
    assert "layer4 fine-tuned on photos" in call("compare", run, run_of(fitted)).stdout
    moved = shutil.move(run, tmp_path / "elsewhere")
    shutil.rmtree("cache")
    assert json.loads(call("predict", moved, image, "--json").stdout) == before


def test_trained_runs_are_listed_by_the_network_that_they_were_trained_from(photos):
    first = run_of(call("finetune", "--data", photos, "--mode", "deep", "--views", "1", *SMALL))
    again = ("finetune", "--data", photos, "--mode", "shallow", "--epochs", "1", "--backbone")
    second = run_of(call(*again, first))
    listed = json.loads(call("runs", "ls", "--json").stdout)
    deep = f"resnet18:stem=small-deep-{first.name[:8]}"
    expected = {first.name: "resnet18:stem=small", second.name: deep}
    assert {each["run"]: each["backbone"] for each in listed} == expected
    assert "deep fine-tuning on resnet18:stem=small" in call("runs", "ls").stdout
    assert "deep fine-tuning on resnet18:stem=small, photos" in run_name(str(first))


def test_a_training_reports_the_mean_cost_of_an_image(photos):
    """It does not change the training; a finished run is not evaluated again with other costs."""
    classes = sorted(path.name for path in photos.iterdir())
    rows = [
        f"{true}," + ",".join("0" if true == each else "7" for each in classes) for true in classes
    ]
    Path("costs.csv").write_text("\n".join([f"true,{','.join(classes)}", *rows]))
    Path("other.csv").write_text(Path("costs.csv").read_text().replace("7", "8"))
    arguments = ["finetune", "--data", photos, "--mode", "shallow", "--views", "0", *SMALL]
    plain = run_of(call(*arguments))
    before = json.loads((plain / "results.json").read_text())
    done = call(*arguments, "--resume", "--cost", "costs.csv", code=1)
    assert "was evaluated with no costs: leave out --cost" in done.stderr
    done = call(*arguments, "--cost", "costs.csv")
    assert run_of(done) == plain
    assert "mean cost" in done.stdout
    results = json.loads((plain / "results.json").read_text())
    assert results.pop("decision_cost")["mean"] == pytest.approx(7 * (1 - before["top1"]))
    assert results == before
    assert "already finished" in call(*arguments, "--resume", "--cost", "costs.csv").stderr
    assert "with other costs" in call(*arguments, "--resume", "--cost", "other.csv", code=1).stderr
    Path("other.csv").write_text("true,a,b\na,0,1\nb,1,0\n")
    assert "'a' is not a class" in call(*arguments, "--cost", "other.csv", code=1).stderr


def test_a_trained_network_can_be_fine_tuned_again(photos):
    first = run_of(call("finetune", "--data", photos, "--mode", "full", *SMALL))
    second = call(
        "finetune", "--data", photos, "--mode", "shallow", "--backbone", first, "--epochs", "1"
    )
    assert "classifier trained on photos" in second.stderr


def test_evaluation_on_training_images_of_the_network_is_refused(photos):
    """With another seed, train images of the first split are test images."""
    run = run_of(call("finetune", "--data", photos, "--mode", "shallow", *SMALL))
    for command in (
        ("fit", "--head", "knn:k=1"),
        ("finetune", "--mode", "shallow", "--epochs", "1"),
    ):
        done = call(*command, "--data", photos, "--backbone", run, "--seed", "1", code=1)
        assert "was trained on" in done.stderr
    call("fit", "--data", photos, "--backbone", run, "--head", "knn:k=1")
    call(
        "fit",
        "--data",
        photos,
        "--backbone",
        Path(run, "network.safetensors"),
        "--seed",
        "1",
        code=1,
    )
    for command in (("fewshot", "--way", "2", "--shot", "1", "--query", "1"), ("audit",)):
        done = call(*command, "--data", photos, "--backbone", run, code=1)
        assert "was trained on" in done.stderr
    done = call("profile", run, "--data", photos, "--seed", "1", "--repeats", "3", code=1)
    assert "was trained on" in done.stderr
    eight_bits = call("quantize", run, "--data", photos).stdout.splitlines()[-1]
    done = call(
        "fit",
        "--data",
        photos,
        "--backbone",
        eight_bits,
        "--head",
        "knn:k=1",
        "--seed",
        "1",
        code=1,
    )
    assert "was trained on" in done.stderr


def test_resuming_with_other_options_is_refused(photos, monkeypatch):
    def interrupted(self):
        self.save(0.0)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "run_epoch", interrupted)
        CliRunner().invoke(main, ["finetune", "--data", str(photos), "--mode", "full", *SMALL])
    done = call(
        "finetune", "--data", photos, "--mode", "full", *SMALL, "--lr", "0.5", "--resume", code=1
    )
    assert "is of another training" in done.stderr


def test_two_trainings_of_one_id_do_not_run_at_once(photos, monkeypatch):
    arguments = [str(each) for each in ("finetune", "--data", photos, "--mode", "shallow", *SMALL)]
    epoch, seen = loop.TrainingLoop.run_epoch, []

    def second_command(self):
        if not seen:
            seen.append(None)
            seen.append(CliRunner().invoke(main, arguments))
        epoch(self)

    monkeypatch.setattr(loop.TrainingLoop, "run_epoch", second_command)
    run = run_of(call(*arguments))
    assert seen[1].exit_code == 1
    assert f"process {os.getpid()} on" in seen[1].stderr.splitlines()[-1]
    assert "is running the same training" in seen[1].stderr.splitlines()[-1]
    assert [path.name for path in run.parent.iterdir()] == [run.name]


def test_an_interruption_names_the_checkpoint_and_resume(photos, monkeypatch):
    def interrupted(self):
        self.save(0.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.TrainingLoop, "run_epoch", interrupted)
    arguments = ["finetune", "--data", str(photos), "--mode", "full", *SMALL]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 130
    (folder,) = Path("experiments/runs/photos").iterdir()
    assert done.stderr.splitlines()[-1] == (
        f"Error: interrupted; the last checkpoint is kept in {folder}: run the same command again "
        "with --resume to continue"
    )


def test_a_damaged_run_is_not_taken_for_a_finished_one(photos):
    arguments = ("finetune", "--data", photos, "--mode", "shallow", *SMALL)
    run = run_of(call(*arguments))
    for name in ("network.safetensors", "history.csv", "results.json", "predictions.csv"):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[:-20] + b"0" + whole[-19:])
        assert "was changed after the run" in call(*arguments, "--resume", code=1).stderr
        (run / name).write_bytes(whole)
    assert "already finished" in call(*arguments, "--resume").stderr


def test_scratch_starts_from_random_weights(photos, tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "some.pth")
    done = call(
        "finetune",
        "--data",
        photos,
        "--mode",
        "scratch",
        "--weights",
        tmp_path / "some.pth",
        code=1,
    )
    assert "starts from random weights" in done.stderr


def test_the_same_command_gives_the_same_results(photos):
    texts = []
    for folder in ("one", "two"):
        run = run_of(
            call("finetune", "--data", photos, "--mode", "shallow", *SMALL, "--out", folder)
        )
        texts.append(
            [
                (run / name).read_text()
                for name in ("results.json", "predictions.csv", "history.csv")
            ]
        )
    assert texts[0][1:] == texts[1][1:]
    assert texts[0][0].replace("/one/", "/two/") == texts[1][0]


def test_an_interrupted_training_resumes(photos, monkeypatch):
    arguments = ("finetune", "--data", photos, "--mode", "full", *SMALL)
    whole = run_of(call(*arguments, "--out", "whole"))
    epoch = loop.TrainingLoop.run_epoch

    def interrupted(self):
        if self.epoch == 1:
            raise KeyboardInterrupt
        epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "run_epoch", interrupted)
        CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert list(Path("experiments/runs/photos").glob(".*.training/checkpoint.pt"))
    assert not list(Path("experiments").rglob("card.json"))
    resumed = call(*arguments, "--resume")
    assert "resuming from the last checkpoint" in resumed.stderr
    assert (run_of(resumed) / "network.safetensors").read_bytes() == (
        whole / "network.safetensors"
    ).read_bytes()
    assert not list(Path("experiments/runs/photos").glob(".*"))
    again = call(*arguments, "--resume")
    assert f"already finished: {run_of(resumed)}" in again.stderr
    assert again.stdout == resumed.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lr", "1e6", "--warmup", "0", "--epochs", "4", "--mode", "full"), "lower --lr"),
        (("--batch-size", "1", "--mode", "full"), "batch of one"),
        (("--unfreeze", "layer7"), "unknown block"),
        (("--backbone", "nowhere/run"), "no such file"),
        (("--backbone", "resnet18", "--weights", "missing.pth"), "missing.pth"),
    ],
)
def test_invalid_trainings_print_one_line(photos, options, message):
    done = call("finetune", "--data", photos, *SMALL, *options, code=1)
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(Path().rglob("card.json"))


def test_weights_of_another_network_are_refused(photos, tmp_path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "other.pth")
    done = call(
        "finetune", "--data", photos, "--weights", tmp_path / "other.pth", "--epochs", "1", code=1
    )
    assert "is not a state dict of resnet18" in done.stderr


@pytest.mark.long
def test_a_student_is_compared_with_its_teacher_and_without_it(photos):
    fitted = call(
        "fit", "--data", photos, "--weights", "random:4", "--resize", "16", "--head", "prototypical"
    )
    student = (
        "--student",
        "resnet18:stem=small",
        "--weights",
        "random",
        "--resize",
        "16",
        "--epochs",
        "1",
    )
    done = call("distill", "--data", photos, "--teacher", run_of(fitted), *student)
    assert all(name in done.stdout for name in ("teacher", "alone", "distilled", "top-1 %"))
    runs = [
        line.removeprefix("run: ") for line in done.stderr.splitlines() if line.startswith("run: ")
    ]
    assert len(set(runs)) == 2
    again = call(
        "distill", "--data", photos, "--teacher", runs[0], "--no-alone", "--json", *student
    )
    found = json.loads(again.stdout)
    assert set(found["top1"]) == {"teacher", "distilled"}
    assert found["gap_closed"] is None


@pytest.mark.long
def test_students_of_several_seeds_are_pooled(photos):
    made = call("prune", "resnet18", "--weights", "random", "--resize", "32", "--sparsity", "0.5")
    student = (
        "--student",
        "resnet18:stem=small",
        "--weights",
        "random",
        "--resize",
        "16",
        "--epochs",
        "1",
    )
    seeds = (
        "distill",
        "--data",
        photos,
        "--teacher",
        made.stdout.strip(),
        *student,
        "--seeds",
        "2",
    )
    assert call(*seeds).stdout.count("over 2 seeds") == 3
    done = call(*seeds, "--resume", "--json")
    found = json.loads(done.stdout)
    assert done.stderr.count("already finished") == 4
    assert [(each["a"], each["b"], each["seeds"]) for each in found["pooled"]] == [
        ("distilled", "alone", 2),
        ("teacher", "alone", 2),
        ("teacher", "distilled", 2),
    ]
    differences = [
        each["top1"]["distilled"]["top1"] - each["top1"]["alone"]["top1"] for each in found["seeds"]
    ]
    assert found["pooled"][0]["difference"] == pytest.approx(sum(differences) / 2)


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    """CIFAR-100 in its own format: five classes of colours, 8 train and 4 test images of each."""
    folder, rng = tmp_path / "data" / "cifar-100-python", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name, each in (("train", 8), ("test", 4)):
        labels = np.repeat(np.arange(5), each)
        pixels = rng.integers(0, 80, (len(labels), 3, 32, 32)) + 30 * labels[:, None, None, None]
        content = {
            "data": pixels.astype(np.uint8).reshape(len(labels), -1),
            "fine_labels": labels.tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(
        pickle.dumps({"fine_label_names": [f"class {n}" for n in range(5)]})
    )
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return tmp_path / "data"


@pytest.mark.long
def test_the_study_of_cifar100_runs_on_a_file_in_its_format(cifar100, tmp_path):
    """The study in experiments/, with a local file instead of the download, random weights, fewer epochs and smaller images."""
    text = (ROOT / "experiments" / "cifar100.toml").read_text()
    for old, new in (
        ("root=data,download=true", f"root={cifar100}"),
        (
            "epochs = 30",
            'epochs = 2\nweights = "random"\nprecision = "fp32"\nfrozen_precision = "fp32"',
        ),
        ('"128x128"', '"32x32"'),
        ("batch_size = 128", "batch_size = 8"),
    ):
        assert old in text
        text = text.replace(old, new)
    assert len(tomllib.loads(text)["run"]) == 3
    (tmp_path / "study.toml").write_text(text)
    done = call("finetune", tmp_path / "study.toml")
    assert all(mode in done.stdout for mode in ("shallow", "deep", "scratch"))
    (folder,) = Path("experiments/runs/cifar100").glob("study-*")
    assert len(list(Path("experiments/runs/cifar100").glob("*/network.safetensors"))) == 3
    Image.open(folder / "curves.png").verify()
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["shallow", "deep", "scratch"]
    for row in rows:
        report = json.loads((folder.parent / row["run"] / "results.json").read_text())
        assert float(row["loss"]) == pytest.approx(report["nll"])
        assert f"{report['nll']:.3f}" in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no trainings"),
        ("[[run]]\nmode = 'deep'\n[[run]]\nmode = 'deep'", "two runs named deep"),
        ("[[run]]\nspeed = 3", "unknown training option 'speed'"),
        ("[[rum]]\nmode = 'deep'", "did you mean run"),
        ("[[run", "cannot be read as a study"),
        ("[[run]]\nepochs = '3'", "epochs = '3' is not a whole number"),
        ("[[run]]\nlr = 'x'", "lr = 'x' is not a number"),
        ("[[run]]\ndata = 3.5", "data = 3.5 is not a string"),
        ("[[run]]\nviews = -1", "views = -1 is not a whole number"),
        ("run = ['a']", "has no trainings"),
    ],
)
def test_an_invalid_study_is_refused(tmp_path, text, message):
    (tmp_path / "study.toml").write_text(text)
    assert message in call("finetune", tmp_path / "study.toml", code=1).stderr


def test_options_together_with_a_study_are_wrong_usage(tmp_path):
    (tmp_path / "study.toml").write_text("[[run]]\nmode = 'deep'")
    assert "leave out --lr" in call("finetune", tmp_path / "study.toml", "--lr", "1", code=2).stderr


@pytest.mark.long
def test_trained_networks_are_shown_by_their_names(photos):
    """The name decides no id: the same training with --resume is renamed, not repeated."""
    options = ("finetune", "--data", photos, "--mode", "deep", "--views", "1", *SMALL)
    run = run_of(call(*options))
    weights = (run / "network.safetensors").read_bytes()
    assert network_name(str(run)) == "ResNet-18 (stem=small), layer4 fine-tuned on photos"
    done = call(*options, "--resume", "--name", "Colours")
    assert "already finished" in done.stderr
    assert (run / "network.safetensors").read_bytes() == weights
    assert network_name(str(run)) == "Colours"
    fitted = call("fit", "--data", photos, "--backbone", run, "--head", "knn:k=1")
    runs = sorted(path for path in Path("experiments/runs/photos").iterdir() if path.is_dir())
    text = call("compare", *runs).stdout
    assert fitted.exit_code == 0
    assert "knn:k=1 on Colours" in text
    assert not any(path.name in text for path in runs)


@pytest.mark.long
def test_students_are_named(photos):
    teacher = call(
        "fit", "--data", photos, "--weights", "random:4", "--resize", "16", "--head", "knn"
    )
    student = ("--student", *SMALL[1:], "--views", "1", "--name", "Student")
    call("distill", "--data", photos, "--teacher", run_of(teacher), *student)
    names = set()
    for card in Path("experiments/runs/photos").glob("*/card.json"):
        names.add(json.loads(card.read_text())["name"])
    assert names == {"", "Student", "Student, trained alone"}
