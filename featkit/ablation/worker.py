"""A head that is fitted once for all cells that differ in their test images only: one task of a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.stats import norm

from featkit.ablation.cells import CellResult, failed_cell, write_cell
from featkit.ablation.grid import AxisValue
from featkit.embeddings import store
from featkit.embeddings.base import Embeddings
from featkit.embeddings.request import Request
from featkit.heads.base import single_threaded_blas
from featkit.runs.features import FeatureSet
from featkit.runs.fit import FitConfig, FittedHead, evaluate_head, fit_head


@dataclass(frozen=True)
class CellCondition:
    """One cell: its name on disk, its place on the axes, and the file of its test images if they are perturbed."""

    name: str
    values: Mapping[str, AxisValue]
    request: Request
    test: Path | None


@dataclass(frozen=True)
class CellTask:
    """A head to fit, and the cells for which it is judged.

    Attributes:
        folder: where the cells are kept.
        config: how it is fitted.
        request, data, weights: as in ``FeatureSet``.
        clean: file of all images as they are.
        splits: split of each image by its id.
        views: file of perturbed views of train, or None.
        cells: they agree on every axis but that of the test images.
    """

    folder: Path
    config: FitConfig
    request: Request
    data: str
    weights: str
    clean: Path
    splits: Mapping[str, str]
    views: Path | None
    cells: tuple[CellCondition, ...]


def run_task(task: CellTask) -> list[CellResult]:
    """Fit a head and write its cells; return those that came to nothing, as rows.

    BLAS runs on one core: the numbers are the same however many tasks are at work.
    """
    lost = []
    try:
        with single_threaded_blas():
            source = _source(task)
            fitted = _fit(task, source)
            for cell in task.cells:
                try:
                    _judge(task, cell, fitted, source)
                except Exception as error:  # whatever it is, the other cells go on
                    lost.append(failed_cell(task.folder, cell.name, cell.values, error))
    except Exception as error:
        lost = [failed_cell(task.folder, cell.name, cell.values, error) for cell in task.cells]
    return [replace(cell, data=task.data, weights=task.weights) for cell in lost]


def _source(task: CellTask) -> FeatureSet:
    embeddings = _read(task.clean)
    splits = np.array([task.splits[name] for name in embeddings.ids], dtype=np.str_)
    source = FeatureSet(task.request, replace(embeddings, splits=splits), task.clean, task.data, task.weights)
    if task.views is None:
        return source
    return replace(source, embeddings=source.embeddings.append(_read(task.views)))


@lru_cache(maxsize=2)
def _read(path: Path) -> Embeddings:
    return store.read(path)


def _fit(task: CellTask, source: FeatureSet) -> FittedHead:
    values = task.cells[0].values
    return fit_head(source, str(values["head"]), int(values["seed"]), task.config)


def _judge(task: CellTask, cell: CellCondition, fitted: FittedHead, source: FeatureSet) -> None:
    if cell.test is None:
        write_cell(task.folder, cell.name, evaluate_head(fitted, source), fitted.val_score)
        return
    perturbed = store.read(cell.test)
    run = evaluate_head(
        fitted,
        replace(source, request=cell.request, embeddings=source.embeddings.replace_test(perturbed)),
    )
    shift = cosine_to(source.embeddings.part("test"), perturbed)
    report = replace(run.report, provenance={**run.report.provenance, "cosine_to_clean": shift})
    write_cell(task.folder, cell.name, replace(run, report=report), fitted.val_score)


def cosine_to(clean: Embeddings, perturbed: Embeddings) -> dict[str, float]:
    """Return the mean cosine between the vectors of the same images, with the normal 95 % interval over images."""
    row_of = {name: row for row, name in enumerate(clean.ids)}
    shared = [name in row_of for name in perturbed.ids]
    a = clean.x[[row_of[name] for name in perturbed.ids if name in row_of]].astype(np.float64)
    b = perturbed.x[shared].astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.where(lengths == 0, 1, lengths)
    half = float(norm.ppf(0.975) * cosines.std(ddof=1) / np.sqrt(len(cosines))) if len(cosines) > 1 else 0.0
    mean = float(cosines.mean())
    return {"n": len(cosines), "mean": mean, "low": max(-1.0, mean - half), "high": min(1.0, mean + half)}
