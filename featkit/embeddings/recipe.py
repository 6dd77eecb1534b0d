"""Recipe of a cache file: everything that decides the features, and nothing else.

Its fingerprint names the file. Batch size, device, times and versions are provenance and not part
of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from featkit.errors import CacheError

SCHEMA = 2
"""Raised whenever the same inputs would give other features, or the layout of the file changes."""


@dataclass(frozen=True)
class Recipe:
    """Images, network and preprocessing of a cache file; equal recipes give equal files.

    Attributes:
        images: digest of the images' names and contents, in order.
        labels: digest of the labels and the class names.
        split: digest of the source's own splits, or ``none`` where it has none.
        perturb: spec of the perturbation, or ``none``.
        backbone: name of the network.
        weights: digest of its weights.
        layer, pool: which output, and how a feature map was pooled.
        preprocess: resize, crop, interpolation, mean and standard deviation.
        precision: ``fp32``, ``bf16``, ``int8`` or ``int8-openvino``.
        calibration: digest of the int8 network, or ``none``.
        store: type of the stored numbers, ``float32`` or ``float16``.
        intensity: range of grey values that become black and white, or ``none``; not part of the
            JSON where it is ``none``, as in files of earlier versions.
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
    intensity: str = "none"
    schema: int = SCHEMA

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, without an intensity range of ``none``."""
        values = asdict(self)
        if self.intensity == "none":
            del values["intensity"]
        return values

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what ``to_json`` wrote.

        Raises:
            CacheError: if the text is not a recipe.
        """
        try:
            recipe = cls(**json.loads(text))
            for field in fields(cls):
                known = {"preprocess": dict, "schema": int}.get(field.name, str)
                if type(getattr(recipe, field.name)) is not known:
                    raise TypeError(f"{field.name} has the wrong type")
            return recipe
        except (TypeError, ValueError, RecursionError) as error:
            raise CacheError(
                f"not a recipe that this version of featkit can read: {error}"
            ) from error

    @property
    def network(self) -> str:
        """SHA-256 (hex) of everything that decides the features of one image, given its content.

        A perturbed image counts as a different image, with its own content digest.
        """
        return replace(self, images="", labels="", split="", perturb="").fingerprint

    def same_network(self, other: Recipe) -> bool:
        """Return whether both recipes give the same features for the same image."""
        return self.network == other.network

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """Return, for each field that differs, ``(here, in other)``."""
        mine, theirs = json.loads(json.dumps(asdict(self))), json.loads(json.dumps(asdict(other)))
        names = [field.name for field in fields(self)]
        return {name: (mine[name], theirs[name]) for name in names if mine[name] != theirs[name]}


def describe_differences(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """Return differences between recipes as text: ``layer: avgpool cached, layer3 requested``."""
    parts = []
    for name, (cached, requested) in differences.items():
        parts.append(f"{name}: {_shorten(cached)} cached, {_shorten(requested)} requested")
    return "; ".join(parts)


def _shorten(value: object) -> str:
    """Return a value as text; a digest as its first 12 digits."""
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    return text[:12] if len(text) == 64 else text
