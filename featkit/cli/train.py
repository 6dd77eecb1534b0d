"""``featkit train``."""

from __future__ import annotations

import shlex
import shutil
import textwrap
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import (
    BACKBONE_HELP,
    FiniteRange,
    bundle_option,
    cache_option,
    command,
    compute_options_with_default,
    cost_option,
    decode_option,
    json_option,
    option,
    out_option,
    resize_option,
    seed_option,
    split_option,
    weights_option,
)
from featkit.cli.output import between, interactive, print_json, print_text
from featkit.errors import visible

if TYPE_CHECKING:
    from featkit.api import TrainResult

EPILOG = """\b
Examples:
  featkit train photos
  featkit train photos --minutes 2 --name flowers-v1
  featkit train pets/labels.csv --backbone resnet50 --json
  featkit predict latest new.jpg

\b
PHOTOS is a folder with one subfolder per class (photos/daisy/*.jpg, photos/rose/*.jpg), with or
without train, val and test folders above them, or any other source that --data takes elsewhere.
"""


@command(epilog=EPILOG)
@click.argument("photos")
@option(
    "--minutes",
    group="Training",
    type=FiniteRange(0.05, 1440),
    default=5.0,
    help="Time budget.",
)
@split_option
@seed_option
@option(
    "--backbone",
    group="Backbone",
    metavar="SPEC",
    help=BACKBONE_HELP,
    show_default="resnet18, then resnet50",
)
@weights_option
@resize_option
@decode_option
@cache_option
@out_option
@option(
    "--name",
    group="Output",
    metavar="TEXT",
    help="Name of the run.",
    show_default="name of the folder",
)
@cost_option
@option("--overwrite", group="Output", is_flag=True, help="Replace the run with this name.")
@bundle_option
@json_option
@compute_options_with_default("skip")
def train(photos: str, as_json: bool, **options: Any) -> None:
    """Train a classifier of photos, and report how good it is.

    Extracts features with a pretrained network, tunes all heads on validation images as far as
    the time allows, chooses one, evaluates it once on the test images, and writes a run with a
    report and an ONNX file. Ctrl-C while heads are tried continues with the best so far.
    """
    from featkit import api

    if options["seed"] is None:
        options["seed"] = 0
    result = api.train(photos, progress=interactive(), **options)
    if as_json:
        print_json(result.to_dict())
    else:
        print_text(result_text(result))


def result_text(result: TrainResult) -> str:
    """Return the lines that end a training: how good, what it confuses, what to do next."""
    from featkit.evaluation.costs import cost_sentence
    from featkit.studies.train import next_step

    report = result.run.report
    pairs = [f"{pair.true} as {pair.predicted} ({pair.count})" for pair in report.confused[:3]]
    lines = {
        "accuracy": (
            f"top-1 {100 * report.top1:.1f}% (95% CI {between(report.interval95)}, "
            f"n = {report.n} test images): {result.trained.selection.best.name}, "
            f"{_compared(result)}"
        ),
        "confuses": ", ".join(pairs) if pairs else "nothing: every test image is right",
        "next": next_step(result.trained),
        "predict": f"featkit predict {shlex.quote(result.name)} PHOTO_OR_FOLDER",
        "look at": _written(result),
    }
    if report.decision_cost:
        lines["cost"] = cost_sentence(report.decision_cost)
    width = min(100, shutil.get_terminal_size((80, 24)).columns)
    texts = [_wrapped(name, visible(text), width) for name, text in lines.items()]
    return "\n".join(texts)


def _compared(result: TrainResult) -> str:
    """Return how the chosen classifier compares with the others in paired tests."""
    pairs = result.trained.pairs
    if not pairs:
        return "the only one that was tried"
    better = [pair.b for pair in pairs if pair.significant and pair.difference < 0]
    worse = [pair.b for pair in pairs if pair.significant and pair.difference > 0]
    chosen = f"chosen of {len(pairs) + 1} on validation images"
    if better:
        return f"{chosen}; {', '.join(better)} did significantly better on the test images"
    if len(worse) == len(pairs):
        return f"{chosen}, significantly better than the others"
    equal = [pair.b for pair in pairs if not pair.significant]
    return f"{chosen}, not significantly different from {', '.join(equal)}"


def _written(result: TrainResult) -> str:
    if result.report is None:
        return f"{result.path} (`featkit report {shlex.quote(result.name)}` writes a page about it)"
    model = f", ONNX file {result.model.name} beside it" if result.model else ""
    return f"{result.report}{model}"


def _wrapped(label: str, text: str, width: int) -> str:
    lead = f"{label:<10}"
    return textwrap.fill(
        text,
        width,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
    )
