"""Inspect a run: its mistakes, what they resemble, and where its features lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.base import Embeddings
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.recipe import Recipe
from featkit.errors import DataError, FeatkitError
from featkit.evaluation.clusters import Clusters, proportion_interval
from featkit.evaluation.compare import PairedComparison, compare
from featkit.evaluation.drift import Drift, drift
from featkit.evaluation.intervals import Interval
from featkit.evaluation.neighbours import nearest_rows
from featkit.evaluation.predictions import Predictions
from featkit.evaluation.projection import Projection, project
from featkit.evaluation.report import Report
from featkit.heads.search import Candidate
from featkit.images.base import SPLITS, ImageSet, Pixels
from featkit.images.thumbnails import shrink, square
from featkit.parallel import in_threads
from featkit.runs.card import RESULTS_FILE, run_errors
from featkit.runs.directory import SavedRun
from featkit.runs.features import FeatureSet, leaks, load_features
from featkit.runs.results import read_run
from featkit.runs.splits import without_views
from featkit.storage import available_cores, read_json, safe_cell
from featkit.studies.explain import RunExplainer

MAX_SHOWN = 24
"""Mistakes that are shown, and half as many uncertain right answers."""
MAX_MAP_POINTS = 20_000
MAX_MAP_THUMBNAILS = 3_000
NEIGHBOURS = 3
_PAIRS = 8
_PAIR_EXAMPLES = 2
_EXPLAIN_BATCH = 16
_THUMBNAIL = 160
"""Longest side of a thumbnail, in pixels."""

Track = Callable[[Sequence[int]], Iterable[int]]
_Candidate = TypeVar("_Candidate")


@dataclass(frozen=True)
class SimilarImage:
    """A training image that resembles a test image.

    Attributes:
        id: name of the image.
        label: its class.
        cosine: cosine similarity of the features.
        image: thumbnail; None if the image cannot be read.
    """

    id: str
    label: str
    cosine: float
    image: Pixels | None


@dataclass(frozen=True)
class InspectedImage:
    """A test image with its prediction.

    Attributes:
        id: name of the image.
        true, predicted: names of its class and of the predicted one.
        confidence: calibrated probability of the predicted class; NaN where the head has none.
        image: thumbnail; None if the image cannot be read.
        heat: ``(h, w)`` class activation map of ``explained`` for ``image``, which is then the part
            of the image that the network sees; None without one.
        similar: most similar training images.
        label: of an image with several labels, the one that was missed or wrongly added, whose
            probability ``confidence`` is; empty for one label per image.
    """

    id: str
    true: str
    predicted: str
    confidence: float
    image: Pixels | None = None
    heat: NDArray[np.float32] | None = None
    similar: tuple[SimilarImage, ...] = ()
    label: str = ""

    @property
    def explained(self) -> str:
        """Name of the class or label that a class activation map explains."""
        return self.label or self.predicted


@dataclass(frozen=True)
class ConfusedImages:
    """Two classes that are confused often, with examples.

    Attributes:
        true, predicted: names of the classes.
        count: number of test images of the first that were predicted as the second.
        total: number of test images of the first.
        examples: some of them.
    """

    true: str
    predicted: str
    count: int
    total: int
    examples: tuple[InspectedImage, ...]


@dataclass(frozen=True)
class EmbeddingMap:
    """Test images in two dimensions.

    Attributes:
        projection: positions; ``projection.rows`` are rows of ``images``.
        images: the test images, in the order of the predictions.
        thumbnails: small square images of the first projected rows; empty if none can be read.
    """

    projection: Projection
    images: tuple[InspectedImage, ...]
    thumbnails: tuple[Pixels, ...]


@dataclass(frozen=True)
class FloatComparison:
    """A run of a lower precision compared with float32 features of the same images.

    Attributes:
        precision: of the run, such as ``int8``.
        drift: of the features of the test images from those in float32.
        top1, interval95: accuracy of the head of the run, unchanged, on the float32 features.
        paired: the run minus the head on the float32 features.
    """

    precision: str
    drift: Drift
    top1: float
    interval95: Interval
    paired: PairedComparison


@dataclass(frozen=True)
class RunInspection:
    """Everything that the report of a run shows.

    Attributes:
        run: the run.
        report: its evaluation.
        search: candidates of the hyperparameter search; empty if there was none.
        data: name of the images.
        mistakes: the most confident mistakes.
        uncertain: right answers of the lowest confidence.
        confused: most confused pairs of classes.
        embedding_map: None if the features are not available.
        counts: number of images by class and split; empty if the features are not available.
        shared: number of test images that are train or val images too, byte for byte; None if the
            features are not available.
        float_comparison: comparison with float32; None for a run in float32, or if its features are
            not in the cache.
        explanation: how the class activation maps were computed; empty if there are none.
        notes: what is missing and why, one sentence each.
    """

    run: SavedRun
    report: Report
    search: tuple[Candidate, ...]
    data: str
    mistakes: tuple[InspectedImage, ...]
    uncertain: tuple[InspectedImage, ...]
    confused: tuple[ConfusedImages, ...]
    embedding_map: EmbeddingMap | None
    counts: dict[str, dict[str, int]]
    shared: int | None
    float_comparison: FloatComparison | None
    explanation: str
    notes: tuple[str, ...]


def inspect_run(
    run: SavedRun,
    *,
    cache: Path,
    compute: Compute,
    projection: str = "tsne",
    seed: int = 0,
    heat_maps: bool = True,
    track: Track = iter,
    report_iteration: Callable[[int, int], None] | None = None,
) -> RunInspection:
    """Collect what the report of a run shows.

    Images and features are optional: what is missing is said in ``notes``.

    Args:
        run: a saved run.
        cache: folder of the embeddings cache.
        compute: device and batch size, where features have to be extracted.
        projection: method of the embedding map, see ``evaluation.projection.project``.
        seed: of the projection.
        heat_maps: whether class activation maps are computed.
        track: wraps the batches of class activation maps, for a progress bar.
        report_iteration: called with the iterations of the projection, see ``project``.

    Raises:
        RunError: if the results or the predictions of the run are missing or damaged.
    """
    _, report, predictions = read_run(run.path)
    notes: list[str] = []
    features = available_features(run, cache, compute, notes)
    if features and report.folds is not None:
        features = as_tested(features)
    images = available_images(run, predictions, notes)
    read = ImageReader(images)
    inspected = _predictions(predictions, report.classes)

    right = np.flatnonzero(predictions.correct)
    confidence = _confidence(predictions)
    mistakes = _most_confident_mistakes(predictions, MAX_SHOWN)
    uncertain = right[np.argsort(confidence[right], kind="stable")][: MAX_SHOWN // 2]
    explainer = open_explainer(run, images, compute, notes) if heat_maps else None
    shown = [inspected[row] for row in (*mistakes, *uncertain)]
    shown = with_pictures(shown, read, explainer, track, notes)
    if features and report.folds is None:
        shown = with_similar(shown, features.embeddings, read)

    embedding_map = None
    if features:
        embedding_map = map_embeddings(
            features,
            inspected,
            read,
            notes,
            method=projection,
            seed=seed,
            report_iteration=report_iteration,
        )
    return RunInspection(
        run=run,
        report=report,
        search=read_search(run, Candidate),
        data=features.data if features else Path(run.request.data).name,
        mistakes=tuple(shown[: len(mistakes)]),
        uncertain=tuple(shown[len(mistakes) :]),
        confused=_confused(report, inspected, read),
        embedding_map=embedding_map,
        counts=_counts(features.embeddings, folded=report.folds is not None) if features else {},
        shared=len(leaks(features)) if features and report.folds is None else None,
        float_comparison=(
            None if report.folds else _compare_with_float(run, features, cache, compute, notes)
        ),
        explanation=explanation_of(explainer, folded=report.folds is not None),
        notes=tuple(notes),
    )


def inspect_mistakes(
    run: SavedRun, predictions: Predictions, *, count: int, compute: Compute, track: Track = iter
) -> tuple[list[InspectedImage], int, str]:
    """Return the most confident mistakes with pictures, the number of all, and the method.

    The method is that of the class activation maps; it is empty if there are none.

    Args:
        run: the run.
        predictions: its predictions.
        count: number of mistakes to return at most.
        compute: device of the network.
        track: wraps the batches, for a progress bar.

    Raises:
        DataError: if the images are not available, or there is no mistake.
    """
    total = int((~predictions.correct).sum())
    if not total:
        raise DataError("every test image was classified correctly: there are no mistakes to draw")
    notes: list[str] = []
    images = available_images(run, predictions, notes)
    if images is None:
        raise DataError(notes[0])
    explainer = open_explainer(run, images, compute, notes)
    inspected = _predictions(predictions, run.classes)
    chosen = [inspected[row] for row in _most_confident_mistakes(predictions, count)]
    shown = with_pictures(chosen, ImageReader(images), explainer, track, notes)
    return shown, total, explainer.description if explainer else ""


def _most_confident_mistakes(predictions: Predictions, count: int) -> NDArray[np.int64]:
    wrong = np.flatnonzero(~predictions.correct)
    confidence = _confidence(predictions)[wrong]
    return wrong[np.argsort(-confidence, kind="stable")][:count]


def read_images(run: SavedRun, names: Iterable[str]) -> dict[str, Pixels]:
    """Read images of the data of a run by name; those that cannot be read are left out."""
    try:
        read = ImageReader(run.load_images())
    except FeatkitError:
        return {}
    found = {name: read(name) for name in names}
    return {name: pixels for name, pixels in found.items() if pixels is not None}


def read_search(run: SavedRun, kind: Callable[..., _Candidate]) -> tuple[_Candidate, ...]:
    """Return the candidates of the hyperparameter search of a run; empty if there was none.

    Args:
        run: the run.
        kind: class of its candidates.

    Raises:
        RunError: if the results of the run are damaged.
    """
    with run_errors(run.path):
        results = read_json(run.path / RESULTS_FILE)
        return tuple(kind(**candidate) for candidate in results.get("search", []))


def _predictions(predictions: Predictions, classes: Sequence[str]) -> list[InspectedImage]:
    """Return the predictions with the names of the classes, which ``predictions.csv`` escapes."""
    class_of = {safe_cell(name): name for name in classes}
    confidence = _confidence(predictions)
    inspected = []
    for row, name in enumerate(predictions.ids):
        inspected.append(
            InspectedImage(
                id=name,
                true=class_of.get(predictions.y[row], str(predictions.y[row])),
                predicted=class_of[predictions.predicted[row]],
                confidence=float(confidence[row]),
            )
        )
    return inspected


def _confidence(predictions: Predictions) -> NDArray[np.float64]:
    """Return the confidences, NaN where unknown."""
    if predictions.confidence is None:
        return np.full(len(predictions.ids), np.nan)
    return predictions.confidence


def run_features(run: SavedRun, cache: Path, compute: Compute) -> FeatureSet:
    """Return the features that a run was fitted and evaluated on, from the cache if they are there.

    Raises:
        FeatkitError: if they are not cached and cannot be extracted.
    """
    found = cached_run_features(run, cache, compute)
    if found is not None:
        return found
    run.check_images()
    given, folder = run.request.to_dict(), _cache_folder(cache)
    return load_features(given, folder, compute, multilabel=run.multilabel)


def cached_run_features(run: SavedRun, cache: Path, compute: Compute) -> FeatureSet | None:
    """Return the features that a run was fitted and evaluated on; None if they are not cached.

    Raises:
        CacheError: if the cache file is damaged.
    """
    cached = _cached_file(run.recipe, cache)
    if cached is None:
        return None
    return load_features({}, cached, compute, multilabel=run.multilabel)


def _cache_folder(cache: Path) -> Path:
    return cache.parent if cache.suffix == ".h5" else cache


def _cached_file(recipe: Recipe, cache: Path) -> Path | None:
    """Return the cache file with the features of a recipe, or None."""
    found = sorted(_cache_folder(cache).glob(f"*-{recipe.fingerprint[:12]}.h5"))
    return found[0] if found else None


def _compare_with_float(
    run: SavedRun, features: FeatureSet | None, cache: Path, compute: Compute, notes: list[str]
) -> FloatComparison | None:
    """Compare a run of lower precision with float32, if the cache has the float32 features."""
    precision = run.recipe.precision
    if precision == "fp32" or features is None:
        return None
    recipe = replace(run.recipe, precision="fp32", calibration="none")
    cached = _cached_file(recipe, cache)
    if cached is None:
        notes.append(
            f"There is no comparison of {precision} with float32: the cache has no float32 "
            "features of these images. Extract them with `featkit extract` and --precision fp32."
        )
        return None
    before = load_features({}, cached, compute).embeddings.part("test")
    after = features.embeddings.part("test")
    row_of = {name: row for row, name in enumerate(before.ids)}
    rows = [row for row, name in enumerate(after.ids) if name in row_of]
    after = after.take(np.array(rows, np.int64))
    before = before.take(np.array([row_of[name] for name in after.ids], np.int64))
    if len(after) < 2:
        notes.append(f"There is no comparison of {precision} with float32: no common test images.")
        return None
    groups = after.groups
    float_predictions = Predictions(before.ids, before.y, run.head.predict(before.x), groups=groups)
    own_predictions = Predictions(after.ids, after.y, run.head.predict(after.x), groups=groups)
    (paired,) = compare({precision: own_predictions, "float32": float_predictions})
    hits = int(float_predictions.correct.sum())
    return FloatComparison(
        precision=precision,
        drift=drift(before.x, after.x),
        top1=hits / len(after),
        interval95=proportion_interval(float_predictions.correct, Clusters.of(groups, len(after))),
        paired=paired,
    )


def explanation_of(explainer: RunExplainer | None, *, folded: bool) -> str:
    """Return how class activation maps were computed; empty without any."""
    if explainer is None:
        return ""
    if not folded:
        return explainer.description
    return f"{explainer.description}; of the head that was fitted on all images, these too"


def as_tested(features: FeatureSet) -> FeatureSet:
    """Return features with every image as a test image, as cross-validation uses them."""
    embeddings = without_views(features.embeddings)
    tested = replace(embeddings, splits=np.full(len(embeddings), "test"))
    return replace(features, embeddings=tested)


def available_features(
    run: SavedRun, cache: Path, compute: Compute, notes: list[str]
) -> FeatureSet | None:
    """Return the features of a run; without them None, and a note that says why."""
    try:
        return run_features(run, cache, compute)
    except FeatkitError as error:
        notes.append(f"The features are not available ({error}).")
        return None


def available_images(run: SavedRun, predictions: Predictions, notes: list[str]) -> ImageSet | None:
    """Return the images of the run's data, if they are still there."""
    try:
        images = run.load_images()
    except FeatkitError as error:
        notes.append(f"The images are not available, so none is shown ({error}).")
        return None
    missing = len(set(predictions.ids) - rows_by_cell(images.ids).keys())
    if missing:
        notes.append(
            f"{missing} of {len(predictions.ids)} test images are not in {run.request.data} any "
            "more and are not shown."
        )
    return images


