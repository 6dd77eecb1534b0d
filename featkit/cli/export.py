"""`featkit export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featkit.cli.options import command, compute_options, make_compute, option
from featkit.cli.output import note

EPILOG = """\b
Examples:
  featkit export experiments/runs/photos/0123456789ab
  featkit export experiments/runs/photos/0123456789ab --out model.onnx --check 1000
  featkit export experiments/runs/photos/0123456789ab --format torch
  featkit predict model.onnx new.jpg

\b
Input: float32 (n, 3, height, width), RGB in 0..1. Output: probabilities (n, classes). Metadata (JSON):
classes, preprocessing (resize and crop; normalisation is part of the graph), threshold, head, recipe.
"""


@command(epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@option(
    "--format",
    "to",
    group="Output",
    type=click.Choice(["onnx", "torch"]),
    default="onnx",
    help="File format.",
)
@option(
    "--out",
    group="Output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File to write.",
    show_default="RUN/model.onnx or RUN/model.pt2",
)
@option(
    "--check",
    group="Output",
    type=click.IntRange(min=1),
    default=256,
    metavar="N",
    help="Verify the file on up to N test images.",
)
@compute_options
def export(run: Path, to: str, out: Path | None, check: int, **options: Any) -> None:
    """Export a run to one ONNX or PyTorch file that needs no featkit.

    The file contains network, head and temperature. It is written only if it predicts the same
    classes as the run on test images. Prints its path.
    """
    from featkit.compression.export import SUFFIXES
    from featkit.runs.directory import load_run
    from featkit.runs.export import export_run

    saved, path = load_run(run), out or run / f"model{SUFFIXES[to]}"
    if saved.request.precision == "bf16":
        note("the run computes in bf16, the file in fp32: checked against the run in fp32")
    if saved.request.precision == "int8-openvino":
        note("the run computes in OpenVINO, whose rounding is its own: checked against the run in ONNX Runtime")
    found = export_run(saved, path, to=to, most=check, compute=make_compute(options))
    note(
        f"same class for {found.n} of {found.n} test images, "
        f"largest difference between two probabilities {found.largest:.1e}"
    )
    click.echo(path)
