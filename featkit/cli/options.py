"""Option groups, and the options that several commands share.

Nothing heavy is imported here: ``featkit COMMAND --help`` must stay fast.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Callable, Sequence
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


ADVANCED = frozenset(
    {
        # images
        *(
            "limit",
            "intensity_range",
            "allow_group_leak",
            "augment",
            "views",
            "perturb",
            "train_perturb",
            "subset",
        ),
        # network and the loader of its images
        *("pool", "resize", "crop", "layer", "precision", "frozen_precision", "decode"),
        *("batch_size", "workers", "engine", "compile", "on_error", "jobs", "warm_up", "store"),
        # training
        *(
            "alpha",
            "beta",
            "distance",
            "temperature",
            "teacher_head",
            "alone",
            "mixup",
            "cutmix",
            "ema",
            "clip",
            "smoothing",
            "norm",
            "warmup",
        ),
        *("layer_decay", "weight_decay", "optimiser", "patience", "val", "unfreeze"),
        # pruning and quantization
        *("reconstruct", "calibrate", "keep_worst", "bias_correct", "weight_bits"),
    }
)
"""Options that most users never need: explained by --help-all."""

_MOST_LINES = 58
"""Longest help, unless --help-all was given."""


def _shortened(epilog: str, level: int) -> str:
    """Return the text below the options: at higher levels its examples only, then a few of them."""
    text = inspect.cleandoc(epilog)
    if level <= 1:
        return text
    parts = text.split("\n\n")
    examples = next((part for part in parts if "Examples:" in part), parts[0])
    if level < _LEVELS[-1]:
        return examples
    return "\n".join(examples.split("\n")[: _MOST_EXAMPLES + 2])


class Command(click.Command):
    """A command with its options in groups in the help.

    Every command has --quiet and --verbose. If the help is long, advanced options are only listed
    in it; --help-all explains them.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters of the command and the options that all commands have."""
        common = [_help_all_option(), *_message_options()]
        taken = {name for parameter in self.params for name in parameter.opts}
        own = [option for option in common if not taken.intersection(option.opts)]
        return [*super().get_params(ctx), *own]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help, shortened step by step until it fits on a page or two of a terminal."""
        levels = (0,) if ctx.meta.get(_ALL_OPTIONS) else _LEVELS
        for level in levels:
            page = ctx.make_formatter()
            self._write_help(ctx, page, level)
            if page.getvalue().count("\n") <= _MOST_LINES:
                break
        formatter.write(page.getvalue())

    def _write_help(self, ctx: click.Context, page: click.HelpFormatter, level: int) -> None:
        self.format_usage(ctx, page)
        self.format_help_text(ctx, page)
        listed = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        hidden = ADVANCED | _LAST_HIDDEN if level == _LEVELS[-1] else ADVANCED
        advanced = [each for each in listed if level and each.name in hidden]
        self._write_options(ctx, page, [each for each in listed if each not in advanced], level)
        if advanced:
            with page.section("Advanced, explained by --help-all"):
                page.write_text(", ".join(each.opts[0] for each in advanced))
        epilog = _shortened(self.epilog or "", level)
        if epilog:
            page.write_paragraph()
            with page.indentation():
                page.write_text(epilog)

    def _write_options(
        self,
        ctx: click.Context,
        page: click.HelpFormatter,
        listed: Sequence[click.Option],
        level: int,
    ) -> None:
        """Write one section for each group of options."""
        sections: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for each in listed:
            record = each.get_help_record(ctx)
            if record is None:
                continue
            names, text = record
            if level >= _FIRST_CLAUSES and each.help:
                text = text.replace(inspect.cleandoc(each.help), _first_clause(each.help))
            sections[getattr(each, "group", "Help")].append((names, text))
        for group, records in sections.items():
            if records:
                with page.section(group):
                    page.write_dl(records)


_LEVELS = range(5)
"""Steps of shortening a help, each with those before it: everything; advanced options are listed
only; notes beside the examples are left out; options are explained by their first clause; three
examples are kept, and the options for messages and for groups are listed only."""

_FIRST_CLAUSES, _MOST_EXAMPLES = 3, 3
_LAST_HIDDEN = frozenset({"quiet", "verbose", "group"})


def _first_clause(text: str) -> str:
    """Return the first clause of an explanation: up to a semicolon, a full stop or a bracket."""
    clause = re.split(r"; |\. | \(|: ", inspect.cleandoc(text))[0]
    return f"{clause.rstrip('.')}."


_ALL_OPTIONS = "featkit.all_options"
QUIET = "featkit.quiet"
"""Key of ``click.Context.meta``: whether only results, warnings and errors are printed."""


