"""Parts of the page of a run that do not depend on the number of labels per image."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isnan, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featkit.errors import visible
from featkit.evaluation.calibration import ReliabilityBin
from featkit.evaluation.folds import FoldPrecisions, FoldScores
from featkit.evaluation.intervals import Interval
from featkit.evaluation.metrics import MEAN_AVERAGE_PRECISION
from featkit.evaluation.multilabel import MultiLabelReport
from featkit.evaluation.projection import METHOD_NAMES
from featkit.evaluation.report import Report
from featkit.plots.cam import overlay
from featkit.reports.components import Table, TableCell, colour_class, interval_cell, number_cell
from featkit.reports.wording import folds_text, interval_text
from featkit.runs.card import run_errors
from featkit.runs.commands import fit_command
from featkit.runs.directory import SavedRun
from featkit.runs.names import network_name
from featkit.storage import read_file
from featkit.studies.inspect import EmbeddingMap, InspectedImage

CLUSTERED_FROM = 20
"""Number of classes above which a matrix is ordered by similarity and has no numbers."""
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
        label: of several labels per image, the one that was missed or wrongly added; else empty.
    """

    id: str
    true: str
    predicted: str
    confidence: str
    picture: Picture
    heat_map: Picture | None
    similar: Sequence[tuple[Picture, str]]
    label: str = ""


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


# Numbers and matrices -----------------------------------------------------------------------------


def percent_cell(value: float | None) -> TableCell:
    """Return a fraction in percent; an empty cell for None."""
    return number_cell("", "") if value is None else number_cell(f"{100 * value:.1f}", value)


def percent_text(share: float, interval: Interval | None) -> str:
    """Return a fraction in percent, with its interval if it is known."""
    text = f"{100 * share:.1f}%"
    return text if interval is None else f"{text} ({interval_text(interval)})"


def matrix_cells(
    counts: NDArray[np.int64], totals: NDArray[np.int64], title: Callable[[int, int, int], str]
) -> list[MatrixCell]:
    """Return the cells of a matrix of counts that are not zero.

    Args:
        counts: ``(r, c)`` numbers of images.
        totals: ``(r,)`` numbers of which the counts of each row are fractions.
        title: returns the tooltip of a cell from row, column and count.
    """
    cells = []
    for row, column in np.argwhere(counts > 0).tolist():
        count = int(counts[row, column])
        share = min(1.0, count / max(int(totals[row]), 1))
        cells.append(
            MatrixCell(
                row=row,
                column=column,
                # The square root, so that a few percent differ from zero.
                colour=colour_class(max(0.12, sqrt(share)), (0.0, 1.0)),
                title=title(row, column, count),
                count=count,
            )
        )
    return cells


def folds_table(folds: FoldScores | FoldPrecisions | None) -> Table | None:
    """Return the metric in each fold; None without folds."""
    if folds is None:
        return None
    metric, caption = MEAN_AVERAGE_PRECISION, f"{MEAN_AVERAGE_PRECISION} in each fold"
    if isinstance(folds, FoldScores):
        metric, caption = "accuracy", "Accuracy in each fold"
    rows = []
    for place, value in enumerate(folds.values):
        repeat, fold = divmod(place, folds.folds)
        name = f"fold {fold + 1}"
        if folds.repeats > 1:
            name = f"repeat {repeat + 1}, {name}"
        rows.append(
            [
                TableCell(name, sort=place, is_header=True),
                number_cell(f"{folds.sizes[place]:,}", folds.sizes[place]),
                percent_cell(value),
                interval_cell(value, folds.intervals95[place], (0.0, 1.0)),
            ]
        )
    columns = ["fold", "images", f"{metric} (%)", f"{metric}, 95% CI (0 to 100%)"]
    return Table(caption, columns, rows)


def reliability_points(
    bins: Sequence[ReliabilityBin],
    names: tuple[str, str, str] = ("confidence", "accuracy", "images"),
) -> list[ReliabilityPoint]:
    """Return the points of a reliability diagram.

    Args:
        bins: of the probabilities.
        names: of the two axes and of what is counted, for the tooltips.
    """
    across, up, counted = names
    points = []
    for each in bins:
        low, high = each.interval95
        points.append(
            ReliabilityPoint(
                x=100 * each.confidence,
                y=100 * (1 - each.accuracy),
                low=100 * (1 - low),
                high=100 * (1 - high),
                title=f"{across} {100 * each.confidence:.1f}%, {up} "
                f"{100 * each.accuracy:.1f}% ({interval_text(each.interval95)}), "
                f"{each.count:,} {counted}",
            )
        )
    return points


