"""Project features to two dimensions: PCA, t-SNE and UMAP, with their trustworthiness."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError, SpecError
from featkit.extras import require

METHODS = ("pca", "tsne", "opentsne", "umap")
"""Methods of ``project``. ``opentsne`` and ``umap`` need the extra ``projection``."""

METHOD_NAMES = {"pca": "PCA", "tsne": "t-SNE", "opentsne": "t-SNE (openTSNE)", "umap": "UMAP"}
"""Names of the methods in figures and reports."""

MAX_ROWS = 20_000
"""Number of rows that are projected at most; more are subsampled."""

PERPLEXITY = 30.0
TRUSTWORTHINESS_NEIGHBOURS = 10
_COMPONENTS = 50
"""Principal components that t-SNE starts from, as its authors recommend."""
_TSNE_ITERATIONS = 1_000
_BLOCK_NUMBERS = 2**24

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Projection:
    """Features in two dimensions.

    Attributes:
        positions: ``(m, 2)``, without unit.
        rows: ``(m,)`` rows of the features that were projected, ascending; all of them unless there
            were more than the maximum.
        method: one of ``METHODS``.
        seed: of the method and of the subsample.
        trustworthiness: between 0 and 1, see ``trustworthiness``.
        neighbours: number of neighbours of ``trustworthiness``.
    """

    positions: Points
    rows: NDArray[np.int64]
    method: str
    seed: int
    trustworthiness: float
    neighbours: int


def project(
    x: NDArray[np.floating[Any]],
    method: str = "tsne",
    *,
    seed: int = 0,
    max_rows: int = MAX_ROWS,
    report_iteration: Callable[[int, int], None] | None = None,
) -> Projection:
    """Project features ``(n, d)`` to two dimensions.

    Rows are scaled to unit length first, so that distances are those of cosine similarity.

    Args:
        x: features.
        method: ``pca``; ``tsne`` (Barnes-Hut t-SNE of scikit-learn on 50 principal components,
            perplexity 30 or a third of the rows), ``opentsne`` (FFT-accelerated t-SNE, faster from
            about 10,000 rows) or ``umap`` (15 neighbours).
        seed: of the method and of the subsample.
        max_rows: a random subsample of this size is projected if there are more rows.
        report_iteration: called with the iterations done and their total, except by ``pca``.

    Raises:
        SpecError: if the method is unknown.
        DataError: if there are fewer than four rows, a value is not finite, or all rows are equal.
        MissingExtraError: if the method needs an extra that is not installed.
    """
    from sklearn.preprocessing import normalize

    if method not in METHODS:
        raise SpecError(f"unknown projection {method}: choose one of {', '.join(METHODS)}")
    if len(x) < 4:
        raise DataError(f"cannot project {len(x)} images: give at least four")
    if not np.isfinite(x).all():
        raise DataError("cannot project features that are not finite: extract them again")
    rows = np.arange(len(x))
    if len(x) > max_rows:
        rows = np.sort(np.random.default_rng(seed).choice(len(x), max_rows, replace=False))
    unit = normalize(x[rows].astype(np.float64))
    if (unit == unit[0]).all():
        raise DataError("cannot project features that are all the same: choose another --layer")
    positions = _PROJECTIONS[method](unit, seed, report_iteration)
    neighbours = min(TRUSTWORTHINESS_NEIGHBOURS, (len(rows) - 1) // 2)
    return Projection(
        positions=positions,
        rows=rows,
        method=method,
        seed=seed,
        trustworthiness=trustworthiness(unit, positions, neighbours),
        neighbours=neighbours,
    )


def trustworthiness(
    x: NDArray[np.floating[Any]], positions: NDArray[np.floating[Any]], k: int
) -> float:
    """Return how far the neighbours in a projection are neighbours in the original space.

    1 means that the k nearest neighbours of each row in the projection are among its k nearest
    neighbours before it. The distances are computed in blocks of rows; scikit-learn's function
    holds all of them, 5 GB at 20,000 rows.

    Args:
        x: ``(n, d)`` features.
        positions: ``(n, 2)`` their projection.
        k: number of neighbours, below ``n / 2``.

    References:
        Venna and Kaski, "Neighborhood preservation in nonlinear projection methods", ICANN 2001.
    """
    from sklearn.metrics.pairwise import euclidean_distances

    n = len(x)
    penalty = 0.0
    size = max(1, _BLOCK_NUMBERS // n)
    for start in range(0, n, size):
        block = slice(start, min(n, start + size))
        here = np.arange(block.stop - start)
        original = euclidean_distances(x[block], x, squared=True)
        projected = euclidean_distances(positions[block], positions, squared=True)
        original[here, start + here] = -np.inf
        projected[here, start + here] = np.inf
        nearest = np.argpartition(projected, k, axis=1)[:, :k]
        for column in nearest.T:
            # The rank of a neighbour: the number of rows nearer than it, the row itself included.
            limit = original[here, column]
            ranks = (original < limit[:, None]).sum(axis=1)
            penalty += float(np.maximum(ranks - k, 0).sum())
    return 1.0 - 2.0 * penalty / (n * k * (2.0 * n - 3.0 * k - 1.0))


def _pca(unit: Points, seed: int, report: object) -> Points:
    from sklearn.decomposition import PCA

    return np.asarray(PCA(2, random_state=seed).fit_transform(unit), np.float64)


def _tsne(unit: Points, seed: int, report: Callable[[int, int], None] | None) -> Points:
    from sklearn.manifold import TSNE

    model = TSNE(
        perplexity=_perplexity(len(unit)),
        init="pca",
        random_state=seed,
        max_iter=_TSNE_ITERATIONS,
        verbose=2 if report else 0,
    )
    components = _principal_components(unit, seed)
    if not report:
        return np.asarray(model.fit_transform(components), np.float64)
    # scikit-learn has no callback: it prints each 50th iteration.
    with redirect_stdout(_ProgressReader(report, _TSNE_ITERATIONS)):
        return np.asarray(model.fit_transform(components), np.float64)


class _ProgressReader(io.StringIO):
    """Report the iterations that a library prints, as ``Iteration 50`` or ``50/200 [``."""

    def __init__(self, report: Callable[[int, int], None], total: int = 0) -> None:
        super().__init__()
        self._report, self._total = report, total

    def write(self, text: str) -> int:
        found = re.search(r"Iteration (\d+)|(\d+)/(\d+) \[", text)
        if found and found[1]:
            self._report(min(int(found[1]), self._total), self._total)
        elif found:
            self._report(int(found[2]), int(found[3]))
        return len(text)


def _opentsne(unit: Points, seed: int, report: Callable[[int, int], None] | None) -> Points:
    opentsne = require("openTSNE", "projection")
    iterations = {"early": 250, "main": 500}
    total = sum(iterations.values())
    done = 0

    def callback(iteration: int, error: float, embedding: object) -> None:
        nonlocal done
        done += 50
        if report:
            report(min(done, total), total)

    model = opentsne.TSNE(
        perplexity=_perplexity(len(unit)),
        random_state=seed,
        early_exaggeration_iter=iterations["early"],
        n_iter=iterations["main"],
        callbacks=callback,
        callbacks_every_iters=50,
    )
    return np.asarray(model.fit(_principal_components(unit, seed)), np.float64)


def _umap(unit: Points, seed: int, report: Callable[[int, int], None] | None) -> Points:
    from sklearn.neighbors import NearestNeighbors

    umap = require("umap", "projection", "umap-learn")
    count = min(15, len(unit) - 1)
    # Exact neighbours take a few seconds for the largest number of rows. The approximate search of
    # UMAP takes longer, as numba compiles it in each process.
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(unit)
    distances, neighbours = search.kneighbors(unit)
    model = umap.UMAP(
        n_neighbors=count,
        precomputed_knn=(neighbours, distances.astype(np.float32)),
        random_state=seed,
        n_jobs=1,
        verbose=report is not None,
        tqdm_kwds={"file": _ProgressReader(report)} if report else None,
    )
    # With ``verbose`` it also prints its parameters and the time of each step.
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        # New rows are never projected, so that no index for their search is needed.
        warnings.filterwarnings("ignore", message=".*knn_search_index.*")
        return np.asarray(model.fit_transform(unit), np.float64)


_PROJECTIONS: dict[str, Callable[..., Points]] = {
    "pca": _pca,
    "tsne": _tsne,
    "opentsne": _opentsne,
    "umap": _umap,
}


def _principal_components(unit: Points, seed: int) -> Points:
    from sklearn.decomposition import PCA

    components = min(_COMPONENTS, *unit.shape)
    return np.asarray(PCA(components, random_state=seed).fit_transform(unit), np.float64)


def _perplexity(rows: int) -> float:
    """Return the perplexity: it must be below the number of rows, and is useful below a third."""
    return min(PERPLEXITY, max(1.0, (rows - 1) / 3))
