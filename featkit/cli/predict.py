"""``featkit predict``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import UserPath, command, compute_options, json_option, option
from featkit.cli.output import interactive, note, print_json, print_text, table

if TYPE_CHECKING:
    from featkit.runs.predict import Prediction

EPILOG = """\b
Examples:
  featkit predict experiments/runs/photos/0123456789ab new.jpg other.png
  featkit predict experiments/runs/photos/0123456789ab holiday --csv
  featkit predict model.onnx new.jpg
  find . -name '*.jpg' | featkit predict experiments/runs/photos/0123456789ab - --json
"""


@command(epilog=EPILOG)
@click.argument("run", type=UserPath())
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@compute_options
@json_option
@option("--csv", "as_csv", group="Output", is_flag=True, help="Print CSV, one line per image.")
def predict(run: Path, files: tuple[str, ...], as_json: bool, as_csv: bool, **options: Any) -> None:
    """Classify new images with a fitted run.

    RUN is a run directory or a file written by `featkit export`. FILE is an image, a folder of
    images, or - to read paths from standard input. Prints the five most probable classes of each
    image.
    """
    from featkit import api

    if as_json and as_csv:
        raise click.UsageError("give either --json or --csv")
    names = api.image_names(_expand_stdin(files))
    predictions = api.predict(run, names, progress=interactive(), **options)
    missing = sorted(set(names) - {prediction.file for prediction in predictions})
    if missing:
        note(f"{len(missing)} files skipped: {', '.join(missing)}")
    if as_json:
        print_json([prediction.to_dict() for prediction in predictions])
    elif as_csv:
        print_text(_csv(predictions), end="")
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
    rows = []
    for prediction in predictions:
        file = prediction.file
        for place, (name, probability) in enumerate(prediction.top):
            if prediction.unknown and place == 0:
                name = f"unknown (perhaps {name})"
            rows.append([file, name, f"{100 * probability:.1f} %"])
            file = ""  # printed once
    return table(["file", "class", "probability"], rows, right=("probability",))


def _csv(predictions: Sequence[Prediction]) -> str:
    from featkit.storage import csv_text

    rows = []
    for prediction in predictions:
        name, probability = prediction.top[0]
        rows.append(
            {
                "file": prediction.file,
                "class": prediction.answer,
                "probability": f"{probability:.6f}",
                "most_probable": name,
            }
        )
    return csv_text(rows, ["file", "class", "probability", "most_probable"])
