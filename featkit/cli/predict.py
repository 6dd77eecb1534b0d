"""`featkit predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from featkit.cli.options import compute_options, json_option, make_compute, note, table

EPILOG = """\b
Examples:
  featkit predict experiments/photos/0123456789ab new.jpg other.png
  featkit predict experiments/photos/0123456789ab --json *.jpg
"""


@click.command(epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@compute_options
@json_option
def predict(run: Path, files: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Classify pictures with a run.

    Prints the five most probable classes of each FILE, by the run in directory RUN.
    """
    from featkit.studies.predict import predict as classify
    from featkit.studies.rundir import load_run

    found = classify(load_run(run), list(files), make_compute(options))
    missing = sorted(set(files) - {prediction.file for prediction in found})
    if missing:
        note(f"{len(missing)} files left out: {', '.join(missing)}")
    if as_json:
        click.echo(json.dumps([prediction.to_dict() for prediction in found], indent=2))
        return
    rows = [
        [prediction.file if place == 0 else "", name, f"{100 * probability:.1f} %"]
        for prediction in found
        for place, (name, probability) in enumerate(prediction.top)
    ]
    click.echo(table(["file", "class", "probability"], rows, right=("probability",)))
