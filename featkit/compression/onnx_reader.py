"""Read exported ONNX classifiers; nothing in the file is trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.base import Preprocess
from featkit.backbones.engines.onnx import open_session
from featkit.backbones.int8 import warn_if_unrecorded
from featkit.errors import FeatkitError, RunError
from featkit.extras import require
from featkit.storage import read_file

MAX_FILE_BYTES = 2**31
"""Largest file that is read: 2 GiB, the limit of ONNX."""

MAX_PIXELS_PER_EDGE = 2**14
"""Largest edge of a resized image."""

ClassifierEngine = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""From uint8 ``(b, h, w, 3)``, resized and cropped, to probabilities ``(b, k)``."""

_SEAL = "featkit.sha256"
_INPUT = (
    "float32 (n, 3, height, width), RGB in 0..1, resized and cropped as preprocessing says; "
    "not normalised"
)


@dataclass(frozen=True)
class ExportMetadata:
    """Metadata of an exported file.

    Attributes:
        classes: names of the columns of the probabilities.
        preprocess: resize and crop; mean and standard deviation are applied inside the file.
        precision: ``fp32`` or ``int8``.
        threshold: confidence below which an image is rejected; 0: never.
        head: spec of the head.
        temperature: fields of the ``Temperature`` applied to the scores, or None.
        recipe: of the embeddings that the head was fitted on.
        thresholds: of an image with any number of labels, the probability from which on it has each
            of the labels ``classes``; None for one label per image.
    """

    classes: tuple[str, ...]
    preprocess: Preprocess
    precision: str
    threshold: float
    head: str
    temperature: Mapping[str, float] | None
    recipe: Mapping[str, Any]
    thresholds: tuple[float, ...] | None = None

    @property
    def prepare(self) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
        """Resize and crop of an image, as for the embeddings that the head was fitted on."""
        return self.preprocess.for_precision(self.precision)

    def to_properties(self) -> dict[str, str]:
        """Return the fields as JSON, by their names in the file."""
        fields = {"input": _INPUT, **asdict(self)}
        fields["preprocessing"] = fields.pop("preprocess")
        if self.thresholds is None:
            del fields["thresholds"]
        return {name: json.dumps(value) for name, value in fields.items()}

    @classmethod
    def from_properties(cls, texts: Mapping[str, str]) -> ExportMetadata:
        """Read what ``to_properties`` returned.

        Raises:
            KeyError, TypeError, ValueError: if the texts are anything else.
        """
        classes = json.loads(texts["classes"])
        if not isinstance(classes, list):
            raise TypeError("classes must be a list")
        metadata = cls(
            classes=tuple(classes),
            preprocess=Preprocess.from_dict(json.loads(texts["preprocessing"])),
            precision=json.loads(texts["precision"]),
            threshold=json.loads(texts["threshold"]),
            head=json.loads(texts["head"]),
            temperature=json.loads(texts["temperature"]),
            recipe=json.loads(texts["recipe"]),
            thresholds=_read_thresholds(texts),
        )
        _check_metadata(metadata)
        return metadata


@dataclass(frozen=True)
class ExportedClassifier:
    """An exported classifier, ready to predict."""

    metadata: ExportMetadata
    engine: ClassifierEngine


def add_metadata(model: bytes, metadata: ExportMetadata) -> bytes:
    """Return an ONNX file with metadata; its last bytes are the SHA-256 of all bytes before them.

    Fields of a protobuf message may be split: parsers merge what is appended to the file.
    """
    content = model + _properties(metadata.to_properties())
    return content + _checksum(content)


def load_exported(path: Path) -> ExportedClassifier:
    """Read a file that ``featkit export`` wrote; other files are never opened on its behalf.

    Raises:
        RunError: if it is missing, foreign or changed, or needs operators that ONNX Runtime lacks.
        WeightsError: if it refers to other files.
        MissingExtraError: if ONNX or ONNX Runtime is not installed.
    """
    again = "export it again with `featkit export`"
    try:
        data = read_file(path, MAX_FILE_BYTES)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}): {again}") from error
    size = len(_checksum(b""))
    if data[-size:] != _checksum(data[:-size]):
        raise RunError(f"{path} was not exported by featkit, or has changed since: {again}")
    try:
        session = open_session(data, str(path))
        properties = session.get_modelmeta().custom_metadata_map
        metadata = ExportMetadata.from_properties(properties)
        _check_signature(session, metadata)
        if metadata.precision == "int8":
            warn_if_unrecorded(properties, str(path))
    except FeatkitError:
        raise
    except KeyError as error:
        raise RunError(f"{path} has no metadata {error}: {again}") from error
    except Exception as error:  # ONNX and ONNX Runtime raise types of their own
        raise RunError(f"{path} cannot be run ({_first_line(error)}): {again}") from error

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            scores = session.run(None, {"images": to_model_input(pixels)})[0]
        except Exception as error:  # a malformed graph may fail with its first input
            raise RunError(f"{path} cannot be run ({_first_line(error)}): {again}") from error
        shape = len(pixels), len(metadata.classes)
        if not _are_probabilities(scores, shape, sum_to_1=metadata.thresholds is None):
            raise RunError(f"{path} gives values that are not probabilities: {again}")
        probabilities: NDArray[np.float32] = scores
        return probabilities

    return ExportedClassifier(metadata, run)


