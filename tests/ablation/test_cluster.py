"""A Dask cluster gives the results of one machine; workers, schedulers and drivers may die."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import distributed
import pytest
from click.testing import CliRunner
from PIL import Image

from featkit.ablation.executors import cluster
from featkit.ablation.executors.cluster import ClusterExecutor, connect, find_problem
from featkit.ablation.grid import Grid
from featkit.ablation.run import AblationConfig, run_grid
from featkit.ablation.tables import result_files
from featkit.cli import main
from featkit.embeddings import store
from featkit.embeddings.extract import Extractor
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.embeddings.shards import extract_in_parallel, find_shards
from featkit.errors import DecodeError, RunError, SpecError

ONE_BY_ONE = Compute(batch_size=1, workers=1, device="cpu")
NETWORK = {"backbone": "resnet18", "weights": "random", "resize": "16", "crop": "16"}


def collect_sockets():
    """Collect sockets that Dask leaves to the garbage collector, which warns about them.

    Otherwise the warning fails whichever test runs when they are collected.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True)
def _collected_sockets():
    """Collect what a test leaves."""
    yield
    collect_sockets()


@pytest.fixture(scope="module")
def address():
    """Return the address of a cluster of two workers in this process."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
    ) as running:
        yield running.scheduler_address
    collect_sockets()


def request_of(photos):
    return Request(data=str(photos), **NETWORK).for_device("cpu")


def features(path):
    embeddings = store.read(path)
    return embeddings.x.tobytes(), embeddings.ids, embeddings.recipe


def hidden_files(cache):
    """Return the hidden files of a cache but the index of image files older than two seconds."""
    return [each for each in cache.glob(".*") if not each.name.endswith(".index.json")]


def double(task):
    return 2 * task


def fail(task):
    raise ValueError(f"task {task}")


def test_tasks_run_and_each_result_belongs_to_its_task(address):
    with connect(address) as executor:
        found = {each.index: each.result for each in executor.run(double, range(50))}
        assert executor.jobs == 2
    assert found == {index: 2 * index for index in range(50)}


def test_an_unexpected_error_is_raised(address):
    with connect(address) as executor, pytest.raises(ValueError, match="task"):
        list(executor.run(fail, [1]))


def test_closing_the_generator_cancels_what_waits(address):
    with connect(address) as executor:
        running = executor.run(double, range(1000))
        next(running)
        running.close()
        assert executor.client.futures == {} or len(executor.client.futures) < 10


def test_extraction_equals_that_of_one_process(address, tmp_path, photos, monkeypatch):
    monkeypatch.setattr("featkit.embeddings.shards.IMAGES_PER_SHARD", 5)
    request, cache = request_of(photos), tmp_path / "cache"
    whole = Extractor(tmp_path / "whole", ONE_BY_ONE).extract([request])[0].path
    with connect(address, folders=[cache], requests=[request]) as executor:
        (found,) = extract_in_parallel([request], cache, ONE_BY_ONE, executor.run)
        assert found.embedded == 24
        assert features(found.path) == features(whole)
        assert found.path.name == whole.name
        (again,) = extract_in_parallel([request], cache, ONE_BY_ONE, executor.run)
        assert again.hit
        assert again.embedded == 0
    assert find_shards(cache) == []
    assert hidden_files(cache) == []


def test_finished_shards_are_kept_when_another_fails(address, tmp_path, photos, monkeypatch):
    monkeypatch.setattr("featkit.embeddings.shards.IMAGES_PER_SHARD", 2)
    broken = photos / "red" / "3.png"
    image = broken.read_bytes()
    broken.write_bytes(b"no image")
    request, cache = request_of(photos), tmp_path / "cache"
    with connect(address, folders=[cache]) as executor:
        with pytest.raises(DecodeError, match=r"red.3\.png"):
            extract_in_parallel([request], cache, ONE_BY_ONE, executor.run)
        kept = sum(map(len, find_shards(cache)))
        broken.write_bytes(image)
        (found,) = extract_in_parallel([request], cache, ONE_BY_ONE, executor.run)
    assert kept > 0
    assert found.embedded < 24


@pytest.fixture
def grid(photos):
    axes = {
        "data": (str(photos),),
        "weights": ("random", "nowhere.pth"),
        "head": ("knn:k=1", "prototypical"),
        "perturb": ("none", "fog:level=strong"),
        "seed": (0, 1),
    }
    return Grid("colours", axes, {"resize": "16", "crop": "16"})


def test_a_grid_has_the_files_of_the_local_executor(address, grid, tmp_path):
    local = AblationConfig(tmp_path / "local", tmp_path / "cache1", ONE_BY_ONE)
    expected = result_files(run_grid(grid, local))
    folders = [tmp_path / "remote", tmp_path / "cache2"]
    with connect(address, folders=folders) as executor:
        remote = replace(local, out=folders[0], cache=folders[1], executor=executor)
        found = result_files(run_grid(grid, remote))
    assert found.keys() == expected.keys()
    for name in expected.keys() - {"times.csv"}:
        assert found[name] == expected[name], name
    cells = [
        {path.name for path in (folder / "colours" / "cells").glob("*.json.gz")}
        for folder in (local.out, remote.out)
    ]
    assert cells[0] == cells[1]
    assert len(cells[0]) == 8


def test_the_commands_run_on_a_cluster(address, photos, tmp_path):
    shared = [f"--{name}={value}" for name, value in NETWORK.items()]
    shared += [f"--data={photos}", f"--cache={tmp_path / 'cache'}", f"--cluster={address}"]
    run = CliRunner().invoke
    out = f"--out={tmp_path / 'out'}"
    found = run(main, ["extract", *shared])
    assert found.exit_code == 0, found.output
    assert "24 embedded" in found.stderr
    fewshot = ["fewshot", *shared, out, "--way=3", "--shot=1,2", "--query=2", "--episodes=20"]
    fewshot += ["--curve=1,2", "--draws=2", "--head=knn:k=1", "--json"]
    remote = run(main, fewshot)
    local = run(main, [each for each in fewshot if not each.startswith("--cluster")])
    assert remote.exit_code == 0, remote.output
    assert remote.stdout == local.stdout
    assert hidden_files(tmp_path / "cache") == []
    found = run(main, ["ablate", *shared, out, "--head=knn:k=1", "--jobs=2"])
    assert found.exit_code == 2
    assert "exclude each other" in found.stderr


def test_check_reports_each_worker(address, photos, tmp_path):
    command = ["cluster", "check", address, f"--data={photos}", f"--cache={tmp_path}"]
    command += ["--backbone=resnet18", "--weights=random"]
    found = CliRunner().invoke(main, command)
    assert found.exit_code == 0, found.output
    assert found.stdout.count(" ok") == 2
    found = CliRunner().invoke(main, [*command, "--json"])
    assert [worker["problem"] for worker in json.loads(found.stdout)] == [None, None]


def problem_of(**changes):
    facts = {
        "installation": cluster.installation(),
        "machine": {},
        "folders": {},
        "data": {},
        "weights": {"resnet18 imagenet": "a" * 64},
        **changes,
    }
    return find_problem(facts, {"resnet18 imagenet": "a" * 64})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "^$"),
        ({"installation": {**cluster.installation(), "featkit": "0.1"}}, "featkit 0.1 instead of"),
        ({"installation": {**cluster.installation(), "torch": "2.0"}}, "torch 2.0 instead of"),
        ({"installation": {**cluster.installation(), "featkit's code": "x"}}, "featkit's code x"),
        ({"folders": {"/cache": "not the folder of the client"}}, "does not see /cache"),
        ({"data": {"/photos": "not found"}}, "does not see the images /photos"),
        ({"weights": {"resnet18 imagenet": "b" * 64}}, "other weights of resnet18"),
    ],
)
def test_a_worker_that_would_give_other_results_is_refused(changes, message):
    assert re.search(message, problem_of(**changes))


def test_a_worker_without_featkit_is_refused():
    error = ModuleNotFoundError("No module named 'featkit'")
    assert "install it there" in find_problem(error, {})


def test_a_worker_that_joins_with_another_version_runs_no_task(address, monkeypatch):
    with connect(address) as executor:
        expected = {**cluster.installation(), "featkit": "0.0.1"}
        call = cluster._Call(double, 1, expected)
        with pytest.raises(RunError, match=r"instead of 0\.0\.1"):
            executor.client.submit(cluster._run_call, call).result()


def test_folders_that_are_not_shared_are_refused(address, tmp_path, monkeypatch):
    # As if the worker had another disk under the same name.
    monkeypatch.setattr(cluster, "_token_name", lambda token: f".{os.urandom(4).hex()}")
    with pytest.raises(RunError, match="does not see"), connect(address, folders=[tmp_path]):
        pass


def test_an_unreachable_scheduler_is_reported(monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    with pytest.raises(RunError, match="did not answer"), connect("tcp://127.0.0.1:9"):
        pass


def test_a_scheduler_without_workers_is_reported():
    with (
        distributed.LocalCluster(
            n_workers=0, processes=False, dashboard_address="127.0.0.1:0"
        ) as empty,
        pytest.raises(RunError, match="has no workers"),
        connect(empty.scheduler_address),
    ):
        pass


def test_a_gpu_that_no_worker_has_is_reported(address):
    with pytest.raises(RunError, match="declared a GPU"), connect(address, device="cuda"):
        pass


@pytest.mark.parametrize("spec", ["", "nowhere.json", "local:0", "local:x", "http"])
def test_wrong_specs_are_refused(spec):
    with pytest.raises(SpecError), connect(spec):
        pass


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"address": 3}'])
def test_files_that_are_no_scheduler_files_are_refused(tmp_path, content):
    (tmp_path / "scheduler.json").write_text(content)
    with pytest.raises(SpecError, match="not a scheduler file"):
        cluster._address(str(tmp_path / "scheduler.json"))


def test_a_scheduler_file_has_the_address(tmp_path):
    (tmp_path / "scheduler.json").write_text('{"address": "tcp://127.0.0.1:8786"}')
    assert cluster._address(str(tmp_path / "scheduler.json")) == "tcp://127.0.0.1:8786"


def test_losing_all_workers_is_reported(tmp_path):
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as running,
        distributed.Client(running) as client,
    ):
        executor = ClusterExecutor(client, "inproc", {"GPU": 1}, no_worker_seconds=0.5)
        tasks = executor.run(double, [1])  # no worker has this resource
        running.scale(0)
        with pytest.raises(RunError, match="has no workers"):
            next(tasks)


def test_dask_is_not_imported_by_embeddings_and_ablation():
    code = (
        "import sys, featkit.api, featkit.ablation.run, featkit.embeddings.shards;"
        "import featkit.ablation.executors.cluster, featkit.studies.fewshot;"
        "assert not {'dask', 'distributed'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Processes ----------------------------------------------------------------------------------------


def die_once(path):
    """Kill the worker the first time that it is called with a path."""
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def die(task):
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_worker_costs_one_retry_and_a_deadly_task_only_itself(tmp_path):
    with connect("local:2") as executor:
        (found,) = executor.run(die_once, [str(tmp_path / "died")])
        assert not found.worker_died
        finished = {each.index: each for each in executor.run(die, range(6))}
    assert {index for index, each in finished.items() if each.worker_died} == {1}
    assert [finished[index].result for index in (0, 2, 3, 4, 5)] == [0, 2, 3, 4, 5]


@pytest.fixture
def many(tmp_path):
    """Return a folder of 2 classes with 60 images each."""
    for name in ("a", "b"):
        (tmp_path / "many" / name).mkdir(parents=True)
        for number in range(60):
            colour = (number, 200 * (name == "b"), 7)
            Image.new("RGB", (32, 32), colour).save(tmp_path / "many" / name / f"{number}.png")
    return tmp_path / "many"


DRIVER = """
import sys
from featkit.cli import main
from featkit.embeddings import shards
shards.IMAGES_PER_SHARD = 10
if __name__ == "__main__":
    main(sys.argv[1:])
