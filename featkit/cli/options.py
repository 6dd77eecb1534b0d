"""Option groups, and the options that several commands share.

Nothing heavy is imported here: ``featkit COMMAND --help`` must stay fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from featkit.arguments import MAX_COUNT, MAX_SEED, PATH
from featkit.errors import SpecError

F = TypeVar("F", bound=Callable[..., Any])


class Decorator(Protocol):
    """A decorator that adds options to a function and returns the function."""

    def __call__(self, function: F, /) -> F:
        """Add the options."""
        ...


GROUPS = (
    "Data",
    "Backbone",
    "Head",
    "Distillation",
    "Training",
    "Pruning",
    "Quantization",
    "Episodes",
    "Grid",
    "Report",
    "Compute",
    "Output",
    "Help",
)
"""Headings of the options in a command's help, in their order."""


def integers(low: int, high: int = MAX_COUNT) -> click.IntRange:
    """Return the type of integers from ``low`` to ``high``."""
    return click.IntRange(low, high)


class FiniteRange(click.FloatRange):
    """Numbers in a range, which NaN and infinity are not."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class Option(click.Option):
    """An option that is listed under a heading of the help.

    Args:
        group: one of ``GROUPS``.
    """

    def __init__(self, *args: Any, group: str, **settings: Any) -> None:
        # Every default is shown, in one form; a default that is computed later is described.
        settings.setdefault("show_default", True)
        super().__init__(*args, **settings)
        self.group = group

    def make_metavar(self, ctx: click.Context) -> str:
        """Return the type for the help, without click's suffix of number ranges."""
        return super().make_metavar(ctx).removesuffix(" RANGE")

    def get_help_extra(self, ctx: click.Context) -> Any:
        """Return the default as ``[default: x]``; ranges are left to the error message."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        elif self.default == ():
            extra.pop("default", None)
        return extra


class Command(click.Command):
    """A command with its options in groups in the help."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section of the help for each group of options."""
        sections: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Argument):  # explained in the description
                continue
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections[getattr(parameter, "group", "Help")].append(record)
        for group, records in sections.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)


class UserPath(click.Path):
    """A path, with ``~`` replaced by the home folder: shells leave it alone in ``--cache=~/x``."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(path_type=Path, **settings)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path that the user gave."""
        try:
            expanded = PATH.check(param.name or "path" if param else "path", value)
        except SpecError as error:
            self.fail(str(error), param, ctx)
        return super().convert(expanded, param, ctx)


def command(**settings: Any) -> Callable[[Callable[..., Any]], Command]:
    """Return a decorator that creates a command with grouped options."""
    return click.command(cls=Command, **settings)


def option(*names: str, group: str, **settings: Any) -> Decorator:
    """Return a decorator that adds an option to a group."""
    return click.option(*names, cls=Option, group=group, **settings)


