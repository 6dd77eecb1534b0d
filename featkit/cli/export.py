"""`featkit export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featkit.cli.options import compute_options, make_compute, note

EPILOG = """\b
Examples:
  featkit export experiments/photos/0123456789ab
  featkit export experiments/photos/0123456789ab --out model.onnx --check 1000
  featkit export experiments/photos/0123456789ab --format torch
  featkit predict model.onnx new.jpg

\b
The file takes float32 (n, 3, height, width), RGB in 0..1, and gives probabilities (n, classes). In its metadata,
as JSON: classes, preprocessing (resize and crop; the normalisation is inside), threshold, head, recipe.
"""


@click.command(epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "to", type=click.Choice(["onnx", "torch"]), default="onnx", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The file. [RUN/model.onnx or model.pt2]")
@click.option(
    "--check",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Most test images on which the file must predict what the run does.",
)
@compute_options
def export(run: Path, to: str, out: Path | None, check: int, **options: Any) -> None:
    """Write a run into one file that needs no featkit.

    Prints the path of the file: network, head and temperature, of any kind of head. It is only kept if it gives
    the test images of the run the same classes.
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
