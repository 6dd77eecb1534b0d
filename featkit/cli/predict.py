"""``featkit predict``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import UserPath, command, compute_options, integers, json_option, option
from featkit.cli.output import interactive, note, print_json, print_text, table

if TYPE_CHECKING:
    from featkit.runs.predict import Prediction

EPILOG = """\b
Examples:
  featkit predict latest new.jpg other.png
  featkit predict flowers-v1 holiday --csv > holiday.csv
  featkit predict flowers-v1 holiday --sort-into sorted
  featkit predict model.onnx new.jpg
  find . -name '*.jpg' | featkit predict latest - --json

\b
CSV and JSON have path, predicted, confidence, rejected, top2, confidence2, ...;
with --all also p(CLASS) (in JSON: probabilities). Of a run with several labels per image they
have path, predicted (such as bus;car, or (none)) and the probability of each label.
"""


@command(epilog=EPILOG)
@click.argument("run", type=UserPath())
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@option(
    "--top",
    group="Output",
    type=integers(1),
    default=5,
    metavar="N",
    help="Number of classes per image in CSV and JSON.",
)
@option(
    "--all",
    "all_probabilities",
    group="Output",
    is_flag=True,
    help="Give the probability of every class.",
)
@option(
    "--sort-into",
    group="Output",
    type=UserPath(file_okay=False),
    metavar="DIR",
    help="Copy the images into DIR/CLASS, rejected ones into DIR/unknown; nothing is moved.",
    show_default="no copies",
)
@compute_options
@json_option
@option("--csv", "as_csv", group="Output", is_flag=True, help="Print CSV, one line per image.")
def predict(run: Path, files: tuple[str, ...], as_json: bool, as_csv: bool, **options: Any) -> None:
    """Classify new images with a fitted run.

    RUN is a run (its name, `latest`, its id or its directory) or a file written by `featkit
    export`. FILE is an image, a folder of images, which may be in subfolders, or - to read paths
    from standard input. Prints one line per image.
    """
    from featkit import api
    from featkit.runs.predict import image_names, predictions_csv

    if as_json and as_csv:
        raise click.UsageError("give either --json or --csv")
    names = image_names(_expand_stdin(files))
    predictions = api.predict(run, names, progress=interactive(), **options)
    missing = sorted(set(names) - {prediction.path for prediction in predictions})
    if missing:
        note(f"{len(missing)} files skipped: {', '.join(missing)}")
    if as_json:
        print_json([prediction.to_dict() for prediction in predictions])
    elif as_csv:
        print_text(predictions_csv(predictions), end="")
    else:
        print_text(_table(predictions))


def _expand_stdin(files: Sequence[str]) -> list[str]:
    """Return the names of files, with ``-`` replaced by the lines of standard input."""
    names: list[str] = []
    for name in files:
        if name == "-":
            names.extend(line for line in sys.stdin.read().splitlines() if line)
        else:
            names.append(name)
    return names


def _table(predictions: Sequence[Prediction]) -> str:
    """Return one line per image: its class, its confidence, and the two next classes."""
    if predictions and predictions[0].labels is not None:
        return _label_table(predictions)
    rows = []
    for each in predictions:
        answer = f"unknown (perhaps {each.predicted})" if each.rejected else each.predicted
        others = list(each.top[1:3])
        if each.probabilities:
            others = sorted(each.probabilities.items(), key=lambda pair: -pair[1])[1:]
        rest = ", ".join(f"{name} {_percent(value)}" for name, value in others)
        rows.append([each.path, answer, _percent(each.confidence), rest])
    return table(["path", "predicted", "confidence", "next"], rows, right=("confidence",))


def _label_table(predictions: Sequence[Prediction]) -> str:
    """Return one line per image: its labels, and the most probable others."""
    rows = []
    for each in predictions:
        found = [f"{name} {_percent(each.probabilities[name])}" for name in each.labels or ()]
        others = [pair for pair in each.top if pair[0] not in (each.labels or ())][:2]
        rest = ", ".join(f"{name} {_percent(value)}" for name, value in others)
        rows.append([each.path, ", ".join(found) or "(none)", rest])
    return table(["path", "labels", "next"], rows)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
