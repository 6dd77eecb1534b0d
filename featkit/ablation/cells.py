"""Results of grid cells and their files, which are written atomically, with a checksum."""

from __future__ import annotations

import gzip
import hashlib
import json
import traceback
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featkit.ablation.grid import AxisValue
from featkit.errors import DataError, FeatkitError, MissingExtraError, RunError, WeightsError
from featkit.evaluation.multilabel import MultiLabelReport, read_report
from featkit.evaluation.predictions import Predictions
from featkit.evaluation.report import Report
from featkit.heads.balance import InapplicableError
from featkit.runs.card import seal
from featkit.runs.fit import Run
from featkit.runs.multilabel import MultiLabelRun
from featkit.storage import LockHeldError, locked, parse_json, read_file, storage_errors, write_file

_LIMIT = 2**28
"""Largest cell file in bytes, also decompressed: the predictions for a million images fit."""

SCHEMA = 1
"""Version of the cell files; increase it when their layout changes."""


@dataclass(frozen=True)
class CellResult:
    """Result of one cell of a grid.

    Attributes:
        values: the cell's value on each axis.
        status: ``ok``; ``skipped`` if a rule of the grid excludes it, it does not apply, or weights
            or an optional dependency are missing; ``failed``.
        reason: why the status is not ``ok``, or the warnings of the report.
        log: path of the file with the traceback of a failed cell, relative to the grid's folder.
        data: short name of the images.
        weights: label of the weights; it says so if they are untrained.
        run: id of the same run made with `featkit fit`.
        report: None unless ``ok``.
        predictions: predictions on the test images; None unless ``ok``.
        val_score: balanced accuracy on the validation set of a head fitted on train only, or its
            mean average precision with several labels per image; None if there is no validation
            set.
        seconds: time of fitting and prediction; cells that share a fitted head each include its
            time.
    """

    values: Mapping[str, AxisValue]
    status: str
    reason: str = ""
    log: str = ""
    data: str = ""
    weights: str = ""
    run: str = ""
    report: Report | MultiLabelReport | None = None
    predictions: Predictions | None = None
    val_score: float | None = None
    seconds: float = 0.0

    def to_row(self) -> dict[str, Any]:
        """Return a flat row as in ``results.csv``: axes, metrics with 95 % intervals, status."""
        row: dict[str, Any] = {**self.values, "status": self.status}
        if isinstance(self.report, MultiLabelReport):
            row |= _multilabel_columns(self.report)
            row["val_mean_average_precision"] = self.val_score
        elif self.report:
            report = self.report
            low, high = report.interval95
            balanced_low, balanced_high = report.balanced_interval95
            row |= {
                "n": report.n,
                "top1": report.top1,
                "low": low,
                "high": high,
                "top5": report.top5,
            }
            row |= {"balanced_accuracy": report.balanced_accuracy, "balanced_low": balanced_low}
            row |= {"balanced_high": balanced_high, "macro_f1": report.macro_f1}
            row |= {group.name: group.top1 for group in report.groups or ()}
            row["val_balanced_accuracy"] = self.val_score
        return row | {
            "weights_used": self.weights,
            "run": self.run,
            "reason": self.reason,
            "log": self.log,
        }


def _multilabel_columns(report: MultiLabelReport) -> dict[str, Any]:
    """Return the metrics of several labels per image as columns of ``results.csv``."""
    columns: dict[str, Any] = {"n": report.n}
    found = {
        "mean_average_precision": (report.mean_average_precision, report.interval95),
        "micro_f1": (report.micro_f1, report.micro_interval95),
        "macro_f1": (report.macro_f1, report.macro_interval95),
    }
    for name, (value, (low, high)) in found.items():
        columns |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return columns


@contextmanager
def lock_grid(folder: Path) -> Iterator[None]:
    """Hold the lock of a grid's cell folder, and remove what interrupted runs left behind.

    Raises:
        RunError: if another process holds the lock.
        StorageError: if the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock"))
        except LockHeldError as error:
            raise RunError(
                f"{error.owner} is running the grid in {folder.parent}: "
                "wait for it, or choose another --out"
            ) from None
        for path in [*folder.glob(".*.tmp"), *folder.glob("*.log")]:  # failed cells are tried again
            path.unlink(missing_ok=True)
        yield


def write_cell(folder: Path, name: str, run: Run | MultiLabelRun, val_score: float | None) -> None:
    """Write a finished cell atomically.

    It is not flushed to the disk: a cell that a power failure damages is computed again, as its
    checksum does not match.

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
            **_optional_entries(predictions),
        },
        "val_score": val_score,
        "cost": dict(run.report.cost),
    }
    packed = gzip.compress(_sealed(content), compresslevel=6, mtime=0)
    write_file(_cell_path(folder, name), packed, flush=False)
    _log_path(folder, name).unlink(missing_ok=True)


def _sealed(content: Mapping[str, Any]) -> bytes:
    """Return canonical JSON that ends in its checksum, which is that of ``seal``."""
    text = json.dumps(content, sort_keys=True).encode()
    return text[:-1] + _SEAL % hashlib.sha256(text).hexdigest().encode()


_SEAL = b', "sha256": "%s"}'
_SEAL_BYTES = len(_SEAL % bytes(64))


