"""Networks side by side: what each costs, how far its vectors moved, what a head makes of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from featkit.backbones.base import Backbone
from featkit.backbones.precision import INT8, PRECISIONS
from featkit.backbones.saved import NETWORK_FILE, is_int8, read_int8_description
from featkit.compression.profile import (
    BATCH,
    NetworkSize,
    NetworkTiming,
    TimedNetwork,
    file_size,
    measure_size,
    open_any,
    peak_memory,
    time_engines,
)
from featkit.embeddings.calibration import find as find_calibration
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.errors import SpecError
from featkit.evaluation import PairedComparison, Report, compare
from featkit.evaluation.drift import Drift, drift
from featkit.registry import unknown
from featkit.runs.directory import load_run
from featkit.runs.features import load_features
from featkit.runs.fit import Run, fit_run
from featkit.storage import available_cores


@dataclass(frozen=True)
class Candidate:
    """A network to profile: its spec, its request without images, and how it runs.

    ``precision`` is ``fp32``, ``bf16``, ``int8`` or, for the network as torch runs it by itself, ``torch``.
    """

    spec: str
    request: Request
    precision: str


@dataclass(frozen=True)
class NetworkProfile:
    """What one network costs and is worth.

    Attributes:
        spec: as it was asked for.
        size, timing: see ``compression.profile``.
        peak_memory_mb: of a fresh process that runs a batch of 32, in 10^6 bytes.
        report: of a head on its vectors, if there are images to judge it on.
        drift: of its vectors of the test images from those of the first network; None for that one itself.
        difference: top-1 less that of the first network, on the same test images.
    """

    spec: str
    size: NetworkSize
    timing: NetworkTiming
    peak_memory_mb: float
    report: Report | None = None
    drift: Drift | None = None
    difference: PairedComparison | None = None


@dataclass(frozen=True)
class ProfileConfig:
    """How networks are profiled: the head, the images (fields of ``Request``), where vectors are kept, the repeats."""

    head: str = "linear"
    given: Mapping[str, Any] = field(default_factory=dict)
    cache: Path = Path("cache")
    repeats: int = 30
    warm_up: int = 3


def parse_candidate(text: str) -> Candidate:
    """Read ``SPEC[@PRECISION]``: a backbone, a directory of a network that featkit saved, or one of a run.

    The precision is fp32 where nothing else is said, that of the run for a run, and int8 for a quantized network.

    Raises:
        SpecError: if the precision is unknown, or not one that the network runs in.
        RunError: if the directory is neither.
    """
    spec, at, precision = text.rpartition("@") if "@" in text.rpartition("/")[2] else (text, "", "")
    known = [*PRECISIONS, "torch"]
    if at and precision not in known:
        raise unknown("precision", precision, known)
    if is_int8(spec):
        if at and precision not in INT8:
            raise SpecError(f"{spec} is a network in eight bits: write it without @{precision}")
        return Candidate(text, Request(data="", backbone=spec), precision or "int8")
    folder = Path(spec).expanduser()
    if (folder / "card.json").is_file() and not (folder / NETWORK_FILE).is_file():
        run = load_run(folder)
        return Candidate(text, replace(run.request, data=""), precision or run.request.precision)
    return Candidate(text, Request(data="", backbone=spec), precision or "fp32")


def profile(candidates: Sequence[Candidate], protocol: ProfileConfig, compute: Compute) -> list[NetworkProfile]:
    """Measure some networks; the first is what the others are compared with.

    Times are taken of all networks in turn, on one thread and on all cores.

    Raises:
        FeatkitError: of the kind that says what cannot be had.
    """
    if len({each.spec for each in candidates}) < len(candidates):
        raise SpecError(f"a network is named twice: {', '.join(each.spec for each in candidates)}")
    sized = {name: protocol.given[name] for name in ("resize", "crop") if name in protocol.given}
    candidates = [replace(each, request=replace(each.request, **sized)) for each in candidates]
    runs = [judge(each, protocol, compute) if "data" in protocol.given else None for each in candidates]
    backbones = [_backbone(each, run) for each, run in zip(candidates, runs, strict=True)]
    sizes = [_size(each, backbone) for each, backbone in zip(candidates, backbones, strict=True)]
    engines = [
        TimedNetwork(open_any(backbone, each.precision), backbone.preprocess.crop, shares=each.precision == "torch")
        for backbone, each in zip(backbones, candidates, strict=True)
    ]
    timings = time_engines(engines, repeats=protocol.repeats, warm_up=protocol.warm_up)
    return [
        NetworkProfile(
            spec=each.spec,
            size=size,
            timing=timing,
            peak_memory_mb=peak_memory(each.request, backbone.quantized, each.precision),
            report=run.report if run else None,
            **_beside(runs[0], run, (each.spec, candidates[0].spec)),
        )
        for each, backbone, size, timing, run in zip(candidates, backbones, sizes, timings, runs, strict=True)
    ]


def judge(candidate: Candidate, protocol: ProfileConfig, compute: Compute) -> Run:
    """Fit the head on the network's vectors and judge it on the test images."""
    network = candidate.request.to_dict()
    own = {name: network[name] for name in ("backbone", "weights", "layer", "pool", "resize", "crop")}
    precision = "fp32" if candidate.precision == "torch" else candidate.precision
    source = load_features({**own, **protocol.given, "precision": precision}, protocol.cache, compute)
    return fit_run(source, protocol.head, seed=source.request.seed)


