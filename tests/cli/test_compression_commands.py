"""Commands that prune, quantize, profile and export networks."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from featkit.backbones import load_backbone
from featkit.backbones.saved import network_file, read_description
from featkit.cli import main
from featkit.runs.names import network_name
from tests.scenes import write_scenes

pytestmark = pytest.mark.slow

FAST = ("--weights", "random", "--resize", "32")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def call(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def refused(*arguments):
    """Return the error of a command that publishes nothing."""
    before = sorted(Path.cwd().rglob("*"))
    done = call(*arguments, code=1)
    assert done.stdout == ""
    assert sum(line.startswith("Error") for line in done.stderr.splitlines()) == 1
    assert [
        path
        for path in sorted(Path.cwd().rglob("*"))
        if path not in before and path.name != "cache"
    ] == []
    return done.stderr


def run_of(photos):
    call(
        "fit",
        "--data",
        photos,
        "--backbone",
        "resnet18",
        *FAST,
        "--precision",
        "fp32",
        "--head",
        "prototypical",
    )
    (run,) = Path("experiments/runs/photos").iterdir()
    return run


def test_export_then_predict_with_the_file(photos):
    run = run_of(photos)
    done = call("export", run)
    path = Path(done.stdout.strip())
    assert path == run / "model.onnx"
    assert "same class for 4 of 4 test images, largest difference in probability" in done.stderr
    image_files = [photos / "red" / "0.png", photos / "blue" / "1.png"]
    from_run, from_file = (
        json.loads(call("predict", each, *image_files, "--json").stdout) for each in (run, path)
    )
    assert (
        [each["predicted"] for each in from_run]
        == [each["predicted"] for each in from_file]
        == ["red", "blue"]
    )
    assert from_file[0]["confidence"] == pytest.approx(from_run[0]["confidence"], abs=1e-5)


def test_export_creates_the_folder_of_the_file(photos):
    run = run_of(photos)
    call("export", run, "--out", "new/sub/model.onnx")
    assert [path.name for path in Path("new/sub").iterdir()] == ["model.onnx"]
    Path("file").touch()
    (line,) = refused("export", run, "--out", "file/sub/model.onnx").splitlines()
    assert line == "Error: cannot write file/sub/model.onnx: Not a directory; choose another folder"


def test_a_run_whose_photos_were_moved_is_exported(photos, tmp_path):
    run = run_of(photos)
    moved = photos.rename(tmp_path / "moved")
    lost = f"the images of {run.resolve()} are no longer at {photos}: move them back"
    other = "give their new folder with --data, or write the file unverified with --check 0"
    assert f"Error: {lost}, or {other}\n" in refused("export", run.resolve())
    done = call("export", run, "--data", moved, "--out", "a.onnx")
    assert "same class for 4 of 4 test images" in done.stderr
    done = call("export", run, "--check", "0", "--out", "b.onnx")
    assert "not verified (--check 0): the file was not compared with the run" in done.stderr
    assert Path("a.onnx").stat().st_size == Path("b.onnx").stat().st_size
    done = call("export", run, "--check", "0", "--data", moved, code=2)
    assert "leave out --data or --check 0" in done.stderr


def test_commands_that_need_the_photos_of_a_run_say_that_they_were_moved(photos, tmp_path):
    run = run_of(photos).resolve()
    moved = photos.rename(tmp_path / "moved")
    lost = f"the images of {run} are no longer at {photos}: move them back"
    image = moved / "red" / "0.png"
    call("neighbours", run, image)  # the features of the train images are cached
    Path("cache").rename("other")
    assert f"Error: {lost}\n" in refused("neighbours", run, image)
    assert f"Error: {lost}\n" in refused("quantize", run)
    done = call("report", run)
    assert f"The images are not available, so none is shown ({lost})." in done.stderr


def test_a_failed_export_prints_one_line(photos, tmp_path):
    run = run_of(photos)
    shutil.move(photos, tmp_path / "elsewhere")
    assert "photos" in refused("export", run)
    (run / "head.skops").unlink()
    assert "head.skops is missing" in refused("export", run)
    Path("foreign.onnx").write_bytes(b"nothing")
    assert "was not exported by featkit" in refused(
        "predict", "foreign.onnx", tmp_path / "elsewhere/red/0.png"
    )


@pytest.mark.long
def test_pruned_networks_are_backbones_that_profile_compares(photos):
    done = call("prune", "resnet18", "--weights", "random", "--macs", "0.6")
    (narrow,) = done.stdout.split()
    assert "GMACs" in done.stderr
    assert json.loads(Path(narrow, "prune.json").read_text())["macs"] <= 0.6 * 1.82e9
    sparse = call(
        "prune", "resnet18", "--weights", "random", "--sparsity", "0.5", "--sparsity", "0.9"
    ).stdout.split()
    found = [json.loads(Path(each, "prune.json").read_text())["sparsity"] for each in sparse]
    assert found == pytest.approx([0.5, 0.9], abs=1e-4)
    done = call(
        "profile",
        narrow,
        f"{sparse[1]}@bf16",
        "--data",
        photos,
        "--resize",
        "32",
        "--repeats",
        "3",
        "--json",
    )
    networks = json.loads(done.stdout)["networks"]
    assert networks[1]["nonzero"] < 0.2 * networks[1]["parameters"]
    assert {"mean_cosine", "neighbours_kept"} <= networks[1]["drift"].keys()
    assert networks[0]["n"] == networks[1]["n"] == networks[1]["difference"]["n"] == 4
    (folder,) = Path("experiments/runs/profile").iterdir()
    rows = list(csv.DictReader((folder / "profile.csv").read_text().splitlines()))
    assert [row["spec"] for row in rows] == [narrow, f"{sparse[1]}@bf16"]
    with Image.open(folder / "pareto.png") as figure:
        assert figure.size[0] > 500


@pytest.mark.long
def test_a_pruned_network_keeps_its_zeros_when_fine_tuned(photos):
    pruned = (
        "prune",
        "resnet18:stem=small",
        "--weights",
        "random",
        "--sparsity",
        "0.5",
        "--data",
        photos,
    )
    (plain,) = call(*pruned, "--resize", "16").stdout.split()
    done = call(*pruned, "--resize", "16", "--epochs", "1")
    (trained,) = done.stdout.split()
    assert "epoch 1/1" in done.stderr
    assert json.loads(Path(trained, "prune.json").read_text())["sparsity"] == pytest.approx(
        0.5, abs=1e-4
    )
    one, other = (load_backbone(each).build().state_dict() for each in (plain, trained))
    zero = {
        name
        for name, value in one.items()
        if "conv" in name and ((value == 0) != (other[name] == 0)).any()
    }
    assert not zero
    assert any((one[name] != other[name]).any() for name in one)


@pytest.mark.long
def test_channels_are_reconstructed_and_distilled(photos):
    import torch

    whole = (
        "prune",
        "resnet18:stem=small",
        "--weights",
        "random",
        "--macs",
        "0.6",
        "--data",
        photos,
        "--resize",
        "16",
    )
    (plain,) = call(*whole).stdout.split()
    done = call(*whole, "--reconstruct", "8")
    (fitted,) = done.stdout.split()
    assert done.stderr.count("% after fitting") == 8
    trained = (*whole, "--reconstruct", "8", "--epochs", "1")
    (alone,) = call(*trained).stdout.split()
    done = call(*trained, "--distill")
    (distilled,) = done.stdout.split()
    assert "epoch 1/1" in done.stderr
    assert (
        "then 1 epochs at 0.005, distilled"
        in json.loads(Path(distilled, "prune.json").read_text())["goal"]["recovery"]
    )
    widths = [
        json.loads(Path(each, "prune.json").read_text())["parameters"]
        for each in (plain, fitted, alone, distilled)
    ]
    assert len(set(widths)) == 1
    trained_on = [
        read_description(network_file(each)).trained_on for each in (plain, fitted, distilled)
    ]
    assert [len(each) for each in trained_on] == [0, 8, 20]
    outputs = [
        load_backbone(each).build()(torch.ones(1, 3, 16, 16))
        for each in (plain, fitted, alone, distilled)
    ]
    assert not any(torch.equal(one, other) for one, other in combinations(outputs, 2))


def test_options_of_recovery_need_their_pruning(photos):
    assert "needs structured pruning: give --macs" in refused(
        "prune", "resnet18", *FAST, "--sparsity", "0.5", "--reconstruct", "8", "--data", photos
    )
    assert "give --epochs" in call("prune", "resnet18", "--macs", "0.5", "--distill", code=2).stderr


def test_each_pruning_step_is_evaluated_with_a_head(photos):
    shares = ("--sparsity", "0.5", "--sparsity", "0.95")
    done = call("prune", "resnet18", *FAST, *shares, "--data", photos, "--head", "knn:k=1")
    assert done.stderr.count("knn:k=1: top-1") == 3
    assert done.stderr.count("points (") == 2
    (folder,) = Path("experiments/runs/prune").glob("*-steps")
    rows = list(csv.DictReader((folder / "steps.csv").read_text().splitlines()))
    assert [float(row["sparsity"]) for row in rows] == pytest.approx([0, 0.5, 0.95], abs=1e-4)
    assert [row["n"] for row in rows] == ["4"] * 3
    assert [bool(row["difference"]) for row in rows] == [False, True, True]
    with Image.open(folder / "steps.png") as figure:
        assert figure.size[0] > 500


def test_a_pruned_network_is_the_same_in_a_fresh_process_without_pickle(photos):
    pruned = (
        "prune",
        "resnet18",
        "--weights",
        "random",
        "--macs",
        "0.6",
        "--calibrate",
        "8",
        "--by",
        "activation",
    )
    (directory,) = call(*pruned, "--data", photos, "--resize", "64").stdout.split()
    code = f"""
