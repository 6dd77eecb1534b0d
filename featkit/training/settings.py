"""How a network is trained. This module imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from featkit.errors import SpecError
from featkit.registry import unknown

MODES = ("shallow", "deep", "full", "scratch")
OPTIMISERS = ("sgd", "adamw")
BALANCES = ("none", "reweight", "resample", "logit-adjust")
NORMS = ("update", "frozen")


@dataclass(frozen=True)
class Settings:
    """What decides the trained weights, beside the images and the network.

    Attributes:
        mode: ``shallow``: the classifier alone; ``deep``: the last blocks with it; ``full``: all of a trained network;
            ``scratch``: all of an untrained one.
        unfreeze: for ``deep``: the first stage or block that is trained, such as ``layer4`` or ``layer4.1``, or how
            many blocks, counted from the end.
        norm: whether BatchNorms in the trained part use and update the statistics of the batch (``update``), or keep
            those they have (``frozen``). None: frozen for ``shallow``, else updated.
        epochs: how often each image is seen.
        batch_size: images in one step, over all processes.
        optimiser: ``sgd`` (momentum 0.9, Nesterov) or ``adamw``.
        lr: learning rate of the classifier at its height.
        layer_decay: factor on the learning rate from each stage to the one before it (Clark et al. 2020).
        weight_decay: of weights; norms and biases have none.
        warmup: epochs in which the learning rate rises from zero; then it falls as half a cosine, to zero.
        smoothing: label smoothing (Szegedy et al. 2016).
        mixup, cutmix: alpha of their beta distributions (Zhang et al. 2018, Yun et al. 2019), 0 for none; with both,
            each batch draws one.
        ema: decay of an exponential moving average of the weights, which is what is kept; 0 for none.
        clip: largest norm of the gradient, 0 for any.
        balance: ``reweight``: classes count alike in the loss; ``resample``: they are drawn alike; ``logit-adjust``:
            the loss is on logits plus log prior (Menon et al. 2021).
        patience: epochs without a better val top-1 after which training ends; None: never before its end.
        precision: ``fp32``, ``bf16`` for products in bfloat16 on float32 weights, or ``auto``: bf16 where the device
            has it in hardware.
        seed: of the order, the augmentation, the classifier's first weights.
    """

    mode: str = "deep"
    unfreeze: str = "layer4"
    norm: str | None = None
    epochs: int = 20
    batch_size: int = 32
    optimiser: str = "sgd"
    lr: float = 0.01
    layer_decay: float = 1.0
    weight_decay: float = 1e-4
    warmup: float = 1.0
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    clip: float = 0.0
    balance: str = "none"
    patience: int | None = None
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        known = {"mode": MODES, "optimiser": OPTIMISERS, "balance": BALANCES, "norm": (*NORMS, None)}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise unknown(name, str(getattr(self, name)), [str(value) for value in values if value])
        if self.patience is not None and self.patience < 1:
            raise SpecError(f"patience {self.patience} is not a number of epochs from 1 up")
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise SpecError(f"{name} {getattr(self, name):g} is not in {low:g}..{high:g}")

    @property
    def frozen_norms(self) -> bool:
        """Whether no BatchNorm takes statistics from a batch."""
        return (self.norm or ("frozen" if self.mode == "shallow" else "update")) == "frozen"

    def to_dict(self) -> Mapping[str, Any]:
        """Return the settings as JSON can hold them."""
        return asdict(self)


_RANGES = {
    "epochs": (1, 100_000),
    "batch_size": (1, 65_536),
    "lr": (0, 1e6),
    "layer_decay": (0, 1),
    "weight_decay": (0, 1e3),
    "warmup": (0, 1e5),
    "smoothing": (0, 0.999),
    "mixup": (0, 100),
    "cutmix": (0, 100),
    "ema": (0, 0.999999),
    "clip": (0, 1e9),
}
