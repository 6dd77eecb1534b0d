"""One task of a grid: fit a head and evaluate it on the test images of several cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from featkit.ablation.cells import CellResult, failed_cell, write_cell
from featkit.ablation.grid import AxisValue
from featkit.embeddings import store
from featkit.embeddings.base import Embeddings, unpack_groups, unpack_splits
from featkit.embeddings.request import Request
from featkit.heads.base import single_threaded_blas
from featkit.runs.features import FeatureSet
from featkit.runs.fit import FitConfig, FittedHead, Run, evaluate_head, fit_head, splits_of
from featkit.runs.multilabel import (
    FittedLabels,
    MultiLabelRun,
    evaluate_multilabel,
    fit_multilabel,
)
from featkit.runs.splits import DataSplits


@dataclass(frozen=True)
class CellCondition:
    """The test images of one cell of a task.

    Attributes:
        index: position of the cell in the grid.
        name: name of the cell's file.
        values: value on each axis.
        request: images and network, with the perturbation of the test images.
        test: cache file of the perturbed test images; None for clean ones.
    """

    index: int
    name: str
    values: Mapping[str, AxisValue]
    request: Request
    test: Path | None


@dataclass(frozen=True)
class CellSource:
    """The features that a head is fitted on, which many tasks share.

    Attributes:
        request, data, weights: as in ``FeatureSet``.
        clean: cache file of all clean images.
        splits: split of each image of ``clean``, see ``pack_splits``: tasks may be sent to other
            machines and must be small.
        groups: group of each image, as ``splits``, see ``pack_groups``; empty without groups.
        views: cache file of perturbed views of the train images, or None.
        multilabel: whether the images have several labels each.
    """

    request: Request
    data: str
    weights: str
    clean: Path
    splits: bytes
    groups: bytes
    views: Path | None
    multilabel: bool = False


@dataclass(frozen=True)
class CellTask:
    """A head to fit, and the cells that it is evaluated for.

    Attributes:
        folder: folder of the cell files.
        config: how the head is fitted.
        source: what it is fitted on.
        conditions: one per cell.
    """

    folder: Path
    config: FitConfig
    source: CellSource
    conditions: tuple[CellCondition, ...]


def run_task(task: CellTask) -> dict[int, CellResult]:
    """Fit a head and write the files of its cells.

    BLAS uses one thread, so that the results do not depend on the number of workers.

    Returns:
        The results of cells that failed, by their position in the grid; all others have a file.
    """
    failed: dict[int, CellResult] = {}
    values = task.conditions[0].values
    with single_threaded_blas():
        try:
            source = _load_features(task.source)
            fitted = _fit(task, source, str(values["head"]), int(values["seed"]))
        except Exception as error:  # of any kind, MemoryError included: the other tasks must run
            return {cell.index: _failure(task, cell, error) for cell in task.conditions}
        for cell in task.conditions:
            try:
                _evaluate_cell(task, cell, fitted, source)
            except Exception as error:  # as above
                failed[cell.index] = _failure(task, cell, error)
    return failed


def _fit(task: CellTask, source: FeatureSet, head: str, seed: int) -> FittedHead | FittedLabels:
    if task.source.multilabel:
        return fit_multilabel(source, head, seed, task.config)
    splits = _splits(task.source, seed, task.config.subset)
    return fit_head(source, head, seed, task.config, splits)


@lru_cache(maxsize=1)
def _splits(source: CellSource, seed: int, subset: str | None) -> DataSplits:
    """Return the splits of a task; consecutive ones differ in their heads."""
    return splits_of(_load_features(source), seed, subset)


def _failure(task: CellTask, cell: CellCondition, error: Exception) -> CellResult:
    result = failed_cell(task.folder, cell.name, cell.values, error)
    return replace(result, data=task.source.data, weights=task.source.weights)


@lru_cache(maxsize=1)
def _load_features(source: CellSource) -> FeatureSet:
    """Load features; consecutive tasks of a worker mostly need the same ones."""
    embeddings, valid = _read(source.clean)
    embeddings = replace(embeddings, splits=unpack_splits(source.splits)[valid])
    if source.groups:
        embeddings = replace(embeddings, groups=unpack_groups(source.groups)[valid])
    if source.views:
        embeddings = embeddings.append(_read(source.views)[0])
    embeddings = replace(embeddings, multilabel=source.multilabel)
    return FeatureSet(source.request, embeddings, source.clean, source.data, source.weights)


@lru_cache(maxsize=2)
def _read(path: Path) -> tuple[Embeddings, NDArray[np.bool_]]:
    """Read a cache file; consecutive tasks of a worker mostly need the same one."""
    return store.read_with_validity(path)


def _evaluate_cell(
    task: CellTask, cell: CellCondition, fitted: FittedHead | FittedLabels, source: FeatureSet
) -> None:
    """Evaluate a fitted head on the test images of one cell and write its file."""
    if cell.test is None:
        write_cell(task.folder, cell.name, _evaluate(fitted, source), fitted.val_score)
        return
    perturbed = store.read(cell.test)
    embeddings = source.embeddings.replace_test(perturbed)
    run = _evaluate(fitted, replace(source, request=cell.request, embeddings=embeddings))
    cosine = mean_cosine(source.embeddings.part("test"), perturbed)
    provenance = {**run.report.provenance, "cosine_to_clean": cosine}
    report: Any = replace(run.report, provenance=provenance)
    write_cell(task.folder, cell.name, replace(run, report=report), fitted.val_score)


def _evaluate(fitted: FittedHead | FittedLabels, source: FeatureSet) -> Run | MultiLabelRun:
    if isinstance(fitted, FittedLabels):
        return evaluate_multilabel(fitted, source)
    return evaluate_head(fitted, source)


def mean_cosine(clean: Embeddings, perturbed: Embeddings) -> dict[str, float]:
    """Return the mean cosine between features of the same images, with a normal 95 % interval."""
    row_of = {name: row for row, name in enumerate(clean.ids)}
    shared = [row for row, name in enumerate(perturbed.ids) if name in row_of]
    a = clean.x[[row_of[perturbed.ids[row]] for row in shared]].astype(np.float64)
    b = perturbed.x[shared].astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.where(norms == 0, 1, norms)
    mean, half = float(cosines.mean()), 0.0
    if len(cosines) > 1:
        half = float(norm.ppf(0.975) * cosines.std(ddof=1) / np.sqrt(len(cosines)))
    return {
        "n": len(cosines),
        "mean": mean,
        "low": max(-1.0, mean - half),
        "high": min(1.0, mean + half),
    }
