"""``featkit export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import UserPath, command, compute_options, integers, option
from featkit.cli.output import interactive, note, print_line

if TYPE_CHECKING:
    from featkit.compression.export import ExportAgreement

EPILOG = """\b
Examples:
  featkit export latest
  featkit export latest --out model.onnx --check 1000
  featkit export latest --format torch
  featkit export latest --data moved/photos
  featkit predict model.onnx new.jpg

\b
Input: float32 (n, 3, height, width), RGB in 0..1. Output: probabilities (n, classes).
Metadata (JSON): classes, preprocessing (resize and crop; the graph normalises), threshold, head,
recipe. With several labels per image also thresholds: the probability from which on an image has
each of the labels in classes.
"""


@command(epilog=EPILOG)
@click.argument("run", type=UserPath())
@option(
    "--format",
    group="Output",
    type=click.Choice(["onnx", "torch"]),
    default="onnx",
    help="File format.",
)
@option(
    "--out",
    group="Output",
    type=UserPath(dir_okay=False),
    metavar="FILE",
    help="File to write.",
    show_default="RUN/model.onnx or RUN/model.pt2",
)
@option(
    "--check",
    group="Output",
    type=integers(0),
    default=256,
    metavar="N",
    help="Verify the file on up to N test images; 0 for no verification.",
)
@option(
    "--data",
    group="Output",
    metavar="SPEC",
    help="Verify the file on the test images of this data set, such as a folder that was moved.",
    show_default="the images of the run",
)
@compute_options
def export(run: Path, **options: Any) -> None:
    """Export a run to one ONNX or PyTorch file that needs no featkit.

    The file contains network, head and temperature. It is written only if, on test images, it
    predicts the same classes and rejects the same images as the run, with probabilities within
    0.001; `--check 0` leaves out this verification. With several labels per image, its output is
    the calibrated probability of each label.
    Prints its path.
    """
    from featkit import api

    exported = api.export(run, progress=interactive(), **options)
    note(_describe_check(exported.check))
    print_line(exported.path)


def _describe_check(found: ExportAgreement | None) -> str:
    """Return how the predictions of the file agree with those of the run."""
    if found is None:
        return "not verified (--check 0): the file was not compared with the run"
    answer = "labels" if found.multilabel else "class"
    same = f"same {answer} for {found.n - found.near_threshold} of {found.n} test images"
    if found.near_threshold:
        same += " (the others have a probability within 0.001 of its threshold)"
    return f"{same}, largest difference in probability {found.largest:.1e}"
