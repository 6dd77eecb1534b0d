"""Choose the engine of a float32 network on a CPU: torch, or ONNX Runtime where it is faster.

Both are measured once for each network, machine and version of the two packages. The result is kept
in the user's cache folder, with the converted network if ONNX Runtime is faster: later forward
passes do not import torch at all. ONNX Runtime is used only if its features agree with those of
torch to ``AGREEMENT``, so that recipes do not tell the two apart.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.base import MAX_ONNX_BYTES, Backbone
from featkit.backbones.devices import one_thread_per_worker
from featkit.backbones.engines.base import Engine, ForwardPass, Workload
from featkit.backbones.engines.machine import engine_folder, machine_key
from featkit.backbones.engines.noise import smooth_noise
from featkit.backbones.engines.onnx import OnnxEngine
from featkit.errors import FeatkitError, SpecError, StorageError
from featkit.parallel import in_threads
from featkit.storage import (
    read_file,
    read_json,
    storage_errors,
    write_file,
)

AGREEMENT = 1e-5
"""Largest difference between features of two engines of one numerics class, relative to the largest
feature. ResNets with ImageNet weights differ by 1e-6."""

MEASURED_FROM = 120.0
"""Seconds that the forward passes of torch must be expected to take before engines are compared:
the conversion and the comparison take 10 to 25 seconds, and save about a quarter."""

_LEAST_IMAGES = 500
"""With fewer images, not even the expected time is estimated."""

_MOST_NETWORKS = 8
"""Converted networks that are kept; those that were not used for the longest time are removed."""

_SCHEMA = 1
_BATCH = 8
_ROUNDS = 3
_PROBED = 4

log = logging.getLogger("featkit")


@dataclass(frozen=True)
class EngineChoice:
    """The faster engine of a network on this machine.

    Attributes:
        network: name of the network.
        engine: ``torch`` or ``onnxruntime``.
        torch_rate, onnxruntime_rate: images per second of the forward pass on all workers; 0 where
            the network could not be converted.
        distance: largest difference of the features, relative to the largest feature.
        sha256: digest of the converted network; empty if it is not kept.
        reason: why ONNX Runtime cannot run the network; empty if it can.
    """

    network: str
    engine: str
    torch_rate: float
    onnxruntime_rate: float
    distance: float
    sha256: str = ""
    reason: str = ""

    @classmethod
    def from_dict(cls, values: Any) -> EngineChoice:
        """Read what ``asdict`` returned.

        Raises:
            TypeError, ValueError: if it is something else.
        """
        choice = cls(**values)
        for field in fields(cls):
            kind = float if field.type == "float" else str
            if type(getattr(choice, field.name)) is not kind:
                raise TypeError(f"{field.name} has the wrong type")
        if choice.engine not in ("torch", "onnxruntime"):
            raise ValueError(f"the engine {choice.engine!r} is unknown")
        return choice

    def __str__(self) -> str:
        if self.reason:
            return f"{self.network}: torch ({self.reason})"
        return (
            f"{self.network}: {self.engine} (torch {self.torch_rate:.1f} images/s, "
            f"onnxruntime {self.onnxruntime_rate:.1f}; difference {self.distance:.0e})"
        )


def open_fastest(backbone: Backbone, workload: Workload) -> Engine:
    """Open the faster engine of a float32 network on a CPU.

    That is torch unless ONNX Runtime is installed and was measured to be faster. It is measured now
    if it was not before, and the images are many enough to be worth it.

    Args:
        backbone: the network.
        workload: what it is opened for.

    Raises:
        FeatkitError: as ``TorchEngine.open``.
    """
    place = _Place.of(backbone) if _is_available() else None
    if place is None:
        return _open_torch(backbone)
    choice = place.read()
    if choice is not None:
        return _open_chosen(backbone, place, choice, workload)
    if workload.images < _LEAST_IMAGES:
        return _open_torch(backbone)
    engine = _open_torch(backbone)
    if _expected_seconds(engine, backbone, workload) < MEASURED_FROM:
        return engine
    log.info(
        "comparing torch and ONNX Runtime for %s; the faster is remembered for this machine",
        backbone.name,
        extra={"once": True},
    )
    choice, data = examine(backbone, engine, workload.workers)
    chosen = choice.engine == "onnxruntime"
    place.remember(backbone, choice, data if chosen else b"")
    log.info("%s", choice, extra={"once": True})
    return OnnxEngine(data, backbone.name, threads=workload.threads) if chosen else engine


def open_onnxruntime(backbone: Backbone, workload: Workload) -> Engine:
    """Open a float32 network in ONNX Runtime, which the user asked for; convert it if necessary.

    Args:
        backbone: the network.
        workload: what it is opened for.

    Raises:
        SpecError: if the network cannot be converted, or its features do not agree with torch's.
        MissingExtraError: if ONNX Runtime, ONNX or ONNX Script is not installed.
    """
    place = _Place.of(backbone)
    choice = place.read() if place else None
    if place and choice and choice.sha256:
        kept = place.open(choice, workload.threads)
        if kept is not None:
            return kept
    choice, data = examine(backbone, _open_torch(backbone), workload.workers)
    if choice.reason:
        raise SpecError(f"--engine onnxruntime: {choice.reason}; --engine torch runs it")
    if place is not None:
        place.remember(backbone, choice, data)
    return OnnxEngine(data, backbone.name, threads=workload.threads)


def remembered_choices() -> list[EngineChoice]:
    """Return the engines that were chosen on this machine, those of other versions included."""
    folder = engine_folder()
    if folder is None:
        return []
    found = []
    for path in sorted(folder.glob("*.json")):
        choice = _read_choice(path)
        if choice is not None:
            found.append(choice)
    return found


def examine(
    backbone: Backbone, torch_engine: ForwardPass, workers: int
) -> tuple[EngineChoice, bytes]:
    """Convert a network to ONNX, compare its features with torch's, and measure both engines.

    Args:
        backbone: the network.
        torch_engine: the network in torch.
        workers: threads that run forward passes at the same time.

    Returns:
        The choice, and the converted network as an ONNX file; empty if it cannot be used.

    Raises:
        MissingExtraError: if ONNX Runtime, ONNX or ONNX Script is not installed.
    """
    pixels = smooth_noise(_BATCH, backbone.preprocess.crop)
    expected = torch_engine(pixels)
    try:
        data = convert(backbone)
        engine = OnnxEngine(data, backbone.name)
        found = engine(pixels)
    except SpecError as error:
        return EngineChoice(backbone.name, "torch", 0.0, 0.0, 0.0, reason=str(error)), b""
    distance = relative_distance(found, expected)
    # Not "distance > ...", which would accept NaN.
    if not distance <= AGREEMENT:
        reason = f"features of {backbone.name} differ from those of torch by {distance:.0e}"
        return EngineChoice(backbone.name, "torch", 0.0, 0.0, distance, reason=reason), b""
    seconds: dict[str, list[float]] = {"torch": [], "onnxruntime": []}
    with one_thread_per_worker() as start:
        for _ in range(_ROUNDS):
            for name, forward in (("torch", torch_engine), ("onnxruntime", engine)):
                began = time.perf_counter()
                list(in_threads(forward, [pixels] * workers, workers, start=start))
                seconds[name].append(time.perf_counter() - began)
    images = _BATCH * workers
    rates = {name: images / median(values) for name, values in seconds.items()}
    choice = EngineChoice(
        network=backbone.name,
        engine=max(rates, key=rates.__getitem__),
        torch_rate=rates["torch"],
        onnxruntime_rate=rates["onnxruntime"],
        distance=distance,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return choice, data


def relative_distance(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the largest difference of two arrays, relative to the largest number of the second."""
    scale = max(float(np.abs(expected).max(initial=0.0)), float(np.finfo(np.float32).tiny))
    return float(np.abs(found - expected).max(initial=0.0)) / scale


