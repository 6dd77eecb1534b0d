"""A quantized network as a directory: the ONNX file, and beside it what says how images reach it.

Reading it imports no torch and no ONNX.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.backbones.base import Backbone, Preprocess, QuantizedNetwork
from featkit.backbones.weights import digest_file
from featkit.errors import SpecError, WeightsError

if TYPE_CHECKING:
    from torch import nn

INT8_FILE = "network.int8.onnx"
INT8_CARD = "network.json"


@dataclass(frozen=True)
class Int8Card:
    """What ``network.json`` says of the network beside it.

    Attributes:
        base: spec of the network that was quantized.
        name: what it is called in recipes, files and tables.
        label: what was done to it, for people.
        preprocess: how its images are prepared.
        layer, pool: which output it gives.
        sha256: of the ONNX file.
        parameters, nonzero, macs: size of the network that was quantized, see ``compression.profile.NetworkSize``.
        learned: ``saved.short_key`` of each image that the network learned from, if featkit trained it.
    """

    base: str
    name: str
    label: str
    preprocess: Preprocess
    layer: str
    pool: str
    sha256: str
    parameters: int
    nonzero: int
    macs: int
    learned: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the card as indented JSON."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Int8Card:
        """Read what ``to_json`` wrote; ValueError, KeyError or TypeError if it is anything else."""
        values: dict[str, Any] = json.loads(text)
        learned = tuple(map(str, values.get("learned", ())))
        return cls(**{**values, "preprocess": Preprocess.from_dict(values["preprocess"]), "learned": learned})


def is_int8(spec: str) -> bool:
    """Return whether a backbone's spec is the path of a directory that ``featkit quantize`` left behind."""
    return (Path(spec).expanduser() / INT8_CARD).is_file()


def read_card(spec: str) -> Int8Card:
    """Return what a directory says of its network.

    Raises:
        WeightsError: if the card is damaged.
    """
    path = Path(spec).expanduser() / INT8_CARD
    try:
        return Int8Card.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is damaged ({error}): make it again with `featkit quantize`") from error


def open_int8(spec: str, *, weights: str, layer: str | None, pool: str) -> Backbone:
    """Return the backbone in a directory of ``featkit quantize``; it runs with precision int8 alone.

    Raises:
        SpecError: if other weights, another layer or another pooling is asked for.
        WeightsError: if the directory is damaged.
    """
    card = read_card(spec)
    if weights != "imagenet" or layer not in (None, card.layer) or pool not in ("avg", card.pool):
        raise SpecError(
            f"{spec} was quantized with its weights, layer {card.layer} and pool {card.pool}: leave out --weights, "
            "--layer and --pool"
        )
    folder = Path(spec).expanduser().absolute()

    def build() -> nn.Module:
        raise SpecError(f"{spec} is a network in eight bits: use --precision int8")

    return Backbone(
        name=card.name,
        weights=card.label,
        digest=digest_file(folder / INT8_CARD),
        layer=card.layer,
        pool=card.pool,
        preprocess=card.preprocess,
        build=build,
        quantized=QuantizedNetwork(folder / INT8_FILE, card.sha256),
    )