# Pictures -----------------------------------------------------------------------------------------


def prediction_card(each: InspectedImage) -> PredictionCard:
    """Return an inspected image as the page shows it."""
    heat_map = None
    if each.image is not None and each.heat is not None:
        heat_map = Picture(
            _jpeg(overlay(each.image, each.heat), _SHOWN_SIDE),
            f"Evidence for {each.explained} in {each.id}",
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
        label=each.label,
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


def training_curves(directory: Path) -> Picture | None:
    """Return the training curves of a run; None for a run that trained no network."""
    path = directory / _CURVES_FILE
    if not path.is_file():
        return None
    with run_errors(directory):
        content = read_file(path, _MAX_PNG_BYTES)
    return Picture(_data_uri(content, "image/png"), "Loss and accuracy by epoch")


# Embedding map ------------------------------------------------------------------------------------


def map_data(found: EmbeddingMap | None, classes: Sequence[str]) -> dict[str, Any] | None:
    """Return what the script draws: whole numbers, names, and one image of all thumbnails.

    Positions are between 0 and 1000 in both directions.

    Args:
        found: the map; None for none.
        classes: names of all true and predicted classes in it.
    """
    if found is None:
        return None
    positions = found.projection.positions
    low, high = positions.min(axis=0), positions.max(axis=0)
    scale = 1000 / max(float((high - low).max()), np.finfo(np.float64).tiny)
    placed = ((positions - (low + high) / 2) * scale + 500).round().astype(int)
    place_of = {name: label for label, name in enumerate(classes)}
    shown = [found.images[row] for row in found.projection.rows]
    data: dict[str, Any] = {
        "x": placed[:, 0].tolist(),
        "y": placed[:, 1].tolist(),
        "true": [place_of[each.true] for each in shown],
        "predicted": [place_of[each.predicted] for each in shown],
        "names": [visible(each.id) for each in shown],
        "classes": [visible(name) for name in classes],
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


def map_caption(found: EmbeddingMap | None) -> str:
    """Return method and trustworthiness of an embedding map; empty without one."""
    if found is None:
        return ""
    projection = found.projection
    return (
        f"{METHOD_NAMES[projection.method]} of the features of {len(projection.rows):,} "
        f"images, seed {projection.seed}. Trustworthiness {projection.trustworthiness:.2f} "
        f"({projection.neighbours} neighbours; 1 means that neighbours on the map are neighbours "
        "among the features). Distances between far groups mean nothing."
    )


# Data and commands --------------------------------------------------------------------------------


def counts_table(counts: Mapping[str, Mapping[str, int]], name_of: str = "class") -> Table | None:
    """Return the number of images by class, or label, and split; None if they are not known."""
    if not counts:
        return None
    splits = list(next(iter(counts.values())))
    rows = []
    for name, of_class in counts.items():
        cells = [number_cell(f"{of_class[split]:,}", of_class[split]) for split in splits]
        rows.append([TableCell(name, is_header=True), *cells])
    return Table(f"Images of each {name_of}", [name_of, *splits], rows)


def _network(run: SavedRun, provenance: Mapping[str, Any]) -> str:
    request = run.request
    made_by = str(provenance["weights"])
    return network_name(
        request.backbone, weights=request.weights, precision=request.precision, made_by=made_by
    )


def run_facts(run: SavedRun, report: Report | MultiLabelReport) -> list[tuple[str, str]]:
    """Return how a run was made: names and values."""
    folds, provenance = report.folds, report.provenance
    facts = [
        ("Head", run.head_spec),
        ("Network", _network(run, provenance)),
        ("Weights", str(provenance.get("weights", ""))),
        ("Seed", str(provenance.get("seed", ""))),
        ("Evaluation", "" if folds is None else folds_text(folds)),
        ("Training images", str(provenance.get("n_train", ""))),
        ("Validation", str(provenance.get("val", ""))),
        ("Features", str(provenance.get("fingerprint", ""))[:12]),
    ]
    return [(name, value) for name, value in facts if value]


def run_commands(run: SavedRun, report: Report | MultiLabelReport) -> list[tuple[str, str]]:
    """Return how to use and repeat a run: headings and commands."""
    directory = shlex.quote(str(run.path))
    commands = [
        ("Classify new images", f"featkit predict {directory} IMAGE..."),
        ("Export to ONNX", f"featkit export {directory} --out model.onnx"),
    ]
    repeat = fit_command(run, report)
    if repeat is not None:
        commands.append(("Repeat the run", shlex.join(repeat)))
    return commands
