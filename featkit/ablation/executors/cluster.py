"""Run tasks on a Dask cluster: worker processes on this machine or on many.

The only module that uses Dask (extra ``cluster``), and it imports it late. Dask only carries small
values: paths, digests, reports. Features and results are files in folders that all workers share.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import queue
import re
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import featkit
from featkit.ablation.executors import FinishedTask
from featkit.ablation.executors.local import main_module_hidden
from featkit.embeddings.request import Request
from featkit.errors import FeatkitError, RunError, SpecError
from featkit.extras import is_installed, require
from featkit.storage import available_cores, read_json, user_path, write_file

CONNECT_SECONDS = 10.0
NO_WORKER_SECONDS = 60.0
"""How long a scheduler may take to answer, and may have no workers while tasks wait."""

RETRIES = 2
"""How often a task is tried again after an error that is not one of featkit's."""

_POLL_SECONDS = 0.5
_COUNT_SECONDS = 2.0
_LOST = ("lost", "pending")
"""Status of a task that was finished, whose result is lost."""
_PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "pillow")
"""Packages that decide numbers: workers must have the versions of the client."""

log = logging.getLogger("featkit")


# What runs on the workers -------------------------------------------------------------------------

_ONE_TASK = threading.Lock()
"""A worker process runs one task at a time, however many threads it was started with."""


@cache
def code_digest() -> str:
    """Return the SHA-256 (hex) of featkit's source files."""
    folder = Path(featkit.__file__).parent
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


@cache
def installation() -> dict[str, str]:
    """Return what must be the same in client and workers: versions, and the digest of the code."""
    found = {"featkit": featkit.__version__, "featkit's code": code_digest()[:12]}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def worker_facts(
    token: str, folders: Sequence[str], requests: Sequence[Request]
) -> dict[str, dict[str, str]]:
    """Return what a worker has.

    Args:
        token: content of the file that the client has put into each folder.
        folders: absolute paths of folders that the worker must share with the client.
        requests: images and networks that it must find.

    Returns:
        ``installation``; ``machine``: host, devices, threads; ``folders``, ``data`` and
        ``weights``: an empty text or the problem, and the digest, by name.
    """
    from featkit.backbones.devices import pick_device

    data, weights = {}, {}
    for request in requests:
        path = Path(request.data)
        if path.is_absolute():
            data[request.data] = "" if path.exists() else "not found"
        network = f"{request.backbone} {request.weights}"
        try:
            weights[network] = request.load_backbone().digest
        except FeatkitError as error:
            weights[network] = str(error)
    machine = {
        "host": platform.node(),
        "python": platform.python_version(),
        "device": pick_device("auto"),
        "threads": str(available_cores()),
    }
    return {
        "installation": installation(),
        "machine": machine,
        "folders": {folder: _folder_problem(Path(folder), token) for folder in folders},
        "data": data,
        "weights": weights,
    }


def _folder_problem(folder: Path, token: str) -> str:
    try:
        content = (folder / _token_name(token)).read_text(encoding="utf-8")
    except OSError:
        return "not the folder of the client"
    if content != token:
        return "not the folder of the client"
    return "" if os.access(folder, os.W_OK) else "not writable"


def _token_name(token: str) -> str:
    return f".cluster-{token}"


def dask_setup(worker: Any) -> None:
    """Prepare a worker process that this program has started; Dask calls it.

    Ctrl-C reaches every process of a terminal: the client ends the workers and reports it.
    """
    del worker
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class _Call:
    """A task with what its worker must have, since workers may join at any time."""

    function: Callable[[Any], Any]
    task: Any
    expected: Mapping[str, str]


def _run_call(call: _Call) -> Any:
    """Run a task on a worker.

    Raises:
        RunError: if the worker has another version than the client.
    """
    problem = _difference(call.expected, installation())
    if problem:
        raise RunError(f"a worker on {platform.node()} has {problem}: install the same versions")
    with _ONE_TASK:
        return call.function(call.task)