def open_explainer(
    run: SavedRun, images: ImageSet | None, compute: Compute, notes: list[str]
) -> RunExplainer | None:
    """Return what computes class activation maps; without it None, and a note that says why."""
    if images is None:
        return None
    try:
        return RunExplainer(run, "cpu" if compute.device == "auto" else compute.device)
    except FeatkitError as error:
        notes.append(f"There are no class activation maps ({error}).")
        return None


def rows_by_cell(names: Sequence[str]) -> dict[str, int]:
    """Return the row of each name, by the text that stands for it in ``predictions.csv``."""
    return {safe_cell(name): row for row, name in enumerate(names)}


class ImageReader:
    """Read images by name, or by the cell of the name; an image that cannot be read is None.

    Args:
        images: the images, or None if there are none.
    """

    def __init__(self, images: ImageSet | None) -> None:
        self._images = images
        self._rows = rows_by_cell(images.ids) if images else {}

    @property
    def has_images(self) -> bool:
        """Whether there are images to read."""
        return self._images is not None

    def __call__(self, name: str) -> Pixels | None:
        """Return an image in full size."""
        row = self._rows.get(safe_cell(name))
        if self._images is None or row is None:
            return None
        try:
            return self._images.load(row)
        except FeatkitError:
            return None

    def thumbnail(self, name: str, side: int = _THUMBNAIL) -> Pixels | None:
        """Return an image scaled down so that its longer side is at most ``side`` pixels."""
        pixels = self(name)
        return None if pixels is None else shrink(pixels, side)

    def many(self, names: Sequence[str], side: int) -> list[Pixels | None]:
        """Return square thumbnails of many images, read in one thread per core."""

        def read(name: str) -> Pixels | None:
            pixels = self(name)
            return None if pixels is None else square(pixels, side)

        return list(in_threads(read, names, available_cores()))