def _help_all_option() -> click.Option:
    def show(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            ctx.meta[_ALL_OPTIONS] = True
            click.echo(ctx.get_help())
            ctx.exit()

    return Option(
        ["--help-all"],
        group="Help",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show this message with all options explained.",
    )


def _message_options() -> list[click.Option]:
    def be_quiet(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            ctx.meta[QUIET] = True
            logging.getLogger("featkit").setLevel(logging.WARNING)

    def be_verbose(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            logging.getLogger("featkit").setLevel(logging.DEBUG)

    shared: dict[str, Any] = {"group": "Help", "is_flag": True, "expose_value": False}
    return [
        Option(
            ["--quiet", "-q"],
            callback=be_quiet,
            help="Print results, warnings and errors only.",
            **shared,
        ),
        Option(
            ["--verbose", "-v"],
            callback=be_verbose,
            help="Print the time of each message, and more of them.",
            **shared,
        ),
    ]


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


cost_option = option(
    "--cost",
    group="Output",
    type=UserPath(),
    metavar="CSV",
    help="Report the mean cost of an image: a matrix with true classes in rows and predicted "
    "classes in columns.",
)


def _data_option(default: str) -> Decorator:
    return option(
        "--data",
        group="Data",
        metavar="SPEC",
        help="Data set: digits (from scikit-learn), a folder with one subfolder per class, or its "
        "URL, a CSV file (path,label[,split,group]; paths or URLs), tar files (tar:PATTERN, "
        "WebDataset's naming), or a torchvision data set such as cifar10:root=DIR,download=true.",
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
group_option = option(
    "--group",
    group="Data",
    metavar="parent|duplicates|REGEX|COLUMN",
    help="Keep the images of a group, such as a patient, on one side of every split, and compute "
    "intervals over groups: parent: the folder inside the class folder; duplicates: near "
    "duplicates, which are searched; a column of the CSV file; "
    "or a regular expression for the path, such as 'patient([0-9]+)'; none: ignore groups.",
    show_default="column group of a CSV file",
)
group_leak_option = option(
    "--allow-group-leak",
    group="Data",
    is_flag=True,
    default=None,
    help="Accept splits of the data set that separate a group; reports say so.",
    show_default="refuse them",
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

source_options = stack(
    data_option,
    split_option,
    group_option,
    group_leak_option,
    limit_option,
    intensity_option,
    seed_option,
)
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
        group_option,
        group_leak_option,
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
    "Network: resnet18 to resnet152, timm:NAME, keras:NAME (see `featkit models`), or the run "
    "directory of a network trained, pruned or quantized by featkit; keras:DIRECTORY runs it in "
    "TensorFlow."
)


def _backbone_option(default: str) -> Decorator:
    return option(
        "--backbone", group="Backbone", metavar="SPEC", help=BACKBONE_HELP, show_default=default
    )


backbone_option = _backbone_option("resnet18")
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
decode_option = option(
    "--decode",
    group="Backbone",
    type=click.Choice(["full", "scaled"]),
    help="How JPEG files of at least 4 times the size that the network needs are decoded: scaled: "
    "at 1/2, 1/4 or 1/8 of their size, 2 times the size needed or more; full: slower.",
    show_default="scaled, unless the cache has more features decoded in full",
)
network_options = stack(weights_option, pool_option, size_options, precision_option, decode_option)
"""Options for weights, pooling, preprocessing, precision and decoding."""

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
_loader_options = stack(
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
        "--engine",
        group="Compute",
        type=click.Choice(["auto", "torch", "onnxruntime"]),
        default="auto",
        help="Engine of float32 networks on a CPU; auto is the faster one, measured before the "
        "first long extraction and remembered.",
    ),
    option(
        "--compile",
        group="Compute",
        is_flag=True,
        help="Use torch.compile (needs a C++ compiler).",
    ),
)


rehash_option = option(
    "--rehash",
    group="Compute",
    is_flag=True,
    help="Read every image file to find changes, also those with an unchanged time stamp.",
)


def compute_options_with_default(on_error: str) -> Decorator:
    """Return the options of the computation, with what is done at an unreadable image."""
    return stack(
        _loader_options,
        option(
            "--on-error",
            group="Compute",
            type=click.Choice(["fail", "skip"]),
            default=on_error,
            help="Stop with an error at an unreadable image, or skip it.",
        ),
    )


compute_options = compute_options_with_default("fail")
"""Options of the computation."""

cluster_option = option(
    "--cluster",
    group="Compute",
    metavar="local[:N]|ADDRESS|FILE",
    help="Compute on a Dask cluster: N worker processes on this machine, the address of a "
    "scheduler such as tcp://host:8786, or a scheduler file.",
    show_default="this process",
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
store_option = option(
    "--store",
    group="Output",
    metavar="FORMAT",
    help="Storage format of embeddings: float32 or float16, compression with gzip or zstd, or "
    "both: float16,zstd.",
    show_default="float32",
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
    help="Name for commands, tables and figures.",
    show_default="from its options",
)
json_option = option("--json", "as_json", group="Output", is_flag=True, help="Print JSON.")

feature_options = stack(
    data_options_with_default("that of the newest cache file, else digits"),
    _backbone_option("that of the newest cache file, else resnet18"),
    network_options,
    layer_option,
    cache_or_file_option,
    compute_options,
)
"""The options of a command that uses features."""

study_options = stack(feature_options, out_option, json_option)
"""The options of a command that uses features and writes results."""
