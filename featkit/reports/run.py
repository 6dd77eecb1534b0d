"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isnan, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featkit.embeddings.request import REQUEST_FIELDS, Request
from featkit.errors import visible
from featkit.evaluation.calibration import ReliabilityBin
from featkit.evaluation.costs import cost_sentence
from featkit.evaluation.folds import FoldScores
from featkit.evaluation.intervals import Interval, wilson
from featkit.evaluation.metrics import clustered_order, most_confused
from featkit.evaluation.projection import METHOD_NAMES
from featkit.evaluation.report import Report, summary
from featkit.plots.cam import overlay
from featkit.reports.components import Table, TableCell, colour_class, interval_cell, number_cell
from featkit.reports.render import render
from featkit.reports.wording import folds_text, headline, images_word, interval_text, p_text
from featkit.runs.card import run_errors
from featkit.runs.fit import package_versions
from featkit.runs.names import network_name, run_title
from featkit.storage import read_file
from featkit.studies.inspect import (
    EmbeddingMap,
    FloatComparison,
    InspectedImage,
    RunInspection,
)

_CLUSTERED_FROM = 20
"""Number of classes above which the confusion matrix is ordered by similarity."""
_JPEG_QUALITY = 72
_SHOWN_SIDE = 144
_SIMILAR_SIDE = 72
_CURVES_FILE = "curves.png"
_MAX_PNG_BYTES = 2**24


@dataclass(frozen=True)
class Picture:
    """An image in the page.

    Attributes:
        uri: data URI; empty if the image cannot be read.
        alt: its description.
    """

    uri: str
    alt: str


@dataclass(frozen=True)
class PredictionCard:
    """A test image with its prediction.

    Attributes:
        id: name of the image.
        true, predicted: names of the classes.
        confidence: in percent, as text; empty if unknown.
        picture, heat_map: the image, and the image under its class activation map.
        similar: most similar training images with a caption each.
    """

    id: str
    true: str
    predicted: str
    confidence: str
    picture: Picture
    heat_map: Picture | None
    similar: Sequence[tuple[Picture, str]]


@dataclass(frozen=True)
class MatrixCell:
    """A cell of the confusion matrix that is not empty: place, size, CSS class and tooltip."""

    row: int
    column: int
    colour: str
    title: str
    count: int


@dataclass(frozen=True)
class ReliabilityPoint:
    """A bin of the reliability diagram, in percent of its width and height."""

    x: float
    y: float
    low: float
    high: float
    title: str


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
    has_map = inspection.embedding_map is not None
    return RunView(
        title=f"{run.name or run_title(provenance)}: {inspection.data}",
        lead=f"Run {run.path.name}, {len(run.classes)} classes, {_evaluated_on(report)}",
        headline=headline(report),
        metrics=summary(report),
        warnings=report.warnings,
        notes=inspection.notes,
        per_class=_per_class(report),
        folds=_folds(report.folds),
        is_repeated=report.folds is not None and report.folds.repeats > 1,
        class_names=[report.classes[label] for label in order],
        matrix=_matrix(report, order),
        is_clustered=len(order) > _CLUSTERED_FROM,
        confused=[
            (
                f"{pair.true} taken for {pair.predicted}: {pair.count} of {pair.total}",
                [_card(each) for each in pair.examples],
            )
            for pair in inspection.confused
        ],
        confusions=_confusions(report),
        reliability=_reliability(report.reliability_calibrated or report.reliability),
        calibration=_calibration(report),
        rejection=_rejection(report),
        unknown=_unknown(report),
        costs=_costs(report),
        precision=_precision(inspection.float_comparison),
        mistakes=[_card(each) for each in inspection.mistakes],
        uncertain=[_card(each) for each in inspection.uncertain],
        n_mistakes=report.n - round(report.top1 * report.n),
        explanation=inspection.explanation,
        map_data=_map_data(inspection.embedding_map, report) if has_map else None,
        map_caption=_map_caption(inspection.embedding_map),
        counts=_counts(inspection.counts),
        data_sentences=_data_sentences(inspection),
        candidates=_candidates(inspection),
        tuning=_tuning(report),
        curves=_curves(run.path),
        facts=_facts(inspection, provenance),
        commands=_commands(inspection),
        versions=package_versions(),
    )