def with_pictures(
    shown: Sequence[InspectedImage],
    read: ImageReader,
    explainer: RunExplainer | None,
    track: Track,
    notes: list[str],
) -> list[InspectedImage]:
    """Return the images with their pixels and class activation maps, as far as they can be read."""
    if explainer is None:
        return [replace(each, image=read.thumbnail(each.id)) for each in shown]
    pictured: list[InspectedImage] = []
    for start in track(range(0, len(shown), _EXPLAIN_BATCH)):
        pictured += _explained(shown[start : start + _EXPLAIN_BATCH], read, explainer)
    unreadable = sum(each.image is None for each in pictured)
    if unreadable:
        notes.append(f"{unreadable} of {len(shown)} images to show could not be read.")
    return pictured


def _explained(
    batch: Sequence[InspectedImage], read: ImageReader, explainer: RunExplainer
) -> list[InspectedImage]:
    """Return images with pixels and maps; those that cannot be read stay as they are."""
    explained = list(batch)
    places, prepared = [], []
    for place, each in enumerate(batch):
        pixels = read(each.id)
        if pixels is not None:
            places.append(place)
            prepared.append(explainer.prepare(pixels))
    if not places:
        return explained
    maps = explainer.explain(np.stack(prepared), [batch[place].explained for place in places])
    for place, found in zip(places, maps, strict=True):
        explained[place] = replace(batch[place], image=found.image, heat=found.heat)
    return explained


