"""Read the results and predictions of run directories."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import RunError, visible
from featkit.evaluation.multilabel import MultiLabelReport, read_report
from featkit.evaluation.predictions import Predictions
from featkit.evaluation.report import Report
from featkit.images.multilabel import NO_LABELS, SEPARATOR, multilabel_message
from featkit.runs.card import PREDICTIONS_FILE, RESULTS_FILE, read_card, run_errors
from featkit.runs.names import run_title
from featkit.storage import (
    check_file,
    read_directory,
    read_json,
    read_text,
    safe_cell,
)


def read_run(directory: Path) -> tuple[str, Report, Predictions]:
    """Return name, report and predictions of a run directory, and verify their checksums.

    Raises:
        RunError: if it is not a run directory, has several labels per image, or a file cannot be
            read or was changed.
    """
    name, report, predictions = read_any_run(directory)
    if isinstance(report, MultiLabelReport):
        raise RunError(multilabel_message(str(directory), "this command"))
    return name, report, predictions


def read_any_run(directory: Path) -> tuple[str, Report | MultiLabelReport, Predictions]:
    """Return what ``read_run`` does, also of a run with several labels per image.

    Raises:
        RunError: if it is not a run directory, or a file cannot be read or was changed.
    """
    return read_directory(directory, lambda: _read_run(directory))


def _read_run(directory: Path) -> tuple[str, Report | MultiLabelReport, Predictions]:
    results, table = directory / RESULTS_FILE, directory / PREDICTIONS_FILE
    with run_errors(directory):
        for path in (results, table):
            check_file(path)
        card = read_card(directory)
        card.check_file(results)
        card.check_file(table)
        report = read_report(read_json(results))
        rows = list(csv.DictReader(io.StringIO(read_text(table), newline="")))
        name = card.name or run_title(report.provenance)
        predictions = _read_predictions(rows)
        if len(rows) != report.n:
            raise ValueError(f"{len(rows)} predictions, but {report.n} test images")
    return name, report, predictions


@dataclass(frozen=True)
class LabelPredictions:
    """Predictions of a run with several labels per image, ``(n, k)`` each.

    Attributes:
        targets: whether an image has a label, zeros and ones.
        predicted: whether it was given the label.
        probabilities: calibrated probability of the label, with six decimals.
    """

    targets: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    probabilities: NDArray[np.float64]


def read_label_predictions(directory: Path, predictions: Predictions) -> LabelPredictions:
    """Return the labels and probabilities in a run directory with several labels per image.

    Args:
        directory: of the run, which ``read_any_run`` has verified.
        predictions: that it returned.

    Raises:
        RunError: if a label or a probability is missing.
    """
    with run_errors(directory):
        names = read_card(directory).classes
        text = read_text(directory / PREDICTIONS_FILE)
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        columns = [[row[safe_cell(f"p({name})")] for row in rows] for name in names]
        probabilities = np.array(columns, np.float64).T
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise ValueError(f"{PREDICTIONS_FILE} has values that are not probabilities")
        return LabelPredictions(
            _parse_sets(predictions.y, names),
            _parse_sets(predictions.predicted, names),
            probabilities,
        )


def _parse_sets(cells: NDArray[Any], names: Sequence[str]) -> NDArray[np.uint8]:
    """Return which labels ``(n, k)`` stand in cells such as ``bus;car``."""
    column_of = {visible(name): column for column, name in enumerate(names)}
    for column, name in enumerate(names):
        # The apostrophe of a formula is in front of the first label of the cell.
        column_of.setdefault(f"'{visible(name)}", column)
    sets = np.zeros((len(cells), len(names)), np.uint8)
    for row, cell in enumerate(cells.tolist()):
        if cell != NO_LABELS:
            sets[row, [column_of[label] for label in cell.split(SEPARATOR)]] = 1
    return sets


def _read_predictions(rows: Sequence[Mapping[str, str | None]]) -> Predictions:
    columns: list[list[str]] = []
    for name in ("id", "true", "predicted"):
        values = [row[name] for row in rows]
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{PREDICTIONS_FILE} has rows without {name}")
        # Files of versions up to 0.2.0 hold names as they are, later ones as safe cells.
        columns.append([safe_cell(value) for value in values])
    ids, y, predicted = columns
    confidence = np.array([float(row.get("confidence") or "nan") for row in rows])
    groups = None
    if rows and "group" in rows[0]:
        groups = np.array([row["group"] or "" for row in rows], np.str_)
    return Predictions(
        ids, np.array(y), np.array(predicted), confidence, groups, _read_scores(rows)
    )


def _read_scores(rows: Sequence[Mapping[str, str | None]]) -> NDArray[np.float64] | None:
    """Return the terms of the mean average precision; None for one label per image."""
    if not rows or "score" not in rows[0]:
        return None
    scores = np.array([float(row["score"] or "nan") for row in rows])
    if not np.isfinite(scores).all():
        raise ValueError(f"{PREDICTIONS_FILE} has rows without score")
    return scores