def convert(backbone: Backbone) -> bytes:
    """Return a network as an ONNX file from uint8 ``(b, h, w, 3)`` to float32 ``(b, d)``.

    Raises:
        SpecError: if it cannot be expressed in ONNX.
        MissingExtraError: if ONNX or ONNX Script is not installed.
    """
    import torch

    from featkit.backbones.onnx_export import NetworkOnPixels, write_onnx

    example = torch.zeros((2, *backbone.preprocess.crop, 3), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "network.onnx")
        network = NetworkOnPixels(backbone).eval()
        write_onnx(network, example, path, names=("pixels", "vectors"), title=backbone.name)
        return path.read_bytes()


def _expected_seconds(engine: ForwardPass, backbone: Backbone, workload: Workload) -> float:
    """Return how long the forward passes are expected to take, from a few on one thread."""
    pixels = smooth_noise(_PROBED, backbone.preprocess.crop)
    with one_thread_per_worker() as start:

        def probe(_: None) -> float:
            engine(pixels)
            began = time.perf_counter()
            engine(pixels)
            return time.perf_counter() - began

        (seconds,) = in_threads(probe, [None], 1, start=start)
    return seconds / _PROBED * workload.images / workload.workers


def _open_torch(backbone: Backbone) -> Engine:
    from featkit.backbones.engines.torch import TorchEngine

    return TorchEngine.open(backbone, precision="fp32", device="cpu")