def with_similar(
    shown: Sequence[InspectedImage], embeddings: Embeddings, read: ImageReader
) -> list[InspectedImage]:
    """Return the images with their most similar training images."""
    train = without_views(embeddings.take(np.flatnonzero(embeddings.splits != "test")))
    test = embeddings.part("test")
    row_of = rows_by_cell(test.ids)
    known = [each for each in shown if each.id in row_of]
    if not known or not len(train):
        return list(shown)
    queries = test.x[[row_of[each.id] for each in known]]
    similar = similar_images(queries, train, NEIGHBOURS, read.thumbnail)
    similar_of = dict(zip((each.id for each in known), similar, strict=True))
    return [replace(each, similar=similar_of.get(each.id, ())) for each in shown]


def similar_images(
    queries: NDArray[np.floating[Any]],
    train: Embeddings,
    k: int,
    thumbnail: Callable[[str], Pixels | None],
) -> list[tuple[SimilarImage, ...]]:
    """Return the ``k`` training images most similar to each row of ``queries (q, d)``.

    Args:
        queries: features.
        train: features of the training images.
        k: number of images for each row; fewer if there are fewer training images.
        thumbnail: returns a small copy of an image by name, None if it cannot be read.
    """
    nearest = nearest_rows(queries, train.x, k)
    found = []
    for rows, cosines in zip(nearest.rows, nearest.cosines, strict=True):
        similar = []
        for row, cosine in zip(rows, cosines, strict=True):
            name, label = train.ids[row], train.classes[train.y[row]]
            similar.append(SimilarImage(name, label, float(cosine), thumbnail(name)))
        found.append(tuple(similar))
    return found