def _difference(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Return how an installation differs from the expected one; an empty text if it does not."""
    for name, wanted in expected.items():
        if found.get(name) != wanted:
            return f"{name} {found.get(name, 'missing')} instead of {wanted}"
    return ""


# The client ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClusterExecutor:
    """Runs tasks on the workers of a Dask cluster, as ``Executor`` describes.

    A task whose worker dies is done by another one; one that kills three workers has failed.

    Attributes:
        client: connection to the scheduler, ``distributed.Client``.
        address: of the scheduler.
        resources: what a worker must have declared to get a task, such as ``{"GPU": 1}``.
        no_worker_seconds: how long to wait for workers when there are none.
    """

    client: Any
    address: str
    resources: Mapping[str, float] = field(default_factory=dict)
    no_worker_seconds: float = NO_WORKER_SECONDS

    @property
    def jobs(self) -> int:
        """Number of tasks that the workers can run at the same time."""
        return max(1, len(self._workers()))

    def _workers(self) -> Mapping[str, Any]:
        with self._connection_errors():
            workers: Mapping[str, Any] = self.client.scheduler_info(n_workers=-1)["workers"]
        return workers

    @contextmanager
    def _connection_errors(self) -> Iterator[None]:
        """Convert the errors of calling a scheduler that has ended, which are of many types.

        Raises:
            RunError: if there is no connection any more.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) or self.client.status != "running":
                raise _lost_connection(self.address) from error
            raise

    def run(
        self, function: Callable[[Any], Any], tasks: Sequence[Any]
    ) -> Generator[FinishedTask, None, None]:
        """Run ``function(task)`` for every task and yield each one when it is finished.

        Raises:
            RunError: if the connection to the scheduler is lost, or no worker is left.
        """
        finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        waiting = deque(range(len(tasks)))
        running: dict[Any, int] = {}

        def submit(count: int) -> None:
            for _ in range(min(count, len(waiting))):
                index = waiting.popleft()
                with self._connection_errors():
                    future = self.client.submit(
                        _run_call,
                        _Call(function, tasks[index], installation()),
                        pure=False,
                        retries=RETRIES,
                        resources=dict(self.resources) or None,
                    )
                running[future] = index
                future.add_done_callback(finished.put)

        try:
            # Few more than there are workers: a worker that dies takes only its own task with it,
            # and the scheduler holds as much for a thousand tasks as for ten million.
            limit, counted = 2 * self.jobs, time.monotonic()
            submit(limit)
            while running:
                future = self._next_finished(finished)
                index = running.pop(future)
                if future.status in _LOST and self.client.status == "running":
                    # The worker that held the result died before it was fetched.
                    waiting.appendleft(index)
                else:
                    yield self._finished_task(index, future)
                if time.monotonic() - counted > _COUNT_SECONDS:  # workers may come and go
                    limit, counted = 2 * self.jobs, time.monotonic()
                submit(limit - len(running))
        finally:
            if running:
                with suppress(Exception):  # the connection may be lost
                    self.client.cancel(list(running), force=True)

    def _finished_task(self, index: int, future: Any) -> FinishedTask:
        """Return the outcome of a future.

        Raises:
            Exception: what the task raised.
            RunError: if the scheduler does not know the task any more.
        """
        if future.status == "finished":
            with self._connection_errors():
                return FinishedTask(index, future.result())
        if future.status == "error":
            error = future.exception()
            if type(error).__name__ == "KilledWorker":
                return FinishedTask(index, worker_died=True)
            raise error
        raise _lost_connection(self.address)

    def _next_finished(self, finished: queue.SimpleQueue[Any]) -> Any:
        """Wait for a task; raises RunError if it cannot finish."""
        without = 0.0
        while True:
            try:
                return finished.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if self.client.status != "running":
                    raise _lost_connection(self.address) from None
                without = 0.0 if self._workers() else without + _POLL_SECONDS
                if without >= self.no_worker_seconds:
                    raise RunError(
                        f"the scheduler at {self.address} has no workers: start some with "
                        f"`dask worker {self.address}`"
                    ) from None


def _lost_connection(address: str) -> RunError:
    return RunError(
        f"the connection to the scheduler at {address} was lost: start it and run the same command "
        "again; what was finished is kept"
    )


