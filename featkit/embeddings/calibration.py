"""Calibrated int8 networks of a cache: find the one for an extraction, or calibrate a new one.

The networks are files in ``<cache>/calibration``, each with a JSON file that records on which
images it was calibrated. The digest of the network is part of the recipe, because another
calibration gives other features.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from featkit.backbones.base import Backbone, QuantizedNetwork
from featkit.embeddings import store
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.recipe import Recipe
from featkit.errors import CacheError, DataError, DecodeError, visible
from featkit.extras import package_version
from featkit.images.base import ImageSet
from featkit.parallel import in_threads
from featkit.storage import digest, file_sha256, replace_file, safe_name, storage_errors

if TYPE_CHECKING:
    from featkit.backbones.int8 import Int8Record

FOLDER = "calibration"
IMAGES = 256
"""Most images to calibrate on: the train images with the lowest content digests."""


@dataclass(frozen=True)
class CalibratedNetwork:
    """An int8 network in the cache.

    Attributes:
        network: digest of the quantized backbone, weights, layer and preprocessing.
        images: digest of the contents of the images it was calibrated on.
        keys: start of the content digest of each of them; empty for networks of featkit 0.4.0 and
            earlier, which did not record it.
        file: the network and its digest.
        recorded: whether the processor that made it is recorded (not in featkit 0.1).
    """

    network: str
    images: str
    keys: frozenset[str]
    file: QuantizedNetwork
    recorded: bool


@dataclass(frozen=True)
class CalibrationTask:
    """A network to quantize to int8.

    Attributes:
        backbone: the network.
        images, keys: the images to calibrate on and their content digests.
        store: number type of the stored features.
    """

    backbone: Backbone
    images: ImageSet
    keys: Sequence[str]
    store: str = "float32"

    @property
    def network(self) -> str:
        """Digest of the network to quantize."""
        return Recipe(
            images="",
            labels="",
            split="",
            perturb="",
            backbone=self.backbone.name,
            weights=self.backbone.digest,
            layer=self.backbone.layer,
            pool=self.backbone.pool,
            preprocess=asdict(self.backbone.preprocess),
            precision="int8",
            store=self.store,
        ).network

    def train_keys(self, most: int = IMAGES) -> list[str]:
        """Return the digests of the images to calibrate on."""
        keys = {self.keys[row] for row in self.images.rows("train")} - {""}
        return sorted(keys)[:most]


def find_by_digest(cache: Path, sha256: str) -> QuantizedNetwork | None:
    """Return the int8 network with this digest, or None."""
    for known in _list_networks(cache):
        if known.file.digest == sha256:
            return known.file
    return None


def find_calibrated(task: CalibrationTask, data: str, cache: Path) -> CalibratedNetwork | None:
    """Return the calibrated int8 network that an extraction must use, or None if there is none yet.

    That is the network which the data set was last extracted with, so that images can be added, and
    split with another seed, without a new calibration and extraction; ``seen_in_test`` counts its
    images in a test set. Otherwise it is one that was calibrated on the same train images. Networks
    of featkit 0.1 are not used on processors on which their sums saturate.

    Args:
        task: the network and the images.
        data: absolute spec of the images; empty for images that were given from Python.
        cache: folder of the cache files.
    """
    network = task.network
    candidates = _usable_networks(network, cache)
    if not candidates:
        return None
    by_digest = {known.file.digest: known for known in candidates}
    recent = _last_calibration(data, network, cache, by_digest) if data else None
    if recent:
        return recent
    images = digest(task.train_keys())
    for known in candidates:
        if known.images == images:
            return known
    return None


def seen_in_test(known: CalibratedNetwork, task: CalibrationTask) -> int:
    """Return how many images that a network was calibrated on are test images of an extraction."""
    tested = {task.keys[row][:_KEY] for row in task.images.rows("test")}
    return len(known.keys & tested)


_KEY = 16
"""Characters of a content digest that are recorded for each image."""


def _usable_networks(network: str, cache: Path) -> list[CalibratedNetwork]:
    """Return the int8 networks of a network whose sums are right on this processor."""
    candidates = [known for known in _list_networks(cache) if known.network == network]
    if all(known.recorded for known in candidates):
        return candidates
    from featkit.backbones.int8 import products_saturate

    if not products_saturate():
        return candidates
    return [known for known in candidates if known.recorded]


def _last_calibration(
    data: str, network: str, cache: Path, by_digest: Mapping[str, CalibratedNetwork]
) -> CalibratedNetwork | None:
    """Return the int8 network of the newest cache file of a data set, among those that exist."""
    for entry in store.entries(cache)[0]:
        same_data = entry.provenance["request"]["data"] == data
        if same_data and _network_digest(entry.recipe) == network:
            found = by_digest.get(entry.recipe.calibration)
            if found:
                return found
    return None


def calibrate(task: CalibrationTask, cache: Path, compute: Compute) -> None:
    """Quantize a network on train images and store it where ``find_calibrated`` finds it.

    Args:
        task: the network and the images.
        cache: folder of the cache files.
        compute: threads, progress, treatment of unreadable images.

    Raises:
        DataError: if there are no train images.
        DecodeError: if one of them cannot be read, unless ``compute.on_error`` is ``skip``.
        SpecError: if the features of the int8 network differ too much from float32.
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
            record = quantize(task.backbone, pixels, file)
            _publish(file, folder, task, keys, record)


