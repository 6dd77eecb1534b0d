"""What is in an exported ONNX file, and how it is opened when someone else may have written it."""

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
from featkit.errors import FeatkitError, RunError
from featkit.extras import require

ClassifierEngine = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""From uint8 ``(b, h, w, 3)``, resized and cropped, to probabilities ``(b, k)``."""

_SEAL = "featkit.sha256"
_INPUT = "float32 (n, 3, height, width), RGB in 0..1, resized and cropped as preprocessing says; not normalised"


@dataclass(frozen=True)
class ExportMetadata:
    """What a file says of itself, beside the network.

    Attributes:
        classes: names of the columns of the probabilities.
        preprocess: how images are prepared; mean and standard deviation are applied inside the file.
        precision: ``fp32`` or ``int8``.
        threshold: confidence below which an image is unknown, 0 if it never is.
        head: spec of the head.
        temperature: what was done to the head's scores, if anything.
        recipe: what decided the vectors that the head was fitted on.
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
        """What resizes and crops an image, as it was done for the vectors."""
        return self.preprocess.for_precision(self.precision)

    def to_properties(self) -> dict[str, str]:
        """Return the fields as JSON, by the names that they have in the file."""
        fields = {"input": _INPUT, **asdict(self)}
        fields["preprocessing"] = fields.pop("preprocess")
        return {name: json.dumps(value) for name, value in fields.items()}

    @classmethod
    def from_properties(cls, texts: Mapping[str, str]) -> ExportMetadata:
        """Read what ``to_properties`` wrote; ValueError, KeyError or TypeError if it is anything else."""
        names = ("classes", "preprocessing", "precision", "threshold", "head", "temperature", "recipe")
        classes, how, *others = (json.loads(texts[name]) for name in names)
        return cls(tuple(classes), Preprocess.from_dict(how), *others)


@dataclass(frozen=True)
class ExportedClassifier:
    """An exported classifier, ready to predict."""

    about: ExportMetadata
    engine: ClassifierEngine


def stamp(model: bytes, about: ExportMetadata) -> bytes:
    """Return an ONNX file with metadata; its last bytes are the SHA-256 of all before them.

    That works because a protobuf message may be followed by more of its fields.
    """
    whole = model + _properties(about.to_properties())
    return whole + _seal(whole)


def open_exported(path: Path) -> ClassifierEngine:
    """Return what runs an exported file: see ``load_exported``."""
    return load_exported(path).engine


def load_exported(path: Path) -> ExportedClassifier:
    """Read a file that ``featkit export`` wrote; it is never asked for another file.

    Raises:
        RunError: if it is missing, foreign, or was changed, or needs operators that ONNX Runtime lacks.
        WeightsError: if it names other files.
        MissingExtraError: if ONNX or ONNX Runtime is not installed.
    """
    again = "export it again with `featkit export`"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}): {again}") from error
    size = len(_seal(b""))
    if data[-size:] != _seal(data[:-size]):
        raise RunError(f"{path} is no file that featkit exported, or was changed since: {again}")
    try:
        session = open_session(data, str(path))
        about = ExportMetadata.from_properties(session.get_modelmeta().custom_metadata_map)
    except FeatkitError:
        raise
    except Exception as error:  # ONNX and ONNX Runtime raise types of their own
        reason = (str(error).strip().splitlines() or [""])[0]
        raise RunError(f"{path} cannot be run ({reason}): {again}") from error

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = session.run(None, {"images": as_input(pixels)})[0]
        return scores

    return ExportedClassifier(about, run)


def as_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return uint8 ``(b, h, w, 3)`` as the file takes it: float32 ``(b, 3, h, w)`` in 0..1."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def _seal(data: bytes) -> bytes:
    return _properties({_SEAL: hashlib.sha256(data).hexdigest()})


def _properties(texts: Mapping[str, str]) -> bytes:
    """Return the part of an ONNX file that holds nothing but metadata."""
    onnx = require("onnx", "int8")
    entries = [onnx.StringStringEntryProto(key=key, value=value) for key, value in texts.items()]
    part: bytes = onnx.ModelProto(metadata_props=entries).SerializeToString()
    return part
