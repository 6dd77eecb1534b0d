"""Draw the figures of results: each function takes a result and returns PNG files by name.

``api`` and ``cli`` call these functions and publish what they return; nothing here computes a
statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featkit.ablation.grid import AXES, AxisValue
from featkit.plots.confusion import plot_confusion
from featkit.plots.contact import Section, Tile, plot_contact, thumbnail
from featkit.plots.curve import Line, plot_curve
from featkit.plots.files import png_bytes
from featkit.plots.heatmap import plot_heatmap
from featkit.plots.pareto import ParetoPoint, plot_pareto
from featkit.plots.precision import LabelPrecision, plot_average_precision
from featkit.plots.reliability import plot_reliability
from featkit.plots.search import plot_search
from featkit.plots.training import History, plot_histories
from featkit.reports.wording import accuracy_text, metric_name
from featkit.runs.names import readable, run_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featkit.ablation.cells import CellResult
    from featkit.ablation.effects import Findings
    from featkit.ablation.run import AblationResult
    from featkit.images.base import ImageSet, Pixels
    from featkit.runs.fit import Run
    from featkit.runs.multilabel import MultiLabelRun
    from featkit.studies.audit import AuditResult, Finding
    from featkit.studies.fewshot import FewShotScore
    from featkit.studies.profile import NetworkProfile

_CONTACT_TILES = 50
"""Tiles in each section of a contact sheet."""


def run_figures(run: Run) -> dict[str, bytes]:
    """Draw the figures of a fitted and evaluated head.

    Returns:
        ``confusion.png``; ``reliability.png`` if the head gives probabilities; ``search.png`` if it
        was tuned.
    """
    report = run.report
    name = run.name or run_title(report.provenance)
    title = f"{name}: {accuracy_text(report)}"
    files = {
        "confusion.png": png_bytes(plot_confusion(report.confusion, report.classes, title=title))
    }
    if report.reliability:
        figure = plot_reliability(
            report.reliability,
            title=name,
            calibrated=report.reliability_calibrated,
            temperature=report.plotted_temperature,
        )
        files["reliability.png"] = png_bytes(figure)
    if run.search:
        search = run.search
        candidates = [(each.options, search.score(each)) for each in search.candidates]
        metric = "top-1 accuracy" if search.metric == "top1" else search.metric_name
        title = f"{name}: {len(candidates)} candidates"
        if "n_val" in report.provenance:
            title += f", n = {report.provenance['n_val']} validation images"
        figure = plot_search(
            candidates, title=title, metric=f"validation {metric}", chosen=search.best_index
        )
        files["search.png"] = png_bytes(figure)
    return files


def multilabel_figures(run: MultiLabelRun) -> dict[str, bytes]:
    """Draw the figures of a head for several labels per image.

    Returns:
        ``precision.png``: the average precision of each label; ``search.png`` if it was tuned.
    """
    report = run.report
    name = run.name or run_title(report.provenance)
    labels = []
    for row in report.per_label:
        if row.average_precision is not None and row.interval95 is not None:
            labels.append(LabelPrecision(row.name, row.average_precision, row.interval95, row.n))
    title = f"{name}: mAP {100 * report.mean_average_precision:.1f}%, n = {report.n}"
    files = {"precision.png": png_bytes(plot_average_precision(labels, title=title))}
    if run.candidates:
        title = f"{name}: {len(run.candidates)} candidates, n = {report.provenance['n_val']}"
        scores = [each.mean_average_precision for each in run.candidates]
        figure = plot_search(
            run.candidates,
            title=f"{title} validation images",
            metric="validation mAP",
            chosen=scores.index(max(scores)),
        )
        files["search.png"] = png_bytes(figure)
    return files


def training_figures(run: Run, history: History) -> dict[str, bytes]:
    """Draw ``curves.png`` of a trained network and the figures of its evaluation.

    Args:
        run: the trained network evaluated on the test set.
        history: one mapping per epoch, with ``epoch``, ``train_loss``, ``val_top1``, ...
    """
    report = run.report
    name = run.name or run_title(report.provenance)
    title = f"{readable(run.source.weights)}: test {accuracy_text(report)}"
    return {**history_figures({name: history}, title=title), **run_figures(run)}


def history_figures(histories: Mapping[str, History], *, title: str) -> dict[str, bytes]:
    """Draw the training curves of several runs, by the name of the run, as ``curves.png``."""
    return {"curves.png": png_bytes(plot_histories(histories, title=title))}


def fewshot_figures(curve: Sequence[FewShotScore], data: str) -> dict[str, bytes]:
    """Draw ``curve.png``: test accuracy over training images per class, one line per head.

    Args:
        curve: scores of one or more heads; none gives no file.
        data: name of the images, for the title.
    """
    return {"curve.png": png_bytes(learning_curve_figure(curve, data))} if curve else {}


def learning_curve_figure(curve: Sequence[FewShotScore], data: str) -> Figure:
    """Draw test accuracy over training images per class; see ``fewshot_figures``."""
    lines = []
    for head in dict.fromkeys(score.head for score in curve):
        scores = [score for score in curve if score.head == head]
        shots = np.array([score.shot for score in scores], dtype=np.float64)
        means = np.array([score.mean for score in scores])
        lines.append(Line(head, shots, means, np.array([score.interval95 for score in scores])))
    return plot_curve(
        lines,
        title=learning_curve_title(curve, data),
        x_label="number of training images per class",
        y_label="top-1 accuracy (%)",
    )


def learning_curve_title(curve: Sequence[FewShotScore], data: str) -> str:
    """Return what a learning curve shows, and what its intervals cover."""
    first = curve[0]
    covered = "draws and test images" if first.draws > 2 else "test images"
    n = "" if first.n is None else f", n = {first.n} test images"
    return f"{data}: test accuracy, mean of {first.draws} draws, 95% CI over {covered}{n}"


def profile_figures(
    profiles: Sequence[NetworkProfile], names: Sequence[str], title: str
) -> dict[str, bytes]:
    """Draw ``pareto.png``, accuracy over latency of the networks that have an accuracy.

    Without such networks there is no file.

    Args:
        profiles: measured networks.
        names: shown beside the points.
        title: of the figure.
    """
    points = []
    for name, profile in zip(names, profiles, strict=True):
        if profile.report:
            report = profile.report
            points.append(
                ParetoPoint(name, profile.timing.median_ms, report.top1, report.interval95)
            )
    return {"pareto.png": png_bytes(plot_pareto(points, title=title))} if points else {}


def sparsity_figures(
    steps: Mapping[str, Sequence[Mapping[str, float | str]]], title: str
) -> dict[str, bytes]:
    """Draw accuracy over sparsity as ``steps.png``, one line per name.

    Args:
        steps: by name, one mapping per pruned network with ``sparsity``, ``top1``, ``low`` and
            ``high`` as fractions.
        title: of the figure.
    """
    lines = []
    for name, rows in steps.items():
        sparsity = np.array([100 * float(row["sparsity"]) for row in rows]).round(1)
        top1 = np.array([float(row["top1"]) for row in rows])
        intervals = np.array([(float(row["low"]), float(row["high"])) for row in rows])
        lines.append(Line(name, sparsity, top1, intervals))
    figure = plot_curve(
        lines, title=title, x_label="sparsity (%)", y_label="top-1 accuracy (%)", scale="linear"
    )
    return {"steps.png": png_bytes(figure)}


# --- Audit ---


def audit_figures(audit: AuditResult, images: ImageSet) -> dict[str, bytes]:
    """Draw the suspect labels and near duplicates of an audit as ``contact.png``.

    Args:
        audit: the result.
        images: the images that were audited.

    Raises:
        DataError: if an audited image is not among ``images``, or cannot be read.
    """
    places = audit.rows_in(images).tolist()
    rows = dict(zip(audit.embeddings.ids, places, strict=True))

    def thumbnails(finding: Finding) -> tuple[Pixels, ...]:
        names = [name for name in (finding.image, finding.other) if name]
        return tuple(thumbnail(images.load(rows[name])) for name in names)

    found = audit.findings()
    sections = [
        _suspect_labels(found["suspect"], thumbnails),
        _near_duplicates(found["near"], thumbnails),
    ]
    return {"contact.png": png_bytes(plot_contact(sections, title=f"Audit of {audit.data}"))}


def _suspect_labels(
    suspects: Sequence[Finding], thumbnails: Callable[[Finding], tuple[Pixels, ...]]
) -> Section:
    """Return the first tiles of suspect labels, each with the suggested label."""
    tiles = []
    for finding in suspects[:_CONTACT_TILES]:
        lines = (
            f"{finding.label} →",
            f"{finding.other_label}?",
            f"odds {odds_text(finding.score)}",
            finding.image,
        )
        tiles.append(Tile(thumbnails(finding), lines))
    return Section(f"Suspect labels, top {len(tiles)} of {len(suspects)}: given → suggested", tiles)


def _near_duplicates(
    duplicates: Sequence[Finding], thumbnails: Callable[[Finding], tuple[Pixels, ...]]
) -> Section:
    """Return the most similar pair of the first groups of near duplicates.

    Args:
        duplicates: sorted by similarity, so the first pair of a group is its most similar one.
        thumbnails: returns the thumbnails of a finding.
    """
    groups: dict[int, list[Finding]] = {}
    for finding in duplicates:
        groups.setdefault(finding.group, []).append(finding)
    tiles = []
    for pairs in list(groups.values())[:_CONTACT_TILES]:
        first = pairs[0]
        labels = " ≠ ".join(dict.fromkeys([first.label, first.other_label]))
        similarity = f"cosine {first.score:.3f}"
        more = len(pairs) - 1
        if more:
            similarity += f", {more} more {'pair' if more == 1 else 'pairs'}"
        tiles.append(Tile(thumbnails(first), (labels, similarity, first.image, first.other)))
    return Section(
        f"Near duplicates, most similar pair of {len(tiles)} of {len(groups)} groups", tiles
    )


def odds_text(odds: float) -> str:
    """Return the odds of a suggested label against the given one, such as ``12 : 1``."""
    return f"{odds:.0f} : 1" if odds >= 10 else f"{odds:.1f} : 1"


# --- Ablation ---


def ablation_figures(result: AblationResult) -> dict[str, bytes]:
    """Draw ``heatmap.png``: the metric by head (columns) and all other varying axes (rows).

    The metric is the one by which the study compares. A cell of the figure is the mean over seeds
    and over perturbations of the test images, where these vary; its interval is drawn only if it
    represents one cell of the grid.
    """
    findings = result.findings
    pooled = [axis for axis in ("seed", "perturb") if len(result.grid.values(axis)) > 1]
    row_names, constant = _heatmap_rows(result.cells, findings)
    rows = list(dict.fromkeys(row_names))
    columns = list(dict.fromkeys(str(cell.values["head"]) for cell in result.cells))
    members: dict[tuple[int, int], list[CellResult]] = {}
    for row, cell in zip(row_names, result.cells, strict=True):
        place = (rows.index(row), columns.index(str(cell.values["head"])))
        members.setdefault(place, []).append(cell)

    means, intervals, missing = _heatmap_values(members, (len(rows), len(columns)), findings)
    means_over = f", mean over {' and '.join(pooled)}" if pooled else ""
    title = f"{result.grid.name}: {constant}{means_over}"
    figure = plot_heatmap(
        means,
        rows,
        columns,
        title=title,
        label=metric_name(findings),
        intervals=None if pooled else intervals,
        missing=missing.tolist(),
    )
    return {"heatmap.png": png_bytes(figure)}


def _heatmap_values(
    members: Mapping[tuple[int, int], Sequence[CellResult]],
    shape: tuple[int, int],
    findings: Findings,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.object_]]:
    """Return mean metrics, intervals of the first cells, and texts where there is no result.

    Args:
        members: cells of the grid by row and column of the figure.
        shape: rows and columns of the figure.
        findings: of the grid.
    """
    means = np.full(shape, np.nan)
    intervals = np.full((*shape, 2), np.nan)
    missing = np.full(shape, "", dtype=object)
    for place, cells in members.items():
        scores = [findings.score(cell) for cell in cells if cell.report]
        if scores:
            means[place] = np.mean([value for value, _ in scores])
            intervals[place] = scores[0][1]
        else:
            missing[place] = cells[0].status
    return means, intervals, missing


def _heatmap_rows(cells: Sequence[CellResult], findings: Findings) -> tuple[list[str], str]:
    """Return the row name of each cell, and the constant values for the title."""
    varying: list[str] = []
    constant: list[str] = []
    for axis, first in cells[0].values.items():
        if axis in ("head", "seed", "perturb"):
            continue
        if any(cell.values[axis] != first for cell in cells):
            varying.append(axis)
        elif first != AXES[axis] or axis in _ALWAYS_NAMED:
            constant.append(_axis_text(findings, axis, first))

    names = []
    for cell in cells:
        shown = [_axis_text(findings, axis, cell.values[axis]) for axis in varying or ["backbone"]]
        names.append(", ".join(shown))
    return names, ", ".join(constant)


_ALWAYS_NAMED = ("data", "backbone", "weights")
"""Axes that the title of the heat map names even if they have their default value."""

_DEFAULT_TEXTS: Mapping[str, str] = {
    "layer": "default layer",
    "precision": "automatic precision",
    "subset": "all training images",
    "train_perturb": "trained on clean images",
    "balance": "no correction",
}
"""Names of the default values of axes, of which the value alone would be unclear."""


def _axis_text(findings: Findings, axis: str, value: AxisValue) -> str:
    """Return the text for a value of an axis in the heat map."""
    if axis == "tune":
        return "tuned" if value else "not tuned"
    if axis in _DEFAULT_TEXTS and value == AXES[axis]:
        return _DEFAULT_TEXTS[axis]
    shown = findings.shown(axis, value)
    return f"trained on {shown}" if axis == "train_perturb" else shown