@contextmanager
def connect(
    spec: str,
    *,
    folders: Sequence[Path] = (),
    requests: Sequence[Request] = (),
    device: str = "auto",
) -> Iterator[ClusterExecutor]:
    """Connect to a cluster, check its workers and yield the executor for it.

    Args:
        spec: ``local`` or ``local:4`` for worker processes on this machine, the address of a
            scheduler such as ``tcp://host:8786``, or a scheduler file.
        folders: folders that all workers must share with this process.
        requests: images and networks that the workers must find.
        device: device of the networks; for ``cuda`` the workers must have declared a GPU.

    Raises:
        SpecError: if the spec is none of these.
        RunError: if the scheduler does not answer, or a worker is not like this process.
        MissingExtraError: if Dask is not installed.
    """
    with open_client(spec) as (client, address):
        executor = ClusterExecutor(client, address, {"GPU": 1} if device == "cuda" else {})
        facts = collect_facts(client, folders, requests)
        refuse_problems(address, facts, requests)
        if device == "cuda" and not any(_has_gpu(each) for each in executor._workers().values()):
            raise RunError(
                f"no worker of {address} has declared a GPU: start them with "
                "`dask worker --resources GPU=1`, or leave out --device cuda"
            )
        workers = len(facts)
        log.info("%s: %d worker%s", address, workers, "" if workers == 1 else "s")
        if is_installed("bokeh") and client.dashboard_link:
            log.info("dashboard: %s", client.dashboard_link)
        yield executor


def _has_gpu(worker: Mapping[str, Any]) -> bool:
    return bool(worker.get("resources", {}).get("GPU", 0) >= 1)


