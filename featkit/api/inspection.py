"""Examine data and networks: few-shot episodes, audits, suggestions, similar images, profiles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.api.features import load_features, open_cluster
from featkit.api.fitting import expand_heads
from featkit.api.options import (
    COMPUTE_OPTIONS,
    FEATURE_OPTIONS,
    PathLike,
    Strings,
    as_strings,
    decisions_or_path,
    log,
    make_compute,
    named_network_spec,
    request_options,
    run_or_path,
)
from featkit.api.progress import batch_bar
from featkit.api.reports import draw_neighbours
from featkit.api.runs import load_plain_run
from featkit.arguments import FLAG, PATH, SEED, checked, integer, sequence, several, text
from featkit.errors import DataError, FeatkitError, OptionsError, SpecError

if TYPE_CHECKING:
    from featkit.embeddings.base import Embeddings
    from featkit.images.base import ImageSet
    from featkit.runs.directory import SavedRun
    from featkit.runs.features import FeatureSet
    from featkit.runs.fit import Run
    from featkit.storage import Content
    from featkit.studies.audit import AuditResult
    from featkit.studies.clean import CleanData, Decision
    from featkit.studies.fewshot import EpisodeConfig, FewShotScore
    from featkit.studies.neighbours import SimilarImages
    from featkit.studies.profile import NetworkProfile
    from featkit.studies.suggest import Suggestions


@dataclass(frozen=True)
class FewShotResult:
    """Accuracy of heads on few-shot episodes.

    Attributes:
        data: name of the images.
        scores: one per number of shots and head.
        curve: test accuracy after fitting on k train images per class; empty if not requested.
        json: content of ``results.json``.
    """

    data: str
    scores: tuple[FewShotScore, ...]
    curve: tuple[FewShotScore, ...]
    json: str

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON can hold them."""
        values: dict[str, Any] = json.loads(self.json)
        return values

    def to_frame(self) -> Any:
        """Return the scores as a pandas DataFrame, one row per number of shots and head."""
        from featkit.evaluation.display import data_frame

        return data_frame([asdict(score) for score in self.scores])

    def _repr_html_(self) -> str:
        from featkit.evaluation.display import html_table

        return html_table([asdict(score) for score in self.scores])


@checked(
    **FEATURE_OPTIONS,
    cluster=text("local:4"),
    way=integer(2),
    shot=several(integer(1), least=1),
    query=integer(1),
    episodes=integer(2),
    head=several(text("prototypical"), least=1),
    curve=sequence(integer(1)),
    draws=integer(2),
)
def fewshot(
    data: PathLike | None = None,
    *,
    way: int = 5,
    shot: int | Sequence[int] = (1, 5),
    query: int = 15,
    episodes: int = 1000,
    head: Strings = ("prototypical", "knn:k=1"),
    curve: Sequence[int] = (),
    draws: int = 5,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | None = None,
    augment: str | None = None,
    views: int | None = None,
    perturb: str | None = None,
    backbone: PathLike | None = None,
    weights: str | None = None,
    layer: str | None = None,
    pool: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    precision: str | None = None,
    decode: str | None = None,
    cache: PathLike = "cache",
    out: PathLike | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "fail",
    cluster: str | None = None,
    progress: bool = False,
) -> FewShotResult:
    """Evaluate heads on few-shot episodes.

    Args:
        data: spec of the images; see ``fit`` for what None means.
        way: classes per episode.
        shot: support images per class, one number or several.
        query: query images per class.
        episodes: number of episodes.
        head: one head or several.
        curve: numbers of train images per class for a learning curve on the test set.
        draws: random draws per point of the curve.
        out: folder in which results are written; None to write nothing.
        cluster: as for ``ablate``: heads are evaluated on the workers of a Dask cluster.
        split, limit, intensity_range, group, allow_group_leak, seed, augment, views, perturb,
            backbone, weights, layer, pool, resize, crop, precision, decode, cache, device,
            batch_size, workers, engine, compile, on_error, progress: as for ``fit``.

    Returns:
        A score for each head and number of shots: the mean accuracy over episodes with its 95%
        confidence interval; with ``curve`` also the learning curve.

    Raises:
        SpecError: if a head or a number of images is not valid.
        DataError: if too few classes have enough images, or the backbone was trained on an image.

    Example:
        >>> episodes = {"way": 3, "shot": 1, "query": 3, "episodes": 20}
        >>> result = featkit.fewshot("photos", **episodes, weights="random", resize=32)
        >>> len(result.scores)
        2
    """
    options = locals()
    from featkit.reports.figures import fewshot_figures
    from featkit.runs.features import refuse_trained_on
    from featkit.storage import digest, publish
    from featkit.studies.fewshot import (
        EpisodeConfig,
        FewShotPlan,
        scores_elsewhere,
        to_json,
    )

    shots = (shot,) if isinstance(shot, int) else tuple(shot)
    if not shots or min((*shots, *curve)) < 1:
        raise SpecError("numbers of images per class must be at least 1")
    heads = expand_heads(as_strings(head))
    folder = Path(cache).parent if Path(cache).suffix == ".h5" else Path(cache)
    with open_cluster(options, [folder], list) as executor:
        features = load_features(options, executor)
        refuse_trained_on(features, "few-shot episodes")
        config = EpisodeConfig(way, query, episodes, features.request.seed)
        embeddings, groups = features.embeddings, None
        if embeddings.groups is not None:
            groups = len(set(embeddings.groups.tolist()))
            log.info(_EPISODE_GROUPS)
        options["curve"] = _curve_shots(embeddings, curve)
        if executor is None:
            scores, points = _fewshot_scores(embeddings, heads, shots, config, options)
        else:
            plan = FewShotPlan(heads, shots, options["curve"], draws, config)
            scores, points = scores_elsewhere(
                embeddings, plan, executor.run, folder, progress=progress
            )
    text = to_json(config, embeddings.recipe.fingerprint, scores, points, groups=groups)
    if out is not None:
        directory = Path(out) / features.data / f"fewshot-{digest([text])[:12]}"
        publish(directory, {"results.json": text, **fewshot_figures(points, features.data)})
        log.info("results: %s", directory)
    return FewShotResult(features.data, tuple(scores), tuple(points), text)


