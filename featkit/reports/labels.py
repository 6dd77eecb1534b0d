"""The report of a run with several labels per image: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featkit.evaluation.intervals import Interval
from featkit.evaluation.metrics import MEAN_AVERAGE_PRECISION, clustered_order
from featkit.evaluation.multilabel import LabelMetrics, MultiLabelReport, multilabel_summary
from featkit.reports.components import Table, TableCell, interval_cell, number_cell
from featkit.reports.render import render
from featkit.reports.run_parts import (
    CLUSTERED_FROM,
    MatrixCell,
    PredictionCard,
    ReliabilityPoint,
    counts_table,
    folds_table,
    map_caption,
    map_data,
    matrix_cells,
    percent_cell,
    percent_text,
    prediction_card,
    reliability_points,
    run_commands,
    run_facts,
)
from featkit.reports.wording import evaluated_on, headline, images_word, interval_text
from featkit.runs.fit import package_versions
from featkit.runs.names import run_title
from featkit.studies.inspect_labels import LabelInspection

_NOTHING = "(none)"
"""Row and column of the confusion matrix for errors of one kind alone."""
_AXES = ("probability", "share with the label", "images")


@dataclass(frozen=True)
class LabelsView:
    """Content of ``templates/labels.html``: sentences, tables and pictures ready to draw.

    Attributes:
        title, lead: head, network and data.
        headline: mean average precision with its interval in words.
        metrics: every metric in one line.
        warnings, notes: of the report, and about what is missing from the page.
        per_label: metrics of each label.
        folds: metric in each fold of a cross-validation; None for a test set.
        is_repeated: whether the images were divided into folds several times.
        errors: sentence about the number of errors.
        missed, added: images with labels that were missed, and wrongly added.
        explanation: how the heat maps were computed.
        matrix_names, matrix: names in the order of the confusion matrix, and its cells.
        is_clustered: whether that order is by similarity.
        confusions: pairs of a label missed and a label added in the same images.
        pairs: labels that images have together, in truth and as predicted; None without any.
        calibration: a sentence about it.
        reliability: points of the diagram of all labels together.
        label_calibration: calibration error of each label.
        label_reliability: name of each label and the points of its diagram.
        map_data: data of the embedding map for the script; None without one.
        map_caption: method and trustworthiness of the map.
        counts: images by label and split; None if unknown.
        data_sentences: about the data.
        candidates: hyperparameters tried; None if there was no search.
        tuning: how they were chosen.
        facts: how the run was made, by name.
        commands: how to repeat and use it.
        versions: package versions by name.
    """

    title: str
    lead: str
    headline: str
    metrics: str
    warnings: Sequence[str]
    notes: Sequence[str]
    per_label: Table
    folds: Table | None
    is_repeated: bool
    errors: str
    missed: Sequence[PredictionCard]
    added: Sequence[PredictionCard]
    explanation: str
    matrix_names: Sequence[str]
    matrix: Sequence[MatrixCell]
    is_clustered: bool
    confusions: Table
    pairs: Table | None
    calibration: str
    reliability: Sequence[ReliabilityPoint]
    label_calibration: Table
    label_reliability: Sequence[tuple[str, Sequence[ReliabilityPoint]]]
    map_data: Mapping[str, Any] | None
    map_caption: str
    counts: Table | None
    data_sentences: Sequence[str]
    candidates: Table | None
    tuning: str
    facts: Sequence[tuple[str, str]]
    commands: Sequence[tuple[str, str]]
    versions: Mapping[str, str]


def labels_report(inspection: LabelInspection) -> str:
    """Return the HTML page of a run with several labels per image."""
    return render("labels.html", view=labels_view(inspection))


def labels_view(inspection: LabelInspection) -> LabelsView:
    """Return the content of the page of a run with several labels per image."""
    report, run = inspection.report, inspection.run
    names = report.labels
    order = _matrix_order(inspection)
    cells = [*names, _NOTHING]
    diagrams = []
    for name, bins in zip(names, inspection.label_reliability, strict=True):
        diagrams.append((name, reliability_points(bins, _AXES)))
    return LabelsView(
        title=f"{run.name or run_title(report.provenance)}: {inspection.data}",
        lead=f"Run {run.path.name}, {len(names)} labels, {evaluated_on(report)}",
        headline=headline(report),
        metrics=multilabel_summary(report),
        warnings=report.warnings,
        notes=inspection.notes,
        per_label=_per_label(report),
        folds=folds_table(report.folds),
        is_repeated=report.folds is not None and report.folds.repeats > 1,
        errors=_errors(inspection),
        missed=[prediction_card(each) for each in inspection.missed],
        added=[prediction_card(each) for each in inspection.added],
        explanation=inspection.explanation,
        matrix_names=[cells[place] for place in order],
        matrix=_matrix(inspection, order),
        is_clustered=len(names) > CLUSTERED_FROM,
        confusions=_confusions(inspection),
        pairs=_pairs(inspection),
        calibration=_calibration(report),
        reliability=reliability_points(
            inspection.reliability, (_AXES[0], _AXES[1], "pairs of image and label")
        ),
        label_calibration=_label_calibration(report),
        label_reliability=diagrams,
        map_data=map_data(inspection.embedding_map, _sets(inspection)),
        map_caption=map_caption(inspection.embedding_map),
        counts=counts_table(inspection.counts, "label"),
        data_sentences=_data_sentences(inspection),
        candidates=_candidates(inspection),
        tuning=_tuning(report),
        facts=run_facts(run, report),
        commands=run_commands(run, report),
        versions=package_versions(),
    )


def _tuning(report: MultiLabelReport) -> str:
    """Return on which images hyperparameters were chosen."""
    if report.folds is None:
        return "Chosen on the validation set, the same for all labels; the test set was not used."
    return (
        "The search of the final head, the same for all labels. In each fold, hyperparameters were "
        "chosen separately, on a part of the training images; the images of the fold were not used."
    )


# Labels and errors --------------------------------------------------------------------------------


def _per_label(report: MultiLabelReport) -> Table:
    rows = [_label_row(label) for label in report.per_label]
    columns = [
        "label",
        f"{images_word(report)} with it",
        "train",
        "AP (%)",
        "average precision, 95% CI (0 to 100%)",
        "threshold (%)",
        "precision (%)",
        "recall (%)",
        "F1 (%), 95% CI",
    ]
    return Table("Metrics of each label", columns, rows)


def _label_row(label: LabelMetrics) -> list[TableCell]:
    return [
        TableCell(label.name, is_header=True),
        number_cell(f"{label.n:,}", label.n),
        number_cell(f"{label.train:,}", label.train),
        percent_cell(label.average_precision),
        _bar(label.average_precision, label.interval95),
        percent_cell(label.threshold),
        percent_cell(label.precision),
        percent_cell(label.recall),
        _with_interval(label.f1, label.f1_interval95),
    ]


def _with_interval(value: float | None, interval: Interval | None) -> TableCell:
    cell = percent_cell(value)
    return cell if interval is None else replace(cell, detail=interval_text(interval))


def _bar(value: float | None, interval: Interval | None) -> TableCell:
    if value is None or interval is None:
        return TableCell("no image", -1.0, "chart")
    return interval_cell(value, interval, (0.0, 1.0))


def _errors(inspection: LabelInspection) -> str:
    report = inspection.report
    has = int(inspection.true_pairs.trace())
    given = int(inspection.predicted_pairs.trace())
    return (
        f"The {report.n:,} {images_word(report)} have {has:,} labels, of which "
        f"{inspection.n_missed:,} were missed; {given:,} labels were predicted, of which "
        f"{inspection.n_added:,} are wrong. A large error may be a wrong label in the data."
    )


def _matrix_order(inspection: LabelInspection) -> list[int]:
    """Return the order of labels in the confusion matrix, by similarity if there are many."""
    k = len(inspection.report.labels)
    order = np.arange(k)
    if k > CLUSTERED_FROM:
        order = clustered_order(inspection.confusion[:k, :k])
    return [*(int(label) for label in order), k]


def _matrix(inspection: LabelInspection, order: Sequence[int]) -> list[MatrixCell]:
    names = [*inspection.report.labels, _NOTHING]
    counts = inspection.confusion[np.ix_(order, order)]
    has = [*inspection.true_pairs.diagonal().tolist(), int(inspection.confusion[-1].sum())]
    totals = np.array([has[place] for place in order])

    def title(row: int, column: int, count: int) -> str:
        missed, added = names[order[row]], names[order[column]]
        if row == column:
            return f"{missed}: found in {count} of {totals[row]} images"
        if missed == _NOTHING:
            return f"{added} added, nothing missed: {count} images"
        instead = "nothing added" if added == _NOTHING else f"{added} added"
        return f"{missed} missed, {instead}: {count} of {totals[row]} images"

    return matrix_cells(counts, totals, title)


def _confusions(inspection: LabelInspection) -> Table:
    """Return the pairs of a label that was missed and one that was added, most frequent first."""
    names, k = inspection.report.labels, len(inspection.report.labels)
    confusion = inspection.confusion[:k, :k].copy()
    np.fill_diagonal(confusion, 0)
    found = sorted(np.argwhere(confusion > 0).tolist(), key=lambda pair: -confusion[*pair])
    rows = []
    for missed, added in found:
        count, total = int(confusion[missed, added]), int(inspection.true_pairs[missed, missed])
        rows.append(
            [
                TableCell(names[missed], is_header=True),
                TableCell(names[added]),
                number_cell(f"{count:,}", count),
                number_cell(f"{total:,}", total),
            ]
        )
    columns = ["label missed", "label added", "images", "of images with the first"]
    return Table("Labels that were missed and added in the same images", columns, rows)


def _pairs(inspection: LabelInspection) -> Table | None:
    """Return the labels that images have together, in truth and as predicted."""
    names = inspection.report.labels
    true, predicted = inspection.true_pairs, inspection.predicted_pairs
    rows = []
    for first, second in zip(*np.triu_indices(len(names), 1), strict=True):
        together, given = int(true[first, second]), int(predicted[first, second])
        if not together and not given:
            continue
        difference = given - together
        rows.append(
            [
                TableCell(names[first], is_header=True),
                TableCell(names[second]),
                number_cell(f"{together:,}", together),
                number_cell(f"{given:,}", given),
                number_cell(f"{difference:+,}" if difference else "0", difference),
            ]
        )
    rows.sort(key=lambda row: -float(row[2].sort or 0))
    columns = ["label", "label", "images with both", "predicted with both", "difference"]
    return Table("Labels that occur together", columns, rows) if rows else None


# Calibration --------------------------------------------------------------------------------------


def _calibration(report: MultiLabelReport) -> str:
    before = f"{100 * report.ece:.1f}"
    if report.ece_calibrated is None:
        return (
            f"A probability differs from the share of images with the label by {before} percentage "
            "points on average over labels (expected calibration error). It was not calibrated: "
            "there are no validation images."
        )
    return (
        "A calibrated probability differs from the share of images with the label by "
        f"{100 * report.ece_calibrated:.1f} percentage points on average over labels (expected "
        f"calibration error; {before} before calibration). Points below the diagonal: the "
        "probability is too high."
    )


def _label_calibration(report: MultiLabelReport) -> Table:
    rows = []
    for label in report.per_label:
        slope, intercept = number_cell("", ""), number_cell("", "")
        if label.calibration is not None:
            slope = number_cell(f"{label.calibration.slope:.2f}", label.calibration.slope)
            value = label.calibration.intercept
            intercept = number_cell(f"{value:+z.2f}", value)
        rows.append(
            [
                TableCell(label.name, is_header=True),
                percent_cell(label.ece),
                percent_cell(label.ece_calibrated),
                slope,
                intercept,
            ]
        )
    columns = ["label", "ECE before (%)", "ECE calibrated (%)", "slope", "intercept"]
    return Table("Calibration of each label", columns, rows)


# Data and search ----------------------------------------------------------------------------------


def _sets(inspection: LabelInspection) -> list[str]:
    """Return the sets of labels in the embedding map, the most frequent true ones first."""
    if inspection.embedding_map is None:
        return []
    counts: dict[str, int] = {}
    for each in inspection.embedding_map.images:
        counts[each.true] = counts.get(each.true, 0) + 1
        counts.setdefault(each.predicted, 0)
    return sorted(counts, key=lambda name: (-counts[name], name))


def _data_sentences(inspection: LabelInspection) -> list[str]:
    report = inspection.report
    sentences = [f"Data: {inspection.run.request.data}."]
    parts = [f"{count:,} {split}" for split, count in inspection.images.items()]
    if parts:
        sentences.append(f"{'Images: ' if len(parts) > 1 else ''}{', '.join(parts)}.")
    labels = int(inspection.true_pairs.trace()) / report.n
    sentences.append(f"The {images_word(report)} have {labels:.2f} labels on average.")
    if inspection.shared is not None:
        found = f"{inspection.shared} test images are" if inspection.shared else "No test image is"
        sentences.append(f"{found} also in train or val, byte for byte.")
    return [*sentences, *_copies(report)]


def _copies(report: MultiLabelReport) -> list[str]:
    """Return a sentence about images with copies, and the metric without them."""
    without = report.without_copies
    if without is None:
        return []
    others = "train or val" if report.folds is None else "another fold"
    text = f"{without.copies} {images_word(report)} have a copy or a near copy in {others}"
    if without.mean_average_precision is not None:
        value = percent_text(without.mean_average_precision, without.interval95)
        text += (
            f"; without them the {MEAN_AVERAGE_PRECISION} is {value} instead of "
            f"{100 * report.mean_average_precision:.1f}%, n = {without.n:,}"
        )
    return [f"{text}."]


def _candidates(inspection: LabelInspection) -> Table | None:
    found = sorted(inspection.search, key=lambda each: -each.mean_average_precision)
    if not found:
        return None
    best, rows = found[0].mean_average_precision, []
    for candidate in found:
        value = candidate.mean_average_precision
        options = ", ".join(f"{name}={option}" for name, option in candidate.options.items())
        rows.append(
            [
                TableCell(options or "defaults", is_header=True),
                percent_cell(value),
                number_cell(f"{100 * (value - best):+z.1f}", value - best),
            ]
        )
    metric = MEAN_AVERAGE_PRECISION
    columns = ["hyperparameters", f"{metric} on val (%)", "difference from best (points)"]
    return Table("Hyperparameters tried, evaluated on the validation set", columns, rows)
