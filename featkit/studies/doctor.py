"""Report what featkit finds on this machine: versions, devices, weights, cache."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from featkit import __version__
from featkit.backbones.devices import DEVICES, instruction_set, pick_device, resolve_precision
from featkit.backbones.engines.choice import remembered_choices
from featkit.backbones.int8 import products_saturate
from featkit.backbones.weights import FILES, hub_folder, search_weights
from featkit.errors import FeatkitError, MissingExtraError, SpecError, WeightsError
from featkit.runs.registry import list_file, list_runs, result_folders
from featkit.storage import available_cores

_PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "h5py", "skops", "pillow")
_EXTRAS = {
    "timm": "timm",
    "int8": "onnxruntime",
    "openvino": "openvino",
    "parquet": "pyarrow",
    "zstd": "hdf5plugin",
    "longtail": "imblearn",
    "heif": "pillow_heif",
    "projection": "umap",
}
"""A module of each extra."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic: what it is about.
        text: what was found.
        good: whether nothing has to be done.
    """

    topic: str
    text: str
    good: bool = True


def examine(cache: Path) -> list[Finding]:
    """Return what is found on this machine.

    Args:
        cache: folder of the embeddings cache.
    """
    found: list[Finding] = []
    for look in (_versions, _machine, _devices, _engines, _int8, _weights, _extras, _runs):
        found.extend(look())
    found.append(_cache(cache))
    return found


def _versions() -> Iterator[Finding]:
    found, missing = [f"featkit {__version__}"], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    yield Finding("versions", f"Python {platform.python_version()}, {', '.join(found)}")
    if missing:
        yield Finding(
            "versions", f"not installed: {', '.join(missing)}; install featkit again", False
        )


def _machine() -> Iterator[Finding]:
    whole = os.cpu_count() or 1
    yield Finding(
        "machine",
        f"{platform.system()}, {available_cores()} of {whole} cores may be used, best instruction "
        f"set for int8: {instruction_set()}",
    )


def _devices() -> Iterator[Finding]:
    available = []
    for name in DEVICES[1:]:
        try:
            available.append(pick_device(name))
        except SpecError:
            continue
    best = pick_device("auto")
    yield Finding(
        "devices", f"{', '.join(available)}; auto is {best} in {resolve_precision('auto', best)}"
    )


def _engines() -> Iterator[Finding]:
    chosen = remembered_choices()
    for choice in chosen:
        yield Finding("engine", str(choice))
    if not chosen:
        yield Finding(
            "engine",
            "float32 networks run in torch until ONNX Runtime (extra int8) was measured to be "
            "faster, before the first long extraction or with --engine onnxruntime",
        )


def _int8() -> Iterator[Finding]:
    try:
        saturates = products_saturate()
    except MissingExtraError as error:
        yield Finding("int8", str(error))
        return
    if saturates:
        text = (
            "safe with 7-bit weights, the default; sums of 8-bit weights saturate on this "
            "processor: do not use --weight-bits 8"
        )
    else:
        text = "safe with 7 and with 8-bit weights (--weight-bits 8 is more accurate)"
    yield Finding("int8", text)


def _weights() -> Iterator[Finding]:
    folder = os.environ.get("FEATKIT_WEIGHTS")
    places = [f"FEATKIT_WEIGHTS={folder}" if folder else "FEATKIT_WEIGHTS is not set"]
    hub = hub_folder()
    places.append(f"downloads in {hub}" if hub else "no home folder")
    yield Finding("weights", "; ".join(places))
    found = []
    for network, names in FILES.items():
        for name in names:
            try:
                path = search_weights(network, name)
            except WeightsError as error:
                yield Finding("weights", str(error), good=False)
                return
            if path is not None:
                found.append(f"{network} {name}: {path}")
    for text in found:
        yield Finding("weights", text)
    if not found:
        yield Finding(
            "weights",
            "none found: they are downloaded when first used, or copy them into a folder and set "
            "FEATKIT_WEIGHTS to it",
            good=False,
        )


def _extras() -> Iterator[Finding]:
    installed = [name for name, module in _EXTRAS.items() if importlib.util.find_spec(module)]
    missing = [name for name in _EXTRAS if name not in installed]
    text = f"installed: {', '.join(installed) or 'none'}"
    if missing:
        text += f"; not installed: {', '.join(missing)} (pip install 'featkit[{missing[0]}]')"
    yield Finding("extras", text)


def _runs() -> Iterator[Finding]:
    runs, folders = list_runs(), result_folders()
    text = f"{len(runs)} in {len(folders)} folders"
    if runs:
        text += f", latest: {runs[0].short}"
    yield Finding("runs", f"{text}; folders are listed in {list_file()}")


def _cache(folder: Path) -> Finding:
    if not folder.is_dir():
        return Finding("cache", f"{folder.absolute()} does not exist yet")
    from featkit.embeddings.store import entries

    try:
        good, bad = entries(folder)
    except FeatkitError as error:
        return Finding("cache", str(error), good=False)
    total = sum(entry.size for entry in good)
    text = f"{folder.absolute()}: {len(good)} files, {total / 1e6:.1f} MB"
    if bad:
        text += f"; {len(bad)} cannot be read: see `featkit cache verify`"
    return Finding("cache", text, good=not bad)
