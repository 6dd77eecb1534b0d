"""Which int8 network an extraction runs: the one that its data set was calibrated with before, or a new one.

The networks lie in ``<cache>/calibration``, each beside a JSON file that says on what it was calibrated. Their digest
is part of the recipe: another calibration gives other vectors.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from featkit.backbones.base import Backbone, QuantizedNetwork
from featkit.embeddings import store
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.recipe import Recipe
from featkit.errors import CacheError, DataError, DecodeError
from featkit.images.base import ImageSet
from featkit.parallel import in_threads
from featkit.storage import digest, safe_name, storage_errors

FOLDER = "calibration"
IMAGES = 256
"""Most images to calibrate on: those train images whose digests come first, whatever their names and order."""


@dataclass(frozen=True)
class Calibration:
    """An int8 network on disk.

    Attributes:
        network: digest of what was quantized: backbone, weights, layer, preprocessing.
        images: digest of the contents of the images it was calibrated on.
        file: the network and its digest.
    """

    network: str
    images: str
    file: QuantizedNetwork


def find(cache: Path, sha256: str) -> QuantizedNetwork | None:
    """Return the int8 network with this digest."""
    return next((known.file for known in _known(cache) if known.file.digest == sha256), None)


@dataclass(frozen=True)
class CalibrationTask:
    """What is to run in eight bits.

    Attributes:
        backbone: the network.
        recipe: how it turns the images into vectors, without a calibration.
        images, keys: the images and their content digests.
    """

    backbone: Backbone
    recipe: Recipe
    images: ImageSet
    keys: Sequence[str]

    def train_keys(self, most: int = IMAGES) -> list[str]:
        """Return the digests of the images to calibrate on."""
        return sorted({self.keys[row] for row in self.images.rows("train")} - {""})[:most]


def choose(task: CalibrationTask, data: str, cache: Path) -> QuantizedNetwork | None:
    """Return the int8 network that the images are to run through, if it is there already.

    That is the one their data set was last extracted with, so that images can be added without starting over;
    otherwise one that was calibrated on the same train images.

    Args:
        task: what is to run.
        data: absolute spec of the images; empty where they came from Python.
        cache: folder of the cache files.
    """
    network = _network(task.recipe)
    fitting = [known for known in _known(cache) if known.network == network]
    if data:
        for entry in store.entries(cache)[0] if fitting else []:
            if _network(entry.recipe) == network and entry.provenance["request"]["data"] == data:
                files = [known.file for known in fitting if known.file.digest == entry.recipe.calibration]
                if files:
                    return files[0]
    wanted = digest(task.train_keys())
    return next((known.file for known in fitting if known.images == wanted), None)


def calibrate(task: CalibrationTask, cache: Path, compute: Compute) -> None:
    """Quantize a network on train images, and keep it where ``choose`` finds it.

    Args:
        task: what is to run.
        cache: folder of the cache files.
        compute: threads, progress, what to do about images that cannot be read.

    Raises:
        DataError: if there are no train images.
        DecodeError: if one of them cannot be read, unless ``compute.on_error`` is ``skip``.
        MissingExtraError: if the extra ``int8`` is not installed.
    """
    from featkit.backbones.quantization import quantize

    keys = task.train_keys()
    pixels = read_pixels(task, keys, compute)
    folder = cache / FOLDER
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as scratch:
            file = Path(scratch, "network.onnx")
            quantize(task.backbone, pixels, file)
            _publish(file, folder, task, digest(keys))


def read_pixels(task: CalibrationTask, keys: Sequence[str], compute: Compute) -> list[NDArray[np.uint8]]:
    """Return the images with these digests, uint8 ``(h, w, 3)`` as the network sees them.

    Raises:
        DataError: if there are none.
        DecodeError: if one of them cannot be read, unless ``compute.on_error`` is ``skip``.
    """
    row_of = {key: row for row, key in enumerate(task.keys)}

    def load(key: str) -> NDArray[np.uint8] | None:
        try:
            return task.backbone.preprocess.fast(task.images.load(row_of[key]))
        except DecodeError:
            if compute.on_error == "skip":
                return None
            raise

    loaded = in_threads(load, keys, compute.threads, ahead=2 * compute.threads)
    title = f"calibrating {task.backbone.name}"
    shown = tqdm(loaded, title, total=len(keys), unit="img", disable=not compute.progress)
    pixels = [image for image in shown if image is not None]
    if not pixels:
        raise DataError(f"{task.images.name} has no train images to calibrate int8 on: use another --precision")
    return pixels


def garbage(cache: Path) -> list[Path]:
    """Return the files of int8 networks that no cache file refers to."""
    used = {entry.recipe.calibration for entry in store.entries(cache)[0]}
    files = [known.file.path for known in _known(cache) if known.file.digest not in used]
    return [path.with_suffix(suffix) for path in files for suffix in (".json", ".onnx")]


def _network(recipe: Recipe) -> str:
    """Return the digest of what is put into eight bits, whatever runs it then."""
    return replace(recipe, precision="int8", calibration="none").network


def _publish(file: Path, folder: Path, task: CalibrationTask, images: str) -> None:
    """Name the network by its digest; the JSON file beside it, moved there last, says that it is whole."""
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    versions = {package: version(package) for package in ("torch", "onnx", "onnxruntime")}
    content = {"network": _network(task.recipe), "images": images, "sha256": sha256, "versions": versions}
    card = file.with_suffix(".json")
    card.write_text(json.dumps(content, indent=2), encoding="utf-8")
    for part in (file, card):
        part.replace(folder / f"{safe_name(task.backbone.name)}-{sha256[:12]}{part.suffix}")


def _known(cache: Path) -> list[Calibration]:
    """Return the int8 networks of a cache, by name.

    Raises:
        CacheError: if one of the JSON files is damaged.
    """
    found = []
    for path in sorted((cache / FOLDER).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            file = QuantizedNetwork(path.with_suffix(".onnx"), content["sha256"])
            found.append(Calibration(content["network"], content["images"], file))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CacheError(f"{path} is damaged ({error}): remove it and extract again") from error
    return found
