"""Networks that featkit saved: their files, and the images they were trained on. Imports no torch.

There are two formats:

- A trained or pruned network is one file, ``network.safetensors`` in a run directory. Its header
  holds a ``NetworkDescription``, so that one digest covers the weights and everything else that is
  needed to rebuild the network.
- A network quantized to int8 is a directory with an ONNX file and a ``network.json``, which holds
  an ``Int8Description``.

``featkit.backbones.load`` turns both into a ``Backbone``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.backbones.base import Backbone, Preprocess
from featkit.backbones.weights import DESCRIPTION_KEY, DIGEST_KEY, split_key
from featkit.errors import DataError, WeightsError
from featkit.registry import Spec
from featkit.storage import open_file, read_text, user_path

if TYPE_CHECKING:
    from torch import nn

NETWORK_FILE = "network.safetensors"
INT8_FILE = "network.int8.onnx"
INT8_CARD = "network.json"

KERAS = "keras:"
"""Prefix of a backbone spec whose network runs in Keras: of a name or of a saved network."""

_KERAS_APPLICATIONS = "keras:applications/"
_SEAL_KEY = "seal"
_MAX_HEADER_BYTES = 2**24
_TRAINED_ON_KEY = "learned"
"""Name of ``trained_on`` in the JSON of both formats since featkit 0.1."""


@dataclass(frozen=True)
class NetworkDescription:
    """Everything that is needed to rebuild a saved network except its weights.

    Attributes:
        base: spec of the network that it was made from, such as ``resnet18:stem=small``.
        name: its name in recipes, files and tables, such as ``resnet18-deep-1a2b3c4d``.
        label: how it was made, for display: ``resnet18, layer4 fine-tuned on caltech101``.
        preprocess: preprocessing of its images.
        widths: number of output channels of each pruned convolution, by name.
        trained_on: ``short_key`` of each image that was used to train it or to select anything
            about it.
    """

    base: str
    name: str
    label: str
    preprocess: Preprocess
    widths: Mapping[str, int] = field(default_factory=dict)
    trained_on: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the description as canonical JSON."""
        return json.dumps(_to_dict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> NetworkDescription:
        """Parse the JSON of ``to_json``; raises ValueError, KeyError or TypeError."""
        values: dict[str, Any] = json.loads(text)
        widths = {str(name): int(width) for name, width in values["widths"].items()}
        return cls(
            base=str(values["base"]),
            name=str(values["name"]),
            label=str(values["label"]),
            preprocess=Preprocess.from_dict(values["preprocess"]),
            widths=widths,
            trained_on=tuple(map(str, values.get(_TRAINED_ON_KEY, ()))),
        )


@dataclass(frozen=True)
class Int8Description:
    """Description of a quantized network: the content of ``network.json``.

    Attributes:
        base: spec of the network that was quantized.
        name: its name in recipes, files and tables.
        label: how it was made, for display.
        preprocess: preprocessing of its images.
        layer, pool: the output that it computes.
        sha256: digest of the ONNX file.
        parameters, nonzero, macs: size of the network that was quantized, see
            ``compression.profile.NetworkSize``.
        trained_on: as in ``NetworkDescription``.
        record: fields of ``int8.Int8Record``; empty for a network of featkit 0.1.
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
    trained_on: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the description as indented JSON, with its own digest."""
        values = _to_dict(self)
        return json.dumps({**values, _SEAL_KEY: _seal(values)}, indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Int8Description:
        """Parse the JSON of ``to_json``; raises ValueError, KeyError or TypeError."""
        values: dict[str, Any] = json.loads(text)
        # Descriptions of featkit 0.1 have no digest.
        seal = values.pop(_SEAL_KEY, None)
        if seal is not None and seal != _seal(values):
            raise ValueError("its content does not match its own digest")
        trained_on = tuple(map(str, values.pop(_TRAINED_ON_KEY, ())))
        preprocess = Preprocess.from_dict(values.pop("preprocess"))
        return cls(**values, preprocess=preprocess, trained_on=trained_on)


def _to_dict(description: NetworkDescription | Int8Description) -> dict[str, Any]:
    values = asdict(description)
    values[_TRAINED_ON_KEY] = values.pop("trained_on")
    return values


def _seal(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of canonical JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def describe_derived(
    base: Backbone,
    spec: str,
    name: str,
    label: str,
    *,
    widths: Mapping[str, int] | None = None,
    trained_on: Collection[str] = (),
) -> NetworkDescription:
    """Describe a network that was made from another one.

    If the other one is a saved network itself, its pruned widths and training images are carried
    over.

    Args:
        base: the network that it was made from.
        spec: spec of ``base``.
        name: name of the new network, see ``NetworkDescription``.
        label: how it was made, for display.
        widths: number of output channels of the convolutions that were pruned now.
        trained_on: ``short_key`` of the images that it was trained on now.

    Raises:
        WeightsError: if ``spec`` is a saved network that cannot be read.
    """
    before = NetworkDescription(torch_spec(spec), "", "", base.preprocess)
    if is_path(spec):
        before = read_description(network_file(spec))
    return replace(
        before,
        name=name,
        label=label,
        preprocess=base.preprocess,
        widths={**before.widths, **(widths or {})},
        trained_on=tuple(sorted({*before.trained_on, *trained_on})),
    )


def short_key(key: str) -> str:
    """Shorten the content digest of an image; the result still identifies the image."""
    return key[:16]


def images_trained_on(spec: str, weights: str = "") -> frozenset[str]:
    """Return ``short_key`` of the images that a network was trained on.

    The result is empty for a network that featkit did not save: its training images are not known.

    Args:
        spec: spec of the backbone.
        weights: spec of its weights; a file may be that of a network saved by featkit.

    Raises:
        WeightsError: if the network cannot be read.
    """
    spec = saved_path(saved_network(spec, weights) or spec)
    if is_int8(spec):
        return frozenset(read_int8_description(spec).trained_on)
    path = user_path(spec)
    has_no_network = path.is_dir() and not (path / NETWORK_FILE).is_file()
    if not is_path(spec) or has_no_network:
        return frozenset()
    return frozenset(read_description(network_file(spec)).trained_on)


def saved_network(backbone: str, weights: str) -> str | None:
    """Return the path of the network saved by featkit that has the weights of a backbone, if any.

    It is the backbone itself, or the file of the weights if the weights of a trained network are
    loaded into another backbone.

    Args:
        backbone: spec of the backbone.
        weights: spec of the weights, such as a file.
    """
    if is_path(backbone):
        return saved_path(backbone)
    file = user_path(split_key(weights)[0])
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    try:
        read_description(file)
    except WeightsError:  # plain weights, of which the training images are not known
        return None
    return str(file)


def check_not_trained_on(spec: str, data: str, test: Collection[str]) -> None:
    """Refuse to evaluate a saved network on images that it was trained on.

    Args:
        spec: spec of the backbone.
        data: name of the data set, for the error message.
        test: content digests of the test images, without those that are train images of the same
            data set too.

    Raises:
        DataError: if the network was trained on any of the test images.
        WeightsError: if the network cannot be read.
    """
    trained_on = images_trained_on(spec)
    leaked = [key for key in test if short_key(key) in trained_on]
    if leaked:
        raise DataError(
            f"{spec} was trained on {len(leaked)} of the {len(test)} test images of {data}: "
            "use the --seed, --split and --limit that it was trained with"
        )


def is_path(spec: str) -> bool:
    """Return whether a backbone spec is a path: of a saved network or of its directory."""
    if spec.startswith(_KERAS_APPLICATIONS):
        return False
    spec = saved_path(spec)
    path = user_path(spec)
    # Windows separates folders by backslashes.
    return path.suffix == ".safetensors" or path.is_dir() or "/" in spec or "\\" in spec


def saved_path(spec: str) -> str:
    """Return the path in the spec of a saved network: ``run`` for ``run`` and for ``keras:run``."""
    return spec.removeprefix(KERAS)


def torch_spec(spec: str) -> str:
    """Return the spec of the same network in torch: ``resnet18`` for ``keras:resnet18``.

    Saved networks belong to no framework, so that their descriptions hold this spec.
    """
    if is_path(spec):
        return saved_path(spec)
    if not spec.startswith(KERAS) or spec.startswith(_KERAS_APPLICATIONS):
        return spec
    parsed = Spec.parse(spec)
    return str(Spec(str(parsed.argument), options=parsed.options))


def is_int8(spec: str) -> bool:
    """Return whether a backbone spec is the path of a directory written by ``featkit quantize``."""
    return (user_path(saved_path(spec)) / INT8_CARD).is_file()


def network_file(spec: str) -> Path:
    """Return the absolute path of the weights file of a spec.

    Raises:
        WeightsError: if there is no such file.
    """
    path = user_path(saved_path(spec)).absolute()
    file = path / NETWORK_FILE if path.is_dir() else path
    if file.is_file():
        return file
    reason = f"it contains no {NETWORK_FILE}" if path.is_dir() else "no such file or directory"
    raise WeightsError(
        f"cannot load backbone {spec}: {reason}; use a run directory of `featkit finetune`, "
        "`distill` or `prune`, or a network listed by `featkit models`"
    )


def read_description(file: Path) -> NetworkDescription:
    """Read the description in the header of a weights file, without the weights.

    Raises:
        WeightsError: if the file was not written by ``save_network``, or is damaged.
    """
    try:
        with open_file(file) as opened:
            # The safetensors format: 8 bytes with the length of the header, then the header as
            # JSON.
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size)) if size <= _MAX_HEADER_BYTES else {}
        return NetworkDescription.from_json(header["__metadata__"][DESCRIPTION_KEY])
    except OSError as error:
        raise WeightsError(
            f"cannot read {file} ({error.strerror or error}): copy it again"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{file} is damaged or was not saved by featkit: to load plain weights, "
            f"use --weights {file.name} and --backbone NAME"
        ) from error


def read_int8_description(spec: str) -> Int8Description:
    """Read the description of a quantized network from its directory.

    Raises:
        WeightsError: if the description is damaged.
    """
    path = user_path(spec) / INT8_CARD
    try:
        return Int8Description.from_json(read_text(path, _MAX_HEADER_BYTES))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path} is damaged ({error}): create it again with `featkit quantize`"
        ) from error


def save_network(module: nn.Module, description: NetworkDescription, file: Path) -> None:
    """Write a network's weights, its description and the digest of both into one file.

    Args:
        module: a backbone as returned by ``Backbone.build``, up to its pooled embedding.
        description: how the network is rebuilt.
        file: path of the new file, ``*.safetensors``.
    """
    from safetensors.torch import save_file

    from featkit.backbones.state_dict import digest_network

    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()
    }
    text = description.to_json()
    metadata = {DESCRIPTION_KEY: text, DIGEST_KEY: digest_network(state, text)}
    save_file(state, file, metadata=metadata)
    _sort_metadata(file)


def _sort_metadata(file: Path) -> None:
    """Sort the entries of the metadata of a safetensors file, in its place.

    The library writes them in random order, so that the same network would have files of different
    digests, and its features different names in the cache.
    """
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the library writes the header more densely than json does"
        opened.seek(8)
        opened.write(text.ljust(size))
