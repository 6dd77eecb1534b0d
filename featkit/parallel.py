"""Work in threads, results in order; threads of BLAS."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

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


def blas_threads(limit: int | None) -> AbstractContextManager[object]:
    """Return a context in which the BLAS of NumPy and SciPy uses a number of threads.

    Args:
        limit: None to leave it as it is.
    """
    context: AbstractContextManager[object] = _blas().limit(limits=limit, user_api="blas")
    return context


@cache
def _blas() -> ThreadpoolController:
    """Return the BLAS of NumPy and SciPy. To look for it takes longer than to fit a small head."""
    import scipy.linalg  # noqa: F401, loads the BLAS of SciPy
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
