"""`featkit predict`."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import command, compute_options, json_option, make_compute, option
from featkit.cli.output import note, table

if TYPE_CHECKING:
    from featkit.embeddings.pipeline import Compute
    from featkit.runs.predict import Prediction

EPILOG = """\b
Examples:
  featkit predict experiments/runs/photos/0123456789ab new.jpg other.png
  featkit predict experiments/runs/photos/0123456789ab holiday --csv
  featkit predict model.onnx new.jpg
  find . -name '*.jpg' | featkit predict experiments/runs/photos/0123456789ab - --json
"""


@command(epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@compute_options
@json_option
@option("--csv", "as_csv", group="Output", is_flag=True, help="Print CSV, one line per image.")
def predict(run: Path, files: tuple[str, ...], as_json: bool, as_csv: bool, **options: Any) -> None:
    """Classify new images with a run.

    RUN is a run directory or a file written by `featkit export`. FILE is an image, a folder of
    images, or - to read names from standard input. Prints the five most probable classes of each.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    pictures = _pictures(files)
    found = _classify(run, pictures, make_compute(options))
    missing = sorted(set(pictures) - {prediction.file for prediction in found})
    if missing:
        note(f"{len(missing)} files left out: {', '.join(missing)}")
    if as_json:
        click.echo(json.dumps([prediction.to_dict() for prediction in found], indent=2))
    else:
        click.echo(_csv(found) if as_csv else _table(found), nl=not as_csv)


def _classify(run: Path, pictures: list[str], compute: Compute) -> list[Prediction]:
    from featkit.runs.predict import predict, predict_exported

    if run.suffix == ".onnx":
        from featkit.compression.onnx_reader import load_exported

        return predict_exported(load_exported(run), pictures, compute)
    from featkit.runs.directory import load_run

    return predict(load_run(run), pictures, compute)


def _pictures(names: tuple[str, ...]) -> list[str]:
    """Return the names of picture files, folders and standard input spelt out."""
    from featkit.errors import DataError
    from featkit.images.files import list_image_files

    found: list[str] = []
    for name in names:
        if name == "-":
            found += [line for line in sys.stdin.read().splitlines() if line]
        else:
            found += list_image_files(Path(name)) if Path(name).is_dir() else [name]
    if not found:
        raise DataError("no picture was named: standard input is empty")
    return found


def _table(found: list[Prediction]) -> str:
    rows = [
        [prediction.file if place == 0 else "", name, f"{100 * probability:.1f} %"]
        for prediction in found
        for place, (name, probability) in enumerate(_shown(prediction))
    ]
    return table(["file", "class", "probability"], rows, right=("probability",))


def _shown(prediction: Prediction) -> list[tuple[str, float]]:
    if not prediction.unknown:
        return list(prediction.top)
    return [(f"unknown (perhaps {prediction.top[0][0]})", prediction.top[0][1]), *prediction.top[1:]]


def _csv(found: list[Prediction]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["file", "class", "probability", "most_probable"])
    for prediction in found:
        name, probability = prediction.top[0]
        writer.writerow([prediction.file, prediction.answer, f"{probability:.6f}", name])
    return out.getvalue()
