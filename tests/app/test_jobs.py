"""Trainings in their own process, and what a page reads of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from featkit.app.jobs import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    STOPPED,
    WAITING,
    JobState,
    TrainingRequest,
    list_jobs,
    read_job,
    resume_job,
    start_job,
    stop_job,
    write_state,
)
from featkit.app.training import default_weights, job_title, run_zip, training_request
from featkit.app.worker import main
from featkit.errors import DataError
from featkit.storage import locked

REQUEST = TrainingRequest("photos", heads=("linear",), weights="random", resize="64")


@pytest.fixture
def started(monkeypatch):
    """Do not start processes; return the commands that would have been started."""
    commands = []

    class Process:
        def __init__(self, command, **options):
            commands.append((command, options))

        def poll(self):
            return None

    monkeypatch.setattr("featkit.app.jobs.subprocess.Popen", Process)
    return commands


def request_for(settings, **changes):
    return replace(REQUEST, **{"data": settings.data[0], **changes})


def test_a_request_is_started_once_and_listed(settings, started):
    job = start_job(settings, request_for(settings))
    assert job.state.status == WAITING
    again = start_job(settings, request_for(settings))
    other = start_job(settings, request_for(settings, heads=("knn",)))
    assert again.folder == job.folder != other.folder
    assert [each.request.heads for each in list_jobs(settings)] == [("knn",), ("linear",)]
    (command, options), _ = started
    assert command[1:3] == ["-m", "featkit.app.worker"]
    assert options["start_new_session"]


def test_the_process_of_a_training_starts_without_network_and_statistics():
    """The page waits for it: torch and scikit-learn alone would take some seconds."""
    code = "import sys, featkit.app.worker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "sklearn", "scipy", "matplotlib"} & set(done.stdout.split())


@pytest.mark.slow
def test_a_training_runs_to_its_report(settings, started, capfd):
    job = start_job(settings, request_for(settings, heads=("linear", "knn")))
    assert main(job.folder) == 0
    state = read_job(job.folder).state
    assert state.status == FINISHED
    assert state.error == ""
    assert len(state.runs) == 2
    # The precision depends on the processor.
    names = [text.split(":")[0].replace(", bf16", "") for text in state.results]
    assert names == [f"{head} on ResNet-18, untrained, photos" for head in ("linear", "knn")]
    assert all("it named the right class for" in text for text in state.results)
    for run in state.runs:
        assert (Path(run) / "report.html").is_file()
    assert main(job.folder) == 0  # a second process has nothing to do


@pytest.mark.slow
def test_a_comparison_fits_the_baseline_first(settings, started, project):
    request = request_for(settings, baseline=str(project / "photos" / "train"))
    job = start_job(settings, request)
    main(job.folder)
    state = read_job(job.folder).state
    assert len(state.runs) == 2
    # The precision depends on the processor.
    names = [text.split(":")[0].replace(", bf16", "") for text in state.results]
    assert names == [f"linear on ResNet-18, untrained, {data}" for data in ("train", "photos")]
    assert job_title(job) == "linear on resnet18, photos"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere"}, "nowhere"),
        ({"heads": ("nothing",)}, "nothing"),
        ({"weights": "gone.pth"}, "gone.pth"),
    ],
)
def test_an_error_is_kept_in_one_line(settings, started, changes, message):
    job = start_job(settings, replace(request_for(settings), **changes))
    assert main(job.folder) == 1
    state = read_job(job.folder).state
    assert state.status == FAILED
    assert message in state.error
    assert "\n" not in state.error


def test_one_class_is_an_error_that_says_so(settings, started, project, tmp_path):
    (tmp_path / "single").symlink_to(project / "photos" / "train" / "ant")
    job = start_job(settings, request_for(settings, data=str(tmp_path / "single")))
    assert main(job.folder) == 1
    assert read_job(job.folder).state.error


def test_an_unforeseen_error_ends_the_wait_of_the_page(settings, started, monkeypatch):
    def fail(*arguments):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("featkit.app.worker.train", fail)
    job = start_job(settings, request_for(settings))
    with pytest.raises(ZeroDivisionError):
        main(job.folder)
    state = read_job(job.folder).state
    assert state.status == FAILED
    assert "by zero" in state.error


@pytest.mark.slow
def test_a_stopped_training_can_be_continued(settings, started, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    job = start_job(settings, request_for(settings))
    with monkeypatch.context() as patched:
        patched.setattr("featkit.app.worker.train", interrupt)
        assert main(job.folder) == 130
    stopped = read_job(job.folder)
    assert stopped.state.status == STOPPED
    assert resume_job(settings, stopped).state.status == WAITING
    assert main(job.folder) == 0
    assert read_job(job.folder).state.status == FINISHED


def test_a_process_that_died_is_noticed(settings, started):
    job = start_job(settings, request_for(settings))
    write_state(job.folder, JobState(status=RUNNING, process=1))
    assert read_job(job.folder).state.status == INTERRUPTED
    with locked(job.folder / "lock"):
        assert read_job(job.folder).state.status == RUNNING


def test_a_process_that_never_started_is_noticed(settings, started, monkeypatch):
    job = start_job(settings, request_for(settings))
    now = time.time()
    monkeypatch.setattr("featkit.app.jobs.time.time", lambda: now + 3600)
    assert read_job(job.folder).state.status == INTERRUPTED


def test_only_a_living_process_is_stopped(settings, started, monkeypatch):
    killed = []
    monkeypatch.setattr("featkit.app.jobs.os.kill", lambda number, signal: killed.append(number))
    job = start_job(settings, request_for(settings))
    write_state(job.folder, JobState(status=RUNNING, process=os.getpid()))
    stop_job(job)
    assert killed == []
    with locked(job.folder / "lock"):
        stop_job(job)
    assert killed == [os.getpid()]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"request": {"data": 1}, "created": 0}', '{"created": 0}']
)
def test_a_damaged_folder_is_left_out(settings, started, content):
    job = start_job(settings, request_for(settings))
    (job.folder / "request.json").write_text(content)
    with pytest.raises(DataError, match="is not a training of the app"):
        read_job(job.folder)
    assert list_jobs(settings) == []


def test_a_damaged_state_is_reported(settings, started):
    job = start_job(settings, request_for(settings))
    (job.folder / "state.json").write_text(json.dumps({"status": 3}))
    with pytest.raises(DataError, match="status"):
        read_job(job.folder)


def test_a_run_is_packed_with_all_its_files(runs):
    with zipfile.ZipFile(BytesIO(run_zip(runs[0]))) as archive:
        names = archive.namelist()
    assert f"{runs[0].name}/card.json" in names
    assert f"{runs[0].name}/head.skops" in names


def test_a_folder_that_is_no_run_is_not_packed(tmp_path):
    with pytest.raises(DataError, match="is not a run directory"):
        run_zip(tmp_path)


def test_defaults_are_sensible(monkeypatch, tmp_path):
    assert default_weights("resnet18") == "random"
    (tmp_path / "resnet18.pth").write_bytes(b"x")
    monkeypatch.setenv("FEATKIT_WEIGHTS", str(tmp_path))
    assert default_weights("resnet18") == "imagenet"
    request = training_request("digits", "resnet18", ["linear"], weights="random")
    assert request.resize == "32"
    assert request.reject is None
    with pytest.raises(DataError, match="no head is chosen"):
        training_request("digits", "resnet18", [], weights="random")


@pytest.mark.slow
def test_a_real_process_trains_and_can_be_watched(settings):
    job = start_job(settings, request_for(settings))
    seen = set()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        state = read_job(job.folder).state
        seen.add(state.status)
        if state.status not in (WAITING, RUNNING):
            break
        time.sleep(0.1)
    assert state.status == FINISHED, state
    assert RUNNING in seen
