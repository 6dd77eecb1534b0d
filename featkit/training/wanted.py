"""A training in the words of the command line and of a study's file. This module imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from featkit.embeddings.request import Request
from featkit.errors import SpecError
from featkit.images.augment import AUGMENTATIONS, MOST_VIEWS
from featkit.registry import unknown
from featkit.training.settings import Settings

VAL_SHARE = 0.1
"""Share of train that chooses the epoch where the data has no val part of its own."""

_OF_REQUEST = ("data", "split", "limit", "seed", "backbone", "weights", "resize", "crop")
_OWN = ("augment", "views", "val", "frozen_precision")


@dataclass(frozen=True)
class Wanted:
    """A trained network that is wanted.

    Attributes:
        request: images and network; its precision is that of the part that stays as it is.
        settings: how the rest is trained.
        augment: kind of augmentation (``images.augment``), or None.
        views: how many augmented views of each image are kept where a part of the network stays as it is; 0: none is
            kept, and each epoch augments anew.
        val: share of train that chooses the epoch where the data has no val part of its own; 0: train on everything,
            the data's own val part included, and keep the last epoch.
        cache: folder of the cache files.
    """

    request: Request
    settings: Settings
    augment: str | None = None
    views: int = 4
    val: float = VAL_SHARE
    cache: Path = Path("cache")

    def __post_init__(self) -> None:
        if not 0 <= self.views <= MOST_VIEWS:
            raise SpecError(f"--views {self.views} is not in 0..{MOST_VIEWS}")
        if self.settings.patience is not None and not self.val:
            raise SpecError("--patience waits for a better val, and --val 0 leaves none: give only one of them")
        if not 0 <= self.val <= 0.9:
            raise SpecError(f"--val {self.val:g} is not in 0..0.9")
        if self.augment not in (None, *AUGMENTATIONS):
            raise unknown("augmentation", str(self.augment), ["none", *AUGMENTATIONS])
        if self.request.perturb or self.request.augment:
            raise SpecError("a network is trained on images as they are or augmented by itself: leave --perturb out")

    @classmethod
    def from_options(cls, options: Mapping[str, Any], cache: Path) -> Wanted:
        """Return the training that options ask for; what is None or not there has its default.

        Args:
            options: fields of ``Request`` and of ``Settings``, ``augment`` (``none`` for none), ``views``, ``val``, and
                ``frozen_precision``, that of the part that stays as it is.
            cache: folder of the cache files.

        Raises:
            SpecError: if an option or its value is unknown.
        """
        settings = {field.name for field in fields(Settings)}
        given = {name: _typed(name, value) for name, value in options.items() if value is not None}
        for name in given:
            if name not in {*_OF_REQUEST, *settings, *_OWN}:
                raise unknown("option of a training", name, sorted({*_OF_REQUEST, *settings, *_OWN}))
        asked = {name: given[name] for name in _OF_REQUEST if name in given}
        request = Request(**asked, precision=given.get("frozen_precision", "auto"))
        chosen = Settings(**{name: given[name] for name in settings if name in given})
        unaugmented = chosen.mode == "shallow" or request.data == "digits"
        augment = given.get("augment", "none" if unaugmented else "basic")
        own = {name: given[name] for name in ("views", "val") if name in given}
        return cls(request, chosen, augment=None if augment == "none" else augment, **own, cache=cache)


_WHOLE = ("seed", "epochs", "batch_size", "patience", "views")
_NUMBERS = ("lr", "layer_decay", "weight_decay", "warmup", "smoothing", "mixup", "cutmix", "ema", "clip", "val")


def _typed(name: str, value: Any) -> Any:
    """Return a value as its option takes it: a number for ``unfreeze`` or a size is as good as its text.

    Raises:
        SpecError: if it is of another kind.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name in _WHOLE:
        kind, fits = "a whole number from 0", whole and value >= 0
    elif name in _NUMBERS:
        kind, fits = "a number", whole or isinstance(value, float)
    else:
        kind, fits = "a text", isinstance(value, str) or whole
        value = str(value) if whole else value
    if not fits:
        raise SpecError(f"{name} = {value!r} is not {kind}")
    return value