import pickle, torch, torchvision
def refuse(*_, **__): raise AssertionError("pickle")
pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse
from featkit.backbones import load_backbone
print(load_backbone({directory!r}).build()(torch.ones(1, 3, 64, 64)).sum().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    import torch

    expected = load_backbone(directory).build()(torch.ones(1, 3, 64, 64)).sum().item()
    assert float(done.stdout or "nan") == pytest.approx(expected, rel=1e-5), done.stderr


@pytest.mark.long
def test_a_quantized_network_is_a_backbone_that_profile_accepts(photos):
    done = call(
        "quantize", "resnet18", *FAST[:2], "--data", photos, "--resize", "32", "--keep-worst", "1"
    )
    directory = done.stdout.splitlines()[-1]
    assert "calibrated on only 17 images: use 32 or more" in done.stderr
    assert "float32" in done.stdout
    facts = json.loads(Path(directory, "quantize.json").read_text())
    assert (facts["method"], facts["images"], len(facts["keep"]), len(facts["layers"])) == (
        "minmax",
        17,
        1,
        20,
    )
    table = call("profile", directory, f"{directory}@int8-openvino", "--repeats", "3").stdout
    assert "medians of 3 repeats after" in table
    first, second = [line for line in table.splitlines() if "int8" in line][:2]
    assert "OpenVINO" not in first
    assert "OpenVINO" in second
    assert directory not in table
    assert "write it without @bf16" in refused("profile", f"{directory}@bf16")
    assert "already an int8 network" in refused("quantize", directory, "--data", photos)
    assert "prune first, then quantize" in refused("prune", directory, "--macs", "0.5")


@pytest.mark.long
def test_a_run_is_quantized_with_its_head(photos):
    run = run_of(photos)
    done = call("quantize", run, "--bias-correct")
    assert re.search(r"top-1: run .* points \(.* to .*\), n = 4", done.stderr)
    assert "bias correction" in done.stderr
    directory = Path(done.stdout.splitlines()[-1])
    facts = json.loads((directory / "quantize.json").read_text())
    assert facts["bias_correction"]
    assert facts["classifier"]["difference"]["n"] == 4
    image_file = photos / "red" / "0.png"
    from_run, from_file = (
        json.loads(call("predict", each, image_file, "--json").stdout)
        for each in (run, directory / "model.onnx")
    )
    assert from_run[0]["predicted"] == from_file[0]["predicted"] == "red"
    assert from_run != from_file
    assert "leave out --weights, or give --data" in refused("quantize", run, "--weights", "random")
    assert "bias correction needs" in refused(
        "quantize", run, "--bias-correct", "--method", "dynamic"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--macs", "1.5"), "macs=1.5: give a number from 0 to 1"),
        (("--sparsity", "-0.5"), "sparsity=(-0.5,): give a number from 0 to 1"),
        (("--sparsity", "1"), "from 0 to 1 (exclusive)"),
        (("--macs", "0.01"), "cannot be reached"),
        ((), "give either --sparsity or --macs"),
        (("--macs", "0.5", "--sparsity", "0.5"), "give either --sparsity or --macs"),
    ],
)
def test_an_impossible_pruning_prints_one_line(arguments, message):
    assert message in refused("prune", "resnet18", "--weights", "random", *arguments)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (("resnet18@fp8",), "unknown precision 'fp8'"),
        (("resnet18@int8",), "int8: give --data"),
        (("resnet19",), "unknown backbone 'resnet19'"),
        (("resnet18", "resnet18"), "given twice"),
        (("./missing",), "no such file"),
    ],
)
def test_a_network_that_cannot_be_profiled_prints_one_line(specs, message, monkeypatch, tmp_path):
    import torch
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    monkeypatch.setenv("FEATKIT_WEIGHTS", str(tmp_path))
    assert message in refused("profile", *specs)