def _check_metadata(metadata: ExportMetadata) -> None:
    """Check types and ranges of the fields.

    Raises:
        TypeError, ValueError: if one is invalid.
    """
    classes = metadata.classes
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
        raise ValueError("classes must be different texts")
    if metadata.thresholds is None and len(classes) < 2:
        raise ValueError("classes must be two or more")
    if metadata.thresholds is not None and len(metadata.thresholds) != len(classes):
        raise ValueError("there must be a threshold for each label")
    if metadata.precision not in ("fp32", "int8"):
        raise ValueError(f"unknown precision {metadata.precision!r}")
    if not 0 <= _number(metadata.threshold) <= 1:
        raise ValueError("threshold must be in 0..1")
    if not isinstance(metadata.head, str) or not isinstance(metadata.recipe, dict):
        raise TypeError("head must be a text and recipe an object")
    if metadata.temperature is not None:
        for value in metadata.temperature.values():
            _number(value)
    _check_preprocess(metadata.preprocess)


def _read_thresholds(texts: Mapping[str, str]) -> tuple[float, ...] | None:
    """Return the thresholds of labels; None for a file with one label per image.

    Raises:
        TypeError, ValueError: if they are not numbers in 0..1.
    """
    if "thresholds" not in texts:
        return None
    thresholds = json.loads(texts["thresholds"])
    if not isinstance(thresholds, list) or not thresholds:
        raise TypeError("thresholds must be a list of numbers")
    if not all(0 <= _number(value) <= 1 for value in thresholds):
        raise ValueError("thresholds must be in 0..1")
    return tuple(map(float, thresholds))


def _check_preprocess(preprocess: Preprocess) -> None:
    """Check types and ranges of the resize and crop; see ``_check_metadata``."""
    sizes = preprocess.resize if isinstance(preprocess.resize, tuple) else (preprocess.resize,)
    for pixels in (*sizes, *preprocess.crop):
        if not isinstance(pixels, int) or not 1 <= pixels <= MAX_PIXELS_PER_EDGE:
            raise ValueError(f"an image cannot have an edge of {pixels} pixels")
    if len(preprocess.crop) != 2 or len(sizes) > 2:
        raise ValueError("resize and crop must be height and width")
    if preprocess.interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f"unknown interpolation {preprocess.interpolation!r}")


def _number(value: Any) -> float:
    """Return a finite number; raise TypeError for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _check_signature(session: Any, metadata: ExportMetadata) -> None:
    """Check that a file takes images and returns one probability for each class.

    Raises:
        ValueError: if it does not.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    expected_input = ["images", "tensor(float)", 3, *metadata.preprocess.crop]
    found_input = [[each.name, each.type, *each.shape[1:]] for each in inputs]
    if found_input != [expected_input]:
        raise ValueError(f"its inputs are {found_input} instead of [{expected_input}]")
    found_output = [[each.type, *each.shape[1:]] for each in outputs]
    if found_output != [["tensor(float)", len(metadata.classes)]]:
        raise ValueError(f"its outputs are {found_output} for {len(metadata.classes)} classes")


def _are_probabilities(scores: Any, shape: tuple[int, int], *, sum_to_1: bool) -> bool:
    """Return whether an output of the file has the given shape, and values in 0..1."""
    if not isinstance(scores, np.ndarray) or scores.shape != shape:
        return False
    # Comparisons with NaN are False.
    in_range = bool(((scores >= 0) & (scores <= 1 + 1e-5)).all())
    if not sum_to_1:
        return in_range
    return in_range and bool((np.abs(scores.sum(axis=1) - 1) < 1e-3).all())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def to_model_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert uint8 ``(b, h, w, 3)`` to float32 ``(b, 3, h, w)`` in 0..1."""
    channels_first = pixels.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(channels_first, dtype=np.float32) / np.float32(255)


def _checksum(data: bytes) -> bytes:
    return _properties({_SEAL: hashlib.sha256(data).hexdigest()})


def _properties(texts: Mapping[str, str]) -> bytes:
    """Return the bytes of an ONNX model that contains nothing but metadata."""
    onnx = require("onnx", "int8")
    entries = [onnx.StringStringEntryProto(key=key, value=value) for key, value in texts.items()]
    part: bytes = onnx.ModelProto(metadata_props=entries).SerializeToString()
    return part