def _backbone(candidate: Candidate, run: Run | None) -> Backbone:
    """Return the network, in the eight bits that its vectors were made with if any."""
    backbone = candidate.request.load_backbone()
    if run is None or candidate.precision not in INT8 or backbone.quantized:
        return backbone
    return replace(
        backbone, quantized=find_calibration(run.source.path.parent, run.source.embeddings.recipe.calibration)
    )


def _size(candidate: Candidate, backbone: Backbone) -> NetworkSize:
    if not is_int8(candidate.request.backbone):
        return measure_size(backbone, candidate.precision)
    card = read_int8_description(candidate.request.backbone)
    return NetworkSize(card.parameters, card.nonzero, card.macs, file_size(backbone))


def _beside(first: Run | None, run: Run | None, names: tuple[str, str]) -> dict[str, Any]:
    """Return how far the vectors of a run are from those of the first, and its answers; nothing for the first."""
    if first is None or run is None or first is run:
        return {}
    before, after = first.source.embeddings.part("test"), run.source.embeddings.part("test")
    return {"drift": drift(before.x, after.x), "difference": difference(run, first, names)}


def difference(run: Run, other: Run, names: tuple[str, str]) -> PairedComparison:
    """Return how much more often one run is right than another, on the same test images."""
    predictions = [run.predictions, other.predictions]
    (paired,) = compare(dict(zip(names, predictions, strict=True)))
    return paired


def to_dict(each: NetworkProfile) -> dict[str, Any]:
    """Return a profile as JSON can hold it."""
    report = each.report
    judged = {"n": report.n, "top1": report.top1, "interval95": report.interval95} if report else {}
    moved = {"drift": asdict(each.drift)} if each.drift else {}
    paired = {"difference": each.difference.to_dict()} if each.difference else {}
    costs = {**asdict(each.size), **asdict(each.timing), "peak_memory_mb": each.peak_memory_mb}
    return {"spec": each.spec, **costs, **judged, **moved, **paired}


def to_json(profiles: Sequence[NetworkProfile], protocol: ProfileConfig) -> str:
    """Return the profiles, and how they were taken, as indented JSON."""
    how = {"cores": available_cores(), "repeats": protocol.repeats, "warm_up": protocol.warm_up, "batch": BATCH}
    return json.dumps({"head": protocol.head, **how, "networks": [to_dict(each) for each in profiles]}, indent=2)


def to_csv(profiles: Iterable[NetworkProfile]) -> str:
    """Return one line for each network."""
    rows = [_flat(to_dict(each)) for each in profiles]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{name}_")
        elif isinstance(value, tuple | list):
            found |= {f"{prefix}{name}_low": value[0], f"{prefix}{name}_high": value[1]}
        else:
            found[f"{prefix}{name}"] = value
    return found
