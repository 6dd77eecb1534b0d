"""The cells of a matrix on disk: each written whole, sealed, and read back only if nobody changed it."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import platform
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from featkit.ablation.cells import AxisValue, CellResult
from featkit.errors import DataError, FeatkitError, MissingExtraError, RunError, StorageError, WeightsError
from featkit.evaluation.predictions import Predictions
from featkit.evaluation.report import Report
from featkit.heads.balance import InapplicableError
from featkit.runs.directory import seal
from featkit.runs.fit import Run

SCHEMA = 1
"""Raised whenever the same cell would hold other numbers, or the file's layout changes."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a matrix until the block ends; the kernel drops the lock of a process that dies.

    Raises:
        RunError: if another process holds it.
        StorageError: if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror}; choose another --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read() or "another process"
            raise RunError(f"{who} is at work on {folder.parent}: wait for it, or give another --out") from None
        file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {platform.node()} since {since}")
        file.flush()
        for left in [*folder.glob(".*.tmp"), *folder.glob("*.log")]:  # what failed is tried again
            left.unlink(missing_ok=True)
        yield


def write_cell(folder: Path, name: str, run: Run, val_score: float | None) -> None:
    """Put a finished cell on the disk, whole or not at all.

    Raises:
        StorageError: if the disk is full or cannot be written.
    """
    predictions = run.predictions
    content = {
        "schema": SCHEMA,
        "data": run.source.data,
        "weights": run.source.weights,
        "run": run.id,
        "report": run.report.to_dict(),
        "answers": {
            "ids": predictions.ids,
            "y": predictions.y.tolist(),
            "predicted": predictions.predicted.tolist(),
        },
        "val_score": val_score,
        "cost": dict(run.report.cost),
    }
    # Through JSON once: what is sealed is what will be read back.
    content = json.loads(json.dumps(content))
    packed = gzip.compress(json.dumps({**content, "sha256": seal(content)}).encode(), compresslevel=6, mtime=0)
    _replace(folder / f"{name}.json.gz", packed)
    (folder / f"{name}.log").unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}; free some room or choose another --out") from error


def read_cell(folder: Path, name: str, values: Mapping[str, AxisValue]) -> CellResult | None:
    """Return a finished cell, None if there is none.

    Raises:
        RunError: if the file cannot be read, or is not what was written.
    """
    path = folder / f"{name}.json.gz"
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        if content["sha256"] != seal(content):
            raise RunError(f"{path} was changed after it was written")
        return _cell(content, values)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError, DataError) as error:
        raise RunError(f"{path} cannot be read ({error or type(error).__name__})") from error


def forget_cell(folder: Path, name: str) -> None:
    """Remove a cell, so that it is made again."""
    (folder / f"{name}.json.gz").unlink(missing_ok=True)


def _cell(content: Mapping[str, Any], values: Mapping[str, AxisValue]) -> CellResult:
    predictions, cost = content["answers"], content["cost"]
    report = replace(Report.from_dict(content["report"]), cost=cost)
    return CellResult(
        values=values,
        status="ok",
        reason="; ".join(report.warnings),
        data=content["data"],
        weights=content["weights"],
        run=content["run"],
        report=report,
        predictions=Predictions(
            tuple(predictions["ids"]), np.array(predictions["y"]), np.array(predictions["predicted"])
        ),
        val_score=content["val_score"],
        seconds=cost["fit_seconds"] + cost["predict_seconds"],
    )


def failed_cell(folder: Path, name: str, values: Mapping[str, AxisValue], error: BaseException) -> CellResult:
    """Return the row of a cell that came to nothing, and leave the whole story in its log.

    What is not to be had here (weights, an extra), or makes no sense (a correction that does not apply to the head),
    counts as skipped, without a log.
    """
    text = str(error) if isinstance(error, FeatkitError) else f"{type(error).__name__}: {error}"
    reason = " ".join(text.split())
    if isinstance(error, WeightsError | MissingExtraError | InapplicableError):
        return CellResult(values, "skipped", reason)
    log = folder / f"{name}.log"
    _replace(log, "".join(traceback.format_exception(error)).encode())
    return CellResult(values, "failed", reason, log=str(Path(folder.name, log.name)))