def _evaluated_on(report: Report) -> str:
    text = f"{report.n:,} {images_word(report)}"
    return text if report.folds is None else f"{text}, {folds_text(report.folds)}"


def _folds(folds: FoldScores | None) -> Table | None:
    """Return the accuracy in each fold."""
    if folds is None:
        return None
    rows = []
    for place, top1 in enumerate(folds.accuracies):
        repeat, fold = divmod(place, folds.folds)
        name = f"fold {fold + 1}"
        if folds.repeats > 1:
            name = f"repeat {repeat + 1}, {name}"
        rows.append(
            [
                TableCell(name, sort=place, is_header=True),
                number_cell(f"{folds.sizes[place]:,}", folds.sizes[place]),
                _percent_cell(top1),
                interval_cell(top1, folds.intervals95[place], (0.0, 1.0)),
            ]
        )
    columns = ["fold", "images", "accuracy (%)", "accuracy, 95% CI (0 to 100%)"]
    return Table("Accuracy in each fold", columns, rows)


def _tuning(report: Report) -> str:
    """Return on which images hyperparameters were chosen."""
    if report.folds is None:
        return "Chosen on the validation set; the test set was not used."
    return (
        "The search of the final head. In each fold, hyperparameters were chosen separately, on a "
        "part of the training images; the images of the fold were not used."
    )


def _network(inspection: RunInspection) -> str:
    request = inspection.run.request
    made_by = str(inspection.report.provenance["weights"])
    return network_name(
        request.backbone, weights=request.weights, precision=request.precision, made_by=made_by
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
                _percent_cell(metrics.recall),
                recall,
                _percent_cell(metrics.precision),
                _percent_cell(metrics.f1),
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


def _percent_cell(value: float | None) -> TableCell:
    return number_cell("", "") if value is None else number_cell(f"{100 * value:.1f}", value)


def _matrix_order(report: Report) -> list[int]:
    order = np.arange(len(report.classes))
    if len(order) > _CLUSTERED_FROM:
        order = clustered_order(report.confusion)
    return [int(label) for label in order]


def _matrix(report: Report, order: Sequence[int]) -> list[MatrixCell]:
    """Return the cells of the confusion matrix that are not zero."""
    confusion = report.confusion[np.ix_(order, order)]
    totals = np.maximum(confusion.sum(axis=1), 1)
    names = [report.classes[label] for label in order]
    cells = []
    for row, column in np.argwhere(confusion > 0).tolist():
        count = int(confusion[row, column])
        share = count / totals[row]
        cells.append(
            MatrixCell(
                row=row,
                column=column,
                # The square root, so that a few percent differ from zero.
                colour=colour_class(max(0.12, sqrt(share)), (0.0, 1.0)),
                title=f"{names[row]}, predicted {names[column]}: {count} of {totals[row]}",
                count=count,
            )
        )
    return cells


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


def _reliability(bins: Sequence[ReliabilityBin]) -> list[ReliabilityPoint]:
    points = []
    for each in bins:
        low, high = each.interval95
        points.append(
            ReliabilityPoint(
                x=100 * each.confidence,
                y=100 * (1 - each.accuracy),
                low=100 * (1 - low),
                high=100 * (1 - high),
                title=f"confidence {100 * each.confidence:.1f}%, accuracy "
                f"{100 * each.accuracy:.1f}% ({interval_text(each.interval95)}), "
                f"{each.count} images",
            )
        )
    return points


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
    coverage = _percent_text(found.coverage, found.coverage_interval95)
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
        f"{text}; of these, {_percent_text(found.top1, found.interval95)} were given the right "
        "class."
    )


