"""Running a grid: computed, finished, failed and skipped cells; resuming after kills."""

from __future__ import annotations

import csv
import gzip
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from featkit.ablation import run as ablate
from featkit.ablation import worker as fits
from featkit.ablation.cells import lock_grid
from featkit.ablation.estimate import estimate
from featkit.ablation.executors.local import LocalExecutor
from featkit.ablation.grid import Grid, Skip
from featkit.ablation.run import AblationConfig, run_grid
from featkit.ablation.tables import result_files
from featkit.ablation.worker import run_task
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.store import entries
from featkit.errors import FeatkitError, RunError
from featkit.runs.features import load_features
from featkit.runs.fit import FitConfig, fit_run

KILLS = int(os.environ.get("FEATKIT_KILLS", "3"))


@pytest.fixture
def grid(photos):
    axes = {
        "data": (str(photos),),
        "weights": ("random",),
        "head": ("knn:k=1", "prototypical"),
        "perturb": ("none", "flip:level=mild", "fog:level=strong"),
        "seed": (0, 1),
    }
    return Grid("colours", axes, {"resize": "32"})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for all tests: features are found by the content of images, not by path."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def work(tmp_path, cache):
    return AblationConfig(tmp_path / "out", cache, Compute())


@pytest.fixture
def work_without_cache(tmp_path):
    return AblationConfig(tmp_path / "out", tmp_path / "cache", Compute())


def narrowed(grid, **axes):
    return replace(grid, axes={**grid.axes, **axes})


def times(work):
    return {
        path.name: path.stat().st_mtime_ns for path in (work.out / "colours" / "cells").glob("*.gz")
    }


@pytest.fixture
def counted(monkeypatch):
    """Specs of the heads that are fitted, in order."""
    specs, plain = [], fits.fit_head
    monkeypatch.setattr(
        fits,
        "fit_head",
        lambda source, head, *rest: specs.append(head) or plain(source, head, *rest),
    )
    return specs


def test_a_head_is_fitted_once_for_all_perturbations_of_the_test_images(grid, work, counted):
    cells = run_grid(grid, work).cells
    assert [cell.status for cell in cells] == ["ok"] * 12
    assert len(counted) == 4
    assert all("untrained" in cell.weights for cell in cells)


def test_perturbed_files_hold_test_images_only(grid, work_without_cache):
    """4 of 24 images are test images; a split by seed is not part of the file of all images."""
    run_grid(narrowed(grid, head=("knn:k=1",)), work_without_cache)
    found = [(entry.recipe.perturb, entry.rows) for entry in entries(work_without_cache.cache)[0]]
    assert sorted(found) == [
        *[("flip:level=mild", 4)] * 2,
        *[("fog:level=strong", 4)] * 2,
        ("none", 24),
    ]


def test_a_cell_equals_the_run_that_fit_makes(grid, work):
    """Same id and same report, perturbed or not."""
    for cell in run_grid(narrowed(grid, seed=(1,)), work).cells:
        names = ("data", "weights", "perturb", "seed")
        given = {
            **{name: cell.values[name] for name in names},
            "backbone": "resnet18",
            "resize": "32",
        }
        run = fit_run(
            load_features(given, work.cache, Compute()),
            cell.values["head"],
            seed=1,
            config=FitConfig(),
        )
        assert (cell.run, cell.report.top1, cell.report.nll) == (
            run.id,
            run.report.top1,
            run.report.nll,
        )
        assert cell.predictions.ids == run.predictions.ids
        np.testing.assert_array_equal(cell.predictions.predicted, run.predictions.predicted)


def test_perturbed_train_views_are_fitted_on_but_not_evaluated(grid, work):
    grid = narrowed(
        grid, train_perturb=("none", "mixed:level=medium"), seed=(0,), perturb=("none",)
    )
    plain, wide = (run_grid(grid, work).cells[place].report for place in (0, 2))
    assert wide.provenance["n_train"] > plain.provenance["n_train"]
    assert (wide.n, wide.provenance["n_val"]) == (plain.n, plain.provenance["n_val"])


def test_finished_cells_are_read_from_disk_and_a_changed_grid_computes_only_new_ones(
    grid, work, counted
):
    first = run_grid(grid, work)
    before = times(work)
    again = run_grid(grid, work)
    assert times(work) == before
    assert len(counted) == 4
    assert result_files(first)["results.csv"] == result_files(again)["results.csv"]
    run_grid(narrowed(grid, head=("knn:k=1", "knn:k=3"), seed=(0,)), work)
    assert counted[4:] == ["knn:k=3"]
    assert before.items() <= times(work).items()


