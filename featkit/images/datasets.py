"""Image classification data sets of torchvision, by name, with their official splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError, SpecError
from featkit.images.base import SPLITS, ImageSet, Pixels
from featkit.images.decode import array_key
from featkit.images.files import UNSPLIT, ImageEntry, from_entries
from featkit.storage import OFFLINE_VARIABLE, data_folder, is_offline, user_path

_Parts = Mapping[str, Mapping[str, Any]]


def _by_split(**names: str) -> _Parts:
    return {split: {"split": name} for split, name in names.items()}


_TRAIN_FLAG: _Parts = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST = _by_split(train="train", test="test")
_THREE = _by_split(train="train", val="val", test="test")
_WHOLE: _Parts = {"": {}}

# name -> class in torchvision.datasets, and its arguments for each split
_SETS: dict[str, tuple[str, _Parts]] = {
    "caltech101": ("Caltech101", _WHOLE),
    "cifar10": ("CIFAR10", _TRAIN_FLAG),
    "cifar100": ("CIFAR100", _TRAIN_FLAG),
    "country211": ("Country211", _by_split(train="train", val="valid", test="test")),
    "dtd": ("DTD", _THREE),
    "eurosat": ("EuroSAT", _WHOLE),
    "fashion-mnist": ("FashionMNIST", _TRAIN_FLAG),
    "fgvc-aircraft": ("FGVCAircraft", _THREE),
    "flowers102": ("Flowers102", _THREE),
    "food101": ("Food101", _TRAIN_TEST),
    "gtsrb": ("GTSRB", _TRAIN_TEST),
    "imagenette": (
        "Imagenette",
        _by_split(train="train", test="val"),
    ),  # its val split is the only one to test on
    "mnist": ("MNIST", _TRAIN_FLAG),
    "oxford-iiit-pet": ("OxfordIIITPet", _by_split(train="trainval", test="test")),
    "stanford-cars": ("StanfordCars", _TRAIN_TEST),
    "stl10": ("STL10", _TRAIN_TEST),
    "sun397": ("SUN397", _WHOLE),
    "svhn": ("SVHN", _TRAIN_TEST),
}

NAMES = tuple(_SETS)


def __getattr__(name: str) -> Callable[..., ImageSet]:
    """Return the factory of a data set, for the registry of sources."""
    if name not in _SETS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(load_dataset, name)


def load_dataset(name: str, root: str | None = None, download: bool = False) -> ImageSet:
    """Return a torchvision data set with its official splits; ``split`` is ``none`` if it has none.

    Args:
        name: one of ``NAMES``.
        root: ``root`` folder of the torchvision class; None for ``data_folder()``.
        download: whether to download the data set if it is missing.

    Raises:
        SpecError: if ``download`` is not a boolean.
        DataError: if the data set is not in ``root``, or cannot be downloaded.
    """
    if not isinstance(download, bool):
        raise SpecError(f"{name}:download={download}: write true or false")
    folder = data_folder() if root is None else user_path(str(root))
    attribute, parts = _SETS[name]
    loaded = {
        split: _load(name, attribute, folder, download, given) for split, given in parts.items()
    }
    labels = chain.from_iterable(part.classes for part in loaded.values())
    classes = tuple(dict.fromkeys(labels))
    if all(part.pixels is None for part in loaded.values()):
        return _file_set(name, folder, loaded, classes)
    return _array_set(name, loaded, classes)


def _load(
    name: str, attribute: str, folder: Path, download: bool, given: Mapping[str, Any]
) -> _Part:
    if not download and not folder.is_dir():
        raise _not_found(name, folder, "folder not found")
    from torchvision import datasets

    allowed = download and not is_offline()
    try:
        return _Part.of(getattr(datasets, attribute)(str(folder), download=allowed, **given))
    except Exception as error:  # torchvision raises any exception of its parsers and downloads
        reason = " ".join(str(error).split()).partition(" You can use download")[0]
        if not download:
            raise _not_found(name, folder, reason) from error
        if not allowed:
            raise DataError(
                f"{name} cannot be read from {folder} ({reason}), and {OFFLINE_VARIABLE} forbids "
                f"to download it: use {name}:root=DIR"
            ) from error
        raise DataError(
            f"{name} cannot be downloaded to {folder} ({reason}): check the network connection, or "
            f"download it elsewhere and use {name}:root=DIR"
        ) from error


def _not_found(name: str, folder: Path, reason: str) -> DataError:
    hint = f", or write ./{name} for the local folder" if Path(name).is_dir() else ""
    return DataError(
        f"{name} cannot be read from {folder} ({reason}): set its folder with {name}:root=DIR, "
        f"download it with {name}:download=true{hint}"
    )


@dataclass(frozen=True)
class _Part:
    """One split of a data set.

    Attributes:
        classes: class names.
        labels: ``(n,)`` indices into ``classes``.
        files: path of each image; empty if the pixels are in memory.
        pixels: array of images; None if they are files.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    files: tuple[str, ...]
    pixels: Any

    @classmethod
    def of(cls, part: Any) -> _Part:
        labels = _labels(part)
        return cls(_classes(part, labels), labels, _files(part), getattr(part, "data", None))

    @property
    def names(self) -> list[str]:
        return [self.classes[label] for label in self.labels]