_EPISODE_GROUPS = (
    "groups: no group of images has support and query images in one episode; intervals of the "
    "learning curve resample groups"
)


def _curve_shots(embeddings: Embeddings, curve: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of images of a learning curve; log which were more than there are."""
    from featkit.runs.splits import without_views
    from featkit.studies.fewshot import available_shots

    shots = available_shots(without_views(embeddings.part("train")).y, curve)
    missing = sorted(set(curve) - set(shots))
    if missing:
        log.warning(
            "no class has %s training images: the learning curve ends at %d, all images",
            " or ".join(map(str, missing)),
            max(shots),
        )
    return tuple(shots)


def _fewshot_scores(
    embeddings: Embeddings,
    heads: Sequence[str],
    shots: Sequence[int],
    config: EpisodeConfig,
    options: Mapping[str, Any],
) -> tuple[list[FewShotScore], list[FewShotScore]]:
    """Return the scores of episodes and the points of the learning curve, with progress bars."""
    from tqdm import tqdm

    from featkit.studies.fewshot import episode_scores, learning_curve

    curve, hidden = options["curve"], not options["progress"]
    with tqdm(total=config.episodes, unit="episode", disable=hidden) as bar:

        def show(done: int) -> None:
            bar.update(done - bar.n)

        scores = list(episode_scores(embeddings, heads, shots, config, show))
    if not curve:
        return scores, []
    points = learning_curve(embeddings, heads, curve, options["draws"], config.seed)
    return scores, list(tqdm(points, total=len(curve) * len(heads), disable=hidden))


@checked(
    **FEATURE_OPTIONS,
    few=integer(1),
    quality=FLAG,
    decisions=decisions_or_path(),
    apply=several(text("duplicates")),
)
def audit(
    data: PathLike | None = None,
    *,
    few: int = 20,
    quality: bool = True,
    decisions: PathLike | Sequence[Decision] | None = None,
    apply: Strings = (),
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | None = None,
    augment: str | None = None,
    views: int | None = None,
    perturb: str | None = None,
    backbone: PathLike | None = None,
    weights: str | None = None,
    layer: str | None = None,
    pool: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    precision: str | None = None,
    decode: str | None = None,
    cache: PathLike = "cache",
    out: PathLike | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> AuditResult:
    """Find duplicates, label errors, small classes and images of odd quality.

    Image files are never changed.

    Args:
        data: spec of the images; see ``fit`` for what None means.
        few: report classes with fewer train images than this.
        quality: read every image once to find dark, bright, blurred ones, those with little
            information, and those of an odd size or aspect ratio.
        decisions: what to do with images, for the list in ``out``: a CSV file with columns
            ``path,action,label`` (action ``keep``, ``relabel`` or ``drop``), or ``Decision``
            objects.
        apply: suggestions to accept for the list in ``out``: ``labels``, ``duplicates``,
            ``near-duplicates``, or several of them; see ``studies.clean.clean``.
        out: folder in which ``audit-<data>`` is written (findings, suggestions, contact sheet), or
            a file ending in ``.csv`` in which the images are listed after decisions and accepted
            suggestions (``path,label,split,group``), as ``data`` for ``fit``; None to write
            nothing.
        split, limit, intensity_range, group, allow_group_leak, seed, augment, views, perturb,
            backbone, weights, layer, pool, resize, crop, precision, decode, cache, device,
            batch_size, workers, engine, compile, on_error, progress: as for ``fit``.

    Returns:
        The findings, by row of the features that they are based on.

    Raises:
        DataError: if the backbone was trained on an image, there are fewer than two images, or a
            decision names an unknown image or class.
        OptionsError: if ``out`` ends in ``.csv`` and there is nothing to apply, or the reverse.

    Example:
        >>> result = featkit.audit("photos", weights="random", resize=32)
        >>> len(result.embeddings)
        24
    """
    options = locals()
    from featkit.studies.audit import audit as audit_features
    from featkit.studies.clean import check_kinds, read_decisions

    listed = out is not None and Path(out).suffix.lower() == ".csv"
    kinds = as_strings(apply)
    check_kinds(kinds)
    if listed and decisions is None and not kinds:
        raise OptionsError(
            f"nothing to apply in {out}: give --decisions FILE, or --apply with labels, duplicates "
            "or near-duplicates"
        )
    if not listed and (decisions is not None or kinds):
        raise OptionsError("--decisions and --apply need --out with a file ending in .csv")
    if isinstance(decisions, str | Path):
        decisions = read_decisions(Path(decisions))
    features = load_features(options)
    result = audit_features(
        features,
        few=few,
        progress=progress,
        images=_source_images(features) if quality else None,
        threads=make_compute(options).threads,
    )
    for line in result.notes:
        log.warning(line)
    if listed:
        write_clean(result, str(out), decisions or (), kinds)
    elif out is not None:
        _write_audit(result, Path(out))
    return result


def write_clean(
    result: AuditResult,
    out: PathLike,
    decisions: Sequence[Decision] = (),
    apply: Sequence[str] = (),
) -> CleanData:
    """Write an audited data set as a CSV file after decisions and accepted suggestions.

    Args:
        result: the audit.
        out: the CSV file, which ``data`` of ``fit`` reads.
        decisions, apply: see ``studies.clean.clean``.

    Raises:
        DataError: if a decision names an unknown image or class, the images are gone, or ``out`` is
            the list that they were read from.
        StorageError: if the disk is full or cannot be written.
    """
    from featkit.studies.clean import clean

    path = Path(out)
    if path.exists() and path.resolve() == Path(result.request.data).resolve():
        raise DataError(f"{path} is the list of the audited images: choose another name for --out")
    cleaned = clean(result, decisions, apply)
    cleaned.write(path)
    for line in cleaned.notes:
        log.warning(line)
    counts = cleaned.counts
    log.info(
        "%s: %d images, %d relabelled, %d dropped; fit on them with --data %s",
        path,
        counts["listed"],
        counts["relabelled"],
        counts["dropped"],
        path,
    )
    return cleaned


def _source_images(features: FeatureSet) -> ImageSet | None:
    """Return the images of features, unperturbed; log why if they are not all there any more."""
    from featkit.images.augment import is_augmented_view
    from featkit.studies.audit import rows_of

    names = [name for name in features.embeddings.ids if not is_augmented_view(name)]
    try:
        images = features.request.source_only.load_images()
        rows_of(images, names, features.data)
    except FeatkitError as error:
        log.info("no image quality: %s", error)
        return None
    return images


def _write_audit(result: AuditResult, out: Path) -> None:
    """Write the folder of an audit: findings, suggestions and contact sheet."""
    from featkit.reports.figures import audit_figures
    from featkit.storage import publish, safe_name
    from featkit.studies.clean import suggestions_csv

    try:
        figures = audit_figures(result, result.request.load_images())
    except FeatkitError as error:  # the features are cached, the images may be elsewhere
        log.info("no contact.png: %s", error)
        figures = {}
    text = json.dumps(result.to_dict(), indent=2, allow_nan=False)
    directory = out / f"audit-{safe_name(result.data)}"
    files: dict[str, Content] = {
        "audit.json": text,
        "findings.csv": result.to_csv(),
        "suggestions.csv": suggestions_csv(result),
        **figures,
    }
    publish(directory, files, own=["contact.png"])
    log.info("audit: %s", directory)


@checked(
    **COMPUTE_OPTIONS,
    run=run_or_path(),
    images=several(PATH, least=1),
    n=integer(1),
    seed=SEED,
    cache=PATH,
    out=PATH,
)
def suggest(
    run: PathLike | Run | SavedRun,
    images: PathLike | Sequence[PathLike],
    *,
    n: int = 100,
    seed: int = 0,
    cache: PathLike = "cache",
    out: PathLike | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> Suggestions:
    """Suggest which unlabelled images to label next: uncertain images that differ from each other.

    Images of the run's own data, and copies of other images byte for byte, are left out and
    counted. The method is that of ``evaluation.selection.select_batch``.

    Args:
        run: a run directory.
        images: folders of unlabelled images, or image files.
        n: number of images to suggest; all of them if there are fewer.
        seed: seed of the selection.
        cache: folder of the embeddings cache.
        out: folder in which ``suggest-<folder>`` is written (``suggestions.csv``,
            ``contact.png``); None to write nothing.
        device, batch_size, workers, engine, compile, on_error, progress: as for ``extract``.

    Returns:
        The suggested images, the most uncertain first, and how many images were left out.

    Raises:
        RunError: if the run is not found or was changed.
        DataError: if there is no image to suggest, or the run's own data is not available.
        DecodeError: if an image cannot be read.

    Example:
        >>> suggestions = featkit.suggest("colours", "unlabelled", n=2)
        >>> len(suggestions.images)
        2
    """
    options = locals()
    from featkit.runs.predict import image_names
    from featkit.studies.suggest import suggest as suggest_images

    files = [images] if isinstance(images, str | Path) else list(images)
    name = Path(files[0]).resolve().name
    saved = load_plain_run(run)
    found = suggest_images(
        saved,
        image_names(files),
        n,
        cache=Path(cache),
        compute=make_compute(options),
        name=name,
        seed=seed,
    )
    for line in found.notes:
        log.warning(line)
    if out is not None:
        _write_suggestions(saved, found, name, Path(out), progress=progress)
    return found


def _write_suggestions(
    run: SavedRun, found: Suggestions, name: str, out: Path, *, progress: bool
) -> None:
    """Write the folder of suggestions: CSV and contact sheet."""
    from featkit.plots.contact import thumbnail
    from featkit.plots.files import png_bytes
    from featkit.reports.pictures import MOST_SUGGESTIONS, suggestions_plot
    from featkit.runs.predict import unlabelled_images
    from featkit.storage import publish, safe_name

    shown = [each.path for each in found.images[:MOST_SUGGESTIONS]]
    images = unlabelled_images(run, shown)
    pictures = {}
    for row in batch_bar("contact sheet", progress)(range(len(shown))):
        pictures[shown[row]] = thumbnail(images.load(row))
    drawn = suggestions_plot(found, pictures, title=f"What to label next in {name}")
    directory = out / f"suggest-{safe_name(name)}"
    files: dict[str, Content] = {
        "suggestions.csv": found.to_csv(),
        "contact.png": png_bytes(drawn.figure),
    }
    publish(directory, files)
    log.info("suggestions: %s", directory)


@checked(
    **COMPUTE_OPTIONS,
    run=run_or_path(),
    images=several(PATH, least=1),
    k=integer(1),
    cache=PATH,
    out=PATH,
)
def neighbours(
    run: PathLike | Run | SavedRun,
    images: PathLike | Sequence[PathLike],
    *,
    k: int = 12,
    cache: PathLike = "cache",
    out: PathLike | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> SimilarImages:
    """Find the training images of a run that are most similar to given images.

    Args:
        run: a run directory.
        images: image files, and folders of images.
        k: number of similar images for each image; all if there are fewer.
        cache: folder of the embeddings cache; the training images are needed only if their features
            are not there.
        out: file to write, ending in ``.csv``, or in ``.png``, ``.svg`` or ``.pdf`` for a picture
            with the CSV beside it; None to write nothing.
        device, batch_size, workers, engine, compile, on_error, progress: as for ``extract``.

    Returns:
        For each image, its ``k`` most similar training images and their cosine similarities, the
        most similar first.

    Raises:
        RunError: if the run is not found or was changed.
        DataError: if there is no image, or neither features nor training images are available.
        DecodeError: if an image cannot be read.
        SpecError: if ``out`` has another ending.

    Example:
        >>> found = featkit.neighbours("colours", "new.png", k=3)
        >>> len(found.rows())
        3
    """
    options = locals()
    from featkit.plots.files import check_format
    from featkit.runs.predict import image_names
    from featkit.storage import write_file
    from featkit.studies.neighbours import neighbours as find_neighbours

    path = None if out is None else Path(out)
    as_table = path is not None and path.suffix.lower() == ".csv"
    if path is not None and not as_table:
        check_format(path)
    saved = load_plain_run(run)
    names = image_names([images] if isinstance(images, str | Path) else images)
    similar = find_neighbours(saved, names, k, cache=Path(cache), compute=make_compute(options))
    if path is not None and as_table:
        write_file(path, similar.to_csv())
    elif path is not None:
        draw_neighbours(saved, similar).save(path)
    if path is not None:
        log.info("written: %s", path)
    return similar


@dataclass(frozen=True)
class ProfileResult:
    """Size, speed and accuracy of networks, the first being the reference.

    Attributes:
        networks: one profile per network.
        head: the head that was evaluated.
        repeats, warm_up: timed and untimed repeats.
        data: spec of the images; empty without.
        json: content of ``profile.json``.
    """

    networks: tuple[NetworkProfile, ...]
    head: str
    repeats: int
    warm_up: int
    data: str
    json: str

    @property
    def names(self) -> list[str]:
        """Names of the networks, see ``featkit.runs.names``."""
        return [network.name for network in self.networks]

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON can hold them."""
        values: dict[str, Any] = json.loads(self.json)
        return values

    def to_frame(self) -> Any:
        """Return the profiles as a pandas DataFrame, one row per network."""
        from featkit.evaluation.display import data_frame

        return data_frame(self.to_dict()["networks"])

    def _repr_html_(self) -> str:
        from featkit.evaluation.display import html_table

        return html_table(self.to_dict()["networks"])


@checked(
    **FEATURE_OPTIONS,
    backbones=several(PATH, least=1),
    head=text("svm:C=9"),
    repeats=integer(1),
    warm_up=integer(0),
)
def profile(
    backbones: Strings,
    *,
    data: PathLike | None = None,
    head: str = "linear",
    repeats: int = 30,
    warm_up: int = 3,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | None = None,
    augment: str | None = None,
    views: int | None = None,
    perturb: str | None = None,
    weights: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    cache: PathLike = "cache",
    out: PathLike | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> ProfileResult:
    """Measure size and speed of networks; with ``data``, also accuracy and feature drift.

    Args:
        backbones: specs, each with an optional ``@PRECISION``; the first is the reference.
        data: spec of the images on which ``head`` is evaluated; None to measure no accuracy.
        head: spec of the head.
        repeats: timed repeats.
        warm_up: untimed repeats before the timed ones.
        weights: weights of the networks that are given by name; None for ``imagenet``.
        out: folder in which tables and figure are written; None to write nothing.
        split, limit, intensity_range, group, allow_group_leak, seed, augment, views, perturb,
            resize, crop, cache, device, batch_size, workers, engine, compile, on_error, progress:
            as for ``fit``.

    Returns:
        Parameters, MACs, size, memory and latency of each network; with ``data`` also the accuracy
        and the drift of the features from those of the first network.

    Raises:
        SpecError: if a network or precision is unknown, or a network is given twice.
        DataError: if a network was trained on a test image, or there are several labels per image.
    """
    options = locals()
    from featkit.reports.figures import profile_figures
    from featkit.storage import digest, publish
    from featkit.studies import profile as study

    specs = tuple(named_network_spec(spec) for spec in as_strings(backbones))
    given = {name: value for name, value in request_options(options).items() if value is not None}
    config = study.ProfileConfig(
        head=head, given=given, cache=Path(cache), repeats=repeats, warm_up=warm_up
    )
    networks = [study.parse_network(spec) for spec in specs]
    busy = study.busy_warning()
    if busy:
        log.warning(busy)
    profiles = study.profile(networks, config, make_compute(options))
    text = study.profiles_to_json(profiles, config)
    result = ProfileResult(
        tuple(profiles), head, repeats, warm_up, str(given.get("data", "")), text
    )
    if out is not None:
        report = profiles[0].report
        title = f"{head} on {Path(result.data).name}, n = {report.n if report else 0}"
        files: dict[str, Content] = {
            "profile.csv": study.profiles_to_csv(profiles),
            "profile.json": text,
            **profile_figures(profiles, result.names, title),
        }
        name = digest([*specs, *map(str, given.values()), head])[:12]
        directory = Path(out) / "profile" / name
        publish(directory, files)
        log.info("%s: %s", ", ".join(files), directory)
    return result