@pytest.mark.parametrize("damage", ["half", "empty", "tampered"])
def test_a_damaged_cell_is_computed_again_with_a_note(grid, work, damage):
    reference = result_files(run_grid(grid, work))["results.csv"]
    path = sorted((work.out / "colours" / "cells").glob("*.gz"))[0]
    whole = path.read_bytes()
    content = json.loads(gzip.decompress(whole))
    content["report"]["top1"] = 1.0 - content["report"]["top1"]
    tampered = gzip.compress(json.dumps(content).encode())
    path.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "tampered": tampered}[damage])
    notes = []
    found = result_files(run_grid(grid, replace(work, note=notes.append)))["results.csv"]
    assert found == reference
    assert len(notes) == 1
    assert path.name in notes[0]
    assert "computing it again" in notes[0]


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_jobs(grid, work, tmp_path):
    one, two = (
        result_files(run_grid(grid, replace(work, jobs=jobs, out=tmp_path / str(jobs))))
        for jobs in (1, 2)
    )
    assert {name: text for name, text in one.items() if name != "times.csv"} == {
        name: text for name, text in two.items() if name != "times.csv"
    }


def test_a_failed_cell_has_a_reason_and_a_log_and_does_not_stop_the_others(photos, work):
    axes = {
        "data": (str(photos),),
        "weights": ("random", "nowhere.pth"),
        "head": ("knn:k=1", "nonsense"),
        "subset": ("all", "longtail:if=50"),
    }
    cells = run_grid(Grid("colours", axes, {"resize": "32"}), work).cells
    assert [cell.status for cell in cells] == ["ok", "failed", "failed", "failed", *["skipped"] * 4]
    assert "unknown head 'nonsense'" in cells[1].reason
    assert "the largest possible one is" in cells[2].reason
    assert "nowhere.pth" in cells[4].reason
    assert "Traceback" in (work.out / "colours" / cells[1].log).read_text()


def test_a_memory_error_is_a_failed_cell(grid, work, monkeypatch):
    def fail(*arguments):
        raise MemoryError("out of memory\nfor this")

    monkeypatch.setattr(fits, "evaluate_head", fail)
    found = {(cell.status, cell.reason) for cell in run_grid(grid, work).cells}
    assert found == {("failed", "MemoryError: out of memory for this")}


def test_skipped_and_inapplicable_cells_have_a_reason(grid, work):
    grid = narrowed(
        grid, head=("linear", "knn:k=1"), balance=("none", "tau_norm"), perturb=("none",), seed=(0,)
    )
    cells = run_grid(
        replace(grid, skips=(Skip({"head": ("knn:k=1",), "balance": ("none",)}, "dull"),)), work
    ).cells
    assert [cell.status for cell in cells] == ["ok", "ok", "skipped", "skipped"]
    assert cells[2].reason == "dull"
    assert "does not apply to head knn" in cells[3].reason


def test_two_spellings_of_one_value_are_two_equal_cells(grid, work):
    cells = run_grid(
        narrowed(grid, perturb=("none", "fog:level=none"), weights=("random", "random:0")), work
    ).cells
    assert [cell.status for cell in cells] == ["ok"] * 16
    assert len({cell.run for cell in cells}) == 4


def test_progress_counts_cells(grid, work):
    seen = []
    run_grid(grid, replace(work, progress=seen.append))
    assert [each.done for each in seen] == [0, 3, 6, 9, 12]
    assert {each.total for each in seen} == {12}
    assert (seen[0].running, seen[-1].running, seen[-1].failed) == (1, 0, 0)


def test_a_second_process_on_the_same_grid_is_refused(grid, work):
    with (
        lock_grid(work.out / "colours" / "cells"),
        pytest.raises(RunError, match=r"process \d+ on .* is running the grid in"),
    ):
        run_grid(grid, work)


def test_tables_have_every_cell_and_times_are_a_separate_file(grid, work):
    files = result_files(run_grid(grid, work))
    rows = list(csv.DictReader(io.StringIO(files["results.csv"])))
    assert len(rows) == 12
    assert all(float(row["low"]) <= float(row["top1"]) <= float(row["high"]) for row in rows)
    assert not any("seconds" in name for name in rows[0])
    assert "fit_seconds" in files["times.csv"]
    assert json.loads(files["results.json"])["cells"][0]["report"]["n"] == 4


def test_a_result_converts_to_dict_frame_and_html(grid, work):
    result = run_grid(narrowed(grid, seed=(0,), head=("knn:k=1", "<b>")), work)
    rows = result.to_dict()["cells"]
    assert json.loads(json.dumps(rows)) == rows
    frame = result.to_frame()
    assert len(frame) == len(result.cells) == 6
    assert frame["top1"][0] == result.cells[0].report.top1
    assert frame["status"].tolist() == ["ok"] * 3 + ["failed"] * 3
    assert "&lt;b&gt;" in result._repr_html_()
    assert "<b>" not in result._repr_html_()


def test_without_pandas_to_frame_tells_how_to_install_it(grid, work, monkeypatch):
    result = run_grid(narrowed(grid, seed=(0,), head=("knn:k=1",)), work)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(FeatkitError, match="pip install pandas"):
        result.to_frame()