def test_quantize_without_train_images_prints_one_line(photos):
    arguments = ("quantize", "resnet18", *FAST[:2], "--data", photos)
    assert "unknown layer with weights 'layer9'" in refused(
        *arguments, "--resize", "32", "--keep-fp32", "layer9"
    )


def test_compression_looks_at_images_and_not_at_their_several_labels(tmp_path):
    """Sets of labels are no classes; what needs one label per image says so."""
    table = write_scenes(tmp_path, train=12, test=8)
    one_label = tmp_path / "one.csv"
    lines = table.read_text().splitlines()
    parts = [line.split(",") for line in lines[1:]]
    rows = [f"{name},{'ab'[number % 2]},{split}" for number, (name, _, split) in enumerate(parts)]
    one_label.write_text("\n".join([lines[0], *rows]) + "\n")
    names = []
    for data in (table, one_label):
        given = ("resnet18", *FAST, "--data", data)
        pruned = call("prune", *given, "--sparsity", "0.5", "--calibrate", "8")
        quantized = call("quantize", *given, "--images", "8")
        names.append([Path(done.stdout.split()[-1]).name for done in (pruned, quantized)])
    assert names[0] == names[1]
    for options in (("--head", "linear"), ("--epochs", "1")):
        given = ("prune", "resnet18", *FAST, "--data", table, "--sparsity", "0.6", *options)
        done = call(*given, code=1)
        assert "several labels per image" in done.stderr
        assert done.stdout == ""


