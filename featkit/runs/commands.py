"""Commands that a user can copy: names and values of options as the command line takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from featkit.embeddings.request import REQUEST_FIELDS, Request
from featkit.evaluation.multilabel import MultiLabelReport
from featkit.evaluation.report import Report
from featkit.runs.directory import SavedRun


def option_words(options: Iterable[tuple[str, Any]]) -> list[str]:
    """Return the words that set options of a command.

    Args:
        options: names as in Python, such as ``intensity_range``, and values. None and False are
            left out, True is a flag; other values are written so that the same value is read.
    """
    words = []
    for name, value in options:
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(str(value))
    return words


def fit_command(run: SavedRun, report: Report | MultiLabelReport) -> list[str] | None:
    """Return the words of the command that fits a run again, with every option it needs.

    None for a run that no command repeats: of images from Python, or of a trained network.

    Args:
        run: the run.
        report: its evaluation.
    """
    provenance = report.provenance
    if provenance.get("begun_with") or not run.request.data:
        return None
    options = [
        ("data", run.request.data),
        ("backbone", run.request.backbone),
        *_request_options(run.request),
        ("head", run.head_spec),
        ("balance", provenance.get("balance")),
        ("subset", provenance.get("subset")),
        ("tune", bool(provenance.get("tuned"))),
        *_evaluation_options(report).items(),
        ("name", run.name or None),
    ]
    return ["featkit", "fit", *option_words(options)]


def _request_options(request: Request) -> list[tuple[str, Any]]:
    """Return the fields of a request that differ from its defaults, data and network aside."""
    default, options = Request(), []
    for name in REQUEST_FIELDS:
        value = getattr(request, name)
        if name not in ("data", "backbone") and value != getattr(default, name):
            options.append((name, value))
    return options


def _evaluation_options(report: Report | MultiLabelReport) -> Mapping[str, Any]:
    """Return the options that say how a run is evaluated."""
    options: dict[str, Any] = {}
    if isinstance(report, Report):
        if report.rejection is not None:
            options["reject"] = report.rejection.share
        if report.unknown is not None:
            options["unknown"] = report.unknown.data
        if report.decision_cost is not None:
            options["cost"] = report.decision_cost.matrix.file or None
    if report.folds is not None:
        options["folds"] = report.folds.folds
        options["repeats"] = report.folds.repeats if report.folds.repeats > 1 else None
    return options
