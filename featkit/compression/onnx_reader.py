"""Read exported ONNX classifiers; nothing in the file is trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.base import Preprocess
from featkit.backbones.engines.onnx import open_session
from featkit.backbones.int8 import warn_if_unrecorded
from featkit.errors import FeatkitError, RunError
from featkit.extras import require

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
    """

    classes: tuple[str, ...]
    preprocess: Preprocess
    precision: str
    threshold: float
    head: str
    temperature: Mapping[str, float] | None
    recipe: Mapping[str, Any]

    @property
    def prepare(self) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
        """Resize and crop of an image, as for the embeddings that the head was fitted on."""
        return self.preprocess.for_precision(self.precision)

    def to_properties(self) -> dict[str, str]:
        """Return the fields as JSON, by their names in the file."""
        fields = {"input": _INPUT, **asdict(self)}
        fields["preprocessing"] = fields.pop("preprocess")
        return {name: json.dumps(value) for name, value in fields.items()}

    @classmethod
    def from_properties(cls, texts: Mapping[str, str]) -> ExportMetadata:
        """Read what ``to_properties`` returned.

        Raises:
            KeyError, TypeError, ValueError: if the texts are anything else.
        """
        return cls(
            classes=tuple(json.loads(texts["classes"])),
            preprocess=Preprocess.from_dict(json.loads(texts["preprocessing"])),
            precision=json.loads(texts["precision"]),
            threshold=json.loads(texts["threshold"]),
            head=json.loads(texts["head"]),
            temperature=json.loads(texts["temperature"]),
            recipe=json.loads(texts["recipe"]),
        )


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
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}): {again}") from error
    size = len(_checksum(b""))
    if data[-size:] != _checksum(data[:-size]):
        raise RunError(f"{path} was not exported by featkit, or has changed since: {again}")
    try:
        session = open_session(data, str(path))
        properties = session.get_modelmeta().custom_metadata_map
        metadata = ExportMetadata.from_properties(properties)
        if metadata.precision == "int8":
            warn_if_unrecorded(properties, str(path))
    except FeatkitError:
        raise
    except Exception as error:  # ONNX and ONNX Runtime raise types of their own
        reason = (str(error).strip().splitlines() or [""])[0]
        raise RunError(f"{path} cannot be run ({reason}): {again}") from error

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = session.run(None, {"images": to_model_input(pixels)})[0]
        return scores

    return ExportedClassifier(metadata, run)


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