"""


def start_driver(tmp_path, data, *options):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    command = [sys.executable, script, "extract", f"--data={data}", "--batch-size=1"]
    command += [f"--{name}={value}" for name, value in NETWORK.items()]
    command += [f"--cache={tmp_path / 'cache'}", "--workers=1", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for_shards(cache, count=1):
    end = time.monotonic() + 60
    while sum(map(len, find_shards(cache))) < count:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_driver_that_ends_is_started_again(tmp_path, many, number):
    driver = start_driver(tmp_path, many, "--cluster=local:1")
    wait_for_shards(tmp_path / "cache", 2)
    driver.send_signal(number)
    _, errors = driver.communicate(timeout=60)
    assert "Traceback" not in errors
    if number != signal.SIGKILL:
        assert driver.returncode == 128 + number
        assert "shards are finished and kept" in errors
    again = start_driver(tmp_path, many, "--cluster=local:1")
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert "Traceback" not in errors
    request = request_of(many)
    whole = Extractor(tmp_path / "whole", ONE_BY_ONE).extract([request])[0].path
    assert features(Path(output.strip())) == features(whole)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_scheduler_that_is_killed_is_reported_and_finished_shards_are_kept(tmp_path, many):
    file = tmp_path / "scheduler.json"

    def start(*arguments):
        command = [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def start_cluster():
        scheduler = start(
            *("dask_scheduler", "--scheduler-file", str(file), "--no-dashboard"),
            *("--host", "127.0.0.1", "--port", "0"),
        )
        while not file.exists():
            time.sleep(0.05)
        worker = start(
            *("dask_worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-nanny"),
            *("--no-dashboard", "--death-timeout", "20"),
        )
        return scheduler, worker

    processes = start_cluster()
    try:
        wait_for_workers(file)
        driver = start_driver(tmp_path, many, f"--cluster={file}")
        wait_for_shards(tmp_path / "cache", 1)
        processes[0].kill()
        _, errors = driver.communicate(timeout=90)
        assert driver.returncode == 1, errors
        assert "was lost" in errors
        assert "Traceback" not in errors
        file.unlink()
        processes += start_cluster()
        wait_for_workers(file)
        driver = start_driver(tmp_path, many, f"--cluster={file}")
        output, errors = driver.communicate(timeout=120)
        assert driver.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()
    whole = Extractor(tmp_path / "whole", ONE_BY_ONE).extract([request_of(many)])[0].path
    assert features(Path(output.strip())) == features(whole)


def wait_for_workers(file):
    with distributed.Client(json.loads(file.read_text())["address"], timeout=30) as client:
        client.wait_for_workers(1, timeout=60)