def test_an_estimate_counts_finished_and_missing_parts(grid, work_without_cache):
    work = work_without_cache
    before = estimate(grid, work)
    assert (before.cells, before.finished, before.files, before.fits) == (12, 0, 0, 4)
    assert before.seconds(jobs=1) is None
    (network,) = before.networks
    assert (network.files, network.images) == (5, 24 + 4 * 4)
    assert not list(work.cache.glob("*.h5"))
    run_grid(narrowed(grid, seed=(0,)), work)
    after = estimate(grid, work)
    assert (after.finished, after.fits) == (6, 2)
    assert estimate(narrowed(grid, seed=(0,)), work).seconds(jobs=1) == 0


def double_or_die(number):
    if number == -1:
        os._exit(1)
    if number == -2:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


@pytest.mark.slow
@pytest.mark.parametrize("start_methods", [None, ["spawn"]], ids=["default", "spawn"])
@pytest.mark.parametrize(
    "deadly", [pytest.param(-1, marks=pytest.mark.long), -2], ids=["exit", "kill"]
)
def test_a_worker_that_dies_fails_its_own_task_only(deadly, start_methods, monkeypatch):
    """Windows has no other start method than spawn."""
    if start_methods:
        monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: start_methods)
    tasks = [1, 2, deadly, 3, 4, 5]
    finished = list(LocalExecutor(jobs=2, cores=2).run(double_or_die, tasks))
    results = {each.index: each.result for each in finished}
    assert results == {0: 2, 1: 4, 2: None, 3: 6, 4: 8, 5: 10}
    assert [each.index for each in finished if each.worker_died] == [2]


FAULTS = """
import sys
from pathlib import Path
from featkit.embeddings.pipeline import Compute
from featkit.ablation.run import AblationConfig, run_grid
from featkit.ablation.grid import Grid
from featkit.ablation.tables import result_files

axes = {"data": (sys.argv[1],), "weights": ("random",), "head": ("linear", "knn:k=1", "prototypical"),
        "perturb": ("none", "flip:level=mild", "fog:level=strong"), "seed": tuple(range(3))}
if __name__ == "__main__":
    place = Path(sys.argv[2])
    work = AblationConfig(place / "out", place.parent / "cache", Compute(), jobs=2)
    text = result_files(run_grid(Grid("g", axes, {"resize": "32"}), work))["results.csv"]
    (place / "results.csv").write_text(text)
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_can_run_a_grid(photos, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import featkit\n"
        f"result = featkit.ablate(data={str(photos)!r}, weights='random', resize='16', jobs=2,\n"
        f"    head=['knn:k=1', 'prototypical'], cache={str(tmp_path / 'cache')!r},\n"
        f"    out={str(tmp_path / 'out')!r})\n"
        "print([cell.status for cell in result.cells])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "['ok', 'ok']\n"


@pytest.mark.slow
def test_a_killed_grid_resumes_to_the_same_results(photos, tmp_path):
    """SIGKILL at random moments; FEATKIT_KILLS=10 kills more often."""
    (tmp_path / "run_grid.py").write_text(FAULTS)

    def start(place):
        place.mkdir(exist_ok=True)
        command = [
            sys.executable,
            "-W",
            "ignore",
            str(tmp_path / "run_grid.py"),
            str(photos),
            str(place),
        ]
        with (tmp_path / "stderr.txt").open("w") as stderr:
            return subprocess.Popen(command, stderr=stderr)

    for _ in range(2):  # the second run, with cached features, is the one that is timed and killed
        shutil.rmtree(tmp_path / "whole", ignore_errors=True)
        started = time.perf_counter()
        child = start(tmp_path / "whole")
        assert child.wait() == 0, (tmp_path / "stderr.txt").read_text()
        whole = time.perf_counter() - started
    reference = (tmp_path / "whole" / "results.csv").read_text()
    assert reference.count("ok") == 27
    rng = np.random.default_rng(0)
    place = tmp_path / "killed"
    for _ in range(KILLS):
        child = start(place)
        time.sleep(rng.uniform(0.2, 0.9) * whole)
        child.kill()
        child.wait()
    child = start(place)
    assert child.wait() == 0, (tmp_path / "stderr.txt").read_text()
    assert (place / "results.csv").read_text() == reference
    assert not list((place / "out" / "g" / "cells").glob(".*.tmp"))


def test_a_task_without_its_cache_file_fails_all_of_its_cells(
    grid, work_without_cache, monkeypatch
):
    def run_without_cache_file(task):
        task.source.clean.unlink()
        return run_task(task)

    monkeypatch.setattr(ablate, "run_task", run_without_cache_file)
    cells = run_grid(narrowed(grid, seed=(0,), head=("knn:k=1",)), work_without_cache).cells
    assert [cell.status for cell in cells] == ["failed"] * 3
    assert {cell.data for cell in cells} == {"photos"}
