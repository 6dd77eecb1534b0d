"""Everything that decides a vector, and nothing else; its fingerprint names the cache file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from featkit.errors import CacheError

SCHEMA = 2
"""Raised whenever the same inputs would give other vectors, or the file's layout changes."""


@dataclass(frozen=True)
class Recipe:
    """What was embedded, and how: two equal recipes give equal files.

    Attributes:
        images: digest of the images' names and contents, in order.
        labels: digest of the labels and the class names.
        split: digest of the source's own splits, or ``none`` where it has none.
        perturb: spec of the perturbation, or ``none``.
        backbone: name of the network.
        weights: digest of its weights.
        layer, pool: which output, and how a map became a vector.
        preprocess: resize, crop, interpolation, mean and standard deviation.
        precision: ``fp32``, ``bf16``, ``int8`` or ``int8-openvino``.
        calibration: digest of the int8 network, or ``none``.
        store: type of the stored numbers, ``float32`` or ``float16``.
        schema: version of featkit's own part: decoding, arithmetic, file layout.
    """

    images: str
    labels: str
    split: str
    perturb: str
    backbone: str
    weights: str
    layer: str
    pool: str
    preprocess: Mapping[str, Any]
    precision: str
    calibration: str = "none"
    store: str = "float32"
    schema: int = SCHEMA

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the canonical JSON: sorted keys, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what ``to_json`` wrote.

        Raises:
            CacheError: if the text is not a recipe.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise CacheError(f"not a recipe that this version of featkit can read: {error}") from error

    @property
    def network(self) -> str:
        """SHA-256 (hex) of all that decides the vector of one image, whatever the others are.

        A perturbed image is another image, with a digest of its own.
        """
        return replace(self, images="", labels="", split="", perturb="").fingerprint

    def same_network(self, other: Recipe) -> bool:
        """Return whether both would give the same vector for the same image."""
        return self.network == other.network

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """Return, for each field that differs, ``(here, in other)``."""
        mine, theirs = json.loads(self.to_json()), json.loads(other.to_json())
        return {f.name: (mine[f.name], theirs[f.name]) for f in fields(self) if mine[f.name] != theirs[f.name]}


def listed(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """Return differences between recipes in one line: ``layer: avgpool there, layer3 asked for``; digests shortened."""
    parts = [f"{name}: {_short(here)} there, {_short(asked)} asked for" for name, (here, asked) in differences.items()]
    return "; ".join(parts)


def _short(value: object) -> str:
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    return text[:12] if len(text) == 64 else text