@contextmanager
def open_client(spec: str) -> Iterator[tuple[Any, str]]:
    """Yield a ``distributed.Client`` and the address of its scheduler.

    Raises:
        SpecError, RunError, MissingExtraError: as ``connect`` does.
    """
    distributed = require("distributed", "cluster")
    local = re.fullmatch(r"local(?::(\d{1,4}))?", spec)
    with ExitStack() as stack:
        stack.enter_context(_quiet_logs())
        if local:
            cores = available_cores()
            workers = int(local[1] or cores)
            if workers < 1:
                raise SpecError(f"cluster {spec!r}: give at least one worker, such as local:2")
            cluster = stack.enter_context(_local_cluster(distributed, workers, cores))
            target, name = cluster, spec
        else:
            target = name = _address(spec)
        try:
            client = stack.enter_context(
                distributed.Client(target, timeout=CONNECT_SECONDS, set_as_default=False)
            )
        except (OSError, TimeoutError, ValueError) as error:
            raise RunError(
                f"the scheduler at {name} did not answer within {CONNECT_SECONDS:.0f} s: start it "
                "with `dask scheduler`, or correct --cluster"
            ) from error
        yield client, name


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keep Dask from printing tracebacks; what matters is raised."""
    logger = logging.getLogger("distributed")
    levels = {each: each.level for each in (logger, logging.getLogger("distributed.client"))}
    for each in levels:
        each.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for each, level in levels.items():
            each.setLevel(level)


@contextmanager
def _local_cluster(distributed: Any, workers: int, cores: int) -> Iterator[Any]:
    """Start worker processes on this machine; nobody else can connect to them."""
    import dask

    threads = str(max(1, cores // workers))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
    settings = {
        "distributed.nanny.pre-spawn-environ": dict.fromkeys(names, threads),
        # No task waits at a worker that may die of another one.
        "distributed.scheduler.worker-saturation": 1.0,
        # Tasks take seconds: what Dask samples every 10 ms and checks every 20 ms by default costs
        # a tenth of a core that the networks need.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.system-monitor.interval": "5s",
    }
    with (
        main_module_hidden(),
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            preload=[__name__],
        ) as cluster,
    ):
        yield cluster


def _address(spec: str) -> str:
    """Return the address of a scheduler from a spec that may be a scheduler file."""
    if re.match(r"[a-z]{2,10}://", spec):
        return spec
    path = user_path(spec)
    if not path.exists():
        raise SpecError(
            f"cluster {spec!r} is not local, local:N, an address such as tcp://host:8786 or a "
            "scheduler file: correct --cluster"
        )
    try:
        address = read_json(path)["address"]
        if not isinstance(address, str):
            raise TypeError("the address is not text")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SpecError(
            f"{path} is not a scheduler file ({error}): write one with "
            "`dask scheduler --scheduler-file FILE`"
        ) from error
    return address


# Check --------------------------------------------------------------------------------------------


def collect_facts(
    client: Any, folders: Sequence[Path] = (), requests: Sequence[Request] = ()
) -> dict[str, dict[str, dict[str, str]] | Exception]:
    """Return ``worker_facts`` of every worker by its address, or the error of asking it."""
    token = uuid.uuid4().hex
    absolute = [folder.absolute() for folder in folders]
    with ExitStack() as stack:
        for folder in absolute:
            path = folder / _token_name(token)
            write_file(path, token)
            stack.callback(path.unlink, missing_ok=True)
        found: dict[str, Any] = client.run(
            worker_facts,
            token,
            [str(folder) for folder in absolute],
            [request.absolute for request in requests],
            on_error="return",
        )
    return found


def refuse_problems(
    address: str, facts: Mapping[str, Any], requests: Sequence[Request] = ()
) -> None:
    """Refuse a cluster without workers, or with one that would compute other results.

    Raises:
        RunError: naming the first worker with a problem.
    """
    refuse_no_workers(address, facts)
    wanted = _digests(requests)
    for worker, found in facts.items():
        problem = find_problem(found, wanted)
        if problem:
            raise RunError(f"worker {worker} {problem}")


def refuse_no_workers(address: str, facts: Mapping[str, Any]) -> None:
    """Raise RunError if a scheduler has no workers."""
    if not facts:
        raise RunError(
            f"the scheduler at {address} has no workers: start some with `dask worker {address}`"
        )


def _digests(requests: Sequence[Request]) -> dict[str, str]:
    """Return the digest of each network, under the name that ``worker_facts`` gives it."""
    absolute = [request.absolute for request in requests]
    return {f"{each.backbone} {each.weights}": each.load_backbone().digest for each in absolute}


def find_problem(found: Any, weights: Mapping[str, str]) -> str:
    """Return why a worker cannot be used and what to do, an empty text if it can.

    Args:
        found: from ``collect_facts``.
        weights: digest of each network.
    """
    if isinstance(found, Exception):
        reason = " ".join(str(found).split()) or type(found).__name__
        return f"cannot run featkit {featkit.__version__} ({reason[:200]}): install it there"
    difference = _difference(installation(), found["installation"])
    if difference:
        return f"has {difference}: install the same versions as here"
    for folder, problem in found["folders"].items():
        if problem:
            return f"does not see {folder} ({problem}): use a folder that all machines share"
    for data, problem in found["data"].items():
        if problem:
            return f"does not see the images {data}: use a path that all machines share"
    for network, digest in weights.items():
        if found["weights"].get(network) != digest:
            return (
                f"has other weights of {network} ({found['weights'].get(network)!s:.80}): put the "
                "same file on all machines, for example with FEATKIT_WEIGHTS"
            )
    return ""


@dataclass(frozen=True)
class WorkerState:
    """What a worker has.

    Attributes:
        address: of the worker.
        machine: host, Python, device and threads; empty if it did not answer.
        problem: why it cannot be used and what to do; empty if it can.
    """

    address: str
    machine: Mapping[str, str]
    problem: str


def check_workers(
    spec: str, folders: Sequence[Path] = (), requests: Sequence[Request] = ()
) -> list[WorkerState]:
    """Return what each worker of a cluster has.

    Args:
        spec: as for ``connect``.
        folders: folders that all workers must share with this process.
        requests: images and networks that the workers must find.

    Raises:
        RunError: if the scheduler does not answer or has no workers.
    """
    with open_client(spec) as (client, address):
        facts = collect_facts(client, folders, requests)
        refuse_no_workers(address, facts)
    wanted = _digests(requests)
    states = []
    for worker, found in facts.items():
        machine = {} if isinstance(found, Exception) else found["machine"]
        states.append(WorkerState(worker, machine, find_problem(found, wanted)))
    return states
