"""Extract features: on this machine, as shards, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.api.options import (
    FEATURE_OPTIONS,
    PathLike,
    images_or_path,
    log,
    make_compute,
    make_request,
    request_options,
)
from featkit.api.progress import iteration_bar
from featkit.arguments import checked, text
from featkit.errors import DataError, OptionsError

if TYPE_CHECKING:
    from featkit.ablation.executors.cluster import ClusterExecutor, WorkerState
    from featkit.embeddings.base import Embeddings
    from featkit.embeddings.extract import ExtractionResult, Extractor
    from featkit.embeddings.request import Request
    from featkit.images.base import ImageSet
    from featkit.runs.features import FeatureSet


@checked(
    **{
        **FEATURE_OPTIONS,
        "data": images_or_path(),
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
    engine: str = "auto",
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
        engine: of float32 networks on a CPU: ``torch``, ``onnxruntime``, or ``auto`` for the
            faster one, which is measured before the first long extraction and remembered.
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
    request = make_request({**options, "data": "" if in_memory else data})
    if cluster is not None:
        _extract_on_cluster(request.for_device(device).file_requests(), options)
    return extract_embeddings(
        request,
        Path(cache),
        make_compute(options),
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
            request = make_request({**options, "backbone": backbone, "layer": layer})
            requests.extend(request.for_device(options["device"]).file_requests())
    return requests


def _extraction(
    backbones: Sequence[str], layers: Sequence[str], options: Mapping[str, Any]
) -> tuple[list[Request], Extractor]:
    """Return the requests for backbones and layers, and the extractor for them."""
    from featkit.embeddings.extract import Extractor

    requests = _file_requests(backbones, layers, options)
    extractor = Extractor(Path(options["cache"]), make_compute(options), log.info)
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
    with open_cluster(options, [cache], lambda: requests) as executor:
        if executor is None:
            raise OptionsError("give --cluster")
        return extract_in_parallel(
            requests, cache, make_compute(options), executor.run, note=log.info
        )


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

    part, compute = Shard.parse(shard), make_compute(options)
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


def load_features(
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
        request_options(options),
        Path(options["cache"]),
        make_compute(options),
        log.info,
        run=run,
        multilabel=multilabel,
    )
    log.info("features: %s, weights: %s", features.path, features.weights)
    return features


def with_unknown(features: FeatureSet, options: Mapping[str, Any]) -> FeatureSet:
    """Return the features with those of the images of none of the classes, if there are any."""
    from featkit.runs.features import load_unknown
    from featkit.storage import user_path

    if options["unknown"] is None:
        return features
    found = load_unknown(
        user_path(str(options["unknown"])), features, make_compute(options), log.info
    )
    return replace(features, unknown=found)


def check_copies(features: FeatureSet, options: Mapping[str, Any]) -> FeatureSet:
    """Return the features with the test images that are copies of train or val images.

    With ``folds``, with the images that are copies of images of another fold, in any repeat. They
    are logged as warnings; with ``strict``, a DataError is raised.
    """
    from featkit.runs.features import find_copies
    from featkit.runs.folds import find_fold_copies

    folds, repeats, seed = options["folds"], options["repeats"], features.request.seed
    with iteration_bar("search for near copies", options["progress"]) as show:
        if folds:
            copies = find_fold_copies(features, folds, seed, repeats, show)
        else:
            copies = find_copies(features, show)
    warnings = copies.warnings()
    if warnings and options["strict"]:
        part = "the data" if folds else "one of the splits"
        raise DataError(f"{'; '.join(warnings)}; remove them from {part}, or leave out --strict")
    for warning in warnings:
        log.warning(warning)
    return replace(features, copies=copies)


@contextmanager
def open_cluster(
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
