"""Features of images in two dimensions, as the page Map shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.app.views import jpeg_uri
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.store import entries
from featkit.errors import DataError, FeatkitError, visible
from featkit.evaluation.projection import Projection, project
from featkit.images.base import ImageSet
from featkit.runs.directory import load_run
from featkit.runs.features import FeatureSet, load_features
from featkit.runs.results import read_any_run
from featkit.storage import csv_text, safe_cell
from featkit.studies.inspect import ImageReader, cached_run_features

COLOURS = ("label", "prediction", "error", "split")
"""What the colours of a map can be; prediction and error need a run."""

NO_PREDICTION = "no prediction"
MAX_LEGEND = 24
"""With more groups, the legend would be larger than the map."""

_PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#b8860b",
    "#56b4e9",
    "#7a4fbf",
    "#8c564b",
    "#7f7f7f",
    "#17a2a2",
)
_SIDE = 40
# A transparent pixel.
_BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@dataclass(frozen=True)
class FeatureMap:
    """Images in two dimensions.

    Attributes:
        data: name of the images.
        projection: positions of the rows that were projected.
        names, labels, splits, predictions: of each projected image; ``predictions`` is empty for
            images without one.
        pictures: data URIs of thumbnails; empty texts where an image cannot be read.
    """

    data: str
    projection: Projection
    names: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    predictions: tuple[str, ...]
    pictures: tuple[str, ...]

    @property
    def has_predictions(self) -> bool:
        """Whether there is a prediction for any image."""
        return any(self.predictions)

    def groups(self, colour: str) -> list[str]:
        """Return the group of each image by one of ``COLOURS``."""
        if colour == "label":
            return list(self.labels)
        if colour == "split":
            return list(self.splits)
        if colour == "prediction":
            return [each or NO_PREDICTION for each in self.predictions]
        groups = []
        for predicted, label in zip(self.predictions, self.labels, strict=True):
            right = "right" if predicted == label else "wrong"
            groups.append(right if predicted else NO_PREDICTION)
        return groups


def cached_features(cache: Path) -> dict[str, str]:
    """Return the cache files by path, with a name each: images and network; newest first."""
    good, _ = entries(cache)
    named = {}
    for entry in good:
        request = entry.provenance.get("request", {})
        if request.get("part") or request.get("perturb"):
            continue
        network = Path(str(request.get("backbone", ""))).name
        data = entry.provenance.get("data", entry.path.stem)
        named[str(entry.path)] = (
            f"{data}, {network}, {entry.rows:,} images ({entry.path.stem[-6:]})"
        )
    return named


@dataclass(frozen=True)
class MapChoice:
    """How features are projected.

    Attributes:
        method: see ``evaluation.projection.project``.
        most: a random sample of this size is projected if there are more images.
        split: ``train``, ``val``, ``test`` or ``all``.
        seed: of the projection and of the sample.
    """

    method: str = "tsne"
    most: int = 1000
    split: str = "test"
    seed: int = 0


def map_of_file(path: Path, choice: MapChoice) -> FeatureMap:
    """Project the features of a cache file.

    Raises:
        CacheError: if the file is damaged.
        DataError: if there are fewer than four images.
    """
    return _map(load_features({}, path, Compute(), multilabel=True), {}, choice)


def map_of_run(path: Path, cache: Path, choice: MapChoice) -> FeatureMap:
    """Project the features of a run, with its predictions of the test images.

    Raises:
        RunError: if the run was changed.
        DataError: if its features are not cached, or there are fewer than four images.
    """
    run = load_run(path, multilabel=True)
    features = cached_run_features(run, cache, Compute())
    if features is None:
        raise DataError(f"the features of {path} are not in {cache}: fit it again")
    _, _, predictions = read_any_run(path)
    # With several labels per image, a class is a set of labels, as among the features.
    class_of = {safe_cell(name): name for name in features.embeddings.classes}
    predicted = {}
    for name, label in zip(predictions.ids, predictions.predicted, strict=True):
        predicted[name] = class_of.get(str(label), str(label))
    return _map(features, predicted, choice)


def _map(features: FeatureSet, predicted: dict[str, str], choice: MapChoice) -> FeatureMap:
    embeddings = features.embeddings
    if choice.split != "all":
        embeddings = embeddings.part(choice.split)
    projection = project(embeddings.x, choice.method, seed=choice.seed, max_rows=choice.most)
    shown = embeddings.take(projection.rows)
    try:
        images = features.request.load_images()
    except FeatkitError:  # the map is shown without images
        images = None
    return FeatureMap(
        data=features.data,
        projection=projection,
        names=shown.ids,
        labels=tuple(shown.classes[label] for label in shown.y),
        splits=tuple(str(each) for each in shown.splits),
        predictions=tuple(predicted.get(str(safe_cell(name)), "") for name in shown.ids),
        pictures=tuple(_thumbnails(images, shown.ids)),
    )


def _thumbnails(images: ImageSet | None, names: Sequence[str]) -> list[str]:
    """Return data URIs of small images; empty texts where an image cannot be read."""
    uris = []
    for pixels in ImageReader(images).many(names, _SIDE):
        uris.append("" if pixels is None else jpeg_uri(pixels, quality=60))
    return uris


def map_columns(found: FeatureMap, colour: str) -> dict[str, list[Any]]:
    """Return what the chart shows of each image, by column."""
    positions: NDArray[np.float64] = found.projection.positions
    captions = []
    for name, label, predicted in zip(found.names, found.labels, found.predictions, strict=True):
        differs = predicted and predicted != label
        text = f"{label}, predicted {predicted}" if differs else label
        captions.append(visible(f"{name}: {text}"))
    return {
        "x": positions[:, 0].round(3).tolist(),
        "y": positions[:, 1].round(3).tolist(),
        "group": [visible(group) for group in found.groups(colour)],
        "caption": captions,
        "image": [picture or _BLANK for picture in found.pictures],
    }


def chart_options(columns: dict[str, list[Any]]) -> dict[str, Any]:
    """Return the options of an ECharts scatter plot with box and lasso selection.

    The data are added by the page. The legend switches groups off and on.
    """
    groups = sorted(set(columns["group"]))
    small = len(groups) <= MAX_LEGEND
    axis = {"type": "value", "scale": True, "show": False}
    return {
        "animation": False,
        "grid": {"left": 8, "right": 8, "top": 40, "bottom": 64 if small else 8},
        "xAxis": axis,
        "yAxis": axis,
        "tooltip": {
            "confine": True,
            "formatter": f'<img src="{{@image}}" alt="" width="{2 * _SIDE}" height="{2 * _SIDE}" '
            'style="display:block"><div style="max-width:16rem;white-space:normal;'
            'overflow-wrap:anywhere">{@caption}</div>',
        },
        "toolbox": {
            "left": 0,
            "top": 0,
            "itemSize": 22,
            "itemGap": 12,
            "padding": 4,
            "feature": {"brush": {"type": ["rect", "polygon", "clear"]}},
        },
        "brush": {
            "xAxisIndex": 0,
            "yAxisIndex": 0,
            "throttleType": "debounce",
            "throttleDelay": 300,
            "outOfBrush": {"colorAlpha": 0.15},
        },
        "dataZoom": [{"type": "inside", "xAxisIndex": 0}, {"type": "inside", "yAxisIndex": 0}],
        "visualMap": {
            "type": "piecewise",
            "dimension": "group",
            "categories": groups,
            "show": small,
            "orient": "horizontal",
            "left": 0,
            "bottom": 0,
            "itemSymbol": "circle",
            "inRange": {"color": [_colour(place, len(groups)) for place in range(len(groups))]},
        },
        "series": [
            {
                "type": "scatter",
                "symbolSize": 8 if len(columns["x"]) <= 1000 else 5,
                "encode": {"x": "x", "y": "y"},
                "itemStyle": {"opacity": 0.85},
            }
        ],
    }


def _colour(place: int, count: int) -> str:
    if count <= len(_PALETTE):
        return _PALETTE[place]
    return f"hsl({round(360 * place * 0.618034) % 360}, 65%, 50%)"


def selection_csv(found: FeatureMap, rows: Sequence[int]) -> str:
    """Return selected images as CSV: name, class, split, prediction and position."""
    lines = []
    for row in rows:
        x, y = found.projection.positions[row]
        lines.append(
            {
                "path": found.names[row],
                "label": found.labels[row],
                "split": found.splits[row],
                "predicted": found.predictions[row],
                "x": f"{x:.4f}",
                "y": f"{y:.4f}",
            }
        )
    return csv_text(lines, ["path", "label", "split", "predicted", "x", "y"])


def selected_rows(selection: Any, count: int) -> list[int]:
    """Return the rows that a selection of the chart contains, ascending; others are left out.

    Args:
        selection: ``selected`` of the chart's state: a list of groups with ``data_indices``.
        count: number of rows.
    """
    rows: set[int] = set()
    for group in selection or []:
        for index in group.get("data_indices", []):
            if isinstance(index, int) and 0 <= index < count:
                rows.add(index)
    return sorted(rows)
