"""Choose unlabelled rows to label next, from class probabilities and features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError
from featkit.similarity import unit_rows

Rows = NDArray[np.int64]

CANDIDATES = 5
"""The rows of the smallest margins, this many times the number to choose, are candidates."""


def margins(p: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the largest minus the second largest probability of each row ``(n,)``.

    Args:
        p: probabilities ``(n, k)``, k at least 2.

    Source: Settles, "Active learning literature survey", University of Wisconsin-Madison, 2009,
    section 3.1 (margin sampling).
    """
    largest = np.partition(p, p.shape[1] - 2, axis=1)[:, -2:].astype(np.float64)
    margin: NDArray[np.float64] = largest[:, 1] - largest[:, 0]
    return margin


def select_batch(
    p: NDArray[np.floating[Any]],
    x: NDArray[np.floating[Any]],
    n: int,
    *,
    candidates: float = CANDIDATES,
    seed: int = 0,
) -> Rows:
    """Choose ``n`` rows that are uncertain and different from each other.

    The rows of the smallest margins are grouped by k-means on the features of length 1, weighted by
    their uncertainty (1 minus the margin), and the row closest to each centre is chosen. Without
    the groups, a batch would hold many images of the same few confusions.

    Args:
        p: calibrated probabilities ``(m, k)``, k at least 2.
        x: features ``(m, d)`` of the same rows.
        n: number of rows to choose, at most ``m``.
        candidates: the rows of the smallest margins, this many times ``n``, are grouped.
        seed: of the initial centres.

    Returns:
        Rows ``(n,)``, the smallest margin first.

    Raises:
        DataError: if ``n`` is below 1 or above ``m``.

    Source: Zhdanov, "Diverse mini-batch active learning", arXiv:1901.05954, 2019, with the margin
    of Settles (2009) as uncertainty. Choosing by distance alone is the core-set approach of Sener
    and Savarese, "Active learning for convolutional neural networks", ICLR 2018.
    """
    if not 1 <= n <= len(p):
        raise DataError(f"cannot choose {n} of {len(p)} rows: give a number from 1 to {len(p)}")
    margin = margins(p)
    order = np.argsort(margin, kind="stable")
    pool = order[: min(len(order), max(n, round(candidates * n)))]
    if len(pool) == n:
        return pool
    chosen = pool[_central_rows(unit_rows(x[pool]), 1 - margin[pool], n, seed)]
    # Fewer different features than centres: the most uncertain of the others.
    others = pool[~np.isin(pool, chosen)]
    chosen = np.concatenate([chosen, others[: n - len(chosen)]])
    return chosen[np.argsort(margin[chosen], kind="stable")]


def _central_rows(
    x: NDArray[np.floating[Any]], weights: NDArray[np.float64], n: int, seed: int
) -> Rows:
    """Return the row closest to each of ``n`` centres of weighted k-means, without empty groups."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    # Rows of weight 0 would not count at all.
    weights = np.maximum(weights, 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than centres
        groups = KMeans(n, n_init=1, random_state=seed).fit(x, sample_weight=weights)
    distances = groups.transform(x)[np.arange(len(x)), groups.labels_]
    order = np.lexsort((distances, groups.labels_))
    first = np.flatnonzero(np.diff(groups.labels_[order], prepend=-1))
    return order[first]