def _unknown(report: Report) -> str:
    found = report.unknown
    if found is None:
        return ""
    text = (
        f"Images of none of the classes ({found.name}, n = {found.n:,}): the probability that a "
        "test image has a higher confidence than such an image is "
        f"{_percent_text(found.auroc, found.interval95)} (area under the ROC curve, "
        f"{found.n_test:,} test images)."
    )
    if found.accepted is None:
        return text
    share = _percent_text(found.accepted / found.n, found.accepted_interval95)
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
        f"{_percent_text(found.top1, found.interval95)} of the test images from their float32 "
        "features. "
        f"Difference {found.precision} - float32: {100 * paired.difference:+z.1f} percentage "
        f"points (95% CI {interval_text(paired.interval95)}, p {equal}{p_text(paired.p)}, n = "
        f"{paired.n:,})."
    )
    return sentences


def _percent_text(share: float, interval: Interval | None) -> str:
    """Return a fraction in percent, with its interval if it is known."""
    text = f"{100 * share:.1f}%"
    return text if interval is None else f"{text} ({interval_text(interval)})"


# Pictures -----------------------------------------------------------------------------------------


def _card(each: InspectedImage) -> PredictionCard:
    heat_map = None
    if each.image is not None and each.heat is not None:
        heat_map = Picture(
            _jpeg(overlay(each.image, each.heat), _SHOWN_SIDE),
            f"Evidence for {each.predicted} in {each.id}",
        )
    similar = []
    for other in each.similar:
        picture = Picture(_jpeg(other.image, _SIMILAR_SIDE), f"Training image {other.id}")
        similar.append((picture, f"{other.label}, cosine {other.cosine:.2f}"))
    confidence = "" if isnan(each.confidence) else f"{100 * each.confidence:.0f}%"
    return PredictionCard(
        id=each.id,
        true=each.true,
        predicted=each.predicted,
        confidence=confidence,
        picture=Picture(_jpeg(each.image, _SHOWN_SIDE), f"Image {each.id}"),
        heat_map=heat_map,
        similar=similar,
    )


def _jpeg(pixels: NDArray[np.uint8] | None, side: int) -> str:
    """Return an image as data URI, its longer side at most ``side`` pixels; empty without one."""
    if pixels is None:
        return ""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return _data_uri(buffer.getvalue(), "image/jpeg")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _curves(directory: Path) -> Picture | None:
    path = directory / _CURVES_FILE
    if not path.is_file():
        return None
    with run_errors(directory):
        content = read_file(path, _MAX_PNG_BYTES)
    return Picture(_data_uri(content, "image/png"), "Loss and accuracy by epoch")


# Embedding map ------------------------------------------------------------------------------------


def _map_data(found: EmbeddingMap | None, report: Report) -> dict[str, Any]:
    """Return what the script draws: whole numbers, names, and one image of all thumbnails.

    Positions are between 0 and 1000 in both directions.
    """
    assert found is not None
    positions = found.projection.positions
    low, high = positions.min(axis=0), positions.max(axis=0)
    scale = 1000 / max(float((high - low).max()), np.finfo(np.float64).tiny)
    placed = ((positions - (low + high) / 2) * scale + 500).round().astype(int)
    place_of = {name: label for label, name in enumerate(report.classes)}
    shown = [found.images[row] for row in found.projection.rows]
    data: dict[str, Any] = {
        "x": placed[:, 0].tolist(),
        "y": placed[:, 1].tolist(),
        "true": [place_of[each.true] for each in shown],
        "predicted": [place_of[each.predicted] for each in shown],
        "names": [visible(each.id) for each in shown],
        "classes": [visible(name) for name in report.classes],
    }
    if found.thumbnails:
        side = len(found.thumbnails[0])
        across = ceil(sqrt(len(found.thumbnails)))
        data["sprite"] = _jpeg(_sprite(found.thumbnails, across), side * across)
        data["side"], data["across"], data["pictures"] = side, across, len(found.thumbnails)
    return data


