"""The public functions of featkit; the command line and the app call the same ones.

Names, defaults and meaning are those of the command-line options. Functions return values and print
nothing: progress messages go to the logger ``featkit``, and ``progress=True`` shows progress bars.

Options that many functions share:

    Images: ``data`` (``digits``, a folder, a CSV file, ``cifar10:root=DIR``), ``split``
    (``70/15/15``), ``limit`` (``train=500,test=100``), ``intensity_range`` (``0:4095``, grey values
    that become black and white), ``seed``, ``augment`` and ``views`` (augmented views of train
    images), ``perturb`` (corruption of test images).

    Network: ``backbone``, ``weights``, ``layer``, ``pool``, ``resize``, ``crop``, ``precision``:
    see ``load_backbone`` and ``featkit.embeddings.request.Request``.

    Files: ``cache`` is the folder of the embeddings cache, ``out`` the folder for results.

    Compute: ``device``, ``batch_size``, ``workers``, ``compile``, ``on_error``: see
    ``featkit.embeddings.pipeline.Compute``.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.arguments import (
    DEPTH,
    FLAG,
    MAX_COUNT,
    NAME,
    PATH,
    SEED,
    SIZE,
    Kind,
    checked,
    instance,
    integer,
    number,
    sequence,
    several,
    text,
)
from featkit.errors import DataError, FeatkitError, HeadError, OptionsError, SpecError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from featkit.ablation.estimate import Estimate
    from featkit.ablation.executors.cluster import ClusterExecutor, WorkerState
    from featkit.ablation.grid import AxisValue, Grid
    from featkit.ablation.run import AblationConfig, AblationResult, Progress
    from featkit.backbones import load_backbone as load_backbone
    from featkit.compression.export import ExportAgreement
    from featkit.compression.quantize import QuantizationResult
    from featkit.embeddings.base import Embeddings
    from featkit.embeddings.embedder import ImageEmbedder as ImageEmbedder
    from featkit.embeddings.extract import ExtractionResult, Extractor
    from featkit.embeddings.pipeline import Compute
    from featkit.embeddings.request import Request
    from featkit.evaluation import evaluate as evaluate
    from featkit.evaluation.effects import Effect
    from featkit.evaluation.predictions import Predictions
    from featkit.heads import make_head as make_head
    from featkit.images import load_images as load_images
    from featkit.images.base import ImageSet
    from featkit.reports.pictures import Plot, Style
    from featkit.runs.compare import OverSeeds, RunComparison
    from featkit.runs.costs import CostTable
    from featkit.runs.directory import SavedRun
    from featkit.runs.features import FeatureSet
    from featkit.runs.fit import FitConfig, Run
    from featkit.runs.multilabel import MultiLabelRun
    from featkit.runs.predict import Prediction
    from featkit.runs.train import TrainedRun
    from featkit.storage import Content
    from featkit.studies.audit import AuditResult
    from featkit.studies.clean import CleanData, Decision
    from featkit.studies.distill import DistillationResult
    from featkit.studies.fewshot import EpisodeConfig, FewShotScore
    from featkit.studies.frameworks import FrameworksResult
    from featkit.studies.neighbours import SimilarImages
    from featkit.studies.profile import NetworkProfile
    from featkit.studies.prune import PruningStep
    from featkit.studies.quantize import QuantizedRun
    from featkit.studies.recover import Recovery
    from featkit.studies.suggest import Suggestions
    from featkit.studies.train import Clock, TrainedClassifier
    from featkit.training.config import TrainingConfig
    from featkit.training.distributed import ProcessGroup
    from featkit.training.history import EpochRecord
    from featkit.training.loop import TrainingCallbacks

__all__ = [
    "ImageEmbedder",
    "ablate",
    "audit",
    "bundle",
    "compare",
    "compare_frameworks",
    "distill",
    "evaluate",
    "export",
    "extract",
    "fewshot",
    "finetune",
    "fit",
    "load_backbone",
    "load_images",
    "load_run",
    "longtail",
    "make_head",
    "neighbours",
    "plot",
    "predict",
    "profile",
    "prune",
    "publication_table",
    "quantize",
    "report",
    "robustness",
    "suggest",
    "train",
]

OUT = "experiments/runs"
"""Default folder for results."""

log = logging.getLogger("featkit")
log.addHandler(logging.NullHandler())  # messages are shown only where a program asks for them

PathLike = str | Path
Strings = str | Sequence[str]

# Public names that live in lower layers; each is imported when it is first used.
_LOWER = {
    "ImageEmbedder": "featkit.embeddings.embedder",
    "evaluate": "featkit.evaluation",
    "load_backbone": "featkit.backbones",
    "load_images": "featkit.images",
    "make_head": "featkit.heads",
}


def __getattr__(name: str) -> Any:
    if name in _LOWER:
        from importlib import import_module

        return getattr(import_module(_LOWER[name]), name)
    raise AttributeError(f"module 'featkit.api' has no attribute {name!r}")


# Arguments ----------------------------------------------------------------------------------------

_IMAGES = {
    "data": PATH,
    "split": text("70/15/15"),
    "limit": text("train=500,test=100"),
    "intensity_range": text("0:4095"),
    "group": text("parent"),
    "allow_group_leak": FLAG,
    "seed": SEED,
    "augment": text("basic"),
    "views": integer(1, 100),
    "perturb": text("fog:level=strong"),
}
_NETWORK = {
    "backbone": PATH,
    "weights": PATH,
    "layer": text("layer4"),
    "pool": text("avg"),
    "resize": SIZE,
    "crop": SIZE,
    "precision": text("fp32"),
    "decode": text("full"),
}
_COMPUTE = {
    "device": text("cpu"),
    "batch_size": integer(1),
    "workers": integer(1),
    "compile": FLAG,
    "rehash": FLAG,
    "on_error": text("skip"),
    "progress": FLAG,
}
_FEATURES = {**_IMAGES, **_NETWORK, **_COMPUTE, "cache": PATH, "out": PATH}
_GRID = {
    **_FEATURES,
    "data": several(PATH, least=1),
    "seed": several(SEED, least=1),
    "subset": several(text("longtail:if=50"), least=1),
    "perturb": several(text("fog:level=strong"), least=1),
    "train_perturb": several(text("mixed:level=mild"), least=1),
    "backbone": several(PATH, least=1),
    "weights": several(PATH, least=1),
    "layer": several(text("layer4"), least=1),
    "precision": several(text("fp32"), least=1),
    "head": several(text("svm:C=9"), least=1),
    "balance": several(text("logit-adjust"), least=1),
    "jobs": integer(1),
    "cluster": text("local:4"),
}


def _run_or_path() -> Kind:
    """Return the kind of a run: its directory, or a run in memory."""

    def convert(value: Any) -> Any:
        if isinstance(value, str | PathLike):
            return PATH.convert(value)
        from featkit.runs.directory import SavedRun
        from featkit.runs.fit import Run
        from featkit.runs.multilabel import MultiLabelRun

        return instance(Run, MultiLabelRun, SavedRun).convert(value)

    return Kind("the path of a run directory, or a run", convert)


def _images_or_path() -> Kind:
    """Return the kind of images: a spec, a path, or an ``ImageSet``."""

    def convert(value: Any) -> Any:
        if isinstance(value, str | PathLike):
            return PATH.convert(value)
        from featkit.images.base import ImageSet

        return instance(ImageSet).convert(value)

    return Kind("a spec or path of images as text or pathlib.Path, or an ImageSet", convert)


def _decisions_or_path() -> Kind:
    """Return the kind of decisions about images: a CSV file, or ``Decision`` objects."""

    def convert(value: Any) -> Any:
        if isinstance(value, str | PathLike):
            return PATH.convert(value)
        from featkit.studies.clean import Decision

        return sequence(instance(Decision)).convert(value)

    return Kind("the path of a decisions file, or a sequence of Decision", convert)


def _comparable() -> Kind:
    """Return the kind of results that have a table."""

    def convert(value: Any) -> Any:
        from featkit.ablation.run import AblationResult
        from featkit.runs.compare import RunComparison

        return instance(AblationResult, RunComparison).convert(value)

    return Kind("the result of compare, ablate, longtail or robustness", convert)


def _training_kinds() -> dict[str, Kind]:
    """Return the kinds of the options of a training, whose ranges ``TrainingConfig`` declares."""
    from featkit.training.config import option_fields

    kinds: dict[str, Kind] = {}
    for each in option_fields():
        option = each.metadata["option"]
        if str(each.type).startswith("int"):
            high = MAX_COUNT if option.high is None else int(option.high)
            kinds[each.name] = integer(int(option.low or 0), high)
        elif str(each.type).startswith("float"):
            kinds[each.name] = number(option.low or 0, option.high)
        else:
            kinds[each.name] = text(option.choices[0] if option.choices else "layer4")
    kinds |= {"seed": SEED, "name": NAME}
    return {
        **_FEATURES,
        **kinds,
        "unfreeze": DEPTH,
        "frozen_precision": text("fp32"),
        "resume": FLAG,
    }


# Options ------------------------------------------------------------------------------------------


def _request_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are fields of ``Request``; None where one was not given."""
    from featkit.embeddings.request import Request

    found = {field.name: options[field.name] for field in fields(Request) if field.name in options}
    for name in ("data", "backbone", "weights", "resize", "crop"):
        if found.get(name) is not None:
            found[name] = str(found[name])  # a path, or a size in pixels
    if found.get("backbone") is not None:
        found["backbone"] = _network(found["backbone"])
    return found


def _network(spec: str) -> str:
    """Return the spec of a network; the name of a run becomes the path of its directory."""
    from featkit.backbones.load import BACKBONES
    from featkit.runs.registry import find_network

    return spec if spec.partition(":")[0] in BACKBONES.names() else find_network(spec)


def _named_network(spec: str) -> str:
    """Return ``_network`` of a spec with an optional ``@PRECISION``."""
    name, at, precision = spec.rpartition("@")
    return f"{_network(name)}@{precision}" if at else _network(spec)


def _request(options: Mapping[str, Any]) -> Request:
    """Return the request of the options, with its own defaults where one was not given."""
    from featkit.embeddings.request import Request

    given = _request_options(options)
    return Request(**{name: value for name, value in given.items() if value is not None})


def _compute(options: Mapping[str, Any]) -> Compute:
    """Return the compute options."""
    from featkit.embeddings.pipeline import Compute

    return Compute(
        device=options["device"],
        batch_size=options["batch_size"],
        workers=options["workers"],
        compiled=options["compile"],
        rehash=bool(options.get("rehash", False)),
        on_error=options["on_error"],
        progress=options["progress"],
    )


def _correction(spec: str | None) -> str | None:
    """Return the spec of a correction with underscores in its name, as runs and cells record it."""
    from featkit.heads import parse_correction

    if spec is None or "-" not in spec.partition(":")[0]:
        return spec
    return str(parse_correction(spec))


def _correction_names(specs: Sequence[object]) -> list[str]:
    """Return ``_correction`` of several specs."""
    return [str(_correction(str(spec))) for spec in specs]


def _strings(values: Strings | Path | Sequence[PathLike] | None) -> tuple[str, ...]:
    """Return one string or several as a tuple."""
    if values is None:
        return ()
    if isinstance(values, str | Path):
        return (str(values),)
    return tuple(map(str, values))


# Features -----------------------------------------------------------------------------------------


