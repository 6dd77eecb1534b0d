"""``featkit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featkit.cli.options import UserPath, command, compute_options, integers, option
from featkit.cli.output import interactive, note, print_line

EPILOG = """\b
Examples:
  featkit export latest
  featkit export latest --out model.onnx --check 1000
  featkit export latest --format torch
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
    type=integers(1),
    default=256,
    metavar="N",
    help="Verify the file on up to N test images.",
)
@compute_options
def export(run: Path, **options: Any) -> None:
    """Export a run to one ONNX or PyTorch file that needs no featkit.

    The file contains network, head and temperature. It is written only if, on test images, it
    predicts the same classes and rejects the same images as the run, with probabilities within
    0.001. With several labels per image, its output is the calibrated probability of each label.
    Prints its path.
    """
    from featkit import api

    exported = api.export(run, progress=interactive(), **options)
    found = exported.check
    answer = "labels" if found.multilabel else "class"
    same = f"same {answer} for {found.n - found.near_threshold} of {found.n} test images"
    if found.near_threshold:
        same += " (the others have a probability within 0.001 of its threshold)"
    note(f"{same}, largest difference in probability {found.largest:.1e}")
    print_line(exported.path)
