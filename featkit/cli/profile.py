"""``featkit profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import (
    cache_option,
    command,
    compute_options,
    data_options_with_default,
    integers,
    json_option,
    option,
    out_option,
    size_options,
    weights_option,
)
from featkit.cli.output import between, interactive, print_json, print_text, size, table
from featkit.errors import visible

if TYPE_CHECKING:
    from featkit.api import ProfileResult
    from featkit.studies.profile import NetworkProfile

EPILOG = """\b
Examples:
  featkit profile resnet18 resnet50
  featkit profile resnet18 resnet50 --weights random
  featkit profile resnet18@torch resnet18 resnet18@bf16 resnet18@int8 --data photos
  featkit profile resnet18 experiments/runs/prune/resnet18-0123456789ab --data photos --head svm

\b
BACKBONE is a backbone or a run directory. PRECISION is fp32 (default), bf16, int8 (ONNX Runtime),
int8-openvino (OpenVINO), or torch (fp32 in torch without featkit's optimisations). int8 needs
--data for calibration. `on all cores`: one batch per core; for torch, one batch on all cores.
keras:NAME uses all cores for each batch, in all columns. Zero weights reduce neither MACs nor
latency. `to first`: difference in accuracy from the first network; `cosine`, `worst`: mean and
minimum cosine between its features and those of the network; `neighbours %`: nearest neighbours of
an image that are the same with both.
"""


@command(epilog=EPILOG)
@click.argument("backbones", nargs=-1, required=True, metavar="BACKBONE[@PRECISION]...")
@data_options_with_default("no images")
@weights_option
@size_options
@option(
    "--head",
    group="Head",
    metavar="SPEC",
    default="linear",
    help="Head to fit and evaluate, with --data.",
)
@option(
    "--repeats",
    group="Compute",
    type=integers(3),
    default=30,
    help="Number of timed repeats.",
)
@option(
    "--warm-up",
    group="Compute",
    type=integers(0),
    default=3,
    help="Number of warm-up repeats, which are not timed.",
)
@cache_option
@compute_options
@out_option
@json_option
def profile(backbones: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Measure size, speed and accuracy of networks.

    Measures parameters, MACs, file size, memory and latency; with --data also the accuracy of a
    head on the features, and the drift of the features from those of the first network. Writes
    profile.csv, profile.json and pareto.png.
    """
    from featkit import api

    result = api.profile(backbones, progress=interactive(), **options)
    if as_json:
        print_json(result.to_dict())
        return
    print_text(_text(result))


_COSTS = (
    *("parameters", "non-zero", "GMACs", "size", "memory"),
    *("1 image, ms", "p95", "images/s", "on all cores"),
)
_ACCURACY = (*("top-1 %", "95% CI", "to first, points", "cosine", "worst", "neighbours %"),)


def _text(result: ProfileResult) -> str:
    """Return the table of costs, and with images that of accuracy and drift."""
    from featkit.storage import available_cores

    costs, accuracy = [], []
    for name, network in zip(result.names, result.networks, strict=True):
        costs.append([name, *_cost_cells(network)])
        accuracy.append([name, *_accuracy_cells(network)])
    parts = [
        f"medians of {result.repeats} repeats after {result.warm_up} warm-up repeats; "
        "1 image: one thread; "
        f"images/s: batches of 32 on one thread and on {available_cores()} cores",
        table(["network", *_COSTS], costs, right=_COSTS),
    ]
    report = result.networks[0].report
    if report:
        parts.append(f"\n{visible(f'{result.head} on {Path(result.data).name}')}, n = {report.n}")
        parts.append(table(["network", *_ACCURACY], accuracy, right=_ACCURACY))
    return "\n".join(parts)


def _cost_cells(network: NetworkProfile) -> list[str]:
    timing = network.timing
    return [
        f"{network.size.parameters:,}",
        f"{network.size.nonzero:,}",
        f"{network.size.macs / 1e9:.2f}",
        size(network.size.bytes),
        size(1e6 * network.peak_memory_mb),
        f"{timing.median_ms:.1f}",
        f"{timing.p95_ms:.1f}",
        f"{timing.images_per_s:.1f}",
        f"{timing.images_per_s_all_cores:.1f}",
    ]


def _accuracy_cells(network: NetworkProfile) -> list[str]:
    """Return accuracy, and difference and drift to the first network; that one has neither."""
    report, drift, paired = network.report, network.drift, network.difference
    if report is None:
        return [""] * len(_ACCURACY)
    cells = [f"{100 * report.top1:.1f}", between(report.interval95)]
    if drift is None or paired is None:
        return cells + [""] * (len(_ACCURACY) - len(cells))
    low, high = (f"{100 * end:+.2f}" for end in paired.interval95)
    cells.append(f"{100 * paired.difference:+.2f} ({low} to {high})")
    for cosine in (drift.mean_cosine, drift.worst_cosine):
        cells.append("" if cosine is None else f"{cosine:.4f}")
    cells.append(f"{100 * drift.neighbours_kept:.1f}")
    return cells
