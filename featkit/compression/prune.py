"""Prune a network: remove channels, or set weights to zero, and recover its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featkit.backbones.base import Backbone
from featkit.backbones.saved import (
    NetworkDescription,
    describe_derived,
    images_trained_on,
    is_int8,
    short_key,
    torch_spec,
)
from featkit.compression.profile import count_macs
from featkit.compression.recalibrate import recalibrate_batchnorm
from featkit.compression.reconstruct import reconstruct
from featkit.compression.structured import (
    NarrowedNetwork,
    importance_by_activation,
    importance_by_magnitude,
    prune_channels,
)
from featkit.compression.unstructured import Train, prune_weights
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys
from featkit.embeddings.request import Request
from featkit.errors import DataError, SpecError
from featkit.images.augment import is_augmented_view
from featkit.images.base import ImageSet, Pixels
from featkit.parallel import in_threads
from featkit.registry import unknown
from featkit.storage import digest

_BATCH = 32
_IMPORTANCE_IMAGES = 256


IMPORTANCE_CRITERIA = ("magnitude", "activation")
"""How the importance of channels is measured: by weights, or on training images."""


@dataclass(frozen=True)
class PruningConfig:
    """Settings of a pruning: of weights (unstructured) or of channels (structured).

    Attributes:
        sparsity: fractions of the weights that are zero, one step after the other; each step starts
            with the network of the step before.
        macs: fraction of the MACs that may remain after removing channels; None: keep all channels.
        by: importance of channels: ``magnitude`` of the weights, or ``activation`` on training
            images.
        reconstruct: training images from which the weights behind removed channels are fitted; 0:
            off.
        calibrate: training images from which BatchNorm statistics are re-estimated; 0: off.
        seed: selects these images, and those of ``activation``.
        recovery: description of the training after each step; part of the name of the network.
    """

    sparsity: tuple[float, ...] = ()
    macs: float | None = None
    by: str = "magnitude"
    reconstruct: int = 0
    calibrate: int = 0
    seed: int = 0
    recovery: str = ""

    def __post_init__(self) -> None:
        if self.by not in IMPORTANCE_CRITERIA:
            raise unknown("importance of channels", self.by, list(IMPORTANCE_CRITERIA))
        if self.reconstruct and self.macs is None:
            raise SpecError("--reconstruct needs structured pruning: give --macs")
        if bool(self.sparsity) == (self.macs is not None):
            raise SpecError("unstructured or structured pruning: give either --sparsity or --macs")

    @property
    def importance_images(self) -> int:
        """Number of training images on which the importance of channels is measured."""
        if self.by != "activation" or self.macs is None:
            return 0
        return self.calibrate or _IMPORTANCE_IMAGES

    @property
    def steps(self) -> list[PruningConfig]:
        """One configuration per step."""
        if not self.sparsity:
            return [self]
        return [replace(self, sparsity=(fraction,)) for fraction in self.sparsity]


@dataclass(frozen=True)
class PruningResult:
    """A pruned network.

    Attributes:
        module: the network.
        description: how it is rebuilt, and its name.
        facts: configuration, parameters, sparsity and MACs, for ``prune.json``.
    """

    module: nn.Module
    description: NetworkDescription
    facts: Mapping[str, Any]


def prune(
    request: Request,
    config: PruningConfig,
    compute: Compute | None = None,
    train: Train | None = None,
    *,
    on_message: Callable[[str], None] = lambda _: None,
) -> Iterator[PruningResult]:
    """Yield the pruned network of each step.

    Args:
        request: the network, up to its pooled embedding, and the images if any are needed.
        config: what is pruned.
        compute: how images are read.
        train: trains the network of each step before the next step, or None.
        on_message: called with the error of each convolution before and after reconstruction.

    Raises:
        SpecError: if the network cannot be pruned as configured.
        DataError: if there are no training images where they are needed.
    """
    if is_int8(request.backbone):
        raise SpecError(f"{request.backbone} is an int8 network: prune first, then quantize")
    # Networks of Keras have the same weights in torch, which changes them.
    request = replace(request, backbone=torch_spec(request.backbone))
    backbone = request.load_backbone()
    images = _TrainingImages(request, backbone, config, compute or Compute())
    module = backbone.build()
    for index, step in enumerate(config.steps):
        widths: Mapping[str, int] = {}
        if step.macs is None:
            (fraction,) = step.sparsity
            module = prune_weights(module, fraction, train)
            what = f"{100 * fraction:g} % of weights zero"
        else:
            narrowed = _narrow(module, backbone, step, images, on_message)
            module, widths = narrowed.module, narrowed.widths
            if train:
                module = train(module)
            what = f"{100 * step.macs:g} % of MACs"
        if step.calibrate:
            module = recalibrate_batchnorm(module, images.batches(step.calibrate))
        identity = _identity(config.steps[: index + 1])
        name = f"pruned-{digest([backbone.digest, identity, images.digest])[:8]}"
        label = f"{backbone.name}, {what}" + (f", {step.recovery}" if step.recovery else "")
        description = describe_derived(
            backbone,
            request.backbone,
            f"{backbone.name}-{name}",
            label,
            widths=widths,
            trained_on={*images.keys, *images_trained_on(request.backbone, request.weights)},
        )
        yield PruningResult(module, description, _facts(module, backbone, step))


def _narrow(
    module: nn.Module,
    backbone: Backbone,
    config: PruningConfig,
    images: _TrainingImages,
    on_message: Callable[[str], None],
) -> NarrowedNetwork:
    """Remove channels, and reconstruct the weights behind them if configured."""
    assert config.macs is not None
    if config.by == "activation":
        importance = importance_by_activation(module, images.batches(config.importance_images))
    else:
        importance = importance_by_magnitude(module)
    narrowed = prune_channels(module, config.macs, backbone.preprocess.crop, importance)
    if not config.reconstruct:
        return narrowed
    batches = images.batches(config.reconstruct)
    fitted = reconstruct(module, narrowed, batches, on_message=on_message, seed=config.seed)
    return replace(narrowed, module=fitted)


def _identity(steps: list[PruningConfig]) -> str:
    """Return the text from which the name of a pruned network is derived.

    It is the ``repr`` of version 0.1.0, where the class was called ``Goal``: any other text would
    rename networks that were saved by that version.
    """
    return repr(steps).replace("PruningConfig(", "Goal(")


def _facts(module: nn.Module, backbone: Backbone, config: PruningConfig) -> dict[str, Any]:
    weights = [part.weight for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    total = sum(weight.numel() for weight in weights)
    return {
        "from": backbone.name,
        "goal": {
            "sparsity": list(config.sparsity),
            "macs": config.macs,
            "by": config.by,
            "reconstruct": config.reconstruct,
            "calibrate": config.calibrate,
            "recovery": config.recovery,
        },
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "sparsity": zeros / total,
        "macs": count_macs(module, backbone.preprocess.crop),
        "macs_before": count_macs(backbone.build(), backbone.preprocess.crop),
    }


class _TrainingImages:
    """A random sample of training images, read when it is first needed.

    Attributes:
        digest: of the names of the images; empty if no images are needed.
        keys: ``short_key`` of each image.
    """

    def __init__(
        self, request: Request, backbone: Backbone, config: PruningConfig, compute: Compute
    ) -> None:
        self._images: ImageSet | None = None
        self._backbone, self._compute = backbone, compute
        self.digest = ""
        self.keys: tuple[str, ...] = ()
        count = max(config.importance_images, config.reconstruct, config.calibrate)
        if not count:
            return
        images = request.load_images()
        train = images.rows("train")
        rows = np.array([row for row in train if not is_augmented_view(images.ids[row])])
        if len(rows) < 2:
            raise DataError(
                f"{images.name} has {len(rows)} training images, too few for pruning: give --data"
            )
        sample = np.random.default_rng(config.seed).permutation(rows)[:count]
        self._images = images.take(sample)
        self.digest = digest(self._images.ids)
        keys = content_keys(self._images, compute)
        self.keys = tuple(sorted({short_key(key) for key in keys}))

    def batches(self, count: int) -> Iterator[Tensor]:
        """Yield normalised batches ``(b, 3, h, w)`` of the first ``count`` images."""
        if self._images is None or not count:
            return
        pixels = self._pixels[:count]
        # Batches of about equal size: the variance of a last batch of one image is undefined.
        for batch in np.array_split(pixels, -(-len(pixels) // _BATCH)):
            tensor = torch.from_numpy(batch).permute(0, 3, 1, 2).float()
            yield self._backbone.preprocess.normalise(tensor)

    @cached_property
    def _pixels(self) -> Pixels:
        """All images ``(n, h, w, 3)``, read once for all uses."""
        images, preprocess = self._images, self._backbone.preprocess
        assert images is not None

        def read(row: int) -> Pixels:
            return preprocess(images.load(row))

        threads = self._compute.threads
        return np.stack(list(in_threads(read, range(len(images)), threads, 2 * threads)))