def _open_chosen(
    backbone: Backbone, place: _Place, choice: EngineChoice, workload: Workload
) -> Engine:
    if choice.engine == "torch":
        return _open_torch(backbone)
    return place.open(choice, workload.threads) or _open_torch(backbone)


def _is_available() -> bool:
    """Return whether networks can be converted and run, without importing the packages."""
    return all(find_spec(name) for name in ("onnxruntime", "onnx", "onnxscript"))


# Remembered choices -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where the choice of a network and the converted network are kept."""

    folder: Path
    key: str

    @classmethod
    def of(cls, backbone: Backbone) -> _Place | None:
        """Return the place of a network on this machine; None if no home folder is known."""
        folder = engine_folder()
        if folder is None:
            return None
        preprocess = backbone.preprocess
        parts = [
            _SCHEMA,
            [backbone.name, backbone.digest, backbone.layer, backbone.pool],
            [preprocess.crop, preprocess.mean, preprocess.std],
        ]
        return cls(folder, machine_key(parts, ["torch", "onnxruntime"]))

    @property
    def choice_file(self) -> Path:
        """File of the choice."""
        return self.folder / f"{self.key}.json"

    @property
    def network_file(self) -> Path:
        """File of the converted network."""
        return self.folder / f"{self.key}.onnx"

    def read(self) -> EngineChoice | None:
        """Return the choice; None if none was made, or one of its files is missing or damaged."""
        choice = _read_choice(self.choice_file)
        if choice is not None and choice.sha256 and not self.network_file.is_file():
            return None
        return choice

    def remember(self, backbone: Backbone, choice: EngineChoice, data: bytes) -> None:
        """Keep a choice, and the converted network if there is one.

        Nothing is kept of a network whose weights were replaced before they were read.
        """
        if backbone.weights_changed():
            return
        try:
            self._write(choice, data)
        except StorageError as error:
            log.warning("the faster engine is not remembered: %s", error, extra={"once": True})

    def _write(self, choice: EngineChoice, data: bytes) -> None:
        values = asdict(choice) if data else {**asdict(choice), "sha256": ""}
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            # The choice last: it says that the network is there.
            if data:
                write_file(self.network_file, data)
            write_file(self.choice_file, json.dumps(values, indent=2))
            _remove_unused(self.folder)

    def open(self, choice: EngineChoice, threads: int) -> Engine | None:
        """Open the converted network; None, with a warning, if it cannot be used.

        A damaged one is removed, so that it will be converted again.
        """
        path = self.network_file
        try:
            data = read_file(path, MAX_ONNX_BYTES)
            if hashlib.sha256(data).hexdigest() != choice.sha256:
                path.unlink()
                raise StorageError("it was damaged, and was removed")
            engine = OnnxEngine(data, choice.network, threads=threads, trusted=True)
        except (OSError, FeatkitError) as error:
            log.warning(
                "the converted network %s is not used: %s", path, error, extra={"once": True}
            )
            return None
        _mark_as_used(path)
        return engine


def _read_choice(path: Path) -> EngineChoice | None:
    try:
        return EngineChoice.from_dict(read_json(path))
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        log.warning("%s is not used: %s", path, error, extra={"once": True})
        return None


def _mark_as_used(path: Path) -> None:
    """Set the time of a file, by which ``_remove_unused`` orders them; a read-only one stays."""
    try:
        os.utime(path)
    except OSError:
        log.debug("the time of %s cannot be set", path)


def _remove_unused(folder: Path) -> None:
    """Remove converted networks beyond the most that are kept, with their choices."""
    newest_first = sorted(folder.glob("*.onnx"), key=lambda path: -path.stat().st_mtime)
    for path in newest_first[_MOST_NETWORKS:]:
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