@checked(
    **{
        **_FEATURES,
        "data": _images_or_path(),
        "store": text("float16"),
        "cluster": text("local:4"),
    }
)
def extract(
    data: str | Path | ImageSet = "digits",
    backbone: PathLike = "resnet18",
    *,
    weights: str = "imagenet",
    layer: str | None = None,
    pool: str = "avg",
    resize: str | int | None = None,
    crop: str | int | None = None,
    precision: str = "auto",
    decode: str | None = None,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int = 0,
    augment: str | None = None,
    views: int = 4,
    perturb: str | None = None,
    store: str = "float32",
    cache: PathLike = "cache",
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    compile: bool = False,
    on_error: str = "fail",
    rehash: bool = False,
    cluster: str | None = None,
    progress: bool = False,
) -> Embeddings:
    """Extract features of images, or read them from the cache.

    Args:
        data: spec of the images (``digits``, a folder, a CSV file, ``tar:PATTERN``,
            ``cifar10:root=DIR``), or an ``ImageSet``.
        backbone: spec of the network: ``resnet50``, ``timm:NAME``, or a run directory.
        weights: ``imagenet``, ``IMAGENET1K_V2``, ``random[:SEED]`` or a weights file.
        layer: layer whose output is used; None for the output of global pooling.
        pool: ``avg``, ``max``, ``catavgmax`` or ``none``.
        resize: shorter edge in pixels, or ``HEIGHTxWIDTH``; None for that of the weights.
        crop: centre crop in pixels, or ``none``; None for that of the weights.
        precision: ``auto``, ``fp32``, ``bf16``, ``int8`` or ``int8-openvino``.
        decode: ``scaled`` to decode JPEG files of at least four times the size that the network
            needs at 1/2, 1/4 or 1/8 of their size, to at least twice the size needed; ``full`` to
            decode all images in full; None for ``scaled``, unless the cache has more features of
            these images that were decoded in full.
        split: fractions such as ``70/15/15`` in place of the splits of the data.
        limit: stratified sample of splits, such as ``train=500,test=100``.
        intensity_range: values that become black and white in grey images of more than 8 bits,
            such as ``0:4095``.
        group: images that no split separates, such as those of one patient: ``parent`` for the
            folder of the image inside its class folder, ``duplicates`` for near duplicates, a
            column of the CSV file, a regular expression for the path, or ``none``; None for the
            column ``group``, if there is one.
        allow_group_leak: whether the splits of the data may separate a group.
        seed: of the split, the sample and the augmentation.
        augment: ``basic``, ``light``, ``shift``, ``trivial``, ``auto`` or ``rand`` for augmented
            views of train images.
        views: augmented views per train image.
        perturb: corruption of the test images, such as ``fog:level=strong``.
        store: ``float32`` or ``float16``, ``gzip`` or ``zstd``, or both, separated by a comma.
        cache: folder of the embeddings cache.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        batch_size: images per forward pass.
        workers: threads that read and decode images.
        compile: whether to compile the network with ``torch.compile``.
        on_error: ``fail`` at the first image that cannot be read, or ``skip`` it.
        rehash: whether to read every image file to learn whether it has changed, instead of those
            whose size, inode or times have.
        cluster: ``local:4``, ``tcp://host:8786`` or a scheduler file: extract on the workers of a
            Dask cluster; None for this machine.
        progress: whether to show a progress bar on stderr.

    Returns:
        ``Embeddings`` with features ``x`` ``(n, d)`` float32, labels ``y`` ``(n,)``, ids, classes
        and splits.

    Raises:
        FeatkitError: if an option is unknown, or images or weights are not found or cannot be read.

    Example:
        >>> embeddings = featkit.extract("photos", "resnet18", weights="random", resize=32)
        >>> embeddings.x.shape
        (24, 512)
        >>> embeddings.classes
        ('blue', 'green', 'red')
    """
    options = locals()
    from featkit.embeddings.extract import extract_embeddings
    from featkit.images.base import ImageSet, check_image_set

    in_memory = isinstance(data, ImageSet)
    if isinstance(data, ImageSet):
        check_image_set(data)
    if in_memory and any((split, limit, intensity_range, group, augment, perturb)):
        raise OptionsError(
            "split, limit, intensity_range, group, augment and perturb do not apply to images in "
            "memory: apply them before extraction"
        )
    if in_memory and cluster is not None:
        raise OptionsError("images in memory cannot be sent to a cluster: write them to files")
    request = _request({**options, "data": "" if in_memory else data})
    if cluster is not None:
        _extract_on_cluster(request.for_device(device).file_requests(), options)
    return extract_embeddings(
        request,
        Path(cache),
        _compute(options),
        images=data if isinstance(data, ImageSet) else None,
        note=log.info,
    )


def _file_requests(
    backbones: Sequence[str], layers: Sequence[str], options: Mapping[str, Any]
) -> list[Request]:
    """Return the requests of the cache files of backbones and layers."""
    requests = []
    for backbone in backbones or ("resnet18",):
        for layer in layers or (None,):
            request = _request({**options, "backbone": backbone, "layer": layer})
            requests.extend(request.for_device(options["device"]).file_requests())
    return requests


def _extraction(
    backbones: Sequence[str], layers: Sequence[str], options: Mapping[str, Any]
) -> tuple[list[Request], Extractor]:
    """Return the requests for backbones and layers, and the extractor for them."""
    from featkit.embeddings.extract import Extractor

    requests = _file_requests(backbones, layers, options)
    extractor = Extractor(Path(options["cache"]), _compute(options), log.info)
    images = extractor.plan(requests[0]).images
    log.info(
        "%s: %d images, %d classes, split %s",
        images.name,
        len(images),
        len(images.classes),
        images.split,
    )
    return requests, extractor


def extract_files(
    backbones: Sequence[str] = (), layers: Sequence[str] = (), **options: Any
) -> list[ExtractionResult]:
    """Extract features with several backbones and layers, reading each image once.

    Args:
        backbones: specs of the networks.
        layers: names of layers.
        options: as for ``extract``; None for the default.
    """
    if options.get("cluster") is not None:
        return _extract_on_cluster(_file_requests(backbones, layers, options), options)
    requests, extractor = _extraction(backbones, layers, options)
    return extractor.extract(requests)


def _extract_on_cluster(
    requests: Sequence[Request], options: Mapping[str, Any]
) -> list[ExtractionResult]:
    """Extract features of requests on the workers of a cluster."""
    from featkit.embeddings.shards import extract_in_parallel

    cache = Path(options["cache"])
    with _cluster(options, [cache], lambda: requests) as executor:
        if executor is None:
            raise OptionsError("give --cluster")
        return extract_in_parallel(requests, cache, _compute(options), executor.run, note=log.info)


def extract_shard(
    shard: str, backbones: Sequence[str] = (), layers: Sequence[str] = (), **options: Any
) -> list[ExtractionResult | None]:
    """Extract the features of one part of the images; ``featkit cache merge`` joins the parts.

    Args:
        shard: which part of how many, such as ``17/1000``.
        backbones, layers, options: as for ``extract_files``.

    Returns:
        A result for each file; None if no image is in the part.
    """
    from featkit.embeddings.shards import Shard
    from featkit.embeddings.shards import extract_shard as extract_part

    part, compute = Shard.parse(shard), _compute(options)
    requests = _file_requests(backbones, layers, options)
    return extract_part(requests, part, Path(options["cache"]), compute, note=log.info)


def explain_cache(
    backbones: Sequence[str] = (), layers: Sequence[str] = (), **options: Any
) -> list[str]:
    """Return one line per cache file that says whether its features are cached, and if not, why.

    Args:
        backbones, layers, options: as for ``extract_files``.
    """
    from featkit.embeddings.verify import explain

    requests, extractor = _extraction(backbones, layers, options)
    return [explain(extractor.plan(request)) for request in requests]


def _load_features(
    options: Mapping[str, Any],
    executor: ClusterExecutor | None = None,
    *,
    multilabel: bool = False,
) -> FeatureSet:
    """Find or extract the features that the options describe; log where they come from.

    Images with several labels each are refused, unless ``multilabel``.
    """
    from featkit.runs.features import load_features

    run = None if executor is None else executor.run
    features = load_features(
        _request_options(options),
        Path(options["cache"]),
        _compute(options),
        log.info,
        run=run,
        multilabel=multilabel,
    )
    log.info("features: %s, weights: %s", features.path, features.weights)
    return features


# Heads and evaluation -----------------------------------------------------------------------------