def _sprite(thumbnails: Sequence[NDArray[np.uint8]], across: int) -> NDArray[np.uint8]:
    """Return one image with all thumbnails, ``across`` in a row."""
    side = len(thumbnails[0])
    rows = ceil(len(thumbnails) / across)
    sprite = np.zeros((rows * side, across * side, 3), np.uint8)
    for number, thumbnail in enumerate(thumbnails):
        row, column = divmod(number, across)
        sprite[row * side : (row + 1) * side, column * side : (column + 1) * side] = thumbnail
    return sprite


def _map_caption(found: EmbeddingMap | None) -> str:
    if found is None:
        return ""
    projection = found.projection
    return (
        f"{METHOD_NAMES[projection.method]} of the features of {len(projection.rows):,} "
        f"images, seed {projection.seed}. Trustworthiness {projection.trustworthiness:.2f} "
        f"({projection.neighbours} neighbours; 1 means that neighbours on the map are neighbours "
        "among the features). Distances between far groups mean nothing."
    )


# Data and search ----------------------------------------------------------------------------------


def _counts(counts: Mapping[str, Mapping[str, int]]) -> Table | None:
    if not counts:
        return None
    splits = list(next(iter(counts.values())))
    rows = []
    for name, of_class in counts.items():
        cells = [number_cell(f"{of_class[split]:,}", of_class[split]) for split in splits]
        rows.append([TableCell(name, is_header=True), *cells])
    return Table("Images of each class", ["class", *splits], rows)


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
            f"; without them the accuracy is {_percent_text(without.top1, without.interval95)} "
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


def _facts(inspection: RunInspection, provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    run, folds = inspection.run, inspection.report.folds
    facts = [
        ("Head", run.head_spec),
        ("Network", _network(inspection)),
        ("Weights", str(provenance.get("weights", ""))),
        ("Seed", str(provenance.get("seed", ""))),
        ("Evaluation", "" if folds is None else folds_text(folds)),
        ("Training images", str(provenance.get("n_train", ""))),
        ("Validation", str(provenance.get("val", ""))),
        ("Features", str(provenance.get("fingerprint", ""))[:12]),
    ]
    return [(name, value) for name, value in facts if value]


def _commands(inspection: RunInspection) -> list[tuple[str, str]]:
    run = inspection.run
    directory = shlex.quote(str(run.path))
    commands = [
        ("Classify new images", f"featkit predict {directory} IMAGE..."),
        ("Export to ONNX", f"featkit export {directory} --out model.onnx"),
    ]
    if not inspection.report.provenance.get("begun_with"):
        commands.append(("Repeat the run", shlex.join(_fit_command(inspection))))
    return commands


def _fit_command(inspection: RunInspection) -> list[str]:
    """Return the command that fits the run, with every option that is not the default."""
    request, provenance = inspection.run.request, inspection.report.provenance
    default = Request()
    command = ["featkit", "fit", "--data", request.data, "--backbone", request.backbone]
    for name in REQUEST_FIELDS:
        value = getattr(request, name)
        if name not in ("data", "backbone", "store") and value != getattr(default, name):
            command += [f"--{name}", str(value)]
    command += ["--head", inspection.run.head_spec]
    for name in ("balance", "subset"):
        if provenance.get(name):
            command += [f"--{name}", str(provenance[name])]
    if provenance.get("tuned"):
        command.append("--tune")
    return [*command, *_evaluation_options(inspection.report)]


def _evaluation_options(report: Report) -> list[str]:
    """Return the options of ``fit`` that say how a run is evaluated."""
    options = []
    if report.rejection is not None:
        options += ["--reject", f"{report.rejection.share:g}"]
    if report.unknown is not None:
        options += ["--unknown", report.unknown.data]
    if report.decision_cost is not None:
        options += ["--cost", report.decision_cost.matrix.file]
    if report.folds is not None:
        options += ["--folds", str(report.folds.folds)]
        if report.folds.repeats > 1:
            options += ["--repeats", str(report.folds.repeats)]
    return options
