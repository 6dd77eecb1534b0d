"""Profile networks side by side: cost, drift of the embeddings, and accuracy of a head."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from featkit.backbones.base import Backbone
from featkit.backbones.devices import INT8, PRECISIONS
from featkit.backbones.saved import NETWORK_FILE, is_int8, is_path, read_int8_description
from featkit.compression.profile import (
    BATCH,
    NetworkSize,
    NetworkTiming,
    TimedNetwork,
    file_size,
    measure_peak_memory,
    measure_size,
    open_any,
    time_engines,
)
from featkit.embeddings.calibration import find_by_digest
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.errors import DataError, SpecError
from featkit.evaluation import PairedComparison, Report, compare
from featkit.evaluation.drift import Drift, drift
from featkit.evaluation.intervals import Interval
from featkit.registry import unknown
from featkit.runs.directory import load_run
from featkit.runs.features import load_features
from featkit.runs.fit import Run, fit_run
from featkit.runs.names import distinct_names, network_name
from featkit.storage import available_cores, csv_text, read_json, read_text, user_path

PROFILE_FILE = "profile.json"
_NETWORK_FIELDS = ("backbone", "weights", "layer", "pool", "resize", "crop")


@dataclass(frozen=True)
class NetworkSpec:
    """A network to profile.

    Attributes:
        spec: as given by the user.
        request: the network; its images are not used.
        precision: ``fp32``, ``bf16``, ``int8``, ``int8-openvino``, or ``torch`` for the unoptimised
            PyTorch network.
    """

    spec: str
    request: Request
    precision: str


@dataclass(frozen=True)
class NetworkProfile:
    """Cost and accuracy of one network.

    Attributes:
        spec: as given by the user.
        name: for tables and figures, see ``runs.names``.
        size, timing: see ``compression.profile``.
        peak_memory_mb: of a fresh process that runs a batch of 32, in 10^6 bytes.
        report: of a head on its embeddings, if there are images to evaluate it on.
        drift: of its embeddings of the test images from those of the first network; None for the
            first network.
        difference: top-1 minus that of the first network, on the same test images.
    """

    spec: str
    name: str
    size: NetworkSize
    timing: NetworkTiming
    peak_memory_mb: float
    report: Report | None = None
    drift: Drift | None = None
    difference: PairedComparison | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON can hold it."""
        names = {"spec": self.spec, "name": self.name}
        values: dict[str, Any] = {**names, **asdict(self.size), **asdict(self.timing)}
        values["peak_memory_mb"] = self.peak_memory_mb
        if self.report:
            values |= {
                "n": self.report.n,
                "top1": self.report.top1,
                "interval95": self.report.interval95,
            }
        if self.drift:
            values["drift"] = asdict(self.drift)
        if self.difference:
            values["difference"] = self.difference.to_dict()
        return values


@dataclass(frozen=True)
class ProfileConfig:
    """How networks are profiled.

    Attributes:
        head: spec of the head that is fitted where there are images.
        given: fields of ``Request`` that select the images and their size; accuracy is measured if
            ``data`` is there.
        cache: folder of the cache files.
        repeats, warm_up: timed and untimed repeats of each network.
    """

    head: str = "linear"
    given: Mapping[str, Any] = field(default_factory=dict)
    cache: Path = Path("cache")
    repeats: int = 30
    warm_up: int = 3


def parse_network(text: str) -> NetworkSpec:
    """Parse ``SPEC[@PRECISION]``: a backbone, the directory of a saved network, or a run directory.

    The default precision is that of the run for a run, int8 for a quantized network, and fp32
    otherwise.

    Raises:
        SpecError: if the precision is unknown, or not supported by the network.
        RunError: if the directory is neither a network nor a run.
    """
    spec, precision = _split_precision(text)
    if is_int8(spec):
        if precision and precision not in INT8:
            raise SpecError(f"{spec} is an int8 network: write it without @{precision}")
        return NetworkSpec(text, Request(data="", backbone=spec), precision or "int8")
    folder = user_path(spec)
    if (folder / "card.json").is_file() and not (folder / NETWORK_FILE).is_file():
        run = load_run(folder, multilabel=True)  # only its network is used
        return NetworkSpec(text, replace(run.request, data=""), precision or run.request.precision)
    return NetworkSpec(text, Request(data="", backbone=spec), precision or "fp32")


def _split_precision(text: str) -> tuple[str, str]:
    """Return spec and precision of ``SPEC[@PRECISION]``; without one, the precision is empty."""
    # Folders may have an @ in their name: only one behind the last slash counts.
    if "@" not in text.rpartition("/")[2]:
        return text, ""
    spec, _, precision = text.rpartition("@")
    known = [*PRECISIONS, "torch"]
    if precision not in known:
        raise unknown("precision", precision, known)
    return spec, precision