@pytest.mark.long
def test_compressed_networks_are_shown_by_their_names(photos):
    given = ("prune", "resnet18", *FAST, "--sparsity")
    unnamed = Path(call(*given, "0.5").stdout.strip())
    named = Path(call(*given, "0.6", "--name", "Small one").stdout.strip())
    steps = call(*given, "0.7", "--sparsity", "0.8", "--name", "Steps").stdout.split()
    int8 = call("quantize", named, "--data", photos, "--images", "8").stdout.splitlines()[-1]
    own = call("quantize", named, "--data", photos, "--images", "9", "--name", "Tiny").stdout
    names = {
        str(unnamed): "ResNet-18, untrained, 50% of weights pruned",
        str(named): "Small one",
        steps[0]: "Steps, 70% of weights pruned",
        steps[1]: "Steps, 80% of weights pruned",
        int8: "Small one, int8",
        own.splitlines()[-1]: "Tiny",
    }
    assert {path: network_name(path) for path in names} == names
    before = read_description(network_file(str(unnamed)))
    again = Path(call(*given, "0.5", "--name", "Renamed").stdout.strip())
    assert again == unnamed
    assert read_description(network_file(str(unnamed))) == before
    assert network_name(str(unnamed)) == "Renamed"
    call(*given, "0.5")  # a repeated pruning keeps the name
    assert network_name(str(unnamed)) == "Renamed"
    profiled = call(
        *("profile", unnamed, f"{named}@bf16", int8, "--repeats", "3", "--warm-up", "0"),
        *("--data", photos, "--head", "knn:k=1"),
    )
    lines = profiled.stdout.splitlines()
    for name in ("Renamed", "Small one, bf16", "Small one, int8"):
        assert any(line.startswith(name) for line in lines)
    assert not re.search(r"-(pruned|int8)-[0-9a-f]{8}", profiled.stdout)
