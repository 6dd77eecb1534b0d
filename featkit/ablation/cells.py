"""One row of a matrix: where it lies on each axis, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from featkit.evaluation.predictions import Predictions
from featkit.evaluation.report import Report

AxisValue = str | int | bool


@dataclass(frozen=True)
class CellResult:
    """One row of the table.

    Attributes:
        values: the cell's place on each axis.
        status: ``ok``; ``skipped`` where the grid says so, or weights or an extra are not to be had; ``failed``.
        reason: why it is not ``ok``, or what the report warns of.
        log: path of the file that holds the traceback of a failed cell, else empty.
        data: short name of the images.
        weights: label of the weights, which says so if they are untrained.
        run: the id that `featkit fit` gives the same run.
        report: None unless ``ok``.
        predictions: on the test images; None unless ``ok``.
        val_score: balanced accuracy on val of the head before val joined train; None where there is no val.
        seconds: of fitting and judging; a fit that serves several cells counts in each.
    """

    values: Mapping[str, AxisValue]
    status: str
    reason: str = ""
    log: str = ""
    data: str = ""
    weights: str = ""
    run: str = ""
    report: Report | None = None
    predictions: Predictions | None = None
    val_score: float | None = None
    seconds: float = 0.0
