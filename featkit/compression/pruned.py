"""From a spec to pruned networks that can be saved, and that load as backbones again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featkit.backbones.base import Backbone
from featkit.backbones.saved import NetworkDescription, describe_derived, is_int8, short_key
from featkit.compression.profile import count_macs
from featkit.compression.prune import (
    Recover,
    by_activation,
    by_magnitude,
    prune_channels,
    prune_weights,
    reestimate_norms,
)
from featkit.compression.reconstruct import reconstruct
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys
from featkit.embeddings.request import Request
from featkit.errors import DataError, SpecError
from featkit.images.augment import is_augmented_view
from featkit.images.base import ImageSet, Pixels
from featkit.parallel import in_threads
from featkit.storage import digest

_BATCH = 32
_FOR_IMPORTANCE = 256


@dataclass(frozen=True)
class PruningConfig:
    """What is to be left of a network.

    Attributes:
        sparsity: shares of the weights to be zero, one after the other; each begins with the network before it.
        macs: share of the MACs that may be left, by taking channels away; None to keep all channels.
        by: what tells which channels matter: ``magnitude`` or ``activation``.
        reconstruct: train images to fit the weights behind missing channels to; 0 to leave them.
        calibrate: train images to take the BatchNorms' means and variances from anew; 0 to leave them.
        seed: chooses these images, and those for ``activation``.
        recovery: what ``recover`` does, for people; part of the network's name.
    """

    sparsity: tuple[float, ...] = ()
    macs: float | None = None
    by: str = "magnitude"
    reconstruct: int = 0
    calibrate: int = 0
    seed: int = 0
    recovery: str = ""

    def __post_init__(self) -> None:
        if self.reconstruct and self.macs is None:
            raise SpecError("--reconstruct makes up for missing channels: it goes with --macs")
        if bool(self.sparsity) == (self.macs is not None):
            raise SpecError("prune either weights or channels: give --sparsity, or else --macs")

    @property
    def for_importance(self) -> int:
        """Train images by which channels are chosen."""
        return (self.calibrate or _FOR_IMPORTANCE) if self.by == "activation" and self.macs is not None else 0


@dataclass(frozen=True)
class PruningResult:
    """A pruned network, how it is rebuilt, and what is left of it, for people and machines."""

    module: nn.Module
    description: NetworkDescription
    facts: Mapping[str, Any]


def prune(
    request: Request,
    goal: PruningConfig,
    compute: Compute | None = None,
    recover: Recover | None = None,
    *,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[PruningResult]:
    """Yield a network with fewer channels, or with more and more zeros.

    Args:
        request: which network, up to its pooled embedding; which images, where the goal needs any.
        goal: what is to be left.
        compute: how images are read.
        recover: trains each network before the next step.
        note: told what reconstruction does to each convolution.

    Raises:
        SpecError: if the goal cannot be reached, or the network cannot be pruned.
        DataError: if there are no train images where they are needed.
    """
    if is_int8(request.backbone):
        raise SpecError(f"{request.backbone} is a network in eight bits: prune first, then quantize")
    backbone = request.load_backbone()
    batches = _Batches(request, backbone, goal, compute or Compute())
    module, after = backbone.build(), f", {goal.recovery}" if goal.recovery else ""
    steps = [replace(goal, sparsity=(share,)) for share in goal.sparsity] or [goal]
    for place, step in enumerate(steps):
        name = f"pruned-{digest([backbone.digest, _identity(steps[: place + 1]), batches.digest])[:8]}"
        if step.macs is None:
            (share,) = step.sparsity
            module, widths, what = prune_weights(module, share, recover), {}, f"{100 * share:g} % of weights zero"
        else:
            shown = batches.first(goal.for_importance)
            importance = by_activation(module, shown) if goal.by == "activation" else by_magnitude(module)
            narrowed = prune_channels(module, step.macs, backbone.preprocess.crop, importance)
            smaller = narrowed.module
            if goal.reconstruct:
                shown = batches.first(goal.reconstruct)
                smaller = reconstruct(module, narrowed, shown, note=note, seed=goal.seed)
            module, widths, what = smaller, narrowed.widths, f"{100 * step.macs:g} % of MACs"
            module = recover(module) if recover else module
        module = reestimate_norms(module, batches.first(goal.calibrate)) if goal.calibrate else module
        called = f"{backbone.name}-{name}", f"{backbone.name}, {what}{after}"
        description = describe_derived(backbone, request.backbone, *called, widths=widths, trained_on=batches.learned)
        yield PruningResult(module, description, _facts(module, backbone, step))


def _identity(steps: list[PruningConfig]) -> str:
    """Return the text from which the name of a pruned network is derived.

    It is the ``repr`` of version 0.1.0, where the class was called ``Goal``: any other text would rename networks that
    were saved by that version.
    """
    return repr(steps).replace("PruningConfig(", "Goal(")


def _facts(module: nn.Module, backbone: Backbone, goal: PruningConfig) -> dict[str, Any]:
    weights = [part.weight for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    zeros, total = sum(int((each == 0).sum()) for each in weights), sum(each.numel() for each in weights)
    return {
        "from": backbone.name,
        "goal": {
            "sparsity": list(goal.sparsity),
            "macs": goal.macs,
            "by": goal.by,
            "reconstruct": goal.reconstruct,
            "calibrate": goal.calibrate,
            "recovery": goal.recovery,
        },
        "parameters": sum(each.numel() for each in module.parameters()),
        "sparsity": zeros / total,
        "macs": count_macs(module, backbone.preprocess.crop),
        "macs_before": count_macs(backbone.build(), backbone.preprocess.crop),
    }


class _Batches:
    """Train images as a network takes them, read when they are first needed."""

    def __init__(self, request: Request, backbone: Backbone, goal: PruningConfig, compute: Compute) -> None:
        self._images: ImageSet | None = None
        self._backbone, self._compute = backbone, compute
        self.digest = ""
        self.learned: tuple[str, ...] = ()
        asked = max(goal.for_importance, goal.reconstruct, goal.calibrate)
        if asked:
            images = request.load_images()
            rows = np.array([row for row in images.rows("train") if not is_augmented_view(images.ids[row])])
            if len(rows) < 2:
                raise DataError(f"{images.name} has {len(rows)} train images, too few to prune by: give --data")
            self._images = images.take(np.random.default_rng(goal.seed).permutation(rows)[:asked])
            self.digest = digest(self._images.ids)
            self.learned = tuple(sorted({short_key(key) for key in content_keys(self._images, compute)}))

    def first(self, count: int) -> Iterator[Tensor]:
        """Yield normalised batches ``(b, 3, h, w)`` of the first of them."""
        if self._images is None or not count:
            return
        pixels = self._pixels[:count]
        # A last batch of one image has no variance.
        for part in np.array_split(pixels, -(-len(pixels) // _BATCH)):
            yield self._backbone.preprocess.normalise(torch.from_numpy(part).permute(0, 3, 1, 2).float())

    @cached_property
    def _pixels(self) -> Pixels:
        """All of them ``(n, h, w, 3)``: what chooses channels, fits weights and takes statistics reads them once."""
        images, preprocess, threads = self._images, self._backbone.preprocess, self._compute.threads
        assert images is not None
        rows = range(len(images))
        return np.stack(list(in_threads(lambda row: preprocess(images.load(row)), rows, threads, 2 * threads)))
