"""`featkit profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import (
    cache_option,
    command,
    compute_options,
    data_options,
    given_request,
    json_option,
    make_compute,
    option,
    out_option,
    size_options,
)
from featkit.cli.output import between, note, size, table

if TYPE_CHECKING:
    from featkit.studies.profile import NetworkProfile, ProfileConfig

EPILOG = """\b
Examples:
  featkit profile resnet18 resnet50
  featkit profile resnet18@torch resnet18 resnet18@bf16 resnet18@int8 --data photos
  featkit profile resnet18 experiments/runs/prune/resnet18-0123456789ab --data photos --head svm

\b
BACKBONE is a backbone or a run directory. PRECISION is fp32 (default), bf16, int8 (ONNX Runtime),
int8-openvino (OpenVINO), or torch (fp32 in torch without featkit's optimisations). int8 needs --data
for calibration. `on all cores`: one batch per core, except torch, which splits one batch. Zero
weights reduce neither MACs nor latency.
"""

_COSTS = ("parameters", "non-zero", "GMACs", "size", "memory", "1 image, ms", "p95", "images/s", "on all cores")
_WORTH = ("top-1 %", "95 % interval", "to first, points", "cosine", "worst", "neighbours %")


@command(epilog=EPILOG)
@click.argument("specs", nargs=-1, required=True, metavar="BACKBONE[@PRECISION]...")
@data_options
@size_options
@option(
    "--head",
    group="Head",
    metavar="SPEC",
    default="linear",
    help="Head to evaluate, with --data.",
)
@option(
    "--repeats",
    group="Compute",
    type=click.IntRange(min=3),
    default=30,
    help="Timed repeats.",
)
@option(
    "--warm-up",
    group="Compute",
    type=click.IntRange(min=0),
    default=3,
    help="Untimed repeats before them.",
)
@cache_option
@compute_options
@out_option
@json_option
def profile(specs: tuple[str, ...], cache: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Measure size, speed and accuracy of networks.

    Parameters, MACs, file size, memory and latency; with --data also the accuracy of a head on the
    features, and their drift from those of the first network. Writes profile.csv, profile.json and
    pareto.png.
    """
    from featkit.storage import digest, publish
    from featkit.studies.profile import ProfileConfig, parse_network, profiles_to_csv, profiles_to_json
    from featkit.studies.profile import profile as measure

    given = {name: value for name, value in given_request(options).items() if value is not None}
    protocol = ProfileConfig(
        head=options["head"],
        given=given,
        cache=cache,
        repeats=options["repeats"],
        warm_up=options["warm_up"],
    )
    profiles = measure([parse_network(spec) for spec in specs], protocol, make_compute(options))
    files: dict[str, Any] = {"profile.csv": profiles_to_csv(profiles), "profile.json": profiles_to_json(profiles, protocol)}
    if "data" in given:
        files["pareto.png"] = _pareto(profiles, protocol)
    directory = out / "profile" / digest([*specs, *map(str, given.values()), protocol.head])[:12]
    publish(directory, files)
    click.echo(files["profile.json"] if as_json else _table(profiles, protocol))
    note(f"{', '.join(files)}: {directory}")


def _table(profiles: list[NetworkProfile], protocol: ProfileConfig) -> str:
    from featkit.storage import available_cores

    names = _names(profiles)
    how = (
        f"medians of {protocol.repeats} repeats in turn after {protocol.warm_up} to warm up; 1 image: on one thread; "
        f"images/s: in batches of 32, on one thread and on {available_cores()} cores"
    )
    parts = [
        how,
        table(
            ["network", *_COSTS],
            [[name, *_costs(each)] for name, each in zip(names, profiles, strict=True)],
            right=_COSTS,
        ),
    ]
    judged = profiles[0].report
    if judged:
        rows = [[name, *_worth(each)] for name, each in zip(names, profiles, strict=True)]
        parts += [f"\n{protocol.head} on {Path(str(protocol.given['data'])).name}, n = {judged.n}"]
        parts += [table(["network", *_WORTH], rows, right=_WORTH)]
    return "\n".join(parts)


def _names(profiles: list[NetworkProfile]) -> list[str]:
    """Return what the networks are called in the table and the figure: of paths the last part, where that will do."""
    specs = [each.spec for each in profiles]
    short = [spec.rstrip("/").rpartition("/")[2] for spec in specs]
    return short if len(set(short)) == len(short) else specs


def _costs(each: NetworkProfile) -> list[str]:
    return [
        f"{each.size.parameters:,}",
        f"{each.size.nonzero:,}",
        f"{each.size.macs / 1e9:.2f}",
        size(each.size.bytes),
        size(1e6 * each.peak_memory_mb),
        f"{each.timing.median_ms:.1f}",
        f"{each.timing.p95_ms:.1f}",
        f"{each.timing.images_per_s:.1f}",
        f"{each.timing.images_per_s_all_cores:.1f}",
    ]


def _worth(each: NetworkProfile) -> list[str]:
    report, drift, paired = each.report, each.drift, each.difference
    if report is None:
        return [""] * len(_WORTH)
    top1 = [f"{100 * report.top1:.1f}", between(report.interval95)]
    if drift is None or paired is None:
        return [*top1, *[""] * (len(_WORTH) - len(top1))]
    least, most = paired.interval95
    cosines = (drift.mean_cosine, drift.worst_cosine)
    return [
        *top1,
        f"{100 * paired.difference:+.2f} ({100 * least:+.2f} to {100 * most:+.2f})",
        *("" if cosine is None else f"{cosine:.4f}" for cosine in cosines),
        f"{100 * drift.neighbours_kept:.1f}",
    ]


def _pareto(profiles: list[NetworkProfile], protocol: ProfileConfig) -> bytes:
    from featkit.plots.files import png_bytes
    from featkit.plots.pareto import ParetoPoint, plot_pareto

    points = [
        ParetoPoint(name, each.timing.median_ms, each.report.top1, each.report.interval95)
        for name, each in zip(_names(profiles), profiles, strict=True)
        if each.report
    ]
    n = profiles[0].report.n if profiles[0].report else 0
    data = Path(str(protocol.given["data"])).name
    return png_bytes(plot_pareto(points, title=f"{protocol.head} on {data}, n = {n}"))