def read_pixels(
    task: CalibrationTask, keys: Sequence[str], compute: Compute
) -> list[NDArray[np.uint8]]:
    """Read and preprocess the images with these digests: uint8 ``(h, w, 3)`` each.

    Raises:
        DataError: if there are none.
        DecodeError: if one of them cannot be read, unless ``compute.on_error`` is ``skip``.
    """
    row_of = {key: row for row, key in enumerate(task.keys)}

    def load(key: str) -> NDArray[np.uint8] | None:
        try:
            pixels = task.images.load_unchanged(row_of[key], key)
            return task.backbone.preprocess.fast(pixels)
        except DecodeError:
            if compute.on_error == "skip":
                return None
            raise

    loaded = in_threads(load, keys, compute.threads)
    title = f"calibrating {task.backbone.name}"
    shown = tqdm(loaded, visible(title), total=len(keys), unit="img", disable=not compute.progress)
    pixels = [image for image in shown if image is not None]
    if not pixels:
        raise DataError(
            f"{task.images.name} has no train images for int8 calibration: use another --precision"
        )
    return pixels


def unused_networks(cache: Path) -> list[Path]:
    """Return the files of int8 networks that no cache file refers to."""
    used = {entry.recipe.calibration for entry in store.entries(cache)[0]}
    files = []
    for known in _list_networks(cache):
        if known.file.digest not in used:
            files += [known.file.path.with_suffix(".json"), known.file.path.with_suffix(".onnx")]
    return files


def _network_digest(recipe: Recipe) -> str:
    """Return the digest of the quantized network.

    int8 and int8-openvino share it, and images decoded in full and at a fraction of their size.
    """
    return replace(recipe, precision="int8", calibration="none", decode="full").network


def _publish(
    file: Path, folder: Path, task: CalibrationTask, keys: Sequence[str], record: Int8Record
) -> None:
    """Rename the network by its digest, then its JSON file, which marks it as complete."""
    sha256 = file_sha256(file)
    versions = {name: package_version(name) for name in ("torch", "onnx", "onnxruntime")}
    content = {
        "network": task.network,
        "images": digest(keys),
        "keys": [key[:_KEY] for key in keys],
        "sha256": sha256,
        "record": asdict(record),
        "versions": versions,
    }
    card = file.with_suffix(".json")
    card.write_text(json.dumps(content, indent=2), encoding="utf-8")
    for part in (file, card):
        name = f"{safe_name(task.backbone.name)}-{sha256[:12]}{part.suffix}"
        replace_file(part, folder / name)


def _list_networks(cache: Path) -> list[CalibratedNetwork]:
    """Return the int8 networks of a cache, by name.

    Raises:
        CacheError: if one of the JSON files is damaged.
    """
    found = []
    for path in sorted((cache / FOLDER).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            network, images, sha256 = (content[name] for name in ("network", "images", "sha256"))
            keys = content.get("keys", [])
            if not all(isinstance(value, str) for value in (network, images, sha256, *keys)):
                raise TypeError("its digests are not text")
            file = QuantizedNetwork(path.with_suffix(".onnx"), sha256)
            recorded = bool(content.get("record"))
            known = CalibratedNetwork(network, images, frozenset(keys), file, recorded)
        except OSError as error:
            # The file may be intact: its removal is not advised.
            raise CacheError(
                f"{path} cannot be read: {error.strerror}; check the disk and the permissions"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CacheError(f"{path} is damaged ({error}): remove it and extract again") from error
        # A damaged network is removed by the user, who may leave its JSON file.
        if file.path.exists():
            found.append(known)
    return found
