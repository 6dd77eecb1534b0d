"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featkit.evaluation.costs import cost_sentence
from featkit.evaluation.intervals import wilson
from featkit.evaluation.metrics import clustered_order, most_confused
from featkit.evaluation.report import Report, summary
from featkit.reports.components import Table, TableCell, interval_cell, number_cell
from featkit.reports.render import render
from featkit.reports.run_parts import (
    CLUSTERED_FROM,
    MatrixCell,
    Picture,
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
    training_curves,
)
from featkit.reports.wording import evaluated_on, headline, images_word, interval_text, p_text
from featkit.runs.fit import package_versions
from featkit.runs.names import run_title
from featkit.studies.inspect import FloatComparison, RunInspection


@dataclass(frozen=True)
class RunView:
    """Content of ``templates/run.html``: sentences, tables and pictures ready to draw.

    Attributes:
        title, lead: head, network and data.
        headline: accuracy with its interval in words.
        metrics: every metric in one line.
        warnings, notes: of the report, and about what is missing from the page.
        per_class: precision, recall and F1 of each class.
        folds: accuracy in each fold of a cross-validation; None for a test set.
        is_repeated: whether the images were divided into folds several times.
        class_names, matrix: names in the order of the confusion matrix, and its cells.
        is_clustered: whether that order is by similarity.
        confused: the most confused pairs: a sentence and examples.
        confusions: all pairs of confused classes.
        reliability: points of the diagram; empty without probabilities.
        calibration: a sentence about it.
        rejection: a sentence about the images that the run rejects as unknown; empty if it rejects
            none.
        unknown: a sentence about images of none of the classes; empty without any.
        costs: a sentence about the mean cost of an image; empty without a cost matrix.
        precision: sentences that compare a run of lower precision with float32; empty without.
        mistakes, uncertain: images with their predictions.
        explanation: how the heat maps were computed.
        map_data: data of the embedding map for the script; None without one.
        map_caption: method and trustworthiness of the map.
        counts: images by class and split; None if unknown.
        data_sentences: about the data.
        candidates: hyperparameters tried; None if there was no search.
        tuning: how they were chosen.
        curves: training curves of a trained network; None without them.
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
    per_class: Table
    folds: Table | None
    is_repeated: bool
    class_names: Sequence[str]
    matrix: Sequence[MatrixCell]
    is_clustered: bool
    confused: Sequence[tuple[str, Sequence[PredictionCard]]]
    confusions: Table
    reliability: Sequence[ReliabilityPoint]
    calibration: str
    rejection: str
    unknown: str
    costs: str
    precision: Sequence[str]
    mistakes: Sequence[PredictionCard]
    uncertain: Sequence[PredictionCard]
    n_mistakes: int
    explanation: str
    map_data: Mapping[str, Any] | None
    map_caption: str
    counts: Table | None
    data_sentences: Sequence[str]
    candidates: Table | None
    tuning: str
    curves: Picture | None
    facts: Sequence[tuple[str, str]]
    commands: Sequence[tuple[str, str]]
    versions: Mapping[str, str]


def run_report(inspection: RunInspection) -> str:
    """Return the HTML page of a run."""
    return render("run.html", view=run_view(inspection))


def run_view(inspection: RunInspection) -> RunView:
    """Return the content of the page of a run."""
    report, run = inspection.report, inspection.run
    provenance = report.provenance
    order = _matrix_order(report)
    return RunView(
        title=f"{run.name or run_title(provenance)}: {inspection.data}",
        lead=f"Run {run.path.name}, {len(run.classes)} classes, {evaluated_on(report)}",
        headline=headline(report),
        metrics=summary(report),
        warnings=report.warnings,
        notes=inspection.notes,
        per_class=_per_class(report),
        folds=folds_table(report.folds),
        is_repeated=report.folds is not None and report.folds.repeats > 1,
        class_names=[report.classes[label] for label in order],
        matrix=_matrix(report, order),
        is_clustered=len(order) > CLUSTERED_FROM,
        confused=[
            (
                f"{pair.true} taken for {pair.predicted}: {pair.count} of {pair.total}",
                [prediction_card(each) for each in pair.examples],
            )
            for pair in inspection.confused
        ],
        confusions=_confusions(report),
        reliability=reliability_points(report.reliability_calibrated or report.reliability),
        calibration=_calibration(report),
        rejection=_rejection(report),
        unknown=_unknown(report),
        costs=_costs(report),
        precision=_precision(inspection.float_comparison),
        mistakes=[prediction_card(each) for each in inspection.mistakes],
        uncertain=[prediction_card(each) for each in inspection.uncertain],
        n_mistakes=report.n - round(report.top1 * report.n),
        explanation=inspection.explanation,
        map_data=map_data(inspection.embedding_map, report.classes),
        map_caption=map_caption(inspection.embedding_map),
        counts=counts_table(inspection.counts),
        data_sentences=_data_sentences(inspection),
        candidates=_candidates(inspection),
        tuning=_tuning(report),
        curves=training_curves(run.path),
        facts=run_facts(run, report),
        commands=run_commands(run, report),
        versions=package_versions(),
    )


def _tuning(report: Report) -> str:
    """Return on which images hyperparameters were chosen."""
    if report.folds is None:
        return "Chosen on the validation set; the test set was not used."
    return (
        "The search of the final head. In each fold, hyperparameters were chosen separately, on a "
        "part of the training images; the images of the fold were not used."
    )


# Classes ------------------------------------------------------------------------------------------


def _per_class(report: Report) -> Table:
    rows = []
    for metrics in report.per_class:
        recall: TableCell
        if metrics.recall is None:
            recall = TableCell("no test image", -1.0, "chart")
        else:
            interval = metrics.recall_interval95
            if interval is None:
                interval = wilson(round(metrics.recall * metrics.n), metrics.n)
            recall = interval_cell(metrics.recall, interval, (0.0, 1.0))
        rows.append(
            [
                TableCell(metrics.name, is_header=True),
                number_cell(f"{metrics.n:,}", metrics.n),
                percent_cell(metrics.recall),
                recall,
                percent_cell(metrics.precision),
                percent_cell(metrics.f1),
            ]
        )
    return Table(
        caption="Metrics of each class",
        columns=[
            "class",
            images_word(report),
            "recall (%)",
            "recall, 95% CI (0 to 100%)",
            "precision (%)",
            "F1 (%)",
        ],
        rows=rows,
    )


def _matrix_order(report: Report) -> list[int]:
    order = np.arange(len(report.classes))
    if len(order) > CLUSTERED_FROM:
        order = clustered_order(report.confusion)
    return [int(label) for label in order]


def _matrix(report: Report, order: Sequence[int]) -> list[MatrixCell]:
    """Return the cells of the confusion matrix that are not zero."""
    confusion = report.confusion[np.ix_(order, order)]
    totals = confusion.sum(axis=1)
    names = [report.classes[label] for label in order]

    def title(row: int, column: int, count: int) -> str:
        return f"{names[row]}, predicted {names[column]}: {count} of {totals[row]}"

    return matrix_cells(confusion, totals, title)


def _confusions(report: Report) -> Table:
    """Return every cell of the confusion matrix off its diagonal that is not zero."""
    totals = report.confusion.sum(axis=1)
    rows = []
    for true, predicted in most_confused(report.confusion, report.classes):
        count = int(report.confusion[true, predicted])
        rows.append(
            [
                TableCell(report.classes[true], is_header=True),
                TableCell(report.classes[predicted]),
                number_cell(f"{count:,}", count),
                number_cell(f"{totals[true]:,}", int(totals[true])),
            ]
        )
    columns = ["label", "predicted", "images", "of images of the label"]
    return Table("All confused classes", columns, rows)


# Calibration --------------------------------------------------------------------------------------


def _calibration(report: Report) -> str:
    error = report.ece_calibrated if report.ece_calibrated is not None else report.ece
    if error is None:
        return "This head gives no probabilities."
    return (
        f"A confidence differs from the accuracy by {100 * error:.1f} percentage points on average "
        "(expected calibration error). Points below the diagonal are too confident."
    )


def _rejection(report: Report) -> str:
    found = report.rejection
    if found is None:
        return ""
    coverage = percent_text(found.coverage, found.coverage_interval95)
    limit = f"{100 * found.threshold:.1f}%"
    text = f"Images of a confidence below {limit} are rejected as unknown. This threshold"
    if report.folds is not None:
        text = (
            "Images of a confidence below the threshold of their fold are rejected as unknown "
            f"(final head: {limit}). Each threshold"
        )
    text += (
        f" rejects {100 * found.share:.1f}% of the validation images. Of the {report.n:,} "
        f"{images_word(report)}, {coverage} were not rejected (n = {found.answered:,})"
    )
    if found.top1 is None:
        return f"{text}."
    return (
        f"{text}; of these, {percent_text(found.top1, found.interval95)} were given the right "
        "class."
    )


def _unknown(report: Report) -> str:
    found = report.unknown
    if found is None:
        return ""
    text = (
        f"Images of none of the classes ({found.name}, n = {found.n:,}): the probability that a "
        "test image has a higher confidence than such an image is "
        f"{percent_text(found.auroc, found.interval95)} (area under the ROC curve, "
        f"{found.n_test:,} test images)."
    )
    if found.accepted is None:
        return text
    share = percent_text(found.accepted / found.n, found.accepted_interval95)
    return f"{text} {share} of them are not rejected by the threshold."


def _costs(report: Report) -> str:
    if report.decision_cost is None:
        return ""
    text = cost_sentence(report.decision_cost)
    return f"{text[0].upper()}{text[1:]}."


def _precision(found: FloatComparison | None) -> list[str]:
    if found is None:
        return []
    similarity, paired = found.drift, found.paired
    sentences = [
        f"This run uses features in {found.precision}. Of the 10 nearest test images of each test "
        f"image, {100 * similarity.neighbours_kept:.1f}% are the same as in float32 "
        f"(n = {similarity.n:,}).",
    ]
    if similarity.mean_cosine is not None and similarity.worst_cosine is not None:
        sentences.append(
            f"Cosine similarity of a feature vector to that in float32: mean "
            f"{similarity.mean_cosine:.4f}, smallest {similarity.worst_cosine:.4f}."
        )
    equal = "" if paired.p < 0.001 else "= "
    sentences.append(
        f"The same head, fitted on the {found.precision} features, names the right class for "
        f"{percent_text(found.top1, found.interval95)} of the test images from their float32 "
        "features. "
        f"Difference {found.precision} - float32: {100 * paired.difference:+z.1f} percentage "
        f"points (95% CI {interval_text(paired.interval95)}, p {equal}{p_text(paired.p)}, n = "
        f"{paired.n:,})."
    )
    return sentences


# Data and search ----------------------------------------------------------------------------------


def _data_sentences(inspection: RunInspection) -> list[str]:
    sentences = [f"Data: {inspection.run.request.data}."]
    if inspection.counts:
        totals: dict[str, int] = {}
        for of_class in inspection.counts.values():
            for split, count in of_class.items():
                totals[split] = totals.get(split, 0) + count
        parts = [f"{count:,} {split}" for split, count in totals.items()]
        sentences.append(f"{'Images: ' if len(parts) > 1 else ''}{', '.join(parts)}.")
    if inspection.shared is not None:
        found = f"{inspection.shared} test images are" if inspection.shared else "No test image is"
        sentences.append(f"{found} also in train or val, byte for byte.")
    return [*sentences, *_copies(inspection.report)]


def _copies(report: Report) -> list[str]:
    """Return a sentence about images with copies, and the accuracy without them."""
    without = report.without_copies
    if without is None:
        return []
    others = "train or val" if report.folds is None else "another fold"
    text = f"{without.copies} {images_word(report)} have a copy or a near copy in {others}"
    if without.top1 is not None:
        text += (
            f"; without them the accuracy is {percent_text(without.top1, without.interval95)} "
            f"instead of {100 * report.top1:.1f}%, n = {without.n:,}"
        )
    return [f"{text}. `featkit audit` lists them."]


def _candidates(inspection: RunInspection) -> Table | None:
    if not inspection.search:
        return None
    rows = []
    best = max(inspection.search, key=lambda candidate: candidate.top1).top1
    for candidate in sorted(inspection.search, key=lambda candidate: -candidate.top1):
        options = ", ".join(f"{name}={value}" for name, value in candidate.options.items())
        rows.append(
            [
                TableCell(options or "defaults", is_header=True),
                number_cell(f"{100 * candidate.top1:.1f}", candidate.top1),
                number_cell(f"{100 * (candidate.top1 - best):+z.1f}", candidate.top1 - best),
                number_cell(f"{candidate.nll:.3f}", candidate.nll),
            ]
        )
    columns = ["hyperparameters", "top-1 on val (%)", "difference from best (points)", "NLL"]
    return Table("Hyperparameters tried, evaluated on the validation set", columns, rows)
