"""Files written by released versions stay readable.

``tests/golden/<version>/`` holds a cache file, run directories of every head and a finished grid.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from featkit.cli import main
from featkit.embeddings import store
from featkit.runs.directory import load_run

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.iterdir())
RUNS = sorted(
    path.parent.relative_to(GOLDEN).as_posix() for path in GOLDEN.glob("*/runs/*/*/card.json")
)
# The features of the digits that every golden run was fitted on.
EXTRACTED = "*/cache/digits-resnet18-dabd22017b71.h5"

EXTRACT = [
    "extract",
    "--data",
    "digits",
    "--backbone",
    "resnet18",
    "--weights",
    "random",
    "--resize",
    "32",
]
EXTRACT += ["--precision", "fp32", "--limit", "train=60,val=20,test=30", "--store", "float32,gzip"]


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the files of one version to the working directory."""
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN / request.param, folder)
    monkeypatch.chdir(folder)
    return folder


def run_featkit(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def test_golden_files_include_runs_of_every_head():
    heads = {load_run(GOLDEN / run).head_spec.partition(":")[0] for run in RUNS}
    assert heads == {"linear", "svm", "knn", "mlp", "prototypical"}


@pytest.mark.parametrize("run", RUNS)
def test_a_saved_run_gives_the_predictions_of_its_version(run):
    saved = load_run(GOLDEN / run)
    (cache_file,) = GOLDEN.glob(EXTRACTED)
    test = store.read(cache_file).part("test")
    labels = saved.head.predict(test.x)
    predicted = {name: saved.classes[label] for name, label in zip(test.ids, labels, strict=True)}
    with (GOLDEN / run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        expected = {row["id"]: row["predicted"] for row in csv.DictReader(file)}
    assert predicted == expected


def test_a_cache_file_is_a_hit(golden):
    before = contents(golden, "cache/*")
    assert "dabd22017b71" in run_featkit(*EXTRACT)
    assert contents(golden, "cache/*") == before


def test_a_finished_grid_is_not_computed_again(golden):
    cells = contents(golden, "runs/golden/cells/*.json.gz")
    (before,) = golden.glob("runs/golden/*/results.csv")
    expected = list(csv.DictReader(before.read_text(encoding="utf-8").splitlines()))
    run_featkit("ablate", "grid.toml", "--cache", "cache", "--out", "runs", "--jobs", "1")
    assert contents(golden, "runs/golden/cells/*.json.gz") == cells
    (after,) = golden.glob("runs/golden/*/results.csv")
    found = list(csv.DictReader(after.read_text(encoding="utf-8").splitlines()))
    for old, new in zip(expected, found, strict=True):
        assert {name: new[name] for name in old} == old


@pytest.mark.parametrize("head", ["linear", "svm", "knn:k=3", "prototypical"])
def test_the_same_run_has_the_same_id(golden, head):
    (cache_file,) = Path("cache").glob("digits-resnet18-dabd22017b71.h5")
    before = {path.name for path in Path("runs/digits").iterdir()}
    run_featkit("fit", "--head", head, "--cache", str(cache_file), "--out", "again")
    assert {path.name for path in Path("again/digits").iterdir()} < before
