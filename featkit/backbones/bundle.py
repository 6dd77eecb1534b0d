"""Weights of a network in one file without pickle, from which the same network is built again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.backbones.base import Backbone, Preprocess
from featkit.backbones.load import load_backbone

if TYPE_CHECKING:
    from torch import nn

BUNDLE_FILE = "backbone.safetensors"
"""File of a run directory with the weights of its network."""


def save_weights(backbone: Backbone, file: Path) -> None:
    """Write the weights of a network, as far as its embedding needs them.

    Args:
        backbone: the network; it is built.
        file: path of the new file.

    Raises:
        FeatkitError: if the network cannot be built.
    """
    from safetensors.torch import save_file

    state = backbone.build().state_dict()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, file)


def load_bundled(
    spec: str,
    file: Path,
    *,
    layer: str | None,
    pool: str,
    preprocess: Mapping[str, Any],
    digest: str,
    label: str,
) -> Backbone:
    """Return a network with the weights in a file that ``save_weights`` wrote.

    Args:
        spec: of the network, not a path.
        file: the weights; whoever calls has verified their digest.
        layer: as in ``load_backbone``.
        pool: as in ``load_backbone``.
        preprocess: of the original weights, as in a recipe.
        digest: of the original weights.
        label: of the original weights.

    Raises:
        SpecError: if the network is unknown.
    """
    base = load_backbone(spec, weights="random", layer=layer, pool=pool)
    return replace(
        base,
        weights=label,
        digest=digest,
        preprocess=Preprocess.from_dict(preprocess),
        build=partial(_build, base, file),
    )


def _build(base: Backbone, file: Path) -> nn.Module:
    """Build a network and fill it; raises WeightsError if the file is of another network."""
    from featkit.backbones.state_dict import fill, read_state

    module = base.build()
    fill(module, read_state(file), network_name=base.name, path=file, ignore=())
    return module
