"""Options that verbs share, and how verbs speak."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from featkit.embeddings.pipeline import Compute

F = TypeVar("F", bound=Callable[..., Any])

REQUEST = (
    *(
        "data",
        "split",
        "limit",
        "seed",
        "augment",
        "views",
        "perturb",
        "backbone",
        "weights",
        "layer",
        "pool",
        "resize",
        "crop",
    ),
    *("precision", "store"),
)
COMPUTE = ("device", "batch_size", "workers", "compiled", "on_error")


def stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that adds options in the order in which they are to be listed."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def source_options(function: F) -> F:
    """Add the options that say where images come from, and which of them."""
    return stack(
        click.option(
            "--data",
            metavar="SPEC",
            help="digits, a folder, a CSV file (path,label[,split]), or a "
            "torchvision data set such as cifar10:root=DIR,download=true.",
        ),
        click.option(
            "--split",
            metavar="A/B/C",
            help="Train/val/test shares, such as 70/15/15 (the default where the "
            "data has no splits of its own); replaces its own.",
        ),
        click.option("--limit", metavar="train=N,test=N", help="A stratified part of each split."),
        click.option("--seed", type=click.IntRange(min=0), help="Seed of the split, the limit and the head. [0]"),
    )(function)


def data_options(function: F) -> F:
    """Add the options that say which images, and what becomes of them."""
    return stack(
        source_options,
        click.option(
            "--augment",
            type=click.Choice(["basic", "light", "shift", "trivial", "auto", "rand"]),
            help="Add views of each train image: random resized crop and flip (light: of at least half the area; "
            "shift: moved, not cropped), then nothing, TrivialAugment, AutoAugment or RandAugment. [none]",
        ),
        click.option(
            "--perturb",
            metavar="SPEC",
            help="Corrupt the test images, such as gaussian_noise:level=strong (or mild, medium). [none]",
        ),
        click.option("--views", type=click.IntRange(1, 100), help="How many views of each train image. [4]"),
    )(function)


backbone_option = click.option(
    "--backbone",
    metavar="SPEC",
    help="resnet18, resnet34, resnet50, resnet101, resnet152, timm:NAME (see `featkit models`), or the directory of "
    "a network that featkit trained. [resnet18]",
)


size_options = (
    click.option(
        "--resize", metavar="N|HxW", help="Shorter edge in pixels, or a size to squash to. [as the weights say]"
    ),
    click.option("--crop", metavar="N|none", help="Centre crop in pixels. [as the weights say]"),
)
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True
)


def network_options(function: F) -> F:
    """Add the options that say which weights, and what comes out of the network."""
    return stack(
        click.option(
            "--weights",
            metavar="WHICH",
            help="imagenet, IMAGENET1K_V1, IMAGENET1K_V2, random[:SEED] or a .pth or .safetensors FILE. [imagenet]",
        ),
        click.option(
            "--pool",
            type=click.Choice(["avg", "max", "catavgmax", "none"]),
            help="How a feature map becomes a vector; none: as it is, flattened. [avg]",
        ),
        *size_options,
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16", "int8", "int8-openvino"]),
            help="Arithmetic; auto is bf16 where the device has it in hardware, else fp32; int8 is for CPUs, in ONNX "
            "Runtime or, faster on x86, in OpenVINO. [auto]",
        ),
    )(function)


_LAYER = "this layer's output; see `featkit models --layers resnet50`. [after global average pooling]"
layer_option = click.option("--layer", metavar="NAME", help=f"Take {_LAYER}")
layers_option = click.option("--layer", multiple=True, metavar="NAME", help=f"Repeatable: take {_LAYER}")


def compute_options(function: F) -> F:
    """Add the options that say how the work is done."""
    return stack(
        device_option,
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            help="Images in one forward pass. [16 on a CPU, 128 on a GPU]",
        ),
        click.option("--workers", type=click.IntRange(min=1), help="Threads that read and decode. [one for each core]"),
        click.option(
            "--compile",
            "compiled",
            is_flag=True,
            help="Have torch compile the network first: half a minute, then faster. Needs a C++ compiler.",
        ),
        click.option(
            "--on-error",
            type=click.Choice(["fail", "skip"]),
            default="fail",
            show_default=True,
            help="What to do about an image that cannot be read.",
        ),
    )(function)


cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default="cache",
    show_default=True,
    help="Folder of the embeddings files.",
)
out_option = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="experiments",
    show_default=True,
    help="Folder of the results.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


def study_options(function: F) -> F:
    """Add the options of a verb that finds or makes vectors, and leaves results behind."""
    parts = (data_options, backbone_option, network_options, layer_option, cache_option, compute_options)
    return stack(*parts, out_option, json_option)(function)


def given_request(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that make a request; None where one was not given."""
    return {name: options[name] for name in REQUEST if name in options}


def make_compute(options: Mapping[str, Any]) -> Compute:
    """Return how the work is to be done, with a progress bar where a person watches."""
    from featkit.embeddings.pipeline import Compute

    chosen = {name: options[name] for name in COMPUTE if name in options}
    return Compute(**chosen, progress=sys.stderr.isatty())


def note(text: str) -> None:
    """Say on stderr what was chosen or found on the way."""
    click.echo(text, err=True)


def table(header: list[str], rows: list[list[Any]], right: tuple[str, ...] = ()) -> str:
    """Return rows as a plain table; the columns named in ``right`` are aligned on the right."""
    from prettytable import PrettyTable, TableStyle

    drawn = PrettyTable(header)
    drawn.set_style(TableStyle.PLAIN_COLUMNS)
    drawn.align = "l"
    for name in right:
        drawn.align[name] = "r"
    drawn.add_rows(rows)
    drawn.left_padding_width, drawn.right_padding_width = 0, 2
    return "\n".join(line.rstrip() for line in drawn.get_string().splitlines())


def between(interval: tuple[float, float]) -> str:
    """Return the ends of an interval of shares, in percent."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def size(count: float) -> str:
    """Return a number of bytes for people: ``12.3 MB`` (10^6 bytes)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
