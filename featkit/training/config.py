"""Configuration of a training, for the command line, study files and Python. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.errors import SpecError
from featkit.registry import unknown

# The command line imports this module to print its help: modules that are slow to import are
# imported where they are used.
if TYPE_CHECKING:
    from featkit.embeddings.request import Request

MODES = ("shallow", "deep", "full", "scratch")
OPTIMISERS = ("sgd", "adamw")
BALANCES = ("none", "reweight", "resample", "logit-adjust")
NORMS = ("update", "frozen")
PRECISIONS = ("auto", "fp32", "bf16")

# The same as in ``featkit.images.augment``, which imports NumPy: too slow for a help text.
AUGMENTATIONS = ("basic", "light", "shift", "trivial", "auto", "rand")
MOST_VIEWS = 100

REQUEST_OPTIONS = (
    "data",
    "split",
    "limit",
    "intensity_range",
    "group",
    "allow_group_leak",
    "seed",
    "backbone",
    "weights",
    "resize",
    "crop",
)
"""Options of a training that select its images and its network: fields of ``Request``."""

_NOT_OPTIONS = ("request", "cache")


@dataclass(frozen=True)
class Option:
    """Help text and valid values of a field of ``TrainingConfig``.

    Attributes:
        help: one clause for the help text.
        choices: valid values; empty: any value in the range.
        low, high: smallest and largest value, or None.
        default: description of the default if it is not the value of the field.
        metavar: placeholder of the value in the help text; empty: from the type.
        group: heading of the option in the help text.
    """

    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    default: str = ""
    metavar: str = ""
    group: str = "Training"


def _option(value: Any, text: str, **settings: Any) -> Any:
    """Return a field with a default and an ``Option``; ``settings`` are fields of ``Option``."""
    return field(default=value, metadata={"option": Option(text, **settings)})


def _default_request() -> Request:
    from featkit.embeddings.request import Request

    return Request()


@dataclass(frozen=True)
class TrainingConfig:
    """All options that affect the trained weights, and the cache folder.

    This class is the only list of training options: the command line, study files and
    ``from_options`` take names, types, ranges and help texts from its fields.

    Attributes:
        mode: ``shallow``: train the classifier only; ``deep``: the last blocks and the classifier;
            ``full``: all layers of a pretrained network; ``scratch``: all layers from random
            weights.
        unfreeze: for ``deep``: the first trainable stage or block, such as ``layer4`` or
            ``layer4.1``, or the number of trainable blocks, counted from the end.
        norm: BatchNorm layers of the trainable part: ``update``: use batch statistics and update
            the running ones; ``frozen``: keep the running statistics. None: ``frozen`` for
            ``shallow``, else ``update``.
        epochs: number of passes over the training images.
        batch_size: images per step, over all processes.
        optimiser: ``sgd`` (momentum 0.9, Nesterov) or ``adamw``.
        lr: peak learning rate of the classifier.
        layer_decay: layer-wise learning-rate decay: factor from each stage to the one before it
            (Clark et al. 2020).
        weight_decay: not applied to normalisation layers and biases.
        warmup: epochs of linear warm-up; then the learning rate follows half a cosine down to zero.
        smoothing: label smoothing (Szegedy et al. 2016).
        mixup, cutmix: alpha of the beta distribution (Zhang et al. 2018, Yun et al. 2019), 0 to
            disable; with both, one of them is drawn for each batch.
        ema: decay of an exponential moving average of the weights, which replaces them in the
            result; 0 to disable.
        clip: maximum gradient norm, 0 to disable.
        balance: correction for class imbalance: ``reweight`` the loss, ``resample`` the images, or
            ``logit-adjust`` (Menon et al. 2021).
        patience: early-stopping patience: stop after this many epochs without better validation
            top-1; None to disable.
        precision: of training: ``fp32``, ``bf16`` (bfloat16 autocast, float32 weights), or
            ``auto``: bf16 where the device supports it in hardware.
        seed: of the order of images, the augmentation and the initial classifier.
        augment: name of an augmentation (``images.augment``), or None.
        views: augmented views cached for each image if layers are frozen; 0: new augmentation in
            each epoch.
        val: fraction of train held out to choose the best epoch if the data has no validation
            split; 0: train on all images, those of the validation split included, and keep the last
            epoch.
        request: images and network; its precision is that of the frozen layers and of evaluation.
        cache: folder of the cache files.
    """

    mode: str = _option(
        "deep",
        "Layers to train. shallow: classifier only; deep: last blocks and classifier; full: all "
        "layers; scratch: all layers, from random weights.",
        choices=MODES,
    )
    unfreeze: str = _option(
        "layer4",
        "With --mode deep: first trainable stage or block (layer4, layer4.1), or number of "
        "trainable blocks.",
        metavar="LAYER|N",
    )
    norm: str | None = _option(
        None,
        "BatchNorm running statistics of trainable layers: updated or frozen.",
        choices=NORMS,
        default="update; frozen with --mode shallow",
    )
    epochs: int = _option(20, "Number of epochs.", low=1, high=100_000)
    batch_size: int = _option(32, "Images per training step.", low=1, high=65_536)
    optimiser: str = _option(
        "sgd", "Optimiser; sgd: with Nesterov momentum 0.9.", choices=OPTIMISERS
    )
    lr: float = _option(0.01, "Peak learning rate.", low=0, high=1e6)
    layer_decay: float = _option(
        1.0, "Layer-wise learning-rate decay: factor per stage.", low=0, high=1
    )
    weight_decay: float = _option(
        1e-4, "Weight decay, not applied to biases and normalisation layers.", low=0, high=1e3
    )
    warmup: float = _option(1.0, "Epochs of linear learning-rate warm-up.", low=0, high=1e5)
    smoothing: float = _option(0.0, "Label smoothing.", low=0, high=0.999)
    mixup: float = _option(0.0, "Alpha of mixup.", low=0, high=100, default="off")
    cutmix: float = _option(0.0, "Alpha of CutMix.", low=0, high=100, default="off")
    ema: float = _option(
        0.0,
        "Decay of the exponential moving average (EMA) of the weights.",
        low=0,
        high=0.999999,
        default="off",
    )
    clip: float = _option(0.0, "Maximum gradient norm.", low=0, high=1e9, default="off")
    balance: str = _option("none", "Class-imbalance correction.", choices=BALANCES)
    patience: int | None = _option(
        None,
        "Early-stopping patience: epochs without better validation accuracy.",
        low=1,
        default="off",
    )
    precision: str = _option(
        "auto", "Numeric precision of the trainable layers.", choices=PRECISIONS
    )
    seed: int = _option(
        0, "Random seed for splits, image order, augmentation and classifier.", low=0
    )
    augment: str | None = _option(
        None,
        "Augmentation of train images, as for `featkit extract`; basic: random resized crop and "
        "flip.",
        choices=("none", *AUGMENTATIONS),
        default="basic; none with --mode shallow or digits",
        group="Data",
    )
    views: int = _option(
        4,
        "Augmented views per train image, with cached activations of the frozen layers; 0: new "
        "augmentation in every epoch, without a cache.",
        low=0,
        high=MOST_VIEWS,
        group="Data",
    )
    val: float = _option(
        0.1,
        "Fraction of train to hold out for validation; 0: train on all images, keep the last "
        "epoch.",
        low=0,
        high=0.9,
        default="validation split of the data set, else 0.1",
        metavar="FRACTION",
        group="Data",
    )
    request: Request = field(default_factory=_default_request)
    cache: Path = Path("cache")

    def __post_init__(self) -> None:
        if self.balance == "logit_adjust":  # as the corrections of heads are spelled
            object.__setattr__(self, "balance", "logit-adjust")
        for each in option_fields():
            _check(each, getattr(self, each.name))
        if self.patience is not None and not self.val:
            raise SpecError(
                "--patience needs validation images, and --val 0 leaves none: use only one of them"
            )
        if self.request.perturb or self.request.augment:
            raise SpecError(
                "training reads clean images and augments them itself: leave --perturb out"
            )

    @classmethod
    def from_options(
        cls, options: Mapping[str, Any], cache: Path = Path("cache")
    ) -> TrainingConfig:
        """Build a configuration from options; an option that is None or missing has its default.

        Args:
            options: by the names of ``option_names``; ``augment`` is ``none`` for no augmentation.
            cache: folder of the cache files.

        Raises:
            SpecError: if an option is unknown, or its value has a wrong type or is out of range.
        """
        from featkit.embeddings.request import Request

        given = {}
        known = cls.option_names()
        for name, value in options.items():
            if name not in known:
                raise unknown("training option", name, sorted(known))
            if value is not None:
                given[name] = _typed(name, value)
        request = Request(
            **{name: given[name] for name in REQUEST_OPTIONS if name in given},
            precision=given.get("frozen_precision", "auto"),
        )
        own = {each.name: given[each.name] for each in option_fields() if each.name in given}
        augment = own.pop("augment", _default_augmentation(own.get("mode", "deep"), request.data))
        own["augment"] = None if augment == "none" else augment
        return cls(**own, request=request, cache=cache)

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """Return the names of all options of a training, as ``from_options`` takes them."""
        names = [*REQUEST_OPTIONS, *(each.name for each in option_fields()), "frozen_precision"]
        return tuple(dict.fromkeys(names))

    @property
    def frozen_norms(self) -> bool:
        """Whether every BatchNorm keeps its running statistics."""
        return (self.norm or ("frozen" if self.mode == "shallow" else "update")) == "frozen"

    def to_dict(self) -> dict[str, Any]:
        """Return the options that decide the weights, without images and network, for JSON.

        Part of the fingerprint of a training: names and values must not change.
        """
        values = asdict(self)
        for name in ("val", *_NOT_OPTIONS):
            del values[name]
        return values


def _default_augmentation(mode: str, data: str) -> str:
    # A flipped or cropped digit may be another one; a classifier alone needs no augmented views.
    return "none" if mode == "shallow" or data == "digits" else "basic"


def option_fields() -> list[Field[Any]]:
    """Return the fields that are options; ``metadata["option"]`` of each is an ``Option``."""
    return [each for each in fields(TrainingConfig) if each.name not in _NOT_OPTIONS]


def _check(each: Field[Any], value: Any) -> None:
    """Raise a SpecError if the value of a field is not among its choices or not in its range."""
    option: Option = each.metadata["option"]
    if value is None:
        if each.default is None:
            return
        raise SpecError(f"{each.name} has no value: leave it out for the default, {each.default}")
    if option.choices and value not in option.choices:
        raise unknown(each.name, str(value), list(option.choices))
    if option.low is not None and not value >= option.low:
        raise SpecError(f"{each.name} {value:g} is below {option.low:g}: give {_range(option)}")
    if option.high is not None and not value <= option.high:
        raise SpecError(f"{each.name} {value:g} is above {option.high:g}: give {_range(option)}")


def _range(option: Option) -> str:
    return (
        f"{option.low:g}..{option.high:g}" if option.high is not None else f"{option.low:g} or more"
    )


def _typed(name: str, value: Any) -> Any:
    """Return a value in the type of its field; integers are accepted as strings.

    TOML has ``unfreeze = 1`` and ``resize = 64`` as integers, where the command line gives strings.

    Raises:
        SpecError: if it is of another type.
    """
    types = {each.name: str(each.type) for each in option_fields()}
    kind = types.get(name, "str")
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if kind.startswith("int"):
        valid, description = is_integer and value >= 0, "a whole number of 0 or more"
    elif kind == "float":
        valid, description = is_integer or isinstance(value, float), "a number"
    else:
        valid, description = is_integer or isinstance(value, str), "a string"
        value = str(value) if is_integer else value
    if not valid:
        raise SpecError(f"{name} = {value!r} is not {description}")
    return value
