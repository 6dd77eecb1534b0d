"""Write the report of a run, and draw single pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.api.options import (
    COMPUTE_OPTIONS,
    PathLike,
    log,
    make_compute,
    network_spec,
    run_or_path,
)
from featkit.api.progress import batch_bar, iteration_bar
from featkit.api.runs import load_plain_run, load_run
from featkit.arguments import FLAG, PATH, SEED, checked, integer, several, text
from featkit.errors import DataError, OptionsError, SpecError

if TYPE_CHECKING:
    from featkit.embeddings.base import Embeddings
    from featkit.evaluation.predictions import Predictions
    from featkit.reports.pictures import Plot, Style
    from featkit.runs.directory import SavedRun
    from featkit.runs.fit import Run
    from featkit.studies.fewshot import FewShotScore
    from featkit.studies.neighbours import SimilarImages

PLOT_KINDS = {
    "projection": "features in two dimensions (PCA, t-SNE, UMAP)",
    "confusion": "confusion matrix",
    "reliability": "reliability diagram",
    "mistakes": "the most confident mistakes",
    "cam": "class activation maps of images",
    "neighbours": "the most similar training images",
    "filters": "kernels of the first convolution",
    "feature-maps": "channels after each stage of the network",
    "curves": "loss and accuracy by epoch of a trained network",
    "learning-curve": "test accuracy over the number of training images",
    "pareto": "accuracy over latency of profiled networks",
    "perturbations": "one image under every perturbation",
}
"""Kinds of pictures of ``plot``."""


@checked(
    **COMPUTE_OPTIONS,
    run=run_or_path(),
    out=PATH,
    projection=text("tsne"),
    heat_maps=FLAG,
    seed=SEED,
    cache=PATH,
)
def report(
    run: PathLike | Run | SavedRun,
    *,
    out: PathLike | None = None,
    projection: str = "tsne",
    heat_maps: bool = True,
    seed: int = 0,
    cache: PathLike = "cache",
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> Path:
    """Write the report of a run: one HTML page that needs no network and no other file.

    It shows accuracy with its interval, mistakes with class activation maps and similar training
    images, the confusion matrix, an interactive embedding map, calibration, the data, and how to
    use and repeat the run. With several labels per image it shows the mean average precision, the
    metrics and calibration of each label, and the labels that were missed and wrongly added. Images
    or features that are not available are left out, and the page says so.

    Args:
        run: a run directory.
        out: path of the page; None for ``report.html`` in the run directory.
        projection: method of the embedding map: ``tsne``, ``pca``, ``opentsne`` or ``umap``.
        heat_maps: whether class activation maps are computed.
        seed: seed of the projection.
        cache: folder of the embeddings cache.
        device, batch_size, workers, engine, compile, on_error, progress: as for ``extract``.

    Returns:
        The path of the page.

    Raises:
        RunError: if the run is not found or was changed.
        MissingExtraError: if the projection needs an extra that is not installed.
        StorageError: if the page cannot be written.

    Example:
        >>> featkit.report("colours", heat_maps=False).name
        'report.html'
    """
    options = locals()
    from featkit.reports.labels import labels_report
    from featkit.reports.run import run_report
    from featkit.storage import write_file
    from featkit.studies.inspect import inspect_run
    from featkit.studies.inspect_labels import inspect_labels

    saved = load_run(run)
    with iteration_bar(f"{projection} of the test images", progress) as show:
        shared: dict[str, Any] = {
            "cache": Path(cache),
            "compute": make_compute(options),
            "projection": projection,
            "seed": seed,
            "heat_maps": heat_maps,
            "track": batch_bar("class activation maps", progress),
            "report_iteration": show,
        }
        if saved.multilabel:
            found = inspect_labels(saved, **shared)
            page, notes = labels_report(found), found.notes
        else:
            inspection = inspect_run(saved, **shared)
            page, notes = run_report(inspection), inspection.notes
    path = Path(out) if out is not None else saved.path / "report.html"
    write_file(path, page)
    for line in notes:
        log.warning(line)
    log.info("report: %s", path)
    return path


@checked(
    **COMPUTE_OPTIONS,
    kind=text("projection"),
    target=run_or_path(),
    images=several(PATH),
    out=PATH,
    label=text("cat"),
    colour=text("error"),
    method=text("tsne"),
    thumbnails=FLAG,
    count=integer(1),
    seed=SEED,
    dpi=integer(30, 1200),
    style=text("paper"),
    weights=text("imagenet"),
    cache=PATH,
)
def plot(
    kind: str,
    target: PathLike | Run | SavedRun | None = None,
    images: PathLike | Sequence[PathLike] = (),
    *,
    out: PathLike | None = None,
    label: str | None = None,
    colour: str = "class",
    method: str = "tsne",
    thumbnails: bool = False,
    count: int | None = None,
    seed: int = 0,
    dpi: int = 150,
    style: Style = "screen",
    weights: str | None = None,
    cache: PathLike = "cache",
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> Plot:
    """Draw one picture, with the numbers behind it.

    Args:
        kind: ``projection``, ``confusion``, ``reliability``, ``mistakes``, ``cam``,
            ``neighbours``, ``learning-curve`` or ``curves`` of a run; ``filters`` or
            ``feature-maps`` of a network; ``pareto`` of a profile; or ``perturbations`` of an
            image.
        target: a run directory; for ``filters`` and ``feature-maps`` also the name of a network;
            for ``pareto`` the folder that ``profile`` wrote; for ``learning-curve`` also the folder
            that ``fewshot`` wrote. None for ``perturbations``.
        images: image files and folders, for ``cam``, ``neighbours``, ``feature-maps`` and
            ``perturbations``.
        out: file to write, ending in ``.png``, ``.svg`` or ``.pdf``; the numbers are written
            beside it as CSV. None to write nothing.
        label: class that ``cam`` explains; None for the predicted one.
        colour: what the colours of ``projection`` show: ``class``, ``prediction`` or ``error``.
        method: of ``projection``: ``tsne``, ``pca``, ``opentsne`` or ``umap``.
        thumbnails: whether ``projection`` draws images where there is space.
        count: number of mistakes (None: 25) or of similar images (None: 5).
        seed: seed of the projection, the perturbations or the learning curve.
        dpi: dots per inch of a PNG.
        style: ``screen``, or ``paper`` for an article: as wide as a column (85 mm) or a page
            (175 mm), text of 8 points, embedded fonts, and the title among the notes.
        weights: weights of a network that is given by name.
        cache: folder of the embeddings cache.
        device, batch_size, workers, engine, compile, on_error, progress: as for ``extract``.

    Returns:
        ``figure`` (matplotlib), ``rows`` (the numbers) and ``notes``.

    Raises:
        SpecError: if the kind or an option is unknown.
        OptionsError: if the kind needs a target or images and there are none.
        RunError: if the run is not found or was changed.
        DecodeError: if an image cannot be read.

    Example:
        >>> picture = featkit.plot("confusion", "colours", out="confusion.png")
    """
    options = dict(locals())
    from featkit.plots.files import check_format
    from featkit.registry import unknown
    from featkit.reports.pictures import STYLES

    if kind not in PLOT_KINDS:
        raise unknown("kind of plot", kind, list(PLOT_KINDS))
    if style not in STYLES:
        raise unknown("style", style, list(STYLES))
    if out is not None:
        check_format(Path(out))
    drawn = _draw(kind, target, images, options)
    if out is not None:
        for path in drawn.save(out, dpi=dpi):
            log.info("written: %s", path)
    for line in drawn.notes:
        log.info(line)
    return drawn


def _draw(
    kind: str,
    target: PathLike | Run | SavedRun | None,
    images: PathLike | Sequence[PathLike],
    options: Mapping[str, Any],
) -> Plot:
    """Draw one kind of picture; see ``plot``."""
    from featkit.runs.predict import image_names

    files = [images] if isinstance(images, str | Path) else list(images)
    names = image_names(files) if files else []
    if kind in ("cam", "neighbours", "feature-maps", "perturbations") and not names:
        raise OptionsError(f"plot {kind} needs an image: give at least one image file")
    if kind == "perturbations":
        return _perturbations_plot(names[0], options)
    if target is None:
        needed = (
            "the folder that `featkit profile` wrote" if kind == "pareto" else "a run directory"
        )
        raise OptionsError(f"plot {kind} needs {needed}")
    if kind == "pareto":
        return _pareto_plot(target, options["style"])
    if kind == "learning-curve":
        return _learning_curve_plot(target, options)
    if kind in ("filters", "feature-maps"):
        return _network_plot(kind, target, names, options)
    if kind == "cam":
        return _cam_plot(load_plain_run(target), names, options)
    if kind == "neighbours":
        return _neighbours_plot(load_plain_run(target), names, options)
    return _run_plot(kind, load_plain_run(target), options)


def _perturbations_plot(name: str, options: Mapping[str, Any]) -> Plot:
    from featkit.images.decode import decode_file
    from featkit.images.thumbnails import shrink
    from featkit.reports.pictures import perturbations_plot

    image, seed = shrink(decode_file(Path(name)), 224), options["seed"]
    title = f"{Path(name).name}, seed {seed}"
    return perturbations_plot(image, seed=seed, title=title, style=options["style"])


def _network_plot(
    kind: str,
    target: PathLike | Run | SavedRun,
    names: Sequence[str],
    options: Mapping[str, Any],
) -> Plot:
    """Draw the filters or the feature maps of a network, or of the network of a run."""
    from featkit.backbones import load_backbone
    from featkit.backbones.explain import first_layer_filters, stage_maps
    from featkit.images.decode import decode_file
    from featkit.reports.pictures import feature_maps_plot, filters_plot
    from featkit.runs.card import is_run

    if isinstance(target, str | Path):
        target = network_spec(str(target))
    if not isinstance(target, str | Path) or is_run(Path(target)):
        backbone = load_run(target).load_backbone()
    else:
        backbone = load_backbone(str(target), weights=options["weights"] or "imagenet")
    title, style = f"{backbone.name}, {backbone.weights}", options["style"]
    if kind == "filters":
        filters = first_layer_filters(backbone)
        return filters_plot(filters, title=f"First-layer filters of {title}", style=style)
    image = backbone.preprocess(decode_file(Path(names[0])))
    stages = stage_maps(backbone, image)
    title = f"{Path(names[0]).name} in {title}: channels of the largest mean activation"
    return feature_maps_plot(stages, image, title=title, style=style)


def _pareto_plot(target: PathLike | Run | SavedRun, style: Style) -> Plot:
    """Draw accuracy over latency of the networks of a profile."""
    from featkit.reports.pictures import pareto_plot
    from featkit.studies.profile import read_profile

    if not isinstance(target, str | Path):
        raise OptionsError("plot pareto needs the folder that `featkit profile` wrote, not a run")
    return pareto_plot(read_profile(Path(target)), style=style)


def _learning_curve_plot(target: PathLike | Run | SavedRun, options: Mapping[str, Any]) -> Plot:
    """Draw the learning curve of a few-shot study, or compute that of the head of a run."""
    from featkit.reports.pictures import learning_curve_plot
    from featkit.runs.card import is_run
    from featkit.studies.fewshot import read_learning_curve

    if isinstance(target, str | Path) and Path(target).is_dir() and not is_run(Path(target)):
        directory = Path(target)
        scores, data = read_learning_curve(directory), directory.resolve().parent.name
    else:
        scores, data = _computed_learning_curve(load_plain_run(target), options)
    return learning_curve_plot(scores, data, style=options["style"])


def _computed_learning_curve(
    run: SavedRun, options: Mapping[str, Any]
) -> tuple[list[FewShotScore], str]:
    """Return the learning curve of the head of a run, and the name of its images."""
    from tqdm import tqdm

    from featkit.runs.features import refuse_trained_on
    from featkit.studies.fewshot import curve_shots, learning_curve
    from featkit.studies.inspect import run_features

    features = run_features(run, Path(options["cache"]), make_compute(options))
    refuse_trained_on(features, "a learning curve")
    shots = curve_shots(features.embeddings.part("train").y)
    computed = learning_curve(features.embeddings, [run.head_spec], shots, seed=options["seed"])
    bar = tqdm(
        computed,
        desc="learning curve",
        total=len(shots),
        disable=not options["progress"],
        leave=False,
    )
    return list(bar), features.data


def _cam_plot(run: SavedRun, names: Sequence[str], options: Mapping[str, Any]) -> Plot:
    """Draw class activation maps of image files."""
    from featkit.images.decode import decode_file
    from featkit.reports.pictures import cam_plot
    from featkit.studies.explain import RunExplainer

    device = make_compute(options).device
    explainer = RunExplainer(run, "cpu" if device == "auto" else device)
    maps, scores = [], []
    for name in batch_bar("images", options["progress"])(list(names)):
        pixels = explainer.prepare(decode_file(Path(name)))
        found = explainer.explain(pixels[None], [options["label"]])[0]
        maps.append(found)
        scores.append(explainer.faithfulness(found))
    title = f"{run.title}: {explainer.description}"
    return cam_plot(maps, names, scores, title=title, style=options["style"])


def _neighbours_plot(run: SavedRun, names: Sequence[str], options: Mapping[str, Any]) -> Plot:
    """Draw the training images that are most similar to image files."""
    from featkit.studies.neighbours import neighbours as find_neighbours

    cache, compute = Path(options["cache"]), make_compute(options)
    count = options["count"] or 5
    similar = find_neighbours(run, names, count, cache=cache, compute=compute)
    return draw_neighbours(run, similar, style=options["style"])


def draw_neighbours(run: SavedRun, similar: SimilarImages, *, style: Style = "screen") -> Plot:
    """Draw similar images, with their pixels as far as they can be read."""
    from featkit.reports.pictures import neighbours_plot
    from featkit.studies.inspect import read_images

    found = dict.fromkeys(row["similar"] for row in similar.rows())
    pictures = read_images(run, found)
    if len(pictures) < len(found):
        log.warning(
            "%d of %d similar images cannot be read and are drawn empty",
            len(found) - len(pictures),
            len(found),
        )
    return neighbours_plot(similar, pictures, style=style)


def _run_plot(kind: str, run: SavedRun, options: Mapping[str, Any]) -> Plot:
    """Draw a picture of the evaluation of a run."""
    from featkit.reports.pictures import confusion_plot, mistakes_plot, reliability_plot
    from featkit.reports.wording import accuracy_text
    from featkit.runs.results import read_run
    from featkit.studies.inspect import inspect_mistakes

    title, report, predictions = read_run(run.path)
    title = f"{title}: {accuracy_text(report)}"
    if kind == "confusion":
        return confusion_plot(report, title=title, style=options["style"])
    if kind == "reliability":
        return reliability_plot(report, title=title, style=options["style"])
    if kind == "curves":
        return _curves_plot(run, options["style"])
    if kind == "projection":
        return _projection_plot(run, predictions, options)
    track = batch_bar("class activation maps", options["progress"])
    mistakes, total, explanation = inspect_mistakes(
        run, predictions, count=options["count"] or 25, compute=make_compute(options), track=track
    )
    return mistakes_plot(
        mistakes, total=total, explanation=explanation, title=title, style=options["style"]
    )


def _curves_plot(run: SavedRun, style: Style) -> Plot:
    from featkit.reports.pictures import curves_plot
    from featkit.runs.train import HISTORY_FILE, read_history

    path = run.path / HISTORY_FILE
    if not path.is_file():
        raise DataError(f"{run.path} is not the run of a trained network: it has no {HISTORY_FILE}")
    history = read_history(path)
    title = f"{run.title}: {len(history)} epochs"
    return curves_plot({run.title: history}, title=title, style=style)


def _projection_plot(run: SavedRun, predictions: Predictions, options: Mapping[str, Any]) -> Plot:
    """Draw the features of the test images of a run in two dimensions."""
    from featkit.evaluation.projection import MAX_ROWS, project
    from featkit.images.thumbnails import square
    from featkit.reports.pictures import projection_plot
    from featkit.studies.inspect import read_images, run_features

    colours = ("class", "prediction", "error")
    if options["colour"] not in colours:
        raise SpecError(f"unknown colour {options['colour']}: choose {', '.join(colours)}")
    features = run_features(run, Path(options["cache"]), make_compute(options))
    test = features.embeddings.part("test")
    groups = [test.classes[label] for label in test.y]
    if options["colour"] != "class":
        groups = _prediction_groups(test, predictions, options["colour"])
    method = options["method"]
    log.info("%s of %d images", method, min(len(test), MAX_ROWS))
    with iteration_bar(f"{method} of the test images", options["progress"]) as show:
        projection = project(test.x, method, seed=options["seed"], report_iteration=show)
    thumbnails: list[Any] = []
    if options["thumbnails"]:
        names = [test.ids[row] for row in projection.rows]
        pictures = read_images(run, names)
        thumbnails = [square(pictures[name], 48) for name in names if name in pictures]
        if len(thumbnails) < len(names):
            raise DataError(f"the images of {features.data} cannot be read: leave out --thumbnails")
    title = f"{features.data} on {run.network}, test images by {options['colour']}"
    return projection_plot(
        projection, test, groups, title=title, thumbnails=thumbnails, style=options["style"]
    )


def _prediction_groups(test: Embeddings, predictions: Predictions, colour: str) -> list[str]:
    """Return the predicted class of each test image, or whether it is right."""
    from featkit.storage import safe_cell

    row_of = {name: row for row, name in enumerate(predictions.ids)}
    groups = []
    for name in test.ids:
        row = row_of.get(safe_cell(name))
        if row is None:
            groups.append("no prediction")
        elif colour == "prediction":
            groups.append(str(predictions.predicted[row]))
        else:
            groups.append("right" if predictions.correct[row] else "wrong")
    return groups
