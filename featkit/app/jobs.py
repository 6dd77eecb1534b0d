"""Trainings in processes of their own, with their state on disk.

A training outlives the page that started it and the server: its folder holds the request, the state
that the process writes, and a lock that the process holds while it lives. After a crash it is
started again, and features that were extracted before are reused.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from featkit.app.settings import VARIABLE, AppSettings
from featkit.errors import DataError, SpecError, StorageError
from featkit.registry import check_types
from featkit.storage import lock_owner, read_json, storage_errors, write_file

REQUEST_FILE, STATE_FILE, LOCK_FILE, LOG_FILE = "request.json", "state.json", "lock", "log.txt"

WAITING, RUNNING, FINISHED, FAILED, STOPPED = (
    "waiting",
    "running",
    "finished",
    "failed",
    "stopped",
)
INTERRUPTED = "interrupted"
"""Status of a job whose process has ended without a result."""

_START_SECONDS = 30.0
"""A process that holds no lock after this time will not hold one."""


@dataclass(frozen=True)
class TrainingRequest:
    """What to train.

    Attributes:
        data: spec of the images.
        backbone, weights, resize: the network and the size of the images, as for ``featkit.fit``.
        heads: specs of the heads.
        tune: whether hyperparameters are tuned on the validation set.
        reject: fraction of validation images to reject as unknown; None for no rejection.
        baseline: spec of other images that the same heads are fitted on first, for a comparison.
        skip_unreadable: whether images that cannot be read are left out.
    """

    data: str
    backbone: str = "resnet18"
    heads: tuple[str, ...] = ("linear",)
    weights: str = "imagenet"
    resize: str | None = None
    tune: bool = False
    reject: float | None = None
    baseline: str | None = None
    skip_unreadable: bool = True


@dataclass(frozen=True)
class JobState:
    """State of a training, as its process wrote it last.

    Attributes:
        status: one of ``waiting``, ``running``, ``finished``, ``failed``, ``stopped``.
        step: what is being done.
        done, total: progress of the step; total 0 if it is not known.
        seconds_left: estimate for the step; None if it is not known.
        runs: run directories that are finished.
        results: accuracy of each head that is evaluated, a sentence each.
        messages: warnings and notes, one line each.
        error: why it failed, in one line.
        process: number of the process; 0 before it starts.
        changed: time of the last change, in seconds since 1970.
    """

    status: str = WAITING
    step: str = ""
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    runs: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    error: str = ""
    process: int = 0
    changed: float = 0.0


@dataclass(frozen=True)
class Job:
    """A training.

    Attributes:
        folder: its folder.
        request: what to train.
        state: how far it is.
        created: time of its request, in seconds since 1970.
    """

    folder: Path
    request: TrainingRequest
    state: JobState = field(default_factory=JobState)
    created: float = 0.0

    @property
    def id(self) -> str:
        """Name of the job."""
        return self.folder.name

    @property
    def is_active(self) -> bool:
        """Whether its process is at work or about to start."""
        return self.state.status in (WAITING, RUNNING)


def start_job(settings: AppSettings, request: TrainingRequest) -> Job:
    """Start a training, or return the one that does the same and is not finished yet.

    Raises:
        StorageError: if the disk is full or cannot be written.
    """
    for job in list_jobs(settings):
        if job.is_active and job.request == request:
            return job
    now = time.time()
    folder = settings.jobs / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    with storage_errors(folder):
        folder.mkdir(parents=True)
    content = {"request": asdict(request), "created": now}
    write_file(folder / REQUEST_FILE, json.dumps(content, indent=2))
    job = Job(folder, request, JobState(changed=now), now)
    _start_process(settings, job)
    return job


def resume_job(settings: AppSettings, job: Job) -> Job:
    """Start a training again that was stopped, was interrupted or has failed."""
    if job.is_active:
        return job
    _start_process(settings, job)
    return read_job(job.folder)


def stop_job(job: Job) -> None:
    """Ask the process of a training to end; what it has extracted is kept."""
    number = read_job(job.folder).state.process
    # Without the lock, the number may belong to another process by now.
    if number and lock_owner(job.folder / LOCK_FILE):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM)


def list_jobs(settings: AppSettings) -> list[Job]:
    """Return the trainings of the app, newest first; folders that cannot be read are left out."""
    jobs = []
    for path in settings.jobs.glob(f"*/{REQUEST_FILE}"):
        try:
            jobs.append(read_job(path.parent))
        except DataError:
            continue
    return sorted(jobs, key=lambda job: (-job.created, job.id))


def read_job(folder: Path) -> Job:
    """Read a training and its state.

    Raises:
        DataError: if its files are damaged.
    """
    try:
        content = read_json(folder / REQUEST_FILE)
        request = _from_dict(TrainingRequest, content["request"])
        created = float(content["created"])
        state = JobState(changed=created)
        if (folder / STATE_FILE).exists():
            state = _from_dict(JobState, read_json(folder / STATE_FILE))
    except (OSError, SpecError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder} is not a training of the app ({error}): remove it") from error
    return Job(folder, request, _actual(folder, state), created)


def _actual(folder: Path, state: JobState) -> JobState:
    """Return the state, ``interrupted`` if the process that wrote it does not live any more."""
    if state.status not in (WAITING, RUNNING) or lock_owner(folder / LOCK_FILE):
        return state
    if state.status == WAITING and time.time() - state.changed < _START_SECONDS:
        return state
    return replace(state, status=INTERRUPTED)


def write_state(folder: Path, state: JobState) -> None:
    """Write the state of a training; called by its process.

    Raises:
        StorageError: if the disk is full.
    """
    content = asdict(replace(state, changed=time.time()))
    write_file(folder / STATE_FILE, json.dumps(content))


def _from_dict(cls: Any, values: Mapping[str, Any]) -> Any:
    """Return a dataclass; lists become tuples. Raises SpecError or TypeError."""
    names = {each.name for each in fields(cls)}
    given = {name: value for name, value in values.items() if name in names}
    check_types(cls, given)
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def _start_process(settings: AppSettings, job: Job) -> None:
    write_state(job.folder, JobState())
    environment = {**os.environ, VARIABLE: settings.to_json()}
    command = [sys.executable, "-m", "featkit.app.worker", str(job.folder)]
    try:
        with (job.folder / LOG_FILE).open("ab") as log:
            # In a session of its own: Ctrl-C at the server does not end the training.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        raise StorageError(f"cannot start the training: {error.strerror}; free memory") from error
    _processes.append(process)
    _processes[:] = [each for each in _processes if each.poll() is None]


_processes: list[subprocess.Popen[bytes]] = []
"""Processes that were started; polled so that none stays behind as a zombie."""