def _read_sealed(text: bytes) -> Any:
    """Return the content of a cell; None if its checksum does not match.

    Raises:
        KeyError, TypeError, ValueError: if it is no JSON object with a checksum.
    """
    content = parse_json(text)
    # Cells of version 0.4 and earlier are not in canonical order.
    intact = text == _with_seal(text) or content["sha256"] == seal(content)
    return content if intact else None


def _with_seal(text: bytes) -> bytes:
    """Return a text of ``_sealed`` with the checksum that it should have."""
    start = text[:-_SEAL_BYTES]
    return start + _SEAL % hashlib.sha256(start + b"}").hexdigest().encode()


def _optional_entries(predictions: Predictions) -> dict[str, Any]:
    """Return groups and scores of the test images for the cell's file, as far as there are any."""
    found = {"groups": predictions.groups, "scores": predictions.scores}
    return {name: values.tolist() for name, values in found.items() if values is not None}


def read_cell(folder: Path, name: str, values: Mapping[str, AxisValue]) -> CellResult | None:
    """Read a finished cell; return None if it does not exist.

    Raises:
        RunError: if the file cannot be read or its checksum does not match.
    """
    path = _cell_path(folder, name)
    try:
        content = _read_sealed(_decompress(read_file(path, _LIMIT)))
        if content is None:
            raise RunError(f"{path} was changed after it was written")
        return _parse_cell(content, values)
    except FileNotFoundError:
        return None
    except KeyError as error:
        raise RunError(f"{path} cannot be read ({error} is missing)") from error
    except (OSError, zlib.error, DataError, *_INVALID) as error:
        raise RunError(f"{path} cannot be read ({error or type(error).__name__})") from error


_INVALID = (AttributeError, OverflowError, TypeError, ValueError)
"""Errors of reading JSON whose values have other types than expected."""


def _decompress(data: bytes) -> bytes:
    """Decompress a file of at most ``_LIMIT`` bytes; raises ValueError for a larger one."""
    file = zlib.decompressobj(wbits=_GZIP)
    content = file.decompress(data, _LIMIT + 1)
    if len(content) > _LIMIT:
        raise ValueError(f"more than {_LIMIT / 1e6:,.0f} MB")
    if not file.eof or file.unused_data:
        raise ValueError("its end is missing or followed by other data")
    return content


_GZIP = 16 + zlib.MAX_WBITS
"""Argument of ``zlib`` for the format of gzip, with its checksum."""


def count_cells(folder: Path) -> int:
    """Return the number of finished cells in a folder, also of other grids of the same name."""
    return len(list(folder.glob("*.json.gz")))


def remove_cell(folder: Path, name: str) -> None:
    """Delete the file of a cell, so that the cell is computed again.

    Raises:
        StorageError: if it cannot be deleted.
    """
    path = _cell_path(folder, name)
    with storage_errors(path):
        path.unlink(missing_ok=True)


def failed_cell(
    folder: Path, name: str, values: Mapping[str, AxisValue], error: BaseException
) -> CellResult:
    """Return the result of a cell that raised an error, and write the traceback to its log file.

    Missing weights, a missing optional dependency and a correction that does not apply to the head
    count as skipped and leave no log.
    """
    text = str(error) if isinstance(error, FeatkitError) else f"{type(error).__name__}: {error}"
    reason = " ".join(text.split())
    if isinstance(error, WeightsError | MissingExtraError | InapplicableError):
        return CellResult(values, "skipped", reason)
    log = _log_path(folder, name)
    write_file(log, "".join(traceback.format_exception(error)))
    return CellResult(values, "failed", reason, log=f"{folder.name}/{log.name}")


def _cell_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json.gz"


def _log_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"


def _parse_cell(content: Mapping[str, Any], values: Mapping[str, AxisValue]) -> CellResult:
    stored, cost = content["answers"], content["cost"]
    report = replace(read_report(content["report"]), cost=cost)
    ids, y, predicted = (tuple(stored[name]) for name in ("ids", "y", "predicted"))
    if not len(ids) == len(y) == len(predicted) == report.n:
        raise ValueError(f"{len(y)} predictions, but {report.n} test images")
    # With several labels per image, the labels of an image are one text.
    kind = str if isinstance(report, MultiLabelReport) else int
    if not all(type(label) is kind for label in (*y, *predicted)):
        raise ValueError(f"a label is not of type {kind.__name__}")
    scores = None
    if kind is str:
        scores = np.array(stored["scores"], np.float64)
        if scores.shape != (report.n,) or not np.isfinite(scores).all():
            raise ValueError(f"{scores.shape} scores, but {report.n} test images")
    groups = None
    if "groups" in stored:
        groups = np.array(stored["groups"], np.str_)
        if groups.shape != (report.n,):
            raise ValueError(f"{groups.shape} groups, but {report.n} test images")
    return CellResult(
        values=values,
        status="ok",
        reason="; ".join(report.warnings),
        data=str(content["data"]),
        weights=str(content["weights"]),
        run=str(content["run"]),
        report=report,
        predictions=Predictions(
            ids, np.array(y), np.array(predicted), groups=groups, scores=scores
        ),
        val_score=None if content["val_score"] is None else float(content["val_score"]),
        seconds=float(cost["fit_seconds"]) + float(cost["predict_seconds"]),
    )
