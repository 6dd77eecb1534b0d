"""Draw one picture of a run, a network or images, with the numbers behind it.

``api.plot`` gathers the inputs; nothing here computes a statistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from featkit.embeddings.base import Embeddings
from featkit.errors import DataError
from featkit.evaluation.projection import METHOD_NAMES, Projection
from featkit.evaluation.report import Report
from featkit.images.base import Pixels
from featkit.images.perturb import LEVELS, PERTURBATIONS, image_rng, parse_perturbation, perturb
from featkit.plots.cam import CAM_SIDE, MappedImage, overlay, plot_cam
from featkit.plots.confusion import plot_confusion
from featkit.plots.contact import Section, Tile, plot_contact, thumbnail
from featkit.plots.files import check_format, figure_bytes
from featkit.plots.image_grid import filters_to_images, plot_image_grid
from featkit.plots.paper import COLUMN, PAGE, fit_to_paper
from featkit.plots.pareto import ParetoPoint, pareto_front, plot_pareto
from featkit.plots.projection import plot_projection
from featkit.plots.reliability import plot_reliability
from featkit.plots.training import History, plot_histories
from featkit.reports.figures import learning_curve_figure, learning_curve_title
from featkit.storage import csv_text, write_file
from featkit.studies.explain import ClassActivationMap, Faithfulness
from featkit.studies.fewshot import FewShotScore
from featkit.studies.inspect import InspectedImage
from featkit.studies.neighbours import SimilarImages
from featkit.studies.profile import MeasuredNetwork
from featkit.studies.suggest import Suggestions

_FILTERS_ACROSS = 16
_CHANNELS = 12
MOST_SUGGESTIONS = 100
"""Tiles of the contact sheet of suggestions."""
_BLANK = np.full((64, 64, 3), 230, np.uint8)
"""Drawn for an image that is not available."""
_NAMED_GROUPS = 20
"""Number of groups above which their names stand in a projection, which needs a whole page."""
_COLUMN_CLASSES = 10
"""Number of classes up to which a confusion matrix fits into a column."""
_PAPER_ACROSS = 5
"""Images in a row of a contact sheet as wide as a page."""
_CAMS, _PAPER_CAMS, _COLUMN_CAMS = 6, 4, 2
"""Class activation maps in a row: on a screen, on a page, and in a column at most."""
# Sizes of image grids, in inches.
_GRID_SIDE = 0.9
_NAMES_WIDTH = 1.5
_PAPER_PERTURBED = 0.42

Style = Literal["screen", "paper"]
STYLES = ("screen", "paper")


@dataclass(frozen=True)
class Plot:
    """A figure with the numbers behind it.

    Attributes:
        figure: the drawing.
        rows: the numbers, one mapping per point, cell or image.
        notes: what a reader must know, one sentence each, such as the trustworthiness of a
            projection.
        style: ``screen``, or ``paper``: the width of a column or a page, text of 8 points, and the
            title as the first of ``notes``, for the caption.
    """

    figure: Figure
    rows: Sequence[Mapping[str, Any]]
    notes: tuple[str, ...] = ()
    style: Style = "screen"

    def save(self, path: str | Path, *, dpi: int = 150) -> tuple[Path, Path]:
        """Write the figure, and its numbers as CSV beside it; return both paths.

        Args:
            path: ends in ``.png``, ``.svg`` or ``.pdf``.
            dpi: dots per inch of a PNG.

        Raises:
            SpecError: if the path has another ending.
            StorageError: if the disk is full or cannot be written.
        """
        path = Path(path)
        check_format(path)
        numbers = path.with_suffix(".csv")
        # A figure of an article has exactly the width of its column.
        crop = self.style == "screen"
        write_file(path, figure_bytes(self.figure, path, dpi=dpi, crop=crop))
        write_file(numbers, csv_text(self.rows))
        return path, numbers

    def _repr_png_(self) -> bytes:
        return figure_bytes(self.figure, Path("figure.png"))


def _finish(
    figure: Figure,
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    style: Style,
    width: float,
    notes: Sequence[str] = (),
) -> Plot:
    """Return a figure with its numbers, in a style.

    Args:
        figure: drawn for the screen, with its title.
        rows: the numbers.
        title: of the figure, for the caption of an article.
        style: see ``Plot``.
        width: of the figure in an article, in inches.
        notes: see ``Plot``.
    """
    if style == "paper":
        fit_to_paper(figure, width)
        notes = [f"caption: {title}", *notes]
    return Plot(figure, rows, tuple(notes), style)


def projection_plot(
    projection: Projection,
    embeddings: Embeddings,
    groups: Sequence[str],
    *,
    title: str,
    thumbnails: Sequence[Pixels] = (),
    style: Style = "screen",
) -> Plot:
    """Draw a projection.

    Args:
        projection: of all rows of ``embeddings``, or a subsample of them.
        embeddings: the features that were projected.
        groups: group of each row of ``embeddings``, such as its class.
        title: what is drawn; method, number of images and trustworthiness are added.
        thumbnails: one per projected row.
        style: see ``Plot``.
    """
    names = sorted(set(groups))
    place_of = {name: place for place, name in enumerate(names)}
    shown = [groups[row] for row in projection.rows]
    places = np.array([place_of[name] for name in shown], np.int64)
    method = METHOD_NAMES[projection.method]
    quality = (
        f"trustworthiness {projection.trustworthiness:.3f} ({projection.neighbours} neighbours)"
    )
    title = f"{title}: {method}, n = {len(projection.rows)}, {quality}"
    figure = plot_projection(
        projection.positions, places, names, title=title, thumbnails=thumbnails
    )
    rows = []
    for row, (x, y), group in zip(projection.rows, projection.positions, shown, strict=True):
        rows.append({"id": embeddings.ids[row], "group": group, "x": float(x), "y": float(y)})
    notes = [f"{method} with seed {projection.seed}: {quality}"]
    if len(projection.rows) < len(embeddings):
        notes.append(f"a random {len(projection.rows)} of {len(embeddings)} images are drawn")
    width = PAGE if len(names) > _NAMED_GROUPS or thumbnails else COLUMN
    return _finish(figure, rows, title=title, style=style, width=width, notes=notes)


def confusion_plot(report: Report, *, title: str, style: Style = "screen") -> Plot:
    """Draw the confusion matrix of a run; the numbers are its cells that are not zero."""
    rows = []
    for true, predicted in np.argwhere(report.confusion > 0).tolist():
        rows.append(
            {
                "true": report.classes[true],
                "predicted": report.classes[predicted],
                "count": int(report.confusion[true, predicted]),
            }
        )
    width = PAGE if len(report.classes) > _COLUMN_CLASSES else COLUMN
    figure = plot_confusion(
        report.confusion,
        report.classes,
        title=title,
        width=width if style == "paper" else None,
    )
    return _finish(figure, rows, title=title, style=style, width=width)


def reliability_plot(report: Report, *, title: str, style: Style = "screen") -> Plot:
    """Draw the reliability diagram of a run.

    Raises:
        DataError: if the head gives no probabilities.
    """
    if not report.reliability:
        raise DataError("this head gives no probabilities, so there is no reliability diagram")
    rows = []
    for name, bins in (
        ("uncalibrated", report.reliability),
        ("calibrated", report.reliability_calibrated),
    ):
        for each in bins:
            low, high = each.interval95
            rows.append(
                {
                    "scores": name,
                    "confidence": each.confidence,
                    "accuracy": each.accuracy,
                    "low95": low,
                    "high95": high,
                    "images": each.count,
                }
            )
    figure = plot_reliability(
        report.reliability,
        title=title,
        calibrated=report.reliability_calibrated,
        temperature=report.plotted_temperature,
    )
    width = PAGE if report.reliability_calibrated else COLUMN
    return _finish(figure, rows, title=title, style=style, width=width)


def curves_plot(histories: Mapping[str, History], *, title: str, style: Style = "screen") -> Plot:
    """Draw the training curves of runs, by name; the numbers are their epochs."""
    rows = []
    for name, history in histories.items():
        rows += [{"run": name, **epoch} for epoch in history]
    figure = plot_histories(histories, title=title)
    return _finish(figure, rows, title=title, style=style, width=PAGE)


def learning_curve_plot(
    scores: Sequence[FewShotScore], data: str, *, style: Style = "screen"
) -> Plot:
    """Draw test accuracy over training images per class.

    Args:
        scores: of one or more heads.
        data: name of the images.
        style: see ``Plot``.
    """
    rows = []
    for score in scores:
        low, high = score.interval95
        rows.append(
            {
                "head": score.head,
                "images per class": score.shot,
                "top1": score.mean,
                "low95": low,
                "high95": high,
                "draws": score.draws,
                "n": "" if score.n is None else score.n,
            }
        )
    figure = learning_curve_figure(scores, data)
    title = learning_curve_title(scores, data)
    return _finish(figure, rows, title=title, style=style, width=COLUMN)


def pareto_plot(networks: Sequence[MeasuredNetwork], *, style: Style = "screen") -> Plot:
    """Draw accuracy over latency of profiled networks; the numbers say which are on the front."""
    points = [
        ParetoPoint(each.name, each.latency_ms, each.top1, each.interval95) for each in networks
    ]
    front = {point.name for point in pareto_front(points)}
    rows = []
    for each in networks:
        low, high = each.interval95
        rows.append(
            {
                "network": each.name,
                "latency_ms": each.latency_ms,
                "top1": each.top1,
                "low95": low,
                "high95": high,
                "n": each.n,
                "on_front": each.name in front,
            }
        )
    title = f"{len(networks)} networks, n = {networks[0].n} test images"
    # Names have their places on a figure of the final size.
    figure = plot_pareto(points, title=title, width=COLUMN if style == "paper" else None)
    return _finish(figure, rows, title=title, style=style, width=COLUMN)


def filters_plot(filters: NDArray[np.float32], *, title: str, style: Style = "screen") -> Plot:
    """Draw the kernels ``(n, h, w, 3)`` of a first convolution, the largest norm first."""
    norms = np.sqrt((filters**2).sum(axis=(1, 2, 3)))
    order = np.argsort(-norms, kind="stable")
    images = filters_to_images(filters[order])
    lines = []
    for start in range(0, len(images), _FILTERS_ACROSS):
        lines.append(list(images[start : start + _FILTERS_ACROSS]))
    rows = [{"filter": int(number), "norm": float(norms[number])} for number in order]
    side = PAGE / _FILTERS_ACROSS if style == "paper" else 0.5
    figure = plot_image_grid(lines, title=title, side=side)
    return _finish(figure, rows, title=title, style=style, width=PAGE)


def feature_maps_plot(
    stages: Mapping[str, NDArray[np.float32]],
    image: Pixels,
    *,
    title: str,
    style: Style = "screen",
) -> Plot:
    """Draw the channels of the largest mean activation after each stage of a network.

    Args:
        stages: maps ``(c, h, w)`` by stage.
        image: the image as the network sees it.
        title: of the figure.
        style: see ``Plot``.
    """
    images, names, rows = [], [], []
    for stage, maps in stages.items():
        means = maps.mean(axis=(1, 2))
        order = np.argsort(-means, kind="stable")[:_CHANNELS]
        images.append([image, *maps[order]])
        names.append(f"{stage}: {'x'.join(map(str, maps.shape))}")
        for channel in order.tolist():
            rows.append({"stage": stage, "channel": channel, "mean": float(means[channel])})
    side = (PAGE - _NAMES_WIDTH) / (_CHANNELS + 1) if style == "paper" else _GRID_SIDE
    figure = plot_image_grid(images, title=title, row_names=names, side=side)
    return _finish(figure, rows, title=title, style=style, width=PAGE)


def cam_plot(
    maps: Sequence[ClassActivationMap],
    names: Sequence[str],
    scores: Sequence[Faithfulness],
    *,
    title: str,
    style: Style = "screen",
) -> Plot:
    """Draw class activation maps.

    Args:
        maps: one per image.
        names: of the images.
        scores: deletion and insertion score of each map.
        title: of the figure, with the method.
        style: see ``Plot``.
    """
    mapped, rows = [], []
    for found, name, score in zip(maps, names, scores, strict=True):
        lines = (
            f"{found.label} {100 * found.probability:.0f}%",
            f"deletion {score.deletion:.2f}",
            f"insertion {score.insertion:.2f}",
            Path(name).name,
        )
        mapped.append(MappedImage(found.image, found.heat, lines))
        rows.append(
            {
                "image": name,
                "class": found.label,
                "probability": found.probability,
                "predicted": found.predicted,
                "deletion": score.deletion,
                "insertion": score.insertion,
            }
        )
    notes = (
        "deletion: area under the probability as the most important pixels are removed first "
        "(lower is better); insertion: as they are added first (higher is better)",
    )
    n_lines = -(-len(mapped) // (_PAPER_CAMS if style == "paper" else _CAMS))
    columns = -(-len(mapped) // n_lines)
    width = PAGE if columns > _COLUMN_CAMS else COLUMN
    side = min(width / columns, CAM_SIDE) if style == "paper" else CAM_SIDE
    figure = plot_cam(mapped, title=title, columns=columns, side=side)
    return _finish(figure, rows, title=title, style=style, width=width, notes=notes)


def neighbours_plot(
    similar: SimilarImages, pictures: Mapping[str, Pixels], *, style: Style = "screen"
) -> Plot:
    """Draw the most similar training images of each query.

    Args:
        similar: the queries and what was found.
        pictures: pixels of the images found, by name; a missing one is drawn as an empty tile.
        style: see ``Plot``.
    """
    drawn: dict[str, tuple[list[Pixels], list[str]]] = {}
    for name, picture in zip(similar.queries, similar.pictures, strict=True):
        drawn[name] = [thumbnail(picture)], [Path(name).name]
    rows = similar.rows()
    for row in rows:
        images, lines = drawn[row["image"]]
        images.append(thumbnail(pictures.get(row["similar"], _BLANK)))
        lines.append(f"{row['cosine']:.3f} {row['class']}: {row['similar']}")
    tiles = [Tile(tuple(images), tuple(lines)) for images, lines in drawn.values()]
    title = f"Similar training images of {similar.data}, {similar.backbone}"
    heading = "image, then the most similar ones by cosine similarity"
    return _contact_plot(tiles, rows, heading=heading, title=title, style=style)


def suggestions_plot(
    suggestions: Suggestions, pictures: Mapping[str, Pixels], *, title: str
) -> Plot:
    """Draw the first images that are suggested for labelling.

    Args:
        suggestions: the images.
        pictures: their pixels by path; a missing one is drawn as an empty tile.
        title: of the figure.
    """
    tiles = []
    for each in suggestions.images[:MOST_SUGGESTIONS]:
        lines = (
            f"{each.predicted} {100 * each.confidence:.0f}%",
            f"{each.top2} {100 * each.confidence2:.0f}%",
            Path(each.path).name,
        )
        tiles.append(Tile((thumbnail(pictures.get(each.path, _BLANK)),), lines))
    heading = (
        f"First {len(tiles)} of {len(suggestions.images)} suggestions from {suggestions.pool} "
        "images, with the two most probable classes"
    )
    return _contact_plot(tiles, suggestions.rows(), heading=heading, title=title, style="screen")


def mistakes_plot(
    mistakes: Sequence[InspectedImage],
    *,
    total: int,
    explanation: str,
    title: str,
    style: Style = "screen",
) -> Plot:
    """Draw the most confident mistakes, each with its class activation map.

    Args:
        mistakes: the most confident first.
        total: number of all mistakes.
        explanation: how the maps were computed; empty without them.
        title: of the figure.
        style: see ``Plot``.
    """
    tiles, rows = [], []
    for each in mistakes:
        image = _BLANK if each.image is None else each.image
        mapped = image if each.heat is None else overlay(image, each.heat)
        lines = (
            f"{each.predicted} {100 * each.confidence:.0f}%",
            f"labelled {each.true}",
            each.id,
        )
        tiles.append(Tile((thumbnail(image), thumbnail(mapped)), lines))
        rows.append(
            {
                "id": each.id,
                "true": each.true,
                "predicted": each.predicted,
                "confidence": each.confidence,
            }
        )
    heading = f"{len(tiles)} most confident of {total} mistakes. {explanation}"
    return _contact_plot(tiles, rows, heading=heading, title=title, style=style)


def _contact_plot(
    tiles: Sequence[Tile],
    rows: Sequence[Mapping[str, Any]],
    *,
    heading: str,
    title: str,
    style: Style,
) -> Plot:
    """Draw tiles under a heading; in an article the heading is part of the caption."""
    if style == "paper":
        across = max(_PAPER_ACROSS, len(tiles[0].images))
        across -= across % len(tiles[0].images)  # no empty place at the end of a row
        figure = plot_contact([Section("", tiles)], title="", across=across)
    else:
        figure = plot_contact([Section(heading, tiles)], title=title)
    return _finish(figure, rows, title=f"{title}. {heading}", style=style, width=PAGE)


def perturbations_plot(image: Pixels, *, seed: int, title: str, style: Style = "screen") -> Plot:
    """Draw an image under every family of perturbations at every level."""
    images, rows = [], []
    for family in PERTURBATIONS:
        line = [image]
        for level in LEVELS:
            perturbation = parse_perturbation(f"{family}:level={level}")
            line.append(perturb(image, perturbation, image_rng(seed, family)))
            parameters = PERTURBATIONS[family].parameters(level).items()
            text = ", ".join(f"{name}={value}" for name, value in parameters)
            rows.append({"family": family, "level": level, "parameters": text})
        images.append(line)
    figure = plot_image_grid(
        images,
        title=title,
        row_names=list(PERTURBATIONS),
        column_names=["original", *LEVELS],
        side=_PAPER_PERTURBED if style == "paper" else _GRID_SIDE,
    )
    return _finish(figure, rows, title=title, style=style, width=COLUMN)
