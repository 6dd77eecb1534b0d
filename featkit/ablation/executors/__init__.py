"""Executors run the tasks of an ablation grid."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class FinishedTask:
    """A task that an executor has finished.

    Attributes:
        index: position in the sequence of tasks.
        result: return value of the function; None if the worker died.
        worker_died: whether the process that ran the task died, for example out of memory.
    """

    index: int
    result: Any = None
    worker_died: bool = False


class Executor(Protocol):
    """Runs a function on many tasks; a worker that dies fails its own task only."""

    def run(
        self, function: Callable[[Any], Any], tasks: Sequence[Any]
    ) -> Generator[FinishedTask, None, None]:
        """Run ``function(task)`` for every task; yield each one when it is finished.

        Closing the generator ends the tasks that are running.

        Args:
            function: a module-level function, which must handle its own errors.
            tasks: picklable arguments.
        """
        ...
