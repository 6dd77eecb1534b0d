"""Draw one picture of a run, a network or images, with the numbers behind it.

``api.plot`` gathers the inputs; nothing here computes a statistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from featkit.embeddings.base import Embeddings
from featkit.errors import DataError
from featkit.evaluation.audit import Neighbours
from featkit.evaluation.projection import METHOD_NAMES, Projection
from featkit.evaluation.report import Report
from featkit.images.base import Pixels
from featkit.images.perturb import LEVELS, PERTURBATIONS, image_rng, parse_perturbation, perturb
from featkit.plots.cam import MappedImage, overlay, plot_cam
from featkit.plots.confusion import plot_confusion
from featkit.plots.contact import Section, Tile, plot_contact, thumbnail
from featkit.plots.files import check_format, figure_bytes
from featkit.plots.image_grid import filters_to_images, plot_image_grid
from featkit.plots.projection import plot_projection
from featkit.plots.reliability import plot_reliability
from featkit.storage import csv_text, write_file
from featkit.studies.explain import ClassActivationMap, Faithfulness
from featkit.studies.inspect import InspectedImage

_FILTERS_ACROSS = 16
_CHANNELS = 12


@dataclass(frozen=True)
class Plot:
    """A figure with the numbers behind it.

    Attributes:
        figure: the drawing.
        rows: the numbers, one mapping per point, cell or image.
        notes: what a reader must know, one sentence each, such as the trustworthiness of a
            projection.
    """

    figure: Figure
    rows: Sequence[Mapping[str, Any]]
    notes: tuple[str, ...] = ()

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
        write_file(path, figure_bytes(self.figure, path, dpi=dpi))
        write_file(numbers, csv_text(self.rows))
        return path, numbers

    def _repr_png_(self) -> bytes:
        return figure_bytes(self.figure, Path("figure.png"))


def projection_plot(
    projection: Projection,
    embeddings: Embeddings,
    groups: Sequence[str],
    *,
    title: str,
    thumbnails: Sequence[Pixels] = (),
) -> Plot:
    """Draw a projection.

    Args:
        projection: of all rows of ``embeddings``, or a subsample of them.
        embeddings: the features that were projected.
        groups: group of each row of ``embeddings``, such as its class.
        title: what is drawn; method, number of images and trustworthiness are added.
        thumbnails: one per projected row.
    """
    names = sorted(set(groups))
    place_of = {name: place for place, name in enumerate(names)}
    shown = [groups[row] for row in projection.rows]
    places = np.array([place_of[name] for name in shown], np.int64)
    method = METHOD_NAMES[projection.method]
    quality = (
        f"trustworthiness {projection.trustworthiness:.3f} ({projection.neighbours} neighbours)"
    )
    figure = plot_projection(
        projection.positions,
        places,
        names,
        title=f"{title}: {method}, n = {len(projection.rows)}, {quality}",
        thumbnails=thumbnails,
    )
    rows = []
    for row, (x, y), group in zip(projection.rows, projection.positions, shown, strict=True):
        rows.append({"id": embeddings.ids[row], "group": group, "x": float(x), "y": float(y)})
    notes = [f"{method} with seed {projection.seed}: {quality}"]
    if len(projection.rows) < len(embeddings):
        notes.append(f"a random {len(projection.rows)} of {len(embeddings)} images are drawn")
    return Plot(figure, rows, tuple(notes))


def confusion_plot(report: Report, *, title: str) -> Plot:
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
    return Plot(plot_confusion(report.confusion, report.classes, title=title), rows)


def reliability_plot(report: Report, *, title: str) -> Plot:
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
        temperature=report.temperature.value if report.temperature else None,
    )
    return Plot(figure, rows)


def filters_plot(filters: NDArray[np.float32], *, title: str) -> Plot:
    """Draw the kernels ``(n, h, w, 3)`` of a first convolution, the largest norm first."""
    norms = np.sqrt((filters**2).sum(axis=(1, 2, 3)))
    order = np.argsort(-norms, kind="stable")
    images = filters_to_images(filters[order])
    lines = []
    for start in range(0, len(images), _FILTERS_ACROSS):
        lines.append(list(images[start : start + _FILTERS_ACROSS]))
    rows = [{"filter": int(number), "norm": float(norms[number])} for number in order]
    return Plot(plot_image_grid(lines, title=title, side=0.5), rows)


def feature_maps_plot(
    stages: Mapping[str, NDArray[np.float32]], image: Pixels, *, title: str
) -> Plot:
    """Draw the channels of the largest mean activation after each stage of a network.

    Args:
        stages: maps ``(c, h, w)`` by stage.
        image: the image as the network sees it.
        title: of the figure.
    """
    images, names, rows = [], [], []
    for stage, maps in stages.items():
        means = maps.mean(axis=(1, 2))
        order = np.argsort(-means, kind="stable")[:_CHANNELS]
        images.append([image, *maps[order]])
        names.append(f"{stage}: {'x'.join(map(str, maps.shape))}")
        for channel in order.tolist():
            rows.append({"stage": stage, "channel": channel, "mean": float(means[channel])})
    return Plot(plot_image_grid(images, title=title, row_names=names), rows)


def cam_plot(
    maps: Sequence[ClassActivationMap],
    names: Sequence[str],
    scores: Sequence[Faithfulness],
    *,
    title: str,
) -> Plot:
    """Draw class activation maps.

    Args:
        maps: one per image.
        names: of the images.
        scores: deletion and insertion score of each map.
        title: of the figure, with the method.
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
    return Plot(plot_cam(mapped, title=title), rows, notes)