def profile(
    networks: Sequence[NetworkSpec], config: ProfileConfig, compute: Compute
) -> list[NetworkProfile]:
    """Profile networks; the first one is the reference of drift and differences.

    The timings of all networks are interleaved, on one thread and on all cores.

    Raises:
        SpecError: if a network is named twice, or needs images that are not given.
        DataError: if the images cannot be used.
    """
    networks = _with_image_size(networks, config)
    runs: list[Run | None] = [None] * len(networks)
    if "data" in config.given:
        runs = [evaluate_network(each, config, compute, "--data") for each in networks]
    backbones = [_load_backbone(each, run) for each, run in zip(networks, runs, strict=True)]
    # Sizes come before the timings: they fail at once where a network cannot be run.
    sizes = [_size(each, backbone) for each, backbone in zip(networks, backbones, strict=True)]
    timed = []
    for each, backbone in zip(networks, backbones, strict=True):
        engine = open_any(backbone, each.precision)
        shares = each.precision == "torch" or backbone.framework == "keras"
        timed.append(TimedNetwork(engine, backbone.preprocess.crop, shares=shares))
    timings = time_engines(timed, repeats=config.repeats, warm_up=config.warm_up)

    profiles = []
    for network, name, backbone, size, timing, run in zip(
        networks, _names(networks), backbones, sizes, timings, runs, strict=True
    ):
        memory = measure_peak_memory(network.request, backbone.quantized, network.precision)
        result = NetworkProfile(network.spec, name, size, timing, memory)
        if run:
            result = _add_accuracy(result, run, networks[0].spec, runs[0])
        profiles.append(result)
    return profiles


def _names(networks: Sequence[NetworkSpec]) -> list[str]:
    """Return different names of networks."""
    names, details = [], []
    for each in networks:
        request = each.request
        names.append(
            network_name(request.backbone, weights=request.weights, precision=each.precision)
        )
        values = {"layer": request.layer, "pool": request.pool}
        details.append({key: str(value) for key, value in values.items() if value is not None})
    return distinct_names(names, details)


_BUSY = 0.3
_WATCHED_SECONDS = 0.5


def busy_warning() -> str:
    """Return a warning if other programs use the processor, an empty text if they do not."""
    import psutil

    share = psutil.cpu_percent(interval=_WATCHED_SECONDS) / 100
    if share < _BUSY:
        return ""
    return (
        f"other programs use {100 * share:.0f}% of the processor: the measured times are too "
        "long; repeat when it is idle"
    )


def _with_image_size(networks: Sequence[NetworkSpec], config: ProfileConfig) -> list[NetworkSpec]:
    """Return the networks with the image size and the weights of the configuration, if it has any.

    Raises:
        SpecError: if a network is named twice.
    """
    if len({each.spec for each in networks}) < len(networks):
        raise SpecError(f"a network is given twice: {', '.join(each.spec for each in networks)}")
    size = {name: config.given[name] for name in ("resize", "crop") if name in config.given}
    sized = []
    for each in networks:
        own = dict(size)
        if "weights" in config.given and not is_path(each.request.backbone):
            own["weights"] = config.given["weights"]
        sized.append(replace(each, request=replace(each.request, **own)))
    return sized


def _add_accuracy(
    profile: NetworkProfile, run: Run, first_spec: str, first: Run | None
) -> NetworkProfile:
    """Return the profile with its report, and the comparison with the first network."""
    profile = replace(profile, report=run.report)
    if first is None or run is first:
        return profile
    difference = compare_runs(run, first, (profile.spec, first_spec))
    return replace(profile, drift=_embedding_drift(first, run), difference=difference)


def evaluate_network(
    network: NetworkSpec, config: ProfileConfig, compute: Compute, option: str
) -> Run:
    """Fit the head on the embeddings of the training images and evaluate it on the test images.

    Args:
        network: the network.
        config: the head and the images.
        compute: how images are read and embedded.
        option: of the command, without which no head is fitted; named in the error message.

    Raises:
        DataError: if images have several labels each.
    """
    values = network.request.to_dict()
    own = {name: values[name] for name in _NETWORK_FIELDS}
    precision = "fp32" if network.precision == "torch" else network.precision
    images = {name: value for name, value in config.given.items() if name not in own}
    given = {**images, **own, "precision": precision}
    features = load_features(given, config.cache, compute, multilabel=True)
    if features.embeddings.multilabel:
        raise DataError(
            f"{features.data} has several labels per image, and the accuracy of a network needs "
            f"one: leave out {option}, and use `featkit fit --backbone` for the mean average "
            "precision"
        )
    return fit_run(features, config.head, seed=features.request.seed)