def stack(*decorators: Decorator) -> Decorator:
    """Return one decorator that adds options in the order in which they are listed."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


# Data ---------------------------------------------------------------------------------------------


def _data_option(default: str) -> Decorator:
    return option(
        "--data",
        group="Data",
        metavar="SPEC",
        help="Data set: digits (from scikit-learn), a folder with one subfolder per class, a CSV "
        "file (path,label[,split]), or a torchvision data set such as "
        "cifar10:root=DIR,download=true.",
        show_default=default,
    )


data_option = _data_option("digits")
split_option = option(
    "--split",
    "--test-on",
    "split",
    group="Data",
    metavar="A/B/C|val",
    help="Split at random into these train/val/test percentages, such as 70/15/15; val: test on "
    "the val images of data without test images.",
    show_default="splits of the data set, else 70/15/15",
)
limit_option = option(
    "--limit",
    group="Data",
    metavar="train=N,test=N",
    help="Number of images per split, drawn by stratified sampling.",
    show_default="all images",
)
intensity_option = option(
    "--intensity-range",
    group="Data",
    metavar="LOW:HIGH",
    help="Values that become black and white in grey images of more than 8 bits, such as 0:4095 "
    "for 12 bits.",
    show_default="0:65535, or that of the file format",
)
seed_option = option(
    "--seed",
    group="Data",
    type=integers(0, MAX_SEED),
    help="Random seed for splits, sampling, augmentation and heads.",
    show_default="0",
)
subset_option = option(
    "--subset",
    group="Data",
    metavar="SPEC",
    help="Subset of train to fit on: longtail:if=50 (imbalance factor), kshot:k=5 (images per "
    "class).",
    show_default="all",
)
perturb_option = option(
    "--perturb",
    group="Data",
    metavar="SPEC",
    help="Corruption of the test images, such as fog:level=strong (or mild, medium).",
    show_default="none",
)

source_options = stack(data_option, split_option, limit_option, intensity_option, seed_option)
"""Options that select images."""

augment_option = option(
    "--augment",
    group="Data",
    type=click.Choice(["basic", "light", "shift", "trivial", "auto", "rand"]),
    help="Add augmented views of each train image. basic: random resized crop and flip; light: "
    "crops of at least half the area; shift: translation and flip; trivial, auto, rand: basic "
    "with TrivialAugment, AutoAugment or RandAugment.",
    show_default="none",
)
views_option = option(
    "--views",
    group="Data",
    type=integers(1, 100),
    help="Augmented views per train image, with --augment.",
    show_default="4",
)


def data_options_with_default(default: str) -> Decorator:
    """Return the options that select, augment and corrupt images, with another default data set."""
    return stack(
        _data_option(default),
        split_option,
        limit_option,
        intensity_option,
        seed_option,
        augment_option,
        views_option,
        perturb_option,
    )


data_options = data_options_with_default("digits")
"""Options that select, augment and corrupt images."""

# Backbone -----------------------------------------------------------------------------------------

BACKBONE_HELP = (
    "Network: resnet18 to resnet152, timm:NAME (see `featkit models`), or the run directory of a "
    "network trained, pruned or quantized by featkit."
)

backbone_option = option(
    "--backbone", group="Backbone", metavar="SPEC", help=BACKBONE_HELP, show_default="resnet18"
)
weights_option = option(
    "--weights",
    group="Backbone",
    metavar="SPEC",
    help="Weights: imagenet, IMAGENET1K_V1, IMAGENET1K_V2, random[:SEED], or a .pth, .ckpt or "
    ".safetensors file; FILE:KEY takes one of several state dicts in it.",
    show_default="imagenet",
)
resize_option = option(
    "--resize",
    group="Backbone",
    metavar="N|HxW",
    help="Resize the shorter edge to N pixels, or the image to height H and width W.",
    show_default="from weights",
)
crop_option = option(
    "--crop",
    group="Backbone",
    metavar="N|none",
    help="Size of the centre crop in pixels; none: no crop.",
    show_default="from weights",
)
size_options = stack(resize_option, crop_option)
pool_option = option(
    "--pool",
    group="Backbone",
    type=click.Choice(["avg", "max", "catavgmax", "none"]),
    help="Global pooling of the feature map; catavgmax: average and maximum concatenated; none: "
    "flattened without pooling.",
    show_default="avg",
)
precision_option = option(
    "--precision",
    group="Backbone",
    type=click.Choice(["auto", "fp32", "bf16", "int8", "int8-openvino"]),
    help="Numeric precision of feature extraction; auto: bf16 if the hardware supports it, else "
    "fp32; int8: ONNX Runtime, on CPUs; int8-openvino: OpenVINO, on CPUs.",
    show_default="auto",
)
network_options = stack(weights_option, pool_option, size_options, precision_option)
"""Options for weights, pooling, preprocessing and precision."""

_LAYER_HELP = "Layer to take features from; list layers with `featkit models --layers resnet50`."
_LAYER_DEFAULT = "global average pooling"

layer_option = option(
    "--layer", group="Backbone", metavar="NAME", help=_LAYER_HELP, show_default=_LAYER_DEFAULT
)
layers_option = option(
    "--layer",
    group="Backbone",
    metavar="NAME",
    multiple=True,
    help=f"{_LAYER_HELP} Repeatable.",
    show_default=_LAYER_DEFAULT,
)

# Head ---------------------------------------------------------------------------------------------

balance_option = option(
    "--balance",
    group="Head",
    metavar="SPEC",
    help="Class-imbalance correction: reweight, effective, class-aware, logit-adjust:tau=1, ...",
    show_default="none",
)

# Compute ------------------------------------------------------------------------------------------

device_option = option(
    "--device",
    group="Compute",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    help="Device for the network.",
)
compute_options = stack(
    device_option,
    option(
        "--batch-size",
        group="Compute",
        type=integers(1),
        help="Images per forward pass.",
        show_default="16 on CPU, 128 on GPU",
    ),
    option(
        "--workers",
        group="Compute",
        type=integers(1),
        help="Threads that read and decode images.",
        show_default="one per core",
    ),
    option(
        "--compile",
        group="Compute",
        is_flag=True,
        help="Use torch.compile (needs a C++ compiler).",
    ),
    option(
        "--on-error",
        group="Compute",
        type=click.Choice(["fail", "skip"]),
        default="fail",
        help="Stop with an error at an unreadable image, or skip it.",
    ),
)

# Output -------------------------------------------------------------------------------------------

cache_option = option(
    "--cache",
    group="Output",
    type=UserPath(),
    default="cache",
    metavar="DIR",
    help="Directory of cached embeddings.",
)
cache_or_file_option = option(
    "--cache",
    group="Output",
    type=UserPath(),
    default="cache",
    metavar="DIR|FILE",
    help="Directory of cached embeddings, or one cache file.",
)
out_option = option(
    "--out",
    group="Output",
    type=UserPath(file_okay=False),
    default="experiments/runs",
    metavar="DIR",
    help="Directory for results.",
)
bundle_option = option(
    "--bundle",
    group="Output",
    is_flag=True,
    help="Put the weights of the network into the run (see `featkit bundle`).",
)
name_option = option(
    "--name",
    group="Output",
    metavar="TEXT",
    help="Name for tables and figures.",
    show_default="composed, such as 'linear on ResNet-18'",
)
json_option = option("--json", "as_json", group="Output", is_flag=True, help="Print JSON.")

feature_options = stack(
    data_options,
    backbone_option,
    network_options,
    layer_option,
    cache_or_file_option,
    compute_options,
)
"""The options of a command that uses features."""

study_options = stack(feature_options, out_option, json_option)
"""The options of a command that uses features and writes results."""
