"""Tasks side by side, each in a process that may die without taking the others along."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def side_by_side(
    work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int, cores: int
) -> Iterator[tuple[int, Result | None]]:
    """Yield ``(place in tasks, result)`` as they are finished; the result is None where the process died.

    When a process dies, all that were at work are suspects, and each is tried once more by itself.

    Args:
        work: a function of a module; it catches its own errors.
        tasks: what to do.
        jobs: how many processes; with 1 the work is done in this one.
        cores: how many of them all may use.
    """
    if jobs == 1:
        yield from ((place, work(task)) for place, task in enumerate(tasks))
        return
    waiting, suspects = deque(range(len(tasks))), deque[int]()
    while waiting or suspects:
        alone = bool(suspects)
        todo, at_once = (deque([suspects.popleft()]), 1) if alone else (waiting, jobs)
        for place, result, died in _in_pool(work, tasks, todo, at_once, max(1, cores // jobs)):
            if died and not alone:
                suspects.append(place)
            else:
                yield place, result


def _in_pool(
    work: Callable[[Task], Result], tasks: Sequence[Task], todo: deque[int], jobs: int, threads: int
) -> Iterator[tuple[int, Result | None, bool]]:
    """Yield ``(place, result, False)``, and ``(place, None, True)`` for all that were at work when a process died."""
    # Forked from a server that has no threads and holds no lock, so that neither can come along.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["featkit.ablation.worker"])
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(threads,)) as pool:
        running: dict[Future[Result], int] = {}
        broken = False
        while running or (todo and not broken):
            while todo and len(running) < jobs and not broken:
                place = todo.popleft()
                try:
                    running[pool.submit(work, tasks[place])] = place
                except BrokenProcessPool:
                    todo.appendleft(place)
                    broken = True
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                place, died = running.pop(future), isinstance(future.exception(), BrokenProcessPool)
                broken = broken or died
                yield place, None if died else future.result(), died


def _begin(threads: int) -> None:
    """Prepare a process: how many cores it may use, and when it is to end."""
    os.environ["LOKY_MAX_CPU_COUNT"] = str(threads)
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    """End this process when its parent is gone, even by SIGKILL; nobody would take its results."""
    parent.join()
    os._exit(1)