@checked(
    **_FEATURES,
    head=text("svm:C=9"),
    tune=FLAG,
    balance=text("logit-adjust"),
    subset=text("longtail:if=50"),
    reject=number(0, 1, below_high=True),
    strict=FLAG,
    folds=integer(2),
    repeats=integer(1),
    unknown=PATH,
    cost=PATH,
    name=NAME,
)
def fit(
    data: PathLike | None = None,
    *,
    head: str = "linear",
    tune: bool = False,
    balance: str | None = None,
    subset: str | None = None,
    reject: float | None = None,
    strict: bool = False,
    folds: int | None = None,
    repeats: int = 1,
    unknown: PathLike | None = None,
    cost: PathLike | None = None,
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
    name: str | None = None,
    cache: PathLike = "cache",
    out: PathLike | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> Run | MultiLabelRun:
    """Fit a head on features and evaluate it on the test set.

    Hyperparameters, temperature and rejection threshold are chosen on the validation set: the
    data's own, else a fifth of train. The head is then fitted on train and validation together and
    evaluated once.

    Args:
        data: spec of the images. Without ``data`` or ``backbone``, the newest cache file that
            matches the other options is used; without one, ``digits`` and ``resnet18``.
        head: ``linear``, ``svm``, ``knn``, ``mlp``, ``prototypical`` or a plug-in, with
            hyperparameters such as ``svm:C=9``.
        tune: choose the hyperparameters of the head, or with ``balance`` those of the correction,
            on validation.
        balance: class-imbalance correction, such as ``logit-adjust``.
        subset: part of train to fit on, such as ``longtail:if=50`` or ``kshot:k=5``.
        reject: fraction of validation images whose confidence is too low to answer.
        strict: refuse data with test images that are copies or near copies of train or val images.
        folds: evaluate by cross-validation with this many folds: all images are used, whatever
            their split, each evaluated by a head that was fitted without it, and the final head is
            fitted on all of them; None to evaluate on the test set.
        repeats: number of random divisions into folds.
        unknown: folder of images of none of the classes, anywhere below it; the report has how
            well confidence tells them from test images, and with ``reject`` how many are accepted.
        cost: CSV file with the cost of each predicted class (columns) for each true class (rows);
            the report has the mean cost of an image. It changes no other number.
        split, limit, intensity_range, group, allow_group_leak, seed, augment, views, perturb:
            images, as for ``extract``.
        backbone, weights, layer, pool, resize, crop, precision, decode: network, as for
            ``extract``.
        name: name of the run for tables and figures; None for a composed one.
        cache: folder of the embeddings cache, or one file in it.
        out: folder in which a run directory is written; None to write nothing.
        device, batch_size, workers, compile, on_error, progress: as for ``extract``.

    Returns:
        The run: ``report`` (accuracy with confidence intervals, calibration, confusion), ``head``
        and ``predictions``. For images with several labels each a ``MultiLabelRun``, whose report
        has the mean average precision.

    Raises:
        SpecError: if an option is unknown.
        DataError: if train has fewer than two classes, test has no image, or ``strict`` finds a
            shared image.

    Example:
        >>> run = featkit.fit("photos", head="knn:k=1", weights="random", resize=32)
        >>> run.report.n
        4
        >>> featkit.predict(run, "new.png")[0].predicted
        'red'
    """
    options = dict(locals())
    del options["head"]
    if head == "all":
        raise OptionsError("fit takes one head: call it once for each head, or use ablate")
    return fit_heads([head], **options).runs[0]


@dataclass(frozen=True)
class FitResults:
    """Runs of several heads and seeds.

    Attributes:
        runs: by seed, then by head.
        paths: their run directories; empty where nothing is written.
        comparison: paired tests between the heads; None for one head, several seeds, or nothing
            written.
        seeds: mean and interval over the seeds by head; empty for one seed.
    """

    runs: tuple[Run | MultiLabelRun, ...]
    paths: tuple[Path, ...]
    comparison: RunComparison | None
    seeds: Mapping[str, OverSeeds]


def _run_name(given: str, head: str, heads: Sequence[str], seeds: int, seed: int | None) -> str:
    """Return the given name, with the head and the seed if there are runs with several."""
    if not given:
        return ""
    parts = [given]
    if len(heads) > 1:
        parts.append(head)
    if seeds > 1:
        parts.append(f"seed {seed}")
    return ", ".join(parts)


def fit_heads(
    heads: Sequence[str],
    *,
    seeds: int = 1,
    on_run: Callable[[Run | MultiLabelRun], None] = lambda run: None,
    name: str | None = None,
    out: PathLike | None = None,
    **options: Any,
) -> FitResults:
    """Fit several heads, with several seeds, on the same features; see ``fit``.

    Args:
        heads: specs; ``all``: every head, including plug-ins.
        seeds: number of seeds, from ``options["seed"]`` on.
        on_run: called with each run when it is evaluated, before its files are written.
        name: name of the run; several get their head, and their seed, added to it.
        out: folder for run directories; None to write nothing.
        options: the other options of ``fit``.
    """
    from featkit.heads import make_head
    from featkit.runs.compare import compare_runs
    from featkit.runs.fit import FitConfig

    given_heads = tuple(heads)
    heads = expand_heads(heads)
    for head in heads:  # fail on an unknown head before features are extracted
        make_head(head)
    given = "" if name is None else NAME.check("name", name)
    _check_evaluation(seeds, options)
    table = _read_costs(options["cost"])
    config = FitConfig(
        tune=options["tune"],
        subset=options["subset"],
        balance=_correction(options["balance"]),
        reject=options["reject"],
    )
    runs, paths = [], []
    first_seed = options["seed"] or 0
    for offset in range(seeds):
        if seeds > 1:
            options = {**options, "seed": first_seed + offset}
        features = _load_features(options, multilabel=True)
        heads = _fitting_heads(features, heads, given_heads, config, options)
        costs = None if table is None else table.matrix(features.embeddings.classes)
        config = replace(config, costs=costs)
        features = _with_unknown(_check_copies(features, options), options)
        for head in heads:
            run = _fit_head(features, head, config, options)
            run = replace(run, name=_run_name(given, head, heads, seeds, options["seed"]))
            runs.append(run)
            on_run(run)
            if out is not None:
                paths.append(_save_run(run, Path(out)))
    comparison = None
    summaries: dict[str, OverSeeds] = {}
    if seeds > 1:
        summaries = _summarise_seeds(runs, heads, out)
    elif len(set(paths)) > 1:
        comparison = compare_runs(paths)
    return FitResults(tuple(runs), tuple(paths), comparison, summaries)


def _read_costs(path: PathLike | None) -> CostTable | None:
    """Read a file of costs; None without one."""
    from featkit.runs.costs import read_costs
    from featkit.storage import user_path

    return None if path is None else read_costs(user_path(str(path)))


def _fitting_heads(
    features: FeatureSet,
    heads: Sequence[str],
    given: Sequence[str],
    config: FitConfig,
    options: Mapping[str, Any],
) -> tuple[str, ...]:
    """Return the heads to fit: of ``all``, those that can give images their several labels.

    Raises:
        HeadError: if a head that was given by its name cannot give an image several labels.
        OptionsError: if an option needs one label per image.
    """
    if not features.embeddings.multilabel:
        return tuple(heads)
    from featkit.errors import HeadError
    from featkit.images.multilabel import one_label_message
    from featkit.runs.multilabel import check_multilabel_config

    for name in ("unknown", "cost"):
        if options[name] is not None:
            raise OptionsError(one_label_message(name))
    kept = []
    for head in heads:
        try:
            check_multilabel_config(head, config)
        except HeadError as error:
            if head in given:
                raise
            log.info("%s is left out: %s", head, error)
        else:
            kept.append(head)
    return tuple(kept)


def _save_run(run: Run | MultiLabelRun, out: Path) -> Path:
    """Write the directory of a run with its figures."""
    # matplotlib is imported when the result is known: whoever waits for it has it a second earlier.
    from featkit.reports.figures import multilabel_figures, run_figures
    from featkit.runs.directory import save_run
    from featkit.runs.multilabel import MultiLabelRun

    figures = multilabel_figures(run) if isinstance(run, MultiLabelRun) else run_figures(run)
    path = save_run(run, out, figures)
    log.info("run: %s", path)
    return path


def _check_evaluation(seeds: int, options: Mapping[str, Any]) -> None:
    """Refuse options that contradict each other, before features are extracted.

    Raises:
        OptionsError: if options contradict each other.
        DataError: if the unknown images are not in a folder.
    """
    from featkit.runs.features import check_unknown
    from featkit.storage import user_path

    if options["unknown"] is not None:
        check_unknown(user_path(str(options["unknown"])))
    if not options["folds"]:
        if options["repeats"] > 1:
            raise OptionsError("repeats are repetitions of folds: give folds too, such as 5")
        return
    if seeds > 1:
        raise OptionsError("folds are repeated with repeats: leave out seeds")
    if options["perturb"]:
        raise OptionsError("perturb changes test images, and folds test all images: leave out one")
    if options["unknown"] is not None:
        raise OptionsError("unknown images are compared with a test set: leave out folds")


def _fit_head(
    features: FeatureSet, head: str, config: FitConfig, options: Mapping[str, Any]
) -> Run | MultiLabelRun:
    """Fit and evaluate one head, on the test set or on folds; log its warnings."""
    from tqdm import tqdm

    from featkit.runs.fit import fit_run
    from featkit.runs.folds import fit_folds
    from featkit.runs.label_folds import fit_label_folds
    from featkit.runs.multilabel import fit_labels

    seed, progress = features.request.seed, options["progress"]
    several = features.embeddings.multilabel
    run: Run | MultiLabelRun
    if options["folds"]:
        folds, repeats = options["folds"], options["repeats"]
        evaluate = fit_label_folds if several else fit_folds
        with tqdm(total=folds * repeats, unit="fold", disable=not progress) as bar:
            run = evaluate(
                features,
                head,
                folds=folds,
                repeats=repeats,
                seed=seed,
                config=config,
                on_fold=bar.update,
            )
    else:
        fit = fit_labels if several else fit_run
        with _candidate_bar(progress and config.tune) as count:
            run = fit(features, head, seed=seed, config=replace(config, progress=count))
    for warning in run.report.warnings:
        log.warning(warning)
    return run


@dataclass(frozen=True)
class TrainResult:
    """A trained classifier and what was written.

    Attributes:
        trained: the chosen run, the other attempts, and paired tests between them.
        name: name of the run.
        path: its directory.
        report: its report as an HTML page; None if the time was up.
        model: its ONNX file; None if the time was up, or the file could not be written.
        seconds: duration.
    """

    trained: TrainedClassifier
    name: str
    path: Path
    report: Path | None
    model: Path | None
    seconds: float

    @property
    def run(self) -> Run:
        """The chosen run."""
        return self.trained.run

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON can hold them."""
        return {
            "run": self.run.id,
            "name": self.name,
            "path": str(self.path),
            "report": None if self.report is None else str(self.report),
            "model": None if self.model is None else str(self.model),
            "seconds": self.seconds,
            "n": self.run.report.n,
            "top1": self.run.report.top1,
            "interval95": list(self.run.report.interval95),
            **self.trained.to_dict(),
        }

    def _repr_html_(self) -> str:
        return self.run._repr_html_()


@checked(
    **_COMPUTE,
    photos=PATH,
    minutes=number(0.05, 1440),
    name=NAME,
    overwrite=FLAG,
    backbone=PATH,
    weights=PATH,
    resize=SIZE,
    decode=text("full"),
    split=text("70/15/15"),
    seed=SEED,
    cost=PATH,
    bundle=FLAG,
    cache=PATH,
    out=PATH,
)
def train(
    photos: PathLike,
    *,
    minutes: float = 5.0,
    name: str | None = None,
    overwrite: bool = False,
    backbone: PathLike | None = None,
    weights: str | None = None,
    resize: str | int | None = None,
    decode: str | None = None,
    split: str | None = None,
    seed: int = 0,
    cost: PathLike | None = None,
    bundle: bool = False,
    cache: PathLike = "cache",
    out: PathLike = OUT,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    compile: bool = False,
    on_error: str = "skip",
    progress: bool = False,
) -> TrainResult:
    """Train the best classifier of images that is found within a time budget.

    Extracts features, tunes all heads on validation images as far as time allows, chooses one,
    evaluates it once on the test images, compares it with the others by paired tests, and writes a
    run with its report and an ONNX file. If there is time, ResNet-50 is tried after ResNet-18.
    Ctrl-C during the search continues with the best so far.

    Args:
        photos: a folder with one subfolder per class, or another spec of images.
        minutes: time budget. If the features alone take longer, the fastest head is still fitted.
        name: of the run; None for that of the folder.
        overwrite: whether a run with this name is replaced.
        backbone: the only network that is tried; None for ResNet-18, then ResNet-50.
        weights: of the network, as for ``extract``.
        resize: size of the images, as for ``extract``.
        decode: how large JPEG files are decoded, as for ``extract``.
        cost: file with the cost of each error, as for ``fit``: the report has the mean cost of an
            image; the choice does not depend on it.
        bundle: whether the weights of the network are put into the run, see ``bundle``.
        split, seed, cache, device, batch_size, workers, compile, on_error, progress: as for
            ``extract``.
        out: folder for results.

    Returns:
        The run, what was tried, and the paths of the files.

    Raises:
        RunError: if the name is in use.
        DataError: if there are fewer than two classes, or no image to test on.

    Example:
        >>> result = featkit.train("photos", minutes=2)  # doctest: +SKIP
        >>> featkit.predict(result.name, "new.png")  # doctest: +SKIP
    """
    options = dict(locals())
    from featkit.reports.figures import run_figures
    from featkit.runs.bundle import bundle_run
    from featkit.runs.directory import save_run
    from featkit.runs.registry import check_name_is_free, free_name
    from featkit.studies.train import (
        FIRST_NETWORK,
        Clock,
        ExtractionTimer,
        SecondNetwork,
        evaluate_selection,
        finishing_seconds,
        read_photos,
        select,
    )

    clock = Clock(60 * minutes)
    table = _read_costs(cost)
    if name is not None and not overwrite:
        check_name_is_free(name)
    timer = ExtractionTimer(clock, log.info)
    compute = replace(_compute(options), on_batch=timer)
    given = {**_request_options(options), "data": str(photos)}
    first = {**given, "backbone": given["backbone"] or FIRST_NETWORK}
    features, problems = read_photos(first, Path(cache), compute, log.info)
    costs = None if table is None else table.matrix(features.embeddings.classes)
    clock.reserve = finishing_seconds(features, timer.seconds_per_image)
    clock.allow_search()
    second = SecondNetwork(given, Path(cache), compute, clock, log.info, timer.seconds_per_image)
    with _search_bar(clock, progress) as on_candidate:
        selection = select(features, clock, second=second, say=log.info, on_candidate=on_candidate)
    trained = evaluate_selection(selection, problems, costs)
    earlier = _runs_named(name) if name is not None and overwrite else []
    title = name if name is not None else free_name(features.data)
    run = replace(trained.run, name=title)
    content = json.dumps(trained.to_dict(), indent=2)
    path = save_run(run, Path(out), {**run_figures(run), "train.json": content})
    log.info("run: %s", path)
    _remove_replaced(earlier, path)
    if bundle:
        bundle_run(load_run(path))
    page, model = None, None
    if not selection.interrupted:
        page = _report_in_time(path, clock, options)
        model = _export_in_time(path, compute)
    return TrainResult(replace(trained, run=run), title, path, page, model, clock.elapsed)


def _runs_named(name: str) -> list[Path]:
    """Return the directories of the runs with a name."""
    from featkit.runs.registry import list_runs

    return [entry.path for entry in list_runs() if entry.name == name]


def _remove_replaced(earlier: Sequence[Path], path: Path) -> None:
    """Remove the runs that a new run of the same name replaces."""
    from featkit.runs.summary import remove_run

    for other in earlier:
        if other != path.resolve():
            remove_run(other)
            log.info("removed the earlier run of this name: %s", other)


def _report_in_time(path: Path, clock: Clock, options: Mapping[str, Any]) -> Path:
    """Write the report of a new run, without class activation maps if the time is up."""
    compute = ("cache", "device", "batch_size", "workers", "compile", "on_error", "progress")
    shared = {name: options[name] for name in compute}
    heat_maps = clock.left > 0
    if not heat_maps:
        log.info("no class activation maps, since the time is up: `featkit report` draws them")
    return report(path, heat_maps=heat_maps, **shared)


def _export_in_time(path: Path, compute: Compute) -> Path | None:
    """Export a new run to ONNX; without the extra for it, say so."""
    from featkit.errors import MissingExtraError
    from featkit.runs.export import export_run

    model = path / "model.onnx"
    try:
        export_run(load_run(path), model, most=_CHECKED_IMAGES, compute=compute)
    except (MissingExtraError, HeadError) as error:
        log.warning("no ONNX file: %s", error)
        return None
    return model


_CHECKED_IMAGES = 64
"""Test images on which ``train`` verifies the ONNX file."""


def expand_heads(heads: Sequence[str]) -> tuple[str, ...]:
    """Return the specs of heads, with ``all`` replaced by every head, plug-ins included."""
    from featkit.heads import list_heads

    found: list[str] = []
    for head in heads:
        found.extend([row.name for row in list_heads()] if head == "all" else [head])
    return tuple(dict.fromkeys(found))


def _with_unknown(features: FeatureSet, options: Mapping[str, Any]) -> FeatureSet:
    """Return the features with those of the images of none of the classes, if there are any."""
    from featkit.runs.features import load_unknown
    from featkit.storage import user_path

    if options["unknown"] is None:
        return features
    found = load_unknown(user_path(str(options["unknown"])), features, _compute(options), log.info)
    return replace(features, unknown=found)


def _check_copies(features: FeatureSet, options: Mapping[str, Any]) -> FeatureSet:
    """Return the features with the test images that are copies of train or val images.

    With ``folds``, with the images that are copies of images of another fold, in any repeat. They
    are logged as warnings; with ``strict``, a DataError is raised.
    """
    from featkit.runs.features import find_copies
    from featkit.runs.folds import find_fold_copies

    folds = options["folds"]
    if folds:
        copies = find_fold_copies(features, folds, features.request.seed, options["repeats"])
    else:
        copies = find_copies(features)
    warnings = copies.warnings()
    if warnings and options["strict"]:
        part = "the data" if folds else "one of the splits"
        raise DataError(f"{'; '.join(warnings)}; remove them from {part}, or leave out --strict")
    for warning in warnings:
        log.warning(warning)
    return replace(features, copies=copies)


def _summarise_seeds(
    runs: Sequence[Run | MultiLabelRun], heads: Sequence[str], out: PathLike | None
) -> dict[str, OverSeeds]:
    """Return mean and interval over the seeds of each head, and write them to ``out``."""
    from featkit.runs.compare import over_seeds
    from featkit.storage import digest, publish

    summaries = {}
    for head in heads:
        own = [run for run in runs if run.head_spec == head]
        summaries[head] = over_seeds([run.predictions for run in own])
        if out is None:
            continue
        ids = [run.id for run in own]
        values = {
            "runs": ids,
            "n": [run.report.n for run in own],
            **summaries[head].to_dict(),
        }
        directory = Path(out) / own[0].source.data / f"seeds-{digest(ids)[:12]}"
        publish(directory, {"results.json": json.dumps(values, indent=2)})
        log.info("seeds: %s", directory)
    return summaries


@checked(
    **_COMPUTE,
    run=_run_or_path(),
    files=several(PATH),
    top=integer(1),
    all_probabilities=FLAG,
    sort_into=PATH,
)
def predict(
    run: PathLike | Run | SavedRun,
    files: PathLike | Sequence[PathLike],
    *,
    top: int = 5,
    all_probabilities: bool = False,
    sort_into: PathLike | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> list[Prediction]:
    """Classify new images with a run.

    Args:
        run: a run, by name, id or directory, or a file written by ``export`` (``.onnx``).
        files: image files, and folders with images in them or below them.
        top: number of classes to return, the most probable first.
        all_probabilities: whether each prediction has the probability of every class too.
        sort_into: folder into which the images are copied, with one subfolder for each predicted
            class and ``unknown`` for rejected images; None for no copies.
        device, batch_size, workers, compile, on_error, progress: as for ``extract``.

    Returns:
        One prediction per image; images that cannot be read are left out with ``on_error="skip"``.

    Raises:
        RunError: if the run is not found or was changed.
        DataError: if there is no image.
        DecodeError: if an image cannot be read.

    Example:
        >>> (prediction,) = featkit.predict("colours", "new.png")
        >>> prediction.predicted
        'red'
    """
    compute = _compute(locals())
    from featkit.runs.predict import image_names
    from featkit.runs.predict import sort_into as copy_into

    names = image_names([files] if isinstance(files, str | Path) else files)
    found = _predict(run, names, compute, top, all_probabilities)
    if sort_into is not None:
        counts = copy_into(found, Path(sort_into))
        listed = ", ".join(f"{count} in {name}" for name, count in counts.items())
        log.info("copied into %s: %s", sort_into, listed or "nothing")
    return found


def _predict(
    run: PathLike | Run | SavedRun,
    names: list[str],
    compute: Compute,
    top: int,
    all_probabilities: bool,
) -> list[Prediction]:
    """Classify image files with a run or an exported classifier."""
    from featkit.runs.predict import predict as predict_run
    from featkit.runs.predict import predict_exported

    if isinstance(run, str | Path) and Path(run).suffix == ".onnx":
        from featkit.compression.onnx_reader import load_exported

        exported = load_exported(Path(run))
        return predict_exported(
            exported, names, compute, top=top, all_probabilities=all_probabilities
        )
    return predict_run(load_run(run), names, compute, top=top, all_probabilities=all_probabilities)


@checked(run=_run_or_path())
def load_run(run: PathLike | Run | MultiLabelRun | SavedRun) -> SavedRun:
    """Load a run: head, class names, temperature and the description of its network.

    Args:
        run: its name, ``latest``, its id or the start of one of them, or its directory; a run in
            memory is converted.

    Raises:
        RunError: if there is no such run, or a part is missing, cannot be read or was changed.
        HeadError: if the head file holds anything that is not on the trusted list.

    Example:
        >>> run = featkit.load_run("colours")
        >>> run.head_spec
        'prototypical'
    """
    from featkit.runs.directory import SavedRun, label_rules
    from featkit.runs.directory import load_run as load
    from featkit.runs.fit import Run
    from featkit.runs.multilabel import MultiLabelRun
    from featkit.runs.registry import find_run

    if isinstance(run, SavedRun):
        return run
    if not isinstance(run, Run | MultiLabelRun):
        return load(find_run(run), multilabel=True)
    recipe = run.source.embeddings.recipe
    quantized = None
    if recipe.calibration != "none":
        from featkit.embeddings.calibration import find_by_digest

        quantized = run.source.request.load_backbone().quantized
        quantized = quantized or find_by_digest(run.source.path.parent, recipe.calibration)
    saved = SavedRun(
        path=Path(run.id),
        request=run.source.request,
        classes=run.source.embeddings.classes,
        head=run.head,
        head_spec=run.head_spec,
        recipe=recipe,
        quantized=quantized,
        name=run.name,
    )
    if isinstance(run, MultiLabelRun):
        return replace(saved, classes=run.report.labels, labels=label_rules(run.report))
    rejection = run.report.rejection
    return replace(
        saved,
        temperature=run.report.temperature,
        threshold=rejection.threshold if rejection else 0.0,
    )


def _load_plain_run(run: PathLike | Run | SavedRun) -> SavedRun:
    """Load a run with one label per image; raises RunError for another one."""
    from featkit.runs.directory import refuse_multilabel_run

    saved = load_run(run)
    refuse_multilabel_run(saved)
    return saved


@checked(run=PATH)
def bundle(run: PathLike) -> Path:
    """Write the weights of a run's network into its directory, and return the new file.

    The directory then predicts on another machine with nothing else than featkit.

    Args:
        run: its name, ``latest``, its id or the start of one of them, or its directory.

    Raises:
        RunError: if there is no such run.
        WeightsError: if the weights are not found, or are not those of the run.
        StorageError: if the disk is full or cannot be written.
    """
    from featkit.runs.bundle import bundle_run

    return bundle_run(load_run(run))


@checked(run=PATH, name=NAME)
def rename_run(run: PathLike, name: str) -> Path:
    """Give a run another name and return its directory; nothing else in it changes.

    Args:
        run: its name, ``latest``, its id or the start of one of them, or its directory.
        name: the new name.

    Raises:
        RunError: if there is no such run, or another run has the name.
        StorageError: if the disk is full or cannot be written.
    """
    from featkit.runs.directory import rename_run as rename
    from featkit.runs.registry import check_name_is_free, find_run

    directory = find_run(run)
    check_name_is_free(name)
    rename(directory, name)
    return directory


@checked(runs=sequence(PATH, least=1))
def compare(runs: Sequence[PathLike]) -> RunComparison:
    """Compare runs that were evaluated on the same test images.

    Args:
        runs: two or more runs, by name, id or directory; folders without a run, which
            ``runs/photos/*`` also matches, are left out as long as two runs remain.

    Returns:
        The runs, best first, and for each pair the difference of top-1 accuracy with its 95%
        confidence interval and McNemar's test with Holm correction. Runs on the same folds are
        compared by the corrected resampled t-test too, runs on folds with runs on a test set over
        the images that all were evaluated on.

    Raises:
        SpecError: if there are fewer than two runs, or one is given twice.
        RunError: if a path does not exist, or a run is damaged.
        DataError: if two runs were evaluated on different images or labels.

    Example:
        >>> comparison = featkit.compare(["colours", "neighbour"])
        >>> len(comparison.runs)
        2
    """
    from featkit.runs.compare import compare_runs
    from featkit.runs.registry import find_run

    return compare_runs(_without_other_folders([find_run(run) for run in runs]))


def _without_other_folders(directories: Sequence[Path]) -> list[Path]:
    """Leave out folders that hold no file of a run, such as results of ``audit``, and log them."""
    from featkit.runs.card import CARD_FILE, HEAD_FILE, PREDICTIONS_FILE

    runs: list[Path] = []
    others: list[Path] = []
    for directory in directories:
        files = [directory / name for name in (CARD_FILE, HEAD_FILE, PREDICTIONS_FILE)]
        is_other = directory.is_dir() and not any(file.exists() for file in files)
        (others if is_other else runs).append(directory)
    if len(runs) < 2:  # then the message says what is wrong with the others
        return list(directories)
    if others:
        log.info("left out, not runs: %s", ", ".join(map(str, others)))
    return runs


@checked(**_COMPUTE, run=_run_or_path(), format=text("onnx"), out=PATH, check=integer(1))
def export(
    run: PathLike | SavedRun,
    *,
    format: str = "onnx",
    out: PathLike | None = None,
    check: int = 256,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> ExportedRun:
    """Export a run to one file that needs no featkit: network, head and temperature.

    The file is written only if it predicts the same classes and rejects the same images as the
    run, with probabilities within 0.001. With several labels per image it gives the calibrated
    probability of each label, and its metadata has their thresholds.

    Args:
        run: a run directory.
        format: ``onnx`` or ``torch``.
        out: the file; None for ``model.onnx`` or ``model.pt2`` in the run directory.
        check: number of test images on which the file is verified.
        device, batch_size, workers, compile, on_error, progress: as for ``extract``.

    Raises:
        HeadError: if the head cannot be exported.
        SpecError: if the file gives other answers.
    """
    compute = _compute(locals())
    from featkit.compression.export import SUFFIXES
    from featkit.runs.export import export_run

    saved = load_run(run)
    if format not in SUFFIXES:
        from featkit.registry import unknown

        raise unknown("format", format, list(SUFFIXES))
    path = Path(out) if out is not None else saved.path / f"model{SUFFIXES[format]}"
    if saved.request.precision == "bf16":
        log.info("the run uses bf16, the file fp32: verified against the run in fp32")
    if saved.request.precision == "int8-openvino":
        log.info("the run uses OpenVINO: verified against the run in ONNX Runtime")
    found = export_run(saved, path, to=format, most=check, compute=compute)
    return ExportedRun(path, found)


@dataclass(frozen=True)
class ExportedRun:
    """An exported run: the file, and the comparison of its predictions with those of the run."""

    path: Path
    check: ExportAgreement


# Grids: ablate, longtail, robustness --------------------------------------------------------------


@checked(**_GRID, grid=PATH, tune=FLAG)
def ablate(
    grid: PathLike | None = None,
    *,
    data: Strings | None = None,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | Sequence[int] | None = None,
    subset: Strings | None = None,
    augment: str | None = None,
    views: int | None = None,
    perturb: Strings | None = None,
    train_perturb: Strings | None = None,
    backbone: Strings | None = None,
    weights: Strings | None = None,
    layer: Strings | None = None,
    pool: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    precision: Strings | None = None,
    head: Strings | None = None,
    tune: bool = False,
    balance: Strings | None = None,
    jobs: int | None = None,
    cluster: str | None = None,
    cache: PathLike = "cache",
    out: PathLike = OUT,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> AblationResult:
    """Run every combination of backbones, heads and options, each on the same protocol as ``fit``.

    Finished cells are kept in ``out``: an interrupted grid resumes, a changed one computes only
    what is new. Tables, report and figures are written to ``out/<name>/<id>``.

    Args:
        grid: TOML file with ``[axes]``, ``[fixed]`` and ``[[skip]]``; then none of the options that
            define cells.
        data, seed, subset, perturb, train_perturb, backbone, weights, layer, precision, head,
            balance: one value or several, of which every combination is run. By default: the data
            of the newest cache file, else ``digits``; weights ``imagenet`` and ``random``;
            featkit's five heads (``all`` adds plug-ins).
        split, limit, intensity_range, group, allow_group_leak, augment, views, pool, resize, crop,
            tune: the same in all cells, as for ``fit``.
        jobs: heads fitted in parallel; None for one per core.
        cluster: ``local:4``, ``tcp://host:8786`` or a scheduler file: extract features and fit
            heads on the workers of a Dask cluster; None for this machine.
        cache, device, batch_size, workers, compile, on_error, progress: as for ``extract``.
        out: folder for results.

    Returns:
        The grid and a result for each cell; a cell that failed has the reason.

    Raises:
        SpecError: if the grid or an option is not valid.
        FeatkitError: if no cell has a result.

    Example:
        >>> heads = ["prototypical", "knn:k=1"]
        >>> result = featkit.ablate(data="photos", head=heads, weights="random", resize=32)
        >>> len(result.cells)
        2
    """
    options = locals()
    return run_study(ablation_grid(options), options)


@checked(**_GRID, factors=sequence(number(1), least=1))
def longtail(
    data: Strings | None = None,
    *,
    factors: Sequence[float] | None = None,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | Sequence[int] | None = None,
    subset: Strings | None = None,
    augment: str | None = None,
    views: int | None = None,
    perturb: Strings | None = None,
    train_perturb: Strings | None = None,
    backbone: Strings | None = None,
    weights: Strings | None = None,
    layer: Strings | None = None,
    pool: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    precision: Strings | None = None,
    head: Strings | None = None,
    balance: Strings | None = None,
    jobs: int | None = None,
    cluster: str | None = None,
    cache: PathLike = "cache",
    out: PathLike = OUT,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> AblationResult:
    """Compare class-imbalance corrections on long-tailed training sets.

    A grid of imbalance factors, corrections and heads; see ``ablate``. Hyperparameters of
    corrections are tuned on validation.

    Args:
        data: spec of the images, or several.
        factors: imbalance factors: largest class size over smallest; None for 10 and 50.
        subset: subsets of train in place of ``factors``, such as ``longtail:if=50,profile=step``.
        balance: corrections to compare; None for all.
        split, limit, intensity_range, group, allow_group_leak, seed, augment, views, perturb,
            train_perturb, backbone, weights, layer, pool, resize, crop, precision, head, jobs,
            cluster, cache, out, device, batch_size, workers, compile, on_error, progress: as for
            ``ablate``.
    """
    options = locals()
    return run_study(longtail_grid(options), options)


@checked(
    **_GRID,
    family=several(text("fog")),
    level=several(text("mild")),
    baseline=text("resnet18"),
    tune=FLAG,
)
def robustness(
    data: Strings | None = None,
    *,
    family: Strings = (),
    level: Strings = (),
    baseline: str = "",
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | Sequence[int] | None = None,
    subset: Strings | None = None,
    augment: str | None = None,
    views: int | None = None,
    train_perturb: Strings | None = None,
    backbone: Strings | None = None,
    weights: Strings | None = None,
    layer: Strings | None = None,
    pool: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    precision: Strings | None = None,
    head: Strings | None = None,
    tune: bool = False,
    balance: Strings | None = None,
    jobs: int | None = None,
    cluster: str | None = None,
    cache: PathLike = "cache",
    out: PathLike = OUT,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> AblationResult:
    """Evaluate heads on corrupted test images.

    A grid of corruptions, severities and heads; see ``ablate``. Only test images are corrupted.

    Args:
        data: spec of the images, or several.
        family: corruptions, such as ``fog``; none for all.
        level: severities ``mild``, ``medium``, ``strong``; none for all three.
        baseline: backbone whose errors are the unit of the mean corruption error; empty for the
            first.
        split, limit, intensity_range, group, allow_group_leak, seed, subset, augment, views,
            train_perturb, backbone, weights, layer, pool, resize, crop, precision, head, tune,
            balance, jobs, cluster, cache, out, device, batch_size, workers, compile, on_error,
            progress: as for ``ablate``.
    """
    options = locals()
    return run_study(robustness_grid(options), options, baseline)


@checked(
    result=_comparable(),
    format=text("latex"),
    baseline=text("resnet18"),
)
def publication_table(
    result: AblationResult | RunComparison, *, format: str = "latex", baseline: str = ""
) -> str:
    """Return the table of a comparison for a paper: best in bold, ties with it marked.

    Numbers are in percent with one decimal and a 95% confidence interval. A tie is a result that is
    not significantly different from the best by paired tests with Holm correction; the caption
    explains the marks.

    Args:
        result: of ``compare``, ``ablate``, ``longtail`` or ``robustness``.
        format: ``latex`` (needs the package booktabs) or ``markdown``.
        baseline: as for ``robustness``.

    Raises:
        SpecError: if the format is unknown.
        DataError: if no cell of a grid has a result.

    Example:
        >>> comparison = featkit.compare(["colours", "neighbour"])
        >>> table = featkit.publication_table(comparison, format="markdown")
    """
    from featkit.registry import unknown
    from featkit.reports import publication

    if format not in publication.FORMATS:
        raise unknown("format", format, list(publication.FORMATS))
    return publication.publication_table(result, baseline=baseline).to_text(format)


def ablation_grid(options: Mapping[str, Any]) -> Grid:
    """Return the grid of ``ablate``, from its options or its file.

    Raises:
        SpecError: if the file cannot be read, is not a grid, or options that define cells are given
            as well.
    """
    from featkit.ablation.grid import BUILT_IN, Grid, read_grid
    from featkit.embeddings.request import NO_EARLIER, resolve

    axes, fixed = _axes(options), _fixed(options)
    if options["grid"] is not None:
        if axes or fixed:
            names = ", ".join(name.replace("_", "-") for name in (*axes, *fixed))
            raise OptionsError(f"the grid is defined in {options['grid']}: leave out {names}")
        grid = read_grid(Path(options["grid"]))
        if "balance" not in grid.axes:
            return grid
        return replace(grid, axes={**grid.axes, "balance": _correction_names(grid.axes["balance"])})
    if "data" not in axes:
        request, newest = resolve({}, Path(options["cache"]))
        log.info("data: %s (%s)", request.data, f"from {newest}" if newest else NO_EARLIER)
        axes["data"] = (request.data,)
    return Grid("ablate", {**BUILT_IN, **axes}, fixed)


def longtail_grid(options: Mapping[str, Any]) -> Grid:
    """Return the grid of ``longtail``, from its options.

    Raises:
        OptionsError: if both ``factors`` and ``subset`` are given.
    """
    from featkit.studies import longtail

    axes, factors = _axes(options), options["factors"]
    if factors and "subset" in axes:
        raise OptionsError("--if and --subset both define the subset of train: leave one out")
    return longtail.longtail_grid(axes, factors or (10.0, 50.0), _fixed(options))


def robustness_grid(options: Mapping[str, Any]) -> Grid:
    """Return the grid of ``robustness``, from its options."""
    from featkit.studies import robustness

    family, level = _strings(options["family"]), _strings(options["level"])
    return robustness.robustness_grid(_axes(options), family, level, _fixed(options))


def _axis_values(value: Any) -> Sequence[AxisValue]:
    """Return the values of an axis, given as one value or several; paths become text."""
    values = (value,) if isinstance(value, str | int | Path) else tuple(value)
    return tuple(str(each) if isinstance(each, Path) else each for each in values)


def _axes(options: Mapping[str, Any]) -> dict[str, Sequence[AxisValue]]:
    """Return the axes of a grid that were given."""
    from featkit.ablation.grid import AXES

    axes: dict[str, Sequence[AxisValue]] = {}
    for name in AXES:
        value = options.get(name)
        if value is not None and value is not False and value != ():
            axes[name] = _axis_values(value)
    if "backbone" in axes:
        axes["backbone"] = tuple(_network(str(each)) for each in axes["backbone"])
    if "head" in axes:
        axes["head"] = expand_heads([str(head) for head in axes["head"]])
    if "balance" in axes:
        axes["balance"] = _correction_names(axes["balance"])
    return axes


def _fixed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given and are the same in all cells of a grid."""
    from featkit.ablation.grid import FIXED

    given = _request_options(options)
    return {name: given[name] for name in FIXED if given.get(name) is not None}


def run_study(
    grid: Grid,
    options: Mapping[str, Any],
    baseline: str = "",
    command: str = "",
    on_result: Callable[[AblationResult], None] = lambda result: None,
) -> AblationResult:
    """Run a grid and write its tables, report and figures.

    Args:
        grid: from ``ablation_grid``, ``longtail_grid`` or ``robustness_grid``.
        options: of ``ablate``.
        baseline: as for ``robustness``.
        command: how the study was started, for its report.
        on_result: called with the result, also if no cell has one.

    Raises:
        OptionsError: if the baseline is not a backbone of the grid.
        SpecError: if a head, a correction or another value of the grid is unknown.
        FeatkitError: if no cell has a result.
    """
    import time

    from featkit.ablation.grid import check_specs
    from featkit.ablation.run import run_grid
    from featkit.reports.ablation import ablation_files
    from featkit.storage import publish

    if baseline and baseline not in grid.values("backbone"):
        backbones = ", ".join(map(str, grid.values("backbone")))
        raise OptionsError(f"baseline {baseline} is not a backbone of the grid: {backbones}")
    check_specs(grid)
    start = time.perf_counter()
    folders = Path(options["out"], grid.name, "cells"), Path(options["cache"])
    with (
        _cluster(options, folders, lambda: _networks_of(grid)) as executor,
        _cell_bar(options["progress"]) as show,
    ):
        config = _ablation_config(options, show, executor)
        cells = config.out / grid.name / "cells"
        resumed = any(cells.glob("*"))
        result = run_grid(grid, config)
    seconds = _wall_seconds(cells, grid, None if resumed else time.perf_counter() - start)
    files = ablation_files(
        result, command=command or f"featkit.{grid.name}", baseline=baseline, wall_seconds=seconds
    )
    directory = config.out / grid.name / grid.id
    publish(directory, files)
    log.info("%s: %s", ", ".join(files), directory)
    on_result(result)
    if not any(cell.report for cell in result.cells):
        reason = next(cell.reason for cell in result.cells if cell.status != "ok")
        raise FeatkitError(f"none of the {len(result.cells)} cells has a result: {reason}")
    return result


def estimate_study(grid: Grid, options: Mapping[str, Any]) -> tuple[Estimate, int]:
    """Return what a grid would compute, without running it, and the number of jobs it would use.

    Args:
        grid: as for ``run_study``.
        options: of ``ablate``; with ``measure`` true, some images go through the networks to
            measure their throughput.

    Raises:
        SpecError: if a head, a correction or another value of the grid is unknown.
    """
    from featkit.ablation.estimate import estimate
    from featkit.ablation.grid import check_specs

    check_specs(grid)
    config = _ablation_config(options, lambda progress: None)
    return estimate(grid, config, measure=options["measure"]), config.jobs


@contextmanager
def _cluster(
    options: Mapping[str, Any], folders: Sequence[Path], requests: Callable[[], Sequence[Request]]
) -> Iterator[ClusterExecutor | None]:
    """Yield the executor for the option ``cluster``; None if it was not given.

    Args:
        options: with ``cluster`` and ``device``.
        folders: folders that the workers must share.
        requests: returns images and networks that the workers must find.

    Raises:
        RunError: if the cluster cannot be used.
    """
    if options.get("cluster") is None:
        yield None
        return
    if options.get("jobs") is not None:
        raise OptionsError("--jobs and --cluster exclude each other: leave one out")
    from featkit.ablation.executors.cluster import connect

    device = options["device"]
    with connect(
        options["cluster"], folders=folders, requests=requests(), device=device
    ) as executor:
        yield executor


def _networks_of(grid: Grid) -> list[Request]:
    """Return one request for each combination of images and network that can be loaded."""
    from featkit.ablation.plan import cell_features

    requests: dict[tuple[str, str, str], Request] = {}
    for values in grid.cells():
        with suppress(FeatkitError):  # the cells of the others get their error as their reason
            request = cell_features(values, grid.fixed).clean
            request.load_backbone()
            requests.setdefault((request.data, request.backbone, request.weights), request)
    return list(requests.values())


def _ablation_config(
    options: Mapping[str, Any],
    show: Callable[[Progress], None],
    executor: ClusterExecutor | None = None,
) -> AblationConfig:
    from featkit.ablation.run import AblationConfig
    from featkit.storage import available_cores

    jobs = executor.jobs if executor else options["jobs"] or available_cores()
    return AblationConfig(
        out=Path(options["out"]),
        cache=Path(options["cache"]),
        compute=_compute(options),
        jobs=jobs,
        executor=executor,
        note=log.info,
        progress=show,
    )


def _wall_seconds(cells: Path, grid: Grid, seconds: float | None) -> float | None:
    """Return the duration of a grid that ran without interruption; None if it was resumed."""
    from featkit.storage import read_json, write_file

    file = cells / "wall.json"
    if seconds is not None:
        write_file(file, json.dumps({grid.id: seconds}))
        return seconds
    try:
        known = read_json(file)
    except (OSError, ValueError):
        return None
    found = known.get(grid.id) if isinstance(known, dict) else None
    return float(found) if isinstance(found, int | float) else None


def check_cluster(
    cluster: str, *, cache: PathLike = "cache", request: Request | None = None
) -> list[WorkerState]:
    """Return what each worker of a Dask cluster has, and why it cannot be used, if so.

    Args:
        cluster: ``local:4``, ``tcp://host:8786`` or a scheduler file.
        cache: folder that all workers must see.
        request: images and network that the workers must find; None for none.

    Raises:
        RunError: if the scheduler does not answer.
    """
    from featkit.ablation.executors.cluster import check_workers

    return check_workers(cluster, [Path(cache)], [] if request is None else [request])


# Other studies ------------------------------------------------------------------------------------


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
    **_FEATURES,
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
            batch_size, workers, compile, on_error, progress: as for ``fit``.

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
    heads = expand_heads(_strings(head))
    folder = Path(cache).parent if Path(cache).suffix == ".h5" else Path(cache)
    with _cluster(options, [folder], list) as executor:
        features = _load_features(options, executor)
        refuse_trained_on(features, "few-shot episodes")
        config = EpisodeConfig(way, query, episodes, features.request.seed)
        embeddings, groups = features.embeddings, None
        if embeddings.groups is not None:
            groups = len(set(embeddings.groups.tolist()))
            log.info(_EPISODE_GROUPS)
        if executor is None:
            scores, points = _fewshot_scores(embeddings, heads, shots, config, options)
        else:
            plan = FewShotPlan(heads, shots, tuple(curve), draws, config)
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
    **_FEATURES,
    few=integer(1),
    quality=FLAG,
    decisions=_decisions_or_path(),
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
            batch_size, workers, compile, on_error, progress: as for ``fit``.

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
    kinds = _strings(apply)
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
    features = _load_features(options)
    result = audit_features(
        features,
        few=few,
        progress=progress,
        images=_source_images(features) if quality else None,
        threads=_compute(options).threads,
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
    **_COMPUTE,
    run=_run_or_path(),
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
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> Suggestions:
    """Suggest which unlabelled images to label next: uncertain ones that differ from each other.

    Images of the run's own data, and copies of other images byte for byte, are left out and
    counted. The method is that of ``evaluation.selection.select_batch``.

    Args:
        run: a run directory.
        images: folders of unlabelled images, or image files.
        n: number of images to suggest; all of them if there are fewer.
        seed: of the selection.
        cache: folder of the embeddings cache.
        out: folder in which ``suggest-<folder>`` is written (``suggestions.csv``,
            ``contact.png``); None to write nothing.
        device, batch_size, workers, compile, on_error, progress: as for ``extract``.

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
    saved = _load_plain_run(run)
    found = suggest_images(
        saved,
        image_names(files),
        n,
        cache=Path(cache),
        compute=_compute(options),
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
    for row in _batch_bar("contact sheet", progress)(range(len(shown))):
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
    **_COMPUTE,
    run=_run_or_path(),
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
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> SimilarImages:
    """Find the training images of a run that are most similar to images.

    Args:
        run: a run directory.
        images: image files, and folders of images.
        k: number of similar images for each of them; all if there are fewer.
        cache: folder of the embeddings cache; the training images are needed only if their features
            are not there.
        out: file to write, ending in ``.csv``, or in ``.png``, ``.svg`` or ``.pdf`` for a picture
            with the CSV beside it; None to write nothing.
        device, batch_size, workers, compile, on_error, progress: as for ``extract``.

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
    saved = _load_plain_run(run)
    names = image_names([images] if isinstance(images, str | Path) else images)
    similar = find_neighbours(saved, names, k, cache=Path(cache), compute=_compute(options))
    if path is not None and as_table:
        write_file(path, similar.to_csv())
    elif path is not None:
        _draw_neighbours(saved, similar).save(path)
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
    **_FEATURES,
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
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> ProfileResult:
    """Measure size and speed of networks; with ``data``, also accuracy and feature drift.

    Args:
        backbones: specs, each with an optional ``@PRECISION``; the first is the reference.
        data: spec of the images on which ``head`` is evaluated; None for none.
        head: spec of the head.
        repeats: timed repeats.
        warm_up: untimed repeats before them.
        weights: of the networks that are given by name; None for ``imagenet``.
        out: folder in which tables and figure are written; None to write nothing.
        split, limit, intensity_range, group, allow_group_leak, seed, augment, views, perturb,
            resize, crop, cache, device, batch_size, workers, compile, on_error, progress: as for
            ``fit``.
    """
    options = locals()
    from featkit.reports.figures import profile_figures
    from featkit.storage import digest, publish
    from featkit.studies import profile as study

    specs = tuple(_named_network(spec) for spec in _strings(backbones))
    given = {name: value for name, value in _request_options(options).items() if value is not None}
    config = study.ProfileConfig(
        head=head, given=given, cache=Path(cache), repeats=repeats, warm_up=warm_up
    )
    networks = [study.parse_network(spec) for spec in specs]
    busy = study.busy_warning()
    if busy:
        log.warning(busy)
    profiles = study.profile(networks, config, _compute(options))
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


# Training -----------------------------------------------------------------------------------------


@checked(**_training_kinds(), cost=PATH)
def finetune(
    data: PathLike | None = None,
    *,
    backbone: PathLike | None = None,
    mode: str | None = None,
    unfreeze: str | int | None = None,
    weights: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | None = None,
    augment: str | None = None,
    views: int | None = None,
    val: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimiser: str | None = None,
    lr: float | None = None,
    layer_decay: float | None = None,
    weight_decay: float | None = None,
    warmup: float | None = None,
    smoothing: float | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
    ema: float | None = None,
    clip: float | None = None,
    balance: str | None = None,
    norm: str | None = None,
    patience: int | None = None,
    precision: str | None = None,
    frozen_precision: str | None = None,
    name: str | None = None,
    cost: PathLike | None = None,
    resume: bool = False,
    device: str = "auto",
    cache: PathLike = "cache",
    out: PathLike = OUT,
    progress: bool = False,
) -> TrainedRun | None:
    """Fine-tune a network, or train it from scratch, and evaluate it on the test set.

    Writes a run directory in ``out``, which can be used as a backbone.

    Args:
        data: spec of the images; None for ``digits``.
        backbone: spec of the network; None for ``resnet18``.
        mode: ``shallow`` (classifier only), ``deep`` (last blocks, the default), ``full`` (all
            layers) or ``scratch``.
        unfreeze: for ``deep``: first trainable stage or block, or number of trainable blocks.
        val: fraction of train for validation where the data has none; 0: train on all images.
        epochs, batch_size, optimiser, lr, layer_decay, weight_decay, warmup, smoothing, mixup,
            cutmix, ema, clip, balance, norm, patience, precision, frozen_precision, augment, views:
            see ``featkit.training.config.TrainingConfig``, which has the defaults for None.
        weights, resize, crop, split, limit, intensity_range, group, allow_group_leak, seed: as for
            ``extract``.
        name: name of the network for tables and figures; None for a composed one.
        cost: file with the cost of each error, as for ``fit``: the report has the mean cost of an
            image; the training does not depend on it.
        resume: resume from the last checkpoint of the same training.
        device, cache, progress: as for ``extract``.
        out: folder for results.

    Returns:
        Report, history and directory of the run; None in a distributed process that is not the
        first.

    Raises:
        SpecError: if an option is unknown or out of range.
        DataError: if there are no test images.
        TrainingError: if the loss is not finite, or a checkpoint belongs to another training.
    """
    options = locals()
    compute = _training_compute(options)
    config = _training_config(options)
    table = _read_costs(cost)
    with _process_group(compute) as processes:
        return _train(config, compute, Path(out), resume, processes, name=name or "", table=table)


@checked(
    **{
        **_training_kinds(),
        "mode": several(text("shallow"), least=1),
        "deep_limit": text("train=500,test=200"),
        "seeds": integer(1, 100),
        "images": integer(2, 10_000),
        "repeats": integer(3),
    }
)
def compare_frameworks(
    data: PathLike | None = None,
    *,
    backbone: str | None = None,
    mode: Strings = ("shallow", "deep"),
    seeds: int = 3,
    weights: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    split: str | None = None,
    limit: str | None = None,
    deep_limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | None = None,
    augment: str | None = None,
    views: int | None = None,
    val: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimiser: str | None = None,
    lr: float | None = None,
    images: int = 64,
    repeats: int = 10,
    cache: PathLike = "cache",
    out: PathLike = OUT,
    progress: bool = False,
) -> FrameworksResult:
    """Compare torch and TensorFlow on the same ResNet, weights and images, on the CPU.

    Compares the outputs layer by layer, speed and memory, and fine-tuning from the same start.
    Finished trainings in ``out`` are not repeated, and interrupted ones are resumed. Writes a page,
    the training curves and the numbers below ``out``.

    Args:
        data: spec of the images; None for ``digits``.
        backbone: one of torchvision's ResNets; None for ``resnet18``.
        mode: modes of training.
        seeds: trainings of each mode in each framework; the images stay the same.
        limit: subset of the images.
        deep_limit: subset for all modes but ``shallow``; None for ``limit``.
        images: test images on which outputs are compared.
        repeats: timed batches of 32.
        weights, resize, crop, split, intensity_range, group, allow_group_leak, seed, augment,
            views, val, epochs, batch_size, optimiser, lr: as for ``finetune``.
        cache, out, progress: as for ``finetune``.

    Raises:
        SpecError: if an option is unknown, or the backbone is none of torchvision's.
        MissingExtraError: if TensorFlow is not installed.
    """
    options = locals()
    from featkit.embeddings.pipeline import Compute
    from featkit.reports import frameworks as page
    from featkit.storage import digest, publish
    from featkit.studies import frameworks as study

    compute = Compute(device="cpu", progress=progress)
    training = {name: options[name] for name in _FRAMEWORK_OPTIONS if options[name] is not None}
    if data is not None:
        training["data"] = str(data)
    config = study.FrameworksConfig(
        options=training,
        modes=_strings(mode),
        deep_limit=deep_limit,
        seeds=seeds,
        images=images,
        repeats=repeats,
        cache=Path(cache),
    )

    def train(planned: TrainingConfig) -> TrainedRun:
        with _process_group(compute) as processes:
            run = _train(planned, compute, Path(out), True, processes, name="")
        assert run is not None, "only other processes of a group have no run"
        return run

    result = study.compare_frameworks(config, compute, train, log.info)
    figures = page.frameworks_figures(result)
    text = json.dumps(result.to_dict(), indent=2)
    files: dict[str, Content] = {
        "report.html": page.frameworks_page(result, figures[page.CURVES_FILE]),
        "results.json": text,
        **figures,
    }
    keys = [json.dumps(training, sort_keys=True), *config.modes, str(deep_limit), str(seeds)]
    directory = Path(out) / "frameworks" / digest(keys)[:12]
    publish(directory, files)
    log.info("%s: %s", ", ".join(files), directory)
    return result


_FRAMEWORK_OPTIONS = (
    *("backbone", "weights", "resize", "crop", "split", "limit", "intensity_range", "seed"),
    *("group", "allow_group_leak"),
    *("augment", "views", "val", "epochs", "batch_size", "optimiser", "lr"),
)
"""Options of ``compare_frameworks`` that are those of both trainings."""


@dataclass(frozen=True)
class TrainingComparison:
    """Trainings of one study file.

    Attributes:
        runs: by name.
        rows: one row per run: top-1 with its interval, top-5, n, epochs.
    """

    runs: Mapping[str, TrainedRun]
    rows: list[dict[str, Any]]


@checked(**_training_kinds(), study=PATH)
def finetune_study(
    study: PathLike,
    *,
    resume: bool = False,
    device: str = "auto",
    cache: PathLike = "cache",
    out: PathLike = OUT,
    progress: bool = False,
) -> TrainingComparison | None:
    """Train the networks of a TOML file, ``[fixed]`` and ``[[run]]``, and compare them.

    Returns:
        The trainings; None in a distributed process that is not the first.
    """
    compute = _training_compute(locals())
    from featkit.reports.figures import history_figures
    from featkit.runs.trainings import read_training_study, to_rows
    from featkit.storage import csv_text, digest, publish

    trainings = read_training_study(Path(study), Path(cache))
    runs = {}
    with _process_group(compute) as group:
        for name, config in trainings.configs.items():
            run_name = trainings.names.get(name, "")
            run = _train(config, compute, Path(out), resume, group, name=run_name)
            if run is not None:
                runs[name] = run
        if group.rank:
            return None
    rows = to_rows(runs)
    histories = {name: run.history for name, run in runs.items()}
    files: dict[str, Content] = {
        "results.csv": csv_text(rows),
        "results.json": json.dumps(rows, indent=2),
        **history_figures(histories, title=trainings.name),
    }
    ids = [row["run"] for row in rows]
    directory = Path(out) / trainings.name / f"study-{digest(ids)[:12]}"
    publish(directory, files)
    log.info("%s: %s", ", ".join(files), directory)
    return TrainingComparison(runs, rows)


def _train(
    config: TrainingConfig,
    compute: Compute,
    out: Path,
    resume: bool,
    group: ProcessGroup,
    *,
    name: str,
    table: CostTable | None = None,
) -> TrainedRun | None:
    """Train one network, or return the run of the same training that is finished already."""
    from featkit.reports.figures import training_figures
    from featkit.runs.train import find_finished, has_checkpoint, train_run
    from featkit.training.loop import ExecutionConfig
    from featkit.training.prepare import prepare

    note = _first_process_log(group)
    prepared = replace(prepare(config, compute), name=name)
    images = prepared.images
    costs = None if table is None else table.matrix(images.classes)
    counts = []
    for split in ("train", "val", "test"):
        counts.append(f"{int((images.splits == split).sum()):,} {split}")
    classes = len(images.classes)
    note(f"{images.name}: {', '.join(counts)}, {classes} classes; {prepared.description.label}")
    if resume:
        run = find_finished(prepared, out, costs)
        if run:
            note(f"already finished: {run.path}")
            return None if group.rank else run
        found = has_checkpoint(prepared, out)
        note(
            "resuming from the last checkpoint"
            if found
            else "checkpoint not found, starting from scratch"
        )
    with _training_callbacks(config.epochs, compute.progress, group) as callbacks:
        execution = ExecutionConfig(compute, resume=resume, callbacks=callbacks, group=group)
        run = train_run(prepared, execution, out, training_figures, costs=costs)
    if run:
        note(f"run: {run.path}")
    return run


def _training_config(options: Mapping[str, Any]) -> TrainingConfig:
    from featkit.training.config import TrainingConfig

    names = [name for name in TrainingConfig.option_names() if name in options]
    given = {**{name: options[name] for name in names}, **_request_options(options)}
    # ``precision`` is that of training here, not a field of the request.
    return TrainingConfig.from_options(
        {name: given[name] for name in names}, Path(options["cache"])
    )


def _training_compute(options: Mapping[str, Any]) -> Compute:
    from featkit.embeddings.pipeline import Compute

    return Compute(device=options["device"], progress=options["progress"])


def _process_group(compute: Compute) -> AbstractContextManager[ProcessGroup]:
    """Join the other processes of ``torchrun``, if there are any."""
    from featkit.backbones.devices import pick_device
    from featkit.training.distributed import join_process_group

    return join_process_group(pick_device(compute.device))


def _first_process_log(group: ProcessGroup) -> Callable[[str], None]:
    """Return what logs a message in the first process and drops it in the others."""
    return log.info if not group.rank else lambda message: None


@checked(
    **_training_kinds(),
    teacher=PATH,
    teacher_head=text("linear"),
    student=PATH,
    loss=text("logits"),
    temperature=number(0),
    alpha=number(0, 1),
    beta=number(0),
    distance=text("cosine"),
    alone=FLAG,
)
def distill(
    data: PathLike | None = None,
    *,
    teacher: PathLike,
    teacher_head: str = "linear",
    student: PathLike = "resnet18",
    mode: str = "deep",
    loss: str | None = None,
    temperature: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    distance: str | None = None,
    alone: bool = True,
    unfreeze: str | int | None = None,
    weights: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | None = None,
    augment: str | None = None,
    views: int | None = None,
    val: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimiser: str | None = None,
    lr: float | None = None,
    layer_decay: float | None = None,
    weight_decay: float | None = None,
    warmup: float | None = None,
    smoothing: float | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
    ema: float | None = None,
    clip: float | None = None,
    balance: str | None = None,
    norm: str | None = None,
    patience: int | None = None,
    precision: str | None = None,
    frozen_precision: str | None = None,
    name: str | None = None,
    resume: bool = False,
    device: str = "auto",
    cache: PathLike = "cache",
    out: PathLike = OUT,
    progress: bool = False,
) -> DistillationResult | None:
    """Train a student network with a teacher, and compare both with the student trained alone.

    Writes the run directories of teacher and students in ``out``.

    Args:
        data: spec of the images; None for ``digits``.
        teacher: run directory, or spec of a backbone on which ``teacher_head`` is fitted.
        teacher_head: head of a teacher that is a backbone.
        student: spec of the backbone to train.
        loss: ``logits`` (the default), ``dkd``, ``features`` or ``logits+features``.
        temperature: softmax temperature of the distillation loss.
        alpha: weight of the distillation loss; the label loss has weight 1 - alpha.
        beta: weight of the non-target classes in ``dkd``.
        distance: ``cosine`` or ``mse``, between embeddings.
        alone: train the student without its teacher too, for comparison.
        name: name of the distilled student for tables and figures; the one trained alone gets
            "trained alone" added. None for composed names.
        mode, unfreeze, weights, resize, crop, split, limit, intensity_range, group,
            allow_group_leak, seed, augment, views, val, epochs, batch_size, optimiser, lr,
            layer_decay, weight_decay, warmup, smoothing, mixup, cutmix, ema, clip, balance, norm,
            patience, precision, frozen_precision, resume, device, cache, out, progress: as for
            ``finetune``.

    Returns:
        Reports, paired tests and the fraction of the gap that distillation closes; None in a
        distributed process that is not the first.
    """
    options = dict(locals())
    options["backbone"] = options.pop("student")
    results, _ = distill_seeds(1, options)
    return results[0] if results else None


def distill_seeds(
    seeds: int, options: Mapping[str, Any]
) -> tuple[list[DistillationResult], list[Effect]]:
    """Distill with several seeds; return a result for each, and the effects pooled over them.

    Args:
        seeds: number of seeds, from ``options["seed"]`` on.
        options: of ``distill``, with ``backbone`` for the student.

    Returns:
        Both empty in a distributed process that is not the first; no effects for one seed.
    """
    from featkit.studies.distill import compare_over_seeds, compare_students

    first = options["seed"] or 0
    name = NAME.check("name", options["name"]) if options["name"] is not None else ""
    runs = {}
    for seed in range(first, first + seeds):
        own = f"{name}, seed {seed}" if name and seeds > 1 else name
        runs[seed] = _distill_runs({**options, "seed": seed, "name": own})
    if not all("distilled" in paths for paths in runs.values()):
        return [], []
    results = [compare_students(paths) for paths in runs.values()]
    return results, compare_over_seeds(runs) if seeds > 1 else []


def _distill_runs(options: Mapping[str, Any]) -> dict[str, Path]:
    """Prepare the teacher, train the students, and return their run directories."""
    from featkit.reports.figures import training_figures
    from featkit.runs.train import find_finished
    from featkit.studies.distill import distill_run, make_teacher, prepare_student
    from featkit.training.distill import DistillationConfig
    from featkit.training.loop import ExecutionConfig

    compute, config, out = (
        _training_compute(options),
        _training_config(options),
        Path(options["out"]),
    )
    students = {"distilled": DistillationConfig.from_options(options)}
    if options["alone"]:
        # Trained first, without a weight on the teacher.
        students = {"alone": DistillationConfig(alpha=0), **students}
    teacher = make_teacher(
        _network(str(options["teacher"])), options["teacher_head"], config, compute, out
    )
    log.info("teacher: %s", teacher.path)
    runs = {"teacher": teacher.path}
    with _process_group(compute) as group:
        note = _first_process_log(group)
        for name, distillation in students.items():
            prepared = prepare_student(config, teacher, distillation, compute)
            if options["name"]:
                added = ", trained alone" if name == "alone" else ""
                prepared = replace(prepared, name=f"{options['name']}{added}")
            run = find_finished(prepared, out) if options["resume"] else None
            if run:
                note(f"student {name}, already finished: {run.path}")
                runs[name] = run.path
                continue
            note(f"student {name}")
            with _training_callbacks(config.epochs, compute.progress, group) as callbacks:
                execution = ExecutionConfig(
                    compute, resume=options["resume"], callbacks=callbacks, group=group
                )
                run = distill_run(
                    prepared, teacher, distillation, execution, out, draw=training_figures
                )
            if run:
                note(f"run: {run.path}")
                runs[name] = run.path
    return runs


# Compression --------------------------------------------------------------------------------------


@checked(
    **_FEATURES,
    sparsity=several(number(0, 1, below_high=True)),
    macs=number(0, 1),
    by=text("magnitude"),
    reconstruct=integer(0),
    calibrate=integer(0),
    epochs=integer(0),
    lr=number(0),
    distill=FLAG,
    head=text("svm:C=9"),
    name=NAME,
)
def prune(
    backbone: PathLike,
    *,
    sparsity: float | Sequence[float] = (),
    macs: float | None = None,
    by: str = "magnitude",
    reconstruct: int = 0,
    calibrate: int = 0,
    epochs: int = 0,
    lr: float = 0.005,
    distill: bool = False,
    head: str | None = None,
    weights: str | None = None,
    data: PathLike | None = None,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | None = None,
    augment: str | None = None,
    views: int | None = None,
    perturb: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    name: str | None = None,
    cache: PathLike = "cache",
    out: PathLike = OUT,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> list[PruningStep]:
    """Prune a network: remove channels (``macs``), or set weights to zero (``sparsity``).

    Each pruned network is written to ``out/prune`` and can be used as a backbone.

    Args:
        backbone: spec of the network.
        sparsity: fraction of the weights set to zero by magnitude; several: each step continues
            from the one before.
        macs: fraction of the MACs that remains after removing channels.
        by: channel importance: ``magnitude`` or ``activation``.
        reconstruct: with ``macs``: train images on which the weights after removed channels are
            refitted; 0: off.
        calibrate: train images for BatchNorm recalibration; 0: off.
        epochs: epochs of fine-tuning after each step.
        lr: peak learning rate of the fine-tuning.
        distill: fine-tune with the unpruned network as teacher.
        head: head with which the network is evaluated after each step; None for no evaluation.
        name: name of the pruned network for tables and figures, to which the sparsity is added if
            there are several steps; None for a composed one.
        data, split, limit, intensity_range, group, allow_group_leak, seed, augment, views, perturb,
            weights, resize, crop, cache, device, batch_size, workers, compile, on_error, progress:
            as for ``fit``.
        out: folder for results.

    Returns:
        One step per pruned network, with its directory; with ``head``, the unpruned network comes
        first.

    Raises:
        SpecError: if an option is not valid, or needs images and ``data`` is not given.
    """
    options = locals()
    from featkit.compression.prune import PruningConfig
    from featkit.reports.figures import sparsity_figures
    from featkit.storage import csv_text, publish, safe_name
    from featkit.studies.prune import prune_network, step_rows

    _check_pruning_options(options)
    request = _request(options)
    config = PruningConfig(
        sparsity=(sparsity,) if isinstance(sparsity, float | int) else tuple(sparsity),
        macs=macs,
        by=by,
        reconstruct=reconstruct,
        calibrate=calibrate,
        seed=request.seed,
    )
    steps = []
    with _recovery(request, options) as recovery:
        for step in prune_network(
            request,
            config,
            Path(out),
            cache=Path(cache),
            compute=_compute(options),
            recovery=recovery,
            head=head,
            name=name or "",
            on_message=log.info,
        ):
            steps.append(step)
            _log_step(step, head)
    if head:
        rows = step_rows(steps)
        title = f"{head} on {Path(request.data).name}, n = {rows[0]['n']}"
        folder = Path(out) / "prune" / safe_name(f"{steps[-1].network}-steps")
        files: dict[str, Content] = {
            "steps.csv": csv_text(rows),
            **sparsity_figures({"pruned": rows}, title),
        }
        publish(folder, files)
        log.info("%s: %s", ", ".join(files), folder)
    return steps


def _check_pruning_options(options: Mapping[str, Any]) -> None:
    """Raise an OptionsError where an option needs another one."""
    by_activation = options["macs"] and options["by"] == "activation"
    uses_images = any(options[name] for name in ("reconstruct", "calibrate", "epochs", "head"))
    if options["data"] is None and (uses_images or by_activation):
        names = "--reconstruct, --calibrate, --epochs, --head and --by activation"
        raise OptionsError(f"{names} need images: give --data")
    if options["distill"] and not options["epochs"]:
        raise OptionsError("--distill needs fine-tuning: give --epochs")


@contextmanager
def _recovery(request: Request, options: Mapping[str, Any]) -> Iterator[Recovery | None]:
    """Prepare the fine-tuning after each pruning step; None without epochs."""
    if not options["epochs"]:
        yield None
        return
    from featkit.studies.recover import RecoveryConfig, make_recovery

    config = RecoveryConfig(options["epochs"], options["lr"], options["distill"])
    compute = _training_compute(options)
    with _training_callbacks(config.epochs, False, None) as callbacks:
        yield make_recovery(request, config, Path(options["cache"]), compute, callbacks)


def _log_step(step: PruningStep, head: str | None) -> None:
    """Log size and accuracy of a pruned network."""
    if step.facts:
        facts = step.facts
        log.info(
            "%s: %s parameters, %.1f%% of the weights zero, %.2f of %.2f GMACs",
            step.label,
            f"{facts['parameters']:,}",
            100 * facts["sparsity"],
            facts["macs"] / 1e9,
            facts["macs_before"] / 1e9,
        )
    if step.report:
        low, high = step.report.interval95
        accuracy = (
            f"top-1 {100 * step.report.top1:.1f}% (95% CI {100 * low:.1f} to {100 * high:.1f})"
        )
        log.info("%s: %s, n = %d", head, accuracy, step.report.n)
    if step.difference:
        low, high = step.difference.interval95
        points = 100 * step.difference.difference
        log.info(
            "difference to unpruned: %+.1f points (95%% CI %+.1f to %+.1f)",
            points,
            100 * low,
            100 * high,
        )


@dataclass(frozen=True)
class QuantizedModel:
    """An int8 network on disk.

    Attributes:
        path: its directory, which can be used as a backbone.
        result: calibration, and the quantization error of each layer.
        size: bytes of the network file.
        run: for a run: accuracy of the int8 classifier and of the run; None for a backbone.
        facts: content of ``quantize.json``.
    """

    path: Path
    result: QuantizationResult
    size: int
    run: QuantizedRun | None
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON can hold them."""
        return dict(self.facts)


CLASSIFIER_FILE = "model.onnx"


@checked(
    **_FEATURES,
    method=text("minmax"),
    images=integer(1),
    keep_fp32=several(text("layer4")),
    keep_worst=integer(0),
    weight_bits=integer(7, 8),
    bias_correct=FLAG,
    name=NAME,
)
def quantize(
    backbone: PathLike,
    *,
    method: str = "minmax",
    images: int = 256,
    keep_fp32: Strings = (),
    keep_worst: int = 0,
    weight_bits: int = 7,
    bias_correct: bool = False,
    weights: str | None = None,
    layer: str | None = None,
    data: PathLike | None = None,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | None = None,
    augment: str | None = None,
    views: int | None = None,
    perturb: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    name: str | None = None,
    out: PathLike = OUT,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> QuantizedModel:
    """Quantize a network, or a run of ``fit`` or ``finetune``, to int8.

    The int8 network is written to ``out/quantize`` and can be used as a backbone. Of a run without
    ``data``, the run's own images are used, and the whole classifier is written as ``model.onnx``
    and compared with the run.

    Args:
        backbone: spec of a network, or a run directory.
        method: calibration of activation ranges: ``minmax``, ``entropy``, ``percentile`` or
            ``dynamic``.
        images: train images for calibration.
        keep_fp32: layers or blocks that stay in float32.
        keep_worst: number of layers with the largest quantization error that stay in float32.
        weight_bits: 7, or 8 for processors whose int8 sums do not saturate: ARM, and x86 with VNNI.
        bias_correct: correct biases for the mean error of weight rounding.
        name: name of the int8 network for tables and figures; None for a composed one.
        data, split, limit, intensity_range, group, allow_group_leak, seed, augment, views, perturb,
            weights, layer, resize, crop, device, batch_size, workers, compile, on_error, progress:
            as for ``fit``.
        out: folder for results.

    Raises:
        SpecError: if the network is quantized already, a layer or method is unknown, or its
            features differ too much from float32.
        DataError: if there are no train images.
    """
    options = locals()
    from featkit.backbones.base import QuantizedNetwork
    from featkit.backbones.quantization import QuantizationConfig
    from featkit.backbones.saved import INT8_CARD, INT8_FILE
    from featkit.compression.quantize import FEW, QuantizationRequest
    from featkit.compression.quantize import quantize as quantize_network
    from featkit.runs.names import NAME_FIELD, recorded_name
    from featkit.storage import publish, safe_name
    from featkit.studies.quantize import quantize_run, quantized_name

    config = QuantizationConfig(method, _strings(keep_fp32), bias_correct, weight_bits)
    request, run = _network_or_run(options)
    compute = _compute(options)
    with tempfile.TemporaryDirectory() as scratch:
        file, classifier = Path(scratch, INT8_FILE), Path(scratch, CLASSIFIER_FILE)
        quantization = QuantizationRequest(config, keep_worst, images)
        result = quantize_network(request, quantization, file, compute)
        directory = Path(out) / "quantize" / safe_name(result.description.name)
        facts = _quantization_facts(result, request.data, directory)
        # A repeated quantization keeps the name.
        shown = name or recorded_name(directory) or quantized_name(request, result.config, run)
        facts[NAME_FIELD] = shown
        content = file.read_bytes()
        files: dict[str, Any] = {INT8_FILE: content, INT8_CARD: result.description.to_json()}
        compared = None
        if run:
            network = QuantizedNetwork(file, result.description.sha256)
            compared = quantize_run(run, network, classifier, compute)
            facts["classifier"] = {"file": CLASSIFIER_FILE, **compared.to_dict()}
            files[CLASSIFIER_FILE] = classifier.read_bytes()
        files["quantize.json"] = json.dumps(facts, indent=2)
        publish(directory, files, own=[CLASSIFIER_FILE])
    if result.images < FEW and method != "dynamic":
        log.warning("calibrated on only %d images: use %d or more", result.images, FEW)
    return QuantizedModel(directory, result, len(content), compared, facts)


def _network_or_run(options: Mapping[str, Any]) -> tuple[Request, SavedRun | None]:
    """Return the network to quantize, and the run it belongs to if the run's own images are used.

    Raises:
        SpecError: if options change the images or the network of a run.
    """
    from featkit.runs.card import is_run
    from featkit.runs.directory import load_run as load
    from featkit.storage import user_path

    given = {name: value for name, value in _request_options(options).items() if value is not None}
    spec = given.pop("backbone")
    folder = user_path(spec)
    if "data" in given or not is_run(folder):
        return _request(options), None
    if given:
        raise SpecError(
            f"{spec} is a run with its own images and network: leave out --{min(given)}, "
            "or give --data"
        )
    run = load(folder, multilabel=True)
    return replace(run.request, augment=None), run


def _quantization_facts(result: QuantizationResult, data: str, directory: Path) -> dict[str, Any]:
    layers = [{"layer": layer, "decibel": noise} for layer, noise in result.snr]
    return {
        "directory": str(directory),
        "name": result.description.name,
        **asdict(result.config),
        "keep": list(result.config.keep),
        "images": result.images,
        "record": asdict(result.record),
        "data": data,
        "layers": layers,
    }


# Progress bars ------------------------------------------------------------------------------------

_EPOCH_BAR = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"


@contextmanager
def _candidate_bar(visible: bool) -> Iterator[Callable[[Any], None]]:
    """Show a bar on stderr that counts the candidates of a hyperparameter search."""
    from tqdm import tqdm

    with tqdm(unit="candidate", disable=not visible) as bar:
        yield lambda candidate: bar.update() and None


@contextmanager
def _search_bar(clock: Clock, visible: bool) -> Iterator[Callable[[str], None]]:
    """Show a bar on stderr of the time that a search has used of its budget."""
    from tqdm import tqdm

    total = max(1.0, clock.seconds - clock.reserve)
    form = "{desc}: {bar} {postfix}"
    with tqdm(total=total, desc="choosing a head", disable=not visible, bar_format=form) as bar:
        tried = 0

        def show(name: str) -> None:
            nonlocal tried
            tried += 1
            bar.set_description_str(name, refresh=False)
            bar.set_postfix_str(f"{tried} candidates, {max(0.0, clock.left):.0f} s left")
            bar.update(min(clock.elapsed, total) - bar.n)

        yield show


@contextmanager
def _cell_bar(visible: bool) -> Iterator[Callable[[Progress], None]]:
    """Show a bar on stderr that counts the cells of a grid."""
    from tqdm import tqdm

    with tqdm(unit="cell", disable=not visible) as bar:

        def show(progress: Progress) -> None:
            if bar.total is None:  # cells that were finished before do not count for the time left
                bar.reset(progress.total)
                bar.initial = bar.n = progress.done
            bar.set_postfix(running=progress.running, failed=progress.failed, refresh=False)
            bar.update(progress.done - bar.n)
            bar.refresh()

        yield show


@contextmanager
def _training_callbacks(
    epochs: int, visible: bool, group: ProcessGroup | None
) -> Iterator[TrainingCallbacks]:
    """Log a line per epoch, and show a bar of epochs with the loss of the step on stderr."""
    from tqdm import tqdm

    from featkit.training.loop import TrainingCallbacks

    first = group is None or not group.rank
    note = _first_process_log(group) if group else log.info
    with tqdm(
        total=epochs, unit="epoch", disable=not (visible and first), bar_format=_EPOCH_BAR
    ) as bar:

        def on_step(epoch: int, step: int, loss: float, top1: float) -> None:
            accuracy = f"top-1 {100 * top1:.1f}%"
            bar.set_postfix_str(f"epoch {epoch + 1}, step {step}: loss {loss:z.3f}, {accuracy}")

        def on_epoch(record: EpochRecord) -> None:
            bar.update(record.number + 1 - bar.n)
            note(_epoch_line(record, epochs))

        yield TrainingCallbacks(on_step, on_epoch, note)


def _epoch_line(record: EpochRecord, epochs: int) -> str:
    parts = []
    for name, score in (("train", record.train), ("val", record.val)):
        if score:
            text = f"{name}: loss {score.loss:z.3f}, top-1 {100 * score.top1:.1f}%"
            if score.top5 is not None:
                text += f", top-5 {100 * score.top5:.1f}%"
            parts.append(text)
    return f"epoch {record.number + 1}/{epochs}, {record.seconds:.0f} s; {'; '.join(parts)}"


# Pictures -----------------------------------------------------------------------------------------

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
    **_COMPUTE,
    run=_run_or_path(),
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
        seed: of the projection.
        cache: folder of the embeddings cache.
        device, batch_size, workers, compile, on_error, progress: as for ``extract``.

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
    with _iteration_bar(f"{projection} of the test images", progress) as show:
        shared: dict[str, Any] = {
            "cache": Path(cache),
            "compute": _compute(options),
            "projection": projection,
            "seed": seed,
            "heat_maps": heat_maps,
            "track": _batch_bar("class activation maps", progress),
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
    **_COMPUTE,
    kind=text("projection"),
    target=_run_or_path(),
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
        colour: what the colours of ``projection`` are: ``class``, ``prediction`` or ``error``.
        method: of ``projection``: ``tsne``, ``pca``, ``opentsne`` or ``umap``.
        thumbnails: whether ``projection`` draws images where there is space.
        count: number of mistakes (None: 25) or of similar images (None: 5).
        seed: of the projection, the perturbations or the learning curve.
        dpi: dots per inch of a PNG.
        style: ``screen``, or ``paper`` for an article: as wide as a column (85 mm) or a page
            (175 mm), text of 8 points, embedded fonts, and the title among the notes.
        weights: of a network that is given by name.
        cache: folder of the embeddings cache.
        device, batch_size, workers, compile, on_error, progress: as for ``extract``.

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
        return _cam_plot(_load_plain_run(target), names, options)
    if kind == "neighbours":
        return _neighbours_plot(_load_plain_run(target), names, options)
    return _run_plot(kind, _load_plain_run(target), options)


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
        target = _network(str(target))
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
        scores, data = _computed_learning_curve(_load_plain_run(target), options)
    return learning_curve_plot(scores, data, style=options["style"])


def _computed_learning_curve(
    run: SavedRun, options: Mapping[str, Any]
) -> tuple[list[FewShotScore], str]:
    """Return the learning curve of the head of a run, and the name of its images."""
    from tqdm import tqdm

    from featkit.runs.features import refuse_trained_on
    from featkit.studies.fewshot import curve_shots, learning_curve
    from featkit.studies.inspect import run_features

    features = run_features(run, Path(options["cache"]), _compute(options))
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

    device = _compute(options).device
    explainer = RunExplainer(run, "cpu" if device == "auto" else device)
    maps, scores = [], []
    for name in _batch_bar("images", options["progress"])(list(names)):
        pixels = explainer.prepare(decode_file(Path(name)))
        found = explainer.explain(pixels[None], [options["label"]])[0]
        maps.append(found)
        scores.append(explainer.faithfulness(found))
    title = f"{run.title}: {explainer.description}"
    return cam_plot(maps, names, scores, title=title, style=options["style"])


def _neighbours_plot(run: SavedRun, names: Sequence[str], options: Mapping[str, Any]) -> Plot:
    """Draw the training images that are most similar to image files."""
    from featkit.studies.neighbours import neighbours as find_neighbours

    cache, compute = Path(options["cache"]), _compute(options)
    count = options["count"] or 5
    similar = find_neighbours(run, names, count, cache=cache, compute=compute)
    return _draw_neighbours(run, similar, style=options["style"])


def _draw_neighbours(run: SavedRun, similar: SimilarImages, *, style: Style = "screen") -> Plot:
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
    track = _batch_bar("class activation maps", options["progress"])
    mistakes, total, explanation = inspect_mistakes(
        run, predictions, count=options["count"] or 25, compute=_compute(options), track=track
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
    features = run_features(run, Path(options["cache"]), _compute(options))
    test = features.embeddings.part("test")
    groups = [test.classes[label] for label in test.y]
    if options["colour"] != "class":
        groups = _prediction_groups(test, predictions, options["colour"])
    method = options["method"]
    log.info("%s of %d images", method, min(len(test), MAX_ROWS))
    with _iteration_bar(f"{method} of the test images", options["progress"]) as show:
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


def _batch_bar(name: str, visible: bool) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """Return a function that shows a bar on stderr while a sequence is worked through."""
    from tqdm import tqdm

    return lambda steps: tqdm(steps, desc=name, disable=not visible, leave=False)


@contextmanager
def _iteration_bar(name: str, visible: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar on stderr of the iterations of a projection, from the first one on."""
    from tqdm import tqdm

    if not visible:
        yield None
        return
    bar: Any = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or tqdm(desc=name, unit="it", total=total, leave=False)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar:
            bar.close()
