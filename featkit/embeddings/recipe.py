"""Recipe of a cache file: everything that decides the features, and nothing else.

Its fingerprint names the file. Batch size, device, times and versions are provenance and not part
of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        decode: ``scaled`` if JPEG files were decoded at a fraction of their size because they have
            at least four times the size that the network needs, else ``full``; not part of the JSON
            where it is ``full``, as in files of earlier versions.
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
    decode: str = "full"
    schema: int = SCHEMA

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, without those of later versions that have their default."""
        values = asdict(self)
        for name, default in (("intensity", "none"), ("decode", "full")):
            if values[name] == default:
                del values[name]
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
        """Return whether both recipes give the same features for the same image.

        That is whether ``network`` is the same, which takes ten times as long to compute.
        """
        if any(getattr(self, name) != getattr(other, name) for name in _NETWORK_FIELDS):
            return False
        mine, theirs = dict(self.preprocess), dict(other.preprocess)
        # A tuple is a list in a recipe that was read from a file.
        return json.dumps(mine, sort_keys=True) == json.dumps(theirs, sort_keys=True)

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """Return, for each field that differs, ``(here, in other)``."""
        mine, theirs = json.loads(json.dumps(asdict(self))), json.loads(json.dumps(asdict(other)))
        names = [field.name for field in fields(self)]
        return {name: (mine[name], theirs[name]) for name in names if mine[name] != theirs[name]}


_IMAGE_FIELDS = ("images", "labels", "split", "perturb")
_NETWORK_FIELDS = tuple(
    field.name for field in fields(Recipe) if field.name not in (*_IMAGE_FIELDS, "preprocess")
)


@dataclass(frozen=True)
class Part:
    """The part of a larger image set that a shard holds, see ``embeddings.shards``.

    Attributes:
        number: from 1 to ``count``.
        count: number of parts.
        sizes: number of images of each part; one without images has no file.
        whole: recipe of the whole set, with the digest of the images' names alone in the place of
            ``images``: no part knows the contents of the others.
        positions: row of each image of the part in the whole set, increasing.
    """

    number: int
    count: int
    sizes: tuple[int, ...]
    whole: Recipe
    positions: NDArray[np.int64]

    @property
    def total(self) -> int:
        """Number of images of the whole set."""
        return sum(self.sizes)

    @property
    def name(self) -> str:
        """Return the part as it is given on the command line: ``17/1000``."""
        return f"{self.number}/{self.count}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the positions, as JSON can represent it."""
        return {
            "number": self.number,
            "count": self.count,
            "sizes": list(self.sizes),
            "whole": self.whole.to_json(),
        }

    @classmethod
    def from_dict(cls, values: Any, positions: NDArray[np.int64]) -> Part:
        """Read what ``to_dict`` returned.

        Args:
            values: the description.
            positions: row of each image in the whole set.

        Raises:
            ValueError: with the reason, if it does not describe a part of these images.
        """
        try:
            part = cls(
                number=values["number"],
                count=values["count"],
                sizes=tuple(values["sizes"]),
                whole=Recipe.from_json(values["whole"]),
                positions=positions,
            )
        except (CacheError, KeyError, TypeError) as error:
            raise ValueError(f"its description as a shard is damaged: {error}") from error
        if not all(type(each) is int and each >= 0 for each in (part.number, *part.sizes)):
            raise ValueError("the sizes of the shards are not numbers of images")
        if not 1 <= part.number <= part.count == len(part.sizes):
            raise ValueError(f"it cannot be shard {part.name} of {len(part.sizes)}")
        if part.sizes[part.number - 1] != len(positions):
            raise ValueError(
                f"it has {len(positions)} images, shard {part.name} has "
                f"{part.sizes[part.number - 1]}"
            )
        inside = len(positions) == 0 or (positions[0] >= 0 and positions[-1] < part.total)
        if not inside or (np.diff(positions) <= 0).any():
            raise ValueError("its positions in the whole set are not increasing")
        return part


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