def neighbours_plot(
    found: Neighbours,
    query_names: Sequence[str],
    query_images: Sequence[Pixels],
    embeddings: Embeddings,
    pictures: Mapping[str, Pixels],
    *,
    title: str,
) -> Plot:
    """Draw the most similar images of each query.

    Args:
        found: rows of ``embeddings`` most similar to each query.
        query_names: names of the queries.
        query_images: their pixels.
        embeddings: the images that were searched.
        pictures: pixels of the images found, by name; a missing one is drawn as an empty tile.
        title: of the figure.
    """
    tiles, rows = [], []
    blank = np.full((64, 64, 3), 230, np.uint8)
    for query, name in enumerate(query_names):
        images, lines = [thumbnail(query_images[query])], [Path(name).name]
        for rank, (row, cosine) in enumerate(
            zip(found.rows[query], found.cosines[query], strict=True), start=1
        ):
            label = embeddings.classes[embeddings.y[row]]
            images.append(thumbnail(pictures.get(embeddings.ids[row], blank)))
            lines.append(f"{cosine:.3f} {label}: {embeddings.ids[row]}")
            rows.append(
                {
                    "image": name,
                    "rank": rank,
                    "similar": embeddings.ids[row],
                    "class": label,
                    "cosine": float(cosine),
                }
            )
        tiles.append(Tile(tuple(images), tuple(lines)))
    heading = "image, then the most similar ones by cosine similarity"
    return Plot(plot_contact([Section(heading, tiles)], title=title), rows)


def mistakes_plot(
    mistakes: Sequence[InspectedImage], *, total: int, explanation: str, title: str
) -> Plot:
    """Draw the most confident mistakes, each with its class activation map.

    Args:
        mistakes: the most confident first.
        total: number of all mistakes.
        explanation: how the maps were computed; empty without them.
        title: of the figure.
    """
    tiles, rows = [], []
    blank = np.full((64, 64, 3), 230, np.uint8)
    for each in mistakes:
        image = blank if each.image is None else each.image
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
    return Plot(plot_contact([Section(heading, tiles)], title=title), rows)


def perturbations_plot(image: Pixels, *, seed: int, title: str) -> Plot:
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
        images, title=title, row_names=list(PERTURBATIONS), column_names=["original", *LEVELS]
    )
    return Plot(figure, rows)