def _confused(
    report: Report, inspected: Sequence[InspectedImage], read: ImageReader
) -> tuple[ConfusedImages, ...]:
    """Return the most confused pairs of classes with example images."""
    totals = {each.name: each.n for each in report.per_class}
    pairs = []
    for pair in report.confused[:_PAIRS]:
        members = [
            each for each in inspected if (each.true, each.predicted) == (pair.true, pair.predicted)
        ]
        examples = []
        for each in members[:_PAIR_EXAMPLES]:
            examples.append(replace(each, image=read.thumbnail(each.id)))
        pairs.append(
            ConfusedImages(
                pair.true, pair.predicted, pair.count, totals[pair.true], tuple(examples)
            )
        )
    return tuple(pairs)


def map_embeddings(
    features: FeatureSet,
    inspected: Sequence[InspectedImage],
    read: ImageReader,
    notes: list[str],
    *,
    method: str,
    seed: int,
    report_iteration: Callable[[int, int], None] | None,
) -> EmbeddingMap | None:
    """Return the projection of the test images, with thumbnails; the options are of ``project``."""
    test = features.embeddings.part("test")
    row_of = rows_by_cell(test.ids)
    known = tuple(each for each in inspected if each.id in row_of)
    x = test.x[[row_of[each.id] for each in known]]
    try:
        projection = project(
            x,
            method=method,
            seed=seed,
            max_rows=MAX_MAP_POINTS,
            report_iteration=report_iteration,
        )
    except DataError as error:
        notes.append(f"There is no embedding map ({error}).")
        return None
    if len(projection.rows) < len(known):
        notes.append(
            f"The embedding map shows a random {len(projection.rows):,} of {len(known):,} images."
        )
    # A browser decodes one sprite of thumbnails; more of them would make the file too large.
    side = 32 if len(projection.rows) > 1_000 else 48
    names = [known[row].id for row in projection.rows[:MAX_MAP_THUMBNAILS]]
    thumbnails = read.many(names, side) if read.has_images else []
    blank = np.full((side, side, 3), 128, np.uint8)
    return EmbeddingMap(
        projection=projection,
        images=known,
        thumbnails=tuple(blank if each is None else each for each in thumbnails),
    )


def _counts(embeddings: Embeddings, *, folded: bool) -> dict[str, dict[str, int]]:
    """Return the number of images of each class in each split, or of all if there are folds."""
    counts = {}
    for label, name in enumerate(embeddings.classes):
        counts[name] = split_counts(embeddings.splits[embeddings.y == label], folded=folded)
    return counts


def split_counts(splits: NDArray[np.str_], *, folded: bool) -> dict[str, int]:
    """Return the number of images in each split, or of all if there are folds."""
    if folded:
        return {"images": len(splits)}
    return {split: int((splits == split).sum()) for split in SPLITS}
