"""A network that featkit changed, as one file: its weights, and in the file's header all that rebuilds it.

The file is ``network.safetensors`` in a run directory. What lies in the header (how the network is built, how wide its
convolutions are, its preprocessing) is covered by the file's digest as the weights are. Reading it imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.backbones.base import Backbone, Preprocess
from featkit.backbones.saved_int8 import is_int8, read_card
from featkit.backbones.weights import digest_file
from featkit.errors import DataError, SpecError, WeightsError

if TYPE_CHECKING:
    from torch import nn

NETWORK_FILE = "network.safetensors"
_HEADER = "featkit"
_MOST_HEADER = 2**24


@dataclass(frozen=True)
class NetworkDescription:
    """All that rebuilds a saved network, but for its weights.

    Attributes:
        base: spec of the network that it was made from, such as ``resnet18:stem=small``.
        name: what it is called in recipes, files and tables, such as ``resnet18-deep-1a2b3c4d``.
        label: what was done to it, for people: ``resnet18, layer4 fine-tuned on caltech101``.
        preprocess: how its images are prepared.
        widths: number of output channels of the convolutions that were narrowed, by name.
        learned: ``short_key`` of each image that it learned from or that chose anything about it.
    """

    base: str
    name: str
    label: str
    preprocess: Preprocess
    widths: Mapping[str, int] = field(default_factory=dict)
    learned: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the description as canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> NetworkDescription:
        """Read what ``to_json`` wrote; ValueError, KeyError or TypeError if it is anything else."""
        values: dict[str, Any] = json.loads(text)
        preprocess = Preprocess.from_dict(values["preprocess"])
        widths = {str(name): int(width) for name, width in values["widths"].items()}
        texts = {name: str(values[name]) for name in ("base", "name", "label")}
        learned = tuple(map(str, values.get("learned", ())))
        return cls(**texts, preprocess=preprocess, widths=widths, learned=learned)


def describe_derived(
    base: Backbone,
    spec: str,
    name: str,
    label: str,
    *,
    widths: Mapping[str, int] | None = None,
    learned: Collection[str] = (),
) -> NetworkDescription:
    """Return how a network is rebuilt that was made from another one.

    Args:
        base: the other one.
        spec: as which it was asked for; of one that was saved itself, its widths and what it learned from go on.
        name: what the new one is called, see ``NetworkDescription``.
        label: what was done, for people.
        widths: number of channels of the convolutions that were narrowed now.
        learned: ``short_key`` of the images that it learned from now.

    Raises:
        WeightsError: if what was saved cannot be read.
    """
    before = NetworkDescription(spec, "", "", base.preprocess)
    if is_path(spec):
        before = read_description(network_file(spec))
    return replace(
        before,
        name=name,
        label=label,
        preprocess=base.preprocess,
        widths={**before.widths, **(widths or {})},
        learned=tuple(sorted({*before.learned, *learned})),
    )


def short_key(key: str) -> str:
    """Return the beginning of an image's content digest, long enough to tell images apart."""
    return key[:16]


def learned_by(spec: str) -> frozenset[str]:
    """Return ``short_key`` of the images that a network learned from; of one that featkit did not save, none is known.

    Raises:
        WeightsError: if the network cannot be read.
    """
    if is_int8(spec):
        return frozenset(read_card(spec).learned)
    path = Path(spec).expanduser()
    if not is_path(spec) or (path.is_dir() and not (path / NETWORK_FILE).is_file()):
        return frozenset()
    return frozenset(read_description(network_file(spec)).learned)


def refuse_learned(spec: str, data: str, test: Collection[str]) -> None:
    """Make sure that a saved network has not learned from images that are to judge it.

    Args:
        spec: of the backbone; of a network that was not saved here nothing is known.
        data: name of the images, for the error.
        test: content digests of the test images, but for those that are train images of the same data too.

    Raises:
        DataError: if it has.
        WeightsError: if the network cannot be read.
    """
    learned = learned_by(spec)
    known = [key for key in test if short_key(key) in learned]
    if known:
        raise DataError(
            f"{spec} has learned from {len(known)} of the {len(test)} test images of {data}: "
            "give the --seed, --split and --limit that it was trained with"
        )


def is_path(spec: str) -> bool:
    """Return whether a backbone's spec is the path of a saved network or of a run directory that has one."""
    path = Path(spec).expanduser()
    return path.suffix == ".safetensors" or path.is_dir() or "/" in spec


def network_file(spec: str) -> Path:
    """Return the file of weights that a path stands for, absolute.

    Raises:
        WeightsError: if there is none.
    """
    path = Path(spec).expanduser().absolute()
    file = path / NETWORK_FILE if path.is_dir() else path
    if file.is_file():
        return file
    reason = f"has no {NETWORK_FILE}" if path.is_dir() else "is not there"
    raise WeightsError(
        f"backbone {spec} {reason}: name a run directory of `featkit finetune`, `distill` or `prune`, "
        "or a network of `featkit models`"
    )


def read_description(file: Path) -> NetworkDescription:
    """Return what a file of weights says of its network.

    Raises:
        WeightsError: if it was not saved by ``save_network``, or is damaged.
    """
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size)) if size <= _MOST_HEADER else {}
        return NetworkDescription.from_json(header["__metadata__"][_HEADER])
    except OSError as error:
        raise WeightsError(f"{file} cannot be read ({error.strerror or error}): copy it again") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{file} is damaged, or no network that featkit saved: give plain weights with --weights {file.name} "
            "and --backbone NAME"
        ) from error


def save_network(module: nn.Module, description: NetworkDescription, file: Path) -> None:
    """Write a network's weights, and how it is rebuilt, into one file.

    Args:
        module: what ``open_saved`` will build again: a backbone as ``Backbone.build`` gives it, up to its pooled
            embedding.
        description: how it is built.
        file: ``*.safetensors``.
    """
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, file, metadata={_HEADER: description.to_json()})


def open_saved(spec: str, *, weights: str = "imagenet", layer: str | None = None, pool: str = "avg") -> Backbone:
    """Return the backbone in a run directory or in a file that ``save_network`` wrote.

    Args:
        spec: path of the directory or of the file.
        weights: only ``imagenet``, which stands for the file's own here.
        layer: as in ``load_backbone``.
        pool: as in ``load_backbone``.

    Raises:
        SpecError: if other weights are asked for.
        WeightsError: if the file is not there, damaged or foreign.
    """
    file = network_file(spec)
    if weights != "imagenet":
        raise SpecError(f"backbone {spec} has weights of its own: leave --weights {weights} out")
    description = read_description(file)
    from featkit.backbones.load import load_backbone

    base = load_backbone(description.base, weights="random", layer=layer, pool=pool)
    return replace(
        base,
        name=description.name,
        weights=description.label,
        digest=digest_file(file),
        preprocess=description.preprocess,
        build=partial(_build, file, description, base.layer, pool),
    )


def _build(file: Path, description: NetworkDescription, layer: str, pool: str) -> nn.Module:
    from featkit.backbones.load import load_backbone
    from featkit.backbones.resnet import up_to
    from featkit.backbones.states import fill, read_state
    from featkit.backbones.variants import narrow

    module = load_backbone(description.base, weights="random").build()
    narrow(module, description.widths)
    fill(module, read_state(file), network_name=description.name, path=file, ignore=())
    return up_to(module, description.name, layer, pool)
