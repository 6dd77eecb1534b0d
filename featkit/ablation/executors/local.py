"""Run tasks in worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.process import BaseProcess
from typing import Any

from featkit.ablation.executors import FinishedTask

# Why not joblib.Parallel(return_as="generator_unordered") with loky (tried with joblib 1.6): a
# worker that dies ends the whole call and its finished results are lost, so the isolation of the
# responsible task below is needed anyway; and loky's workers keep running when the parent process
# is killed.


@dataclass(frozen=True)
class LocalExecutor:
    """Runs tasks in worker processes on this machine, as ``Executor`` describes.

    Attributes:
        jobs: number of worker processes; 1 runs the tasks in this process.
        cores: CPU cores that all workers together may use.
    """

    jobs: int
    cores: int

    def run(
        self, function: Callable[[Any], Any], tasks: Sequence[Any]
    ) -> Generator[FinishedTask, None, None]:
        """Run ``function(task)`` for every task and yield each one when it is finished."""
        if self.jobs == 1:
            for index, task in enumerate(tasks):
                yield FinishedTask(index, function(task))
            return

        pending = deque(range(len(tasks)))
        while pending:
            suspects = []
            for finished in self._run_in_pool(function, tasks, pending, self.jobs):
                if finished.worker_died:
                    suspects.append(finished.index)
                else:
                    yield finished
            # A process pool does not tell which worker died first. Each task that was running is
            # repeated in a separate pool: only the responsible one dies again.
            for index in suspects:
                yield from self._run_in_pool(function, tasks, deque([index]), jobs=1)

    def _run_in_pool(
        self,
        function: Callable[[Any], Any],
        tasks: Sequence[Any],
        pending: deque[int],
        jobs: int,
    ) -> Iterator[FinishedTask]:
        """Run pending tasks until all are finished or a worker dies; those not started stay."""
        threads = max(1, self.cores // self.jobs)
        with (
            main_module_hidden(),
            ProcessPoolExecutor(
                jobs, _process_context(), initializer=_start_worker, initargs=(threads,)
            ) as pool,
            _workers_ended_on_error(pool),
        ):
            running: dict[Future[Any], int] = {}
            broken = False
            while running or (pending and not broken):
                # Only as many tasks as there are workers, so that few are suspects if one dies.
                while pending and len(running) < jobs and not broken:
                    try:
                        future = pool.submit(function, tasks[pending[0]])
                    except BrokenProcessPool:
                        broken = True
                    else:
                        running[future] = pending.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index = running.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        broken = True
                        yield FinishedTask(index, worker_died=True)
                    else:
                        yield FinishedTask(index, future.result())


@contextmanager
def _workers_ended_on_error(pool: ProcessPoolExecutor) -> Iterator[None]:
    """End the workers of a pool at once if the block is left early.

    Ctrl-C reaches the workers too, but a signal such as SIGTERM only this process, which would
    otherwise wait until they have finished their tasks.
    """
    try:
        yield
    except BaseException:
        # There is no public way before ``terminate_workers`` of Python 3.14.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        _end_fork_server()
        raise


def _end_fork_server() -> None:
    """End the fork server, if there is one; multiprocessing starts another when it needs one.

    While it imports its modules it does not notice that this process ends, and would print the
    traceback of a worker that it starts too late.
    """
    server = getattr(import_module("multiprocessing.forkserver"), "_forkserver", None)
    identifier = getattr(server, "_forkserver_pid", None)
    if identifier is not None:
        with suppress(ProcessLookupError):
            os.kill(identifier, signal.SIGTERM)


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """Let new processes start without importing the main module again.

    Otherwise a script that calls ``featkit.ablate`` without an ``if __name__ == "__main__"`` guard
    would run again in every worker. Tasks refer to functions of featkit only.
    """
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name, None) for name in ("__file__", "__spec__")}
    # multiprocessing.spawn.get_preparation_data reads these two.
    main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = hidden["__spec__"]
        if hidden["__file__"] is not None:
            main.__file__ = hidden["__file__"]


def _process_context() -> Any:
    """Return the start method of workers: fork server, or spawn where there is none (Windows).

    Plain fork would copy the locks of this process while its threads hold them.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["featkit.ablation.worker"])
    return context


def _start_worker(threads: int) -> None:
    """Initialize a worker process."""
    # scikit-learn and joblib start this many threads instead of one for each core of the machine.
    os.environ["LOKY_MAX_CPU_COUNT"] = str(threads)
    # Ctrl-C reaches every process of the terminal: end without a traceback; the parent reports it.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    parent = multiprocessing.parent_process()
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: BaseProcess) -> None:
    """End this process when its parent has ended, even by SIGKILL."""
    parent.join()
    os._exit(1)
