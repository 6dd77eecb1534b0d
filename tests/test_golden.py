"""Files written by released versions stay readable.

``tests/golden/<version>/`` holds cache files, run directories and a finished grid.
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
EXTRACTED = "cache/digits-resnet18-dabd22017b71.h5"

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
    version = run.partition("/")[0]
    test = store.read(GOLDEN / version / EXTRACTED).part("test")
    labels = saved.head.predict(test.x)
    predicted = {name: saved.classes[label] for name, label in zip(test.ids, labels, strict=True)}
    with (GOLDEN / run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        expected = {row["id"]: row["predicted"] for row in csv.DictReader(file)}
    assert predicted == expected


def test_a_cache_file_is_a_hit(golden):
    before = contents(golden, "cache/*")
    assert "dabd22017b71" in run_featkit(*EXTRACT)
    assert contents(golden, "cache/*") == before


def test_a_finished_grid_is_computed_again_beside_its_cells(golden):
    """Later versions changed results of some heads, so that earlier cells do not answer for it."""
    cells = contents(golden, "runs/golden/cells/*.json.gz")
    (before,) = golden.glob("runs/golden/*/results.csv")
    expected = list(csv.DictReader(before.read_text(encoding="utf-8").splitlines()))
    run_featkit("ablate", "grid.toml", "--cache", "cache", "--out", "runs", "--jobs", "1")
    after = contents(golden, "runs/golden/cells/*.json.gz")
    assert cells.items() <= after.items()
    assert len(after) == 2 * len(cells)
    (results,) = golden.glob("runs/golden/*/results.csv")
    found = list(csv.DictReader(results.read_text(encoding="utf-8").splitlines()))
    for old, new in zip(expected, found, strict=True):
        if not old["head"].startswith("knn"):
            assert (new["head"], new["top1"]) == (old["head"], old["top1"])


@pytest.mark.parametrize("head", ["linear", "svm", "knn:k=3", "prototypical"])
def test_the_same_run_has_another_id_than_before_and_the_same_one_again(golden, head):
    """A run of an earlier version is not overwritten by one with other scores."""
    (cache_file,) = Path("cache").glob("digits-resnet18-dabd22017b71.h5")
    before = {path.name for path in Path("runs/digits").iterdir()}
    made = []
    for folder in ("once", "again"):
        run_featkit("fit", "--head", head, "--cache", str(cache_file), "--out", folder)
        made.append({path.name for path in Path(folder, "digits").iterdir()})
    assert made[0] == made[1]
    assert not made[0] & before