def compare_runs(run: Run, other: Run, names: tuple[str, str]) -> PairedComparison:
    """Compare the accuracy of two runs on the same test images: the first minus the second."""
    predictions = dict(zip(names, (run.predictions, other.predictions), strict=True))
    (paired,) = compare(predictions)
    return paired


def _load_backbone(network: NetworkSpec, run: Run | None) -> Backbone:
    """Return the network, with the int8 network that its embeddings were extracted by, if any."""
    backbone = network.request.load_backbone()
    if run is None or network.precision not in INT8 or backbone.quantized:
        return backbone
    calibration = run.source.embeddings.recipe.calibration
    return replace(backbone, quantized=find_by_digest(run.source.path.parent, calibration))


def _size(network: NetworkSpec, backbone: Backbone) -> NetworkSize:
    if not is_int8(network.request.backbone):
        return measure_size(backbone, network.precision)
    # An ONNX file has no float layers to count; the description keeps the size of the network
    # before quantization.
    description = read_int8_description(network.request.backbone)
    return NetworkSize(
        description.parameters, description.nonzero, description.macs, file_size(backbone)
    )


def _embedding_drift(reference: Run, run: Run) -> Drift:
    before, after = reference.source.embeddings.part("test"), run.source.embeddings.part("test")
    return drift(before.x, after.x)


def profiles_to_json(profiles: Sequence[NetworkProfile], config: ProfileConfig) -> str:
    """Return the profiles and how they were measured, as indented JSON."""
    values = {
        "head": config.head,
        "cores": available_cores(),
        "repeats": config.repeats,
        "warm_up": config.warm_up,
        "batch": BATCH,
        "networks": [each.to_dict() for each in profiles],
    }
    return json.dumps(values, indent=2)


@dataclass(frozen=True)
class MeasuredNetwork:
    """A network of a saved profile that has an accuracy.

    Attributes:
        name: for tables and figures, see ``runs.names``.
        latency_ms: median latency of one image.
        top1, interval95, n: accuracy, its 95% confidence interval and the number of test images.
    """

    name: str
    latency_ms: float
    top1: float
    interval95: Interval
    n: int


def _recorded_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the networks of a saved profile; before 0.4 it had only their specs."""
    names = []
    for row in rows:
        spec, precision = _split_precision(row["spec"])
        names.append(row.get("name") or network_name(spec, precision=precision))
    return distinct_names(names, [{}] * len(names))


def read_profile(path: Path) -> list[MeasuredNetwork]:
    """Read the networks with an accuracy from what ``featkit profile`` wrote.

    Args:
        path: directory of the profile, its ``profile.json``, or its ``profile.csv`` under any name.

    Raises:
        DataError: if the file is missing or damaged, or no network has an accuracy.
    """
    file = path / PROFILE_FILE if path.is_dir() else path
    try:
        rows = _profile_rows(file)
        names = _recorded_names(rows)
        measured = [
            _measured(name, row)
            for name, row in zip(names, rows, strict=True)
            if row.get("top1") not in (None, "")
        ]
    except (OSError, LookupError, AttributeError, TypeError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{file} cannot be read as a profile ({reason}): give the folder that "
            "`featkit profile` wrote"
        ) from error
    if not measured:
        raise DataError(f"{file} has no accuracy: repeat `featkit profile` with --data")
    return measured


def _measured(name: str, row: Mapping[str, Any]) -> MeasuredNetwork:
    low, high = row["interval95"]
    return MeasuredNetwork(
        name=name,
        latency_ms=float(row["median_ms"]),
        top1=float(row["top1"]),
        interval95=(float(low), float(high)),
        n=int(row["n"]),
    )


def _profile_rows(file: Path) -> list[dict[str, Any]]:
    """Return one mapping per network, from JSON or CSV."""
    if file.suffix.lower() != ".csv":
        rows: list[dict[str, Any]] = read_json(file)["networks"]
        return rows
    rows = []
    for row in csv.DictReader(io.StringIO(read_text(file), newline="")):
        rows.append({**row, "interval95": (row["interval95_low"], row["interval95_high"])})
    return rows


def profiles_to_csv(profiles: Sequence[NetworkProfile]) -> str:
    """Return the profiles as CSV, one row per network."""
    return csv_text([_flatten(each.to_dict()) for each in profiles])


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under joined names; intervals end in ``_low`` and ``_high``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{name}_")
        elif isinstance(value, tuple | list):
            flat[f"{prefix}{name}_low"], flat[f"{prefix}{name}_high"] = value
        else:
            flat[f"{prefix}{name}"] = value
    return flat