def _labels(part: Any) -> NDArray[np.int64]:
    for attribute in ("targets", "_labels", "labels", "y"):
        if hasattr(part, attribute):
            return np.asarray(getattr(part, attribute), dtype=np.int64)
    return np.array([label for _, label in part._samples], dtype=np.int64)


def _classes(part: Any, labels: NDArray[np.int64]) -> tuple[str, ...]:
    names: Sequence[Any] = getattr(part, "classes", None) or getattr(part, "categories", None) or ()
    if not names:
        return tuple(map(str, range(labels.max() + 1)))
    # Imagenette lists all synonyms of a class: take the first.
    return tuple(name if isinstance(name, str) else name[0] for name in names)


def _files(part: Any) -> tuple[str, ...]:
    for attribute in ("samples", "_samples"):
        if hasattr(part, attribute):
            return tuple(path for path, _ in getattr(part, attribute))
    for attribute in ("_images", "_image_files"):
        if hasattr(part, attribute):
            return tuple(map(str, getattr(part, attribute)))
    if hasattr(part, "categories"):
        base = Path(part.root, "101_ObjectCategories")
        numbered = zip(part.y, part.index, strict=True)
        return tuple(
            str(base / part.categories[label] / f"image_{number:04d}.jpg")
            for label, number in numbered
        )
    return ()


def _file_set(
    name: str, folder: Path, parts: Mapping[str, _Part], classes: Sequence[str]
) -> ImageSet:
    entries = []
    for split, part in parts.items():
        for path, label in zip(part.files, part.names, strict=True):
            relative = Path(os.path.relpath(path, folder)).as_posix()
            entries.append(ImageEntry(relative, path, label, split))
    return from_entries(name, sorted(entries), classes)


def _array_set(name: str, parts: Mapping[str, _Part], classes: Sequence[str]) -> ImageSet:
    index_of = {label: index for index, label in enumerate(classes)}
    rows: list[tuple[str, int]] = []
    labels: list[int] = []
    for split, part in parts.items():
        rows += [(split, row) for row in range(len(part.labels))]
        labels += [index_of[label] for label in part.names]

    def load(index: int) -> Pixels:
        split, row = rows[index]
        return _as_rgb(np.asarray(parts[split].pixels[row]))

    return ImageSet(
        name=name,
        ids=tuple(f"{split}/{row:06d}" for split, row in rows),
        labels=np.array(labels, dtype=np.int64),
        classes=tuple(classes),
        splits=np.array([split or SPLITS[0] for split, _ in rows], dtype=np.str_),
        split=UNSPLIT if "" in parts else "own",
        load=load,
        key=lambda index: array_key(load(index)),
    )


def _as_rgb(pixels: Pixels) -> Pixels:
    """Return ``(h, w)``, ``(3, h, w)`` or ``(h, w, 3)`` as ``(h, w, 3)``."""
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    return pixels if pixels.shape[2] == 3 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
