"""Commands: output, files written, and errors."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from featkit.cli import main

FAST = ("--backbone", "resnet18", "--weights", "random", "--resize", "32")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def call(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def refused(*arguments):
    """Return the error of a command that writes neither a cache file nor a run."""
    done = call(*arguments, code=1)
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert len(lines) == 1
    assert done.stderr.splitlines()[-1] == lines[0]
    assert not list(Path("cache").rglob("*.h5"))
    assert not Path("experiments").exists()
    return lines[0]


def test_extract_fit_predict(photos):
    path = call("extract", "--data", photos, *FAST).stdout.strip()
    assert Path(path).is_file()
    done = call("fit", "--head", "prototypical")
    assert "random:0 (untrained)" in done.stdout
    assert "top-1" in done.stdout
    assert path in done.stderr
    (run,) = Path("experiments/runs/photos").iterdir()
    assert str(run) in done.stderr
    with Image.open(run / "confusion.png") as figure:
        assert figure.size[0] > 300
    done = call("predict", run, photos / "red" / "0.png")
    assert done.stdout.splitlines()[1].split()[1] == "red"
    (found,) = json.loads(call("predict", "latest", photos / "red" / "0.png", "--json").stdout)
    assert found["predicted"] == "red"


def test_a_second_extract_is_a_hit(photos):
    first = call("extract", "--data", photos, *FAST)
    second = call("extract", "--data", photos, *FAST)
    assert first.stdout == second.stdout
    assert "cache hit" in second.stderr


def test_fit_makes_the_cache_and_its_json_is_its_results_file(photos):
    done = call("fit", "--data", photos, *FAST, "--head", "knn:k=1", "--json")
    (run,) = Path("experiments/runs/photos").iterdir()
    results = json.loads((run / "results.json").read_text())
    assert json.loads(done.stdout) == {**results, "name": "", "path": str(run)}
    assert len(list(Path("cache").glob("*.h5"))) == 1


def test_ablate_compares_heads(photos):
    done = call(
        "ablate",
        "--data",
        photos,
        "--weights",
        "random",
        "--weights",
        "missing.pth",
        "--head",
        "knn:k=1",
        "--head",
        "svm",
    )
    assert "skipped" in done.stdout
    assert "missing.pth" in done.stdout
    (folder,) = [path for path in Path("experiments/runs/ablate").iterdir() if path.name != "cells"]
    tables, pages = (
        {"results.csv", "results.json", "times.csv", "summary.md"},
        {"report.html", "heatmap.png"},
    )
    assert {path.name for path in folder.iterdir()} == tables | pages


def test_ablate_reads_a_grid(photos):
    Path("colours.toml").write_text(
        f'[axes]\ndata = ["{photos}"]\nweights = ["random"]\nhead = ["prototypical"]\n[fixed]\nresize = "32"\n'
    )
    done = call("ablate", "colours.toml", "--json")
    assert json.loads(done.stdout)["cells"][0]["status"] == "ok"
    assert [path.name for path in Path("experiments/runs").iterdir()] == ["colours"]


def test_ablate_without_any_result_fails(photos):
    done = call("ablate", "--data", photos, "--weights", "missing.pth", "--head", "svm", code=1)
    assert "none of the 1 cells" in done.stderr


def test_cache_lists_shows_and_removes_files(photos):
    path = call("extract", "--data", photos, *FAST).stdout.strip()
    assert Path(path).name in call("cache", "ls").stdout
    assert json.loads(call("cache", "ls", "--json").stdout)[0]["rows"] == 24
    assert json.loads(call("cache", "show", path).stdout)["recipe"]["backbone"] == "resnet18"
    call("cache", "rm", path)
    assert not Path(path).exists()


def test_cache_rm_removes_only_embeddings_files(photos):
    Path("thesis.tex").write_text("")
    assert "not an embeddings file" in call("cache", "rm", "thesis.tex", code=1).stderr
    assert Path("thesis.tex").exists()


def test_models_and_heads_are_listed():
    assert "resnet101" in call("models").stdout
    assert "layer3" in call("models", "--layers", "resnet18").stdout
    heads = call("heads").stdout
    assert all(name in heads for name in ("linear", "svm", "knn", "mlp", "prototypical", "kernel"))


def test_python_m_featkit_runs_the_command():
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "featkit", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("featkit, version")


def csv_file(text):
    Path("labels.csv").write_text(text)
    return "labels.csv"


def write_image(path, size=(8, 8)):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)
    return path


BAD_DATA = {
    "a missing folder": (lambda: "missing", "missing"),
    "an empty folder": (lambda: Path("empty").mkdir() or "empty", "empty"),
    "a folder with one class": (lambda: write_image("one/a/1.png") and "one", "one"),
    "a csv without a column": (lambda: csv_file("path,class\na.png,a\n"), "label"),
    "a csv with a missing file": (lambda: csv_file("path,label\na.png,a\nb.png,b\n"), "a.png"),
    "a csv with a path twice": (
        lambda: write_image("a.png") and csv_file("path,label\na.png,a\na.png,b\n"),
        "a.png",
    ),
    "a csv with an unknown split": (
        lambda: (
            write_image("a.png")
            and write_image("b.png")
            and csv_file("path,label,split\na.png,a,train\nb.png,b,tset\n")
        ),
        "tset",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused(case):
    make, named = BAD_DATA[case]
    assert named in refused("extract", "--data", make(), *FAST)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--backbone", "resnet19"), "resnet18"),
        (("--weights", "missing.pth"), "missing.pth"),
        (("--weights", "IMAGENET21K"), "IMAGENET1K_V1"),
        (("--layer", "layer9"), "layer9"),
        (("--resize", "big"), "big"),
        (("--crop", "500", "--resize", "32"), "crop"),
        (("--split", "70/40"), "70/40"),
        (("--limit", "trian=5"), "trian"),
    ],
)
def test_a_bad_option_value_is_refused(options, named, photos):
    given = dict(zip(FAST[::2], FAST[1::2], strict=True)) | dict(
        zip(options[::2], options[1::2], strict=True)
    )
    assert named in refused(
        "extract", "--data", photos, *(part for pair in given.items() for part in pair)
    )


@pytest.mark.parametrize(
    ("head", "named"),
    [
        ("forest", "prototypical"),
        ("svm:D=1", "kernel"),
        ("svm:kernel=cubic", "rbf"),
        ("knn:k=0", "k"),
        ("svm:C", "C"),
    ],
)
def test_a_bad_head_is_refused_before_anything_is_extracted(head, named, photos):
    assert named in refused("fit", "--data", photos, *FAST, "--head", head)


def test_weights_of_another_network_are_refused(photos):
    import torch
    import torchvision

    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), "other.pth")
    assert "resnet50" in refused(
        "extract", "--data", photos, "--backbone", "resnet50", "--weights", "other.pth"
    )


def test_weights_that_contain_code_are_refused(photos):
    import torch

    torch.save({"fc.weight": Path("/")}, "code.pth")
    assert "code" in refused("extract", "--data", photos, "--weights", "code.pth")


@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_a_damaged_cache_is_refused(content, photos):
    path = call("extract", "--data", photos, *FAST).stdout.strip()
    Path(path).write_bytes(content)
    assert "featkit cache rm" in call("fit", "--data", photos, *FAST, code=1).stderr
    Path(path).write_bytes(b"")
    assert "featkit cache rm" in call("extract", "--data", photos, *FAST, code=1).stderr


def test_a_cache_whose_recipe_was_changed_is_refused(photos):
    path = call("extract", "--data", photos, *FAST).stdout.strip()
    with h5py.File(path, "r+") as file:
        file.attrs["recipe"] = file.attrs["recipe"].replace("avgpool", "layer3")
    assert (
        "layer: layer3 cached, avgpool requested"
        in call("fit", "--data", photos, *FAST, code=1).stderr
    )


def test_an_unreadable_image_fails_or_is_skipped(photos):
    (photos / "red" / "0.png").write_bytes(b"not an image")
    assert "red/0.png" in refused("extract", "--data", photos, *FAST)
    assert (
        "1 images skipped: red/0.png"
        in call("extract", "--data", photos, *FAST, "--on-error", "skip").stderr
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_image_is_refused_before_it_is_decoded(photos):
    Image.new("1", (10_001, 10_000)).save(photos / "red" / "0.png")
    assert "100 megapixels" in refused("extract", "--data", photos, *FAST)


def test_a_folder_that_is_not_a_run_is_refused(photos):
    assert (
        "is not a run directory" in call("predict", photos, photos / "red" / "0.png", code=1).stderr
    )


def test_a_file_that_is_not_a_run_is_refused(photos):
    image = photos / "red" / "0.png"
    assert "is not a run directory" in call("predict", image, image, code=1).stderr


def test_a_grid_without_any_result_still_prints_its_cells(photos):
    done = call("ablate", "--data", photos / "missing", "--head", "knn", code=1)
    assert "failed" in done.stdout
    assert "none of the" in done.stderr


def test_an_axis_together_with_a_grid_file_is_wrong_usage():
    Path("grid.toml").write_text("")
    call("ablate", "grid.toml", "--head", "svm", code=2)


def test_cache_verify_names_what_differs(photos):
    call("extract", "--data", photos, *FAST)
    assert "no problems found" in call("cache", "verify").stderr
    Image.new("RGB", (9, 9)).save(photos / "red" / "0.png")
    done = call("cache", "verify", code=1)
    assert "red/0.png is changed" in done.stdout


def test_explain_extracts_nothing(photos):
    assert "miss" in call("extract", "--data", photos, *FAST, "--explain").stdout
    assert not Path("cache").exists()


def test_several_backbones_give_a_file_each(photos):
    done = call("extract", "--data", photos, "--backbone", "resnet34", *FAST)
    assert len(done.stdout.splitlines()) == len(list(Path("cache").glob("*.h5"))) == 2


def test_fit_tunes_on_validation_and_records_the_candidates(photos):
    done = call("fit", "--data", photos, *FAST, "--head", "knn", "--tune", "--reject", "0.2")
    assert "tuned over" in done.stdout
    assert re.search(
        r"^answered [\d.]+% of test images \(95% CI [\d.]+ to [\d.]+\) at confidence >= [\d.]+, "
        r"chosen to answer 80.0% of validation images",
        done.stdout,
        re.MULTILINE,
    )
    (run,) = Path("experiments/runs/photos").iterdir()
    assert {"search.png", "reliability.png", "predictions.csv"} <= {
        path.name for path in run.iterdir()
    }
    assert len(json.loads((run / "results.json").read_text())["search"]) > 4


def test_fit_over_seeds_gives_their_mean(photos):
    done = call("fit", "--data", photos, *FAST, "--head", "prototypical", "--seeds", "3")
    assert "over 3 seeds: top-1" in done.stdout
    assert "over test images and seeds), standard deviation" in done.stdout
    (summary,) = Path("experiments/runs/photos").glob("seeds-*/results.json")
    found = json.loads(summary.read_text())
    assert len(found["runs"]) == len(set(found["runs"])) == found["seeds"] == 3


@pytest.mark.parametrize("head", ["knn:k=05", "knn:temperature=1e-1,k=1", "knn:scale=None"])
def test_a_head_may_be_spelled_in_any_way_over_seeds(photos, head):
    done = call("fit", "--data", photos, *FAST, "--head", head, "--seeds", "2", "--json")
    assert len(json.loads(done.stdout)["runs"]) == 2


def test_strict_refuses_an_image_in_train_and_test(photos):
    for split in ("train", "test"):
        for kind in ("blue", "red"):
            shutil.copytree(photos / kind, photos.parent / "own" / split / kind)
    own = photos.parent / "own"
    done = call("fit", "--data", own, *FAST, "--head", "prototypical")
    assert "warning: 16 of 16 test images are train or val images too" in done.stderr
    done = call("fit", "--data", own, *FAST, "--head", "prototypical", "--strict", code=1)
    assert done.stderr.splitlines()[-1].startswith("Error: 16 of 16 test images")


def test_compare_reports_significant_differences(photos):
    for head in ("prototypical", "knn:k=1"):
        call("fit", "--data", photos, *FAST, "--head", head)
    runs = sorted(Path("experiments/runs/photos").iterdir())
    done = call("compare", *runs)
    assert "; not significant" in done.stdout
    assert len(json.loads(call("compare", *runs, "--json").stdout)["pairs"]) == 1
    assert "two runs or more" in call("compare", runs[0], code=1).stderr


def test_the_name_of_a_run_is_shown_and_decides_no_id(photos):
    options = ("fit", "--data", photos, *FAST, "--precision", "fp32", "--head")
    call(*options, "prototypical")
    (directory,) = Path("experiments/runs/photos").iterdir()
    files = {path.name: path.read_bytes() for path in directory.glob("*.[cj]s[vo]*")}
    call(*options, "prototypical", "--name", " Colours_1 & more ")
    assert list(Path("experiments/runs/photos").iterdir()) == [directory]
    for name in ("results.json", "predictions.csv"):
        assert (directory / name).read_bytes() == files[name]
    call(*options, "prototypical")  # a repeated run keeps its name
    for name in ("latest", "../x", "a/b"):
        assert "choose a" in call(*options, "prototypical", "--name", name, code=1).stderr
    assert json.loads((directory / "card.json").read_text())["name"] == "Colours_1 & more"
    done = call(*options, "prototypical", "--name", "other")
    assert "the run was named Colours_1 & more before, and is other now" in done.stderr
    call(*options, "prototypical", "--name", "Colours_1 & more")
    call(*options, "knn:k=1")
    runs = sorted(Path("experiments/runs/photos").iterdir())
    found = json.loads(call("compare", *runs, "--json").stdout)["runs"]
    assert {run["name"] for run in found} == {"Colours_1 & more", "knn:k=1 on ResNet-18, untrained"}
    assert not any(run.name in call("compare", *runs).stdout for run in runs)
    latex = call("compare", *runs, "--latex", "-").stdout
    assert "Colours\\_1 \\& more & " in latex


def test_runs_of_several_heads_get_their_head_added_to_the_name(photos):
    heads = ("--head", "prototypical", "--head", "knn:k=1")
    done = call("fit", "--data", photos, *FAST, *heads, "--name", "colours")
    assert "colours, prototypical" in done.stdout
    assert "colours, knn:k=1" in done.stdout


@pytest.mark.parametrize("name", ["", "two\nlines", "\x1b[31mred", "x" * 81])
def test_a_name_that_does_not_fit_into_a_line_is_refused(photos, name):
    done = call("fit", "--data", photos, *FAST, "--name", name, code=1)
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert "give a name of 1 to 80 printable characters in one line" in error
    assert not Path("experiments").exists()


def test_fewshot_prints_episodes_and_a_learning_curve(photos):
    given = [
        "--data",
        photos,
        *FAST,
        "--way",
        "2",
        "--shot",
        "1,2",
        "--query",
        "3",
        "--episodes",
        "20",
    ]
    done = call("fewshot", *given, "--curve", "1,2", "--draws", "2")
    assert "20 episodes of 2 classes" in done.stdout
    assert "test accuracy, 2 draws, n = 4 test images" in done.stdout
    (directory,) = Path("experiments/runs/photos").iterdir()
    assert {path.name for path in directory.iterdir()} == {"curve.png", "results.json"}
    done = call("fewshot", *given, "--curve", "1,50,500", "--draws", "2", "--json")
    (largest,) = {point["shot"] for point in json.loads(done.stdout)["curve"]} - {1}
    assert largest < 50
    assert f"no class has 50 or 500 training images: the learning curve ends at {largest}" in (
        done.stderr
    )
    assert "9 ways need 9 classes" in call("fewshot", *given[:-6], "--way", "9", code=1).stderr
    assert "not a list of positive integers" in call("fewshot", "--shot", "x", code=1).stderr


def test_predict_takes_folders_and_standard_input_and_prints_csv(photos):
    call("fit", "--data", photos, *FAST, "--head", "prototypical")
    (run,) = Path("experiments/runs/photos").iterdir()
    lines = call("predict", run, photos / "red", "--csv").stdout.splitlines()
    assert lines[0] == "path,predicted,confidence,rejected,top2,confidence2,top3,confidence3"
    assert len(lines) == 9
    names = f"{photos}/red/0.png\n{photos}/blue/1.png\n"
    done = CliRunner().invoke(main, ["predict", str(run), "-", "--json"], input=names)
    assert [each["path"] for each in json.loads(done.stdout)] == names.split()
    assert (
        "no image to classify"
        in CliRunner().invoke(main, ["predict", str(run), "-"], input="").stderr
    )


def test_exported_features_can_be_imported(photos):
    path = call("extract", "--data", photos, *FAST, "--store", "float16,gzip").stdout.strip()
    call("cache", "export", path, "vectors.npz")
    imported = call("cache", "import", "vectors.npz").stdout.strip()
    one, two = (
        call("fit", "--cache", file, "--head", "prototypical", "--json").stdout
        for file in (path, imported)
    )
    assert json.loads(one)["top1"] == json.loads(two)["top1"]


def test_several_layers_are_extracted_from_one_decode(photos):
    views = ["--augment", "trivial", "--views", "2"]
    done = call(
        "extract", "--data", photos, *FAST, *views, "--layer", "layer1", "--layer", "layer2"
    )
    assert len(done.stdout.split()) == 2
    call("fit", "--data", photos, *FAST, *views, "--layer", "layer2", "--head", "prototypical")
    assert len(list(Path("cache").glob("*.h5"))) == 2
