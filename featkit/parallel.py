"""Work in threads, results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    ahead: int | None = None,
    start: Callable[[], object] | None = None,
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in the order of the items.

    Args:
        function: called in worker threads; its exceptions are raised here, and unstarted items are
            cancelled.
        items: consumed lazily.
        threads: number of worker threads.
        ahead: most items that are running or finished but not yet yielded, which bounds memory;
            None for twice the number of threads.
        start: called in each thread before its first item.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(threads, initializer=start) as pool:
        pending: deque[Future[Result]] = deque()
        for item in islice(remaining, ahead or 2 * threads):
            pending.append(pool.submit(function, item))
        try:
            while pending:
                yield pending.popleft().result()
                for item in islice(remaining, 1):
                    pending.append(pool.submit(function, item))
        finally:
            pool.shutdown(cancel_futures=True)
