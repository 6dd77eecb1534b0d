"""``featkit neighbours``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featkit.cli.options import (
    UserPath,
    cache_option,
    command,
    compute_options,
    integers,
    json_option,
    option,
)
from featkit.cli.output import interactive, print_json, print_text, table

EPILOG = """\b
Examples:
  featkit neighbours latest new.jpg
  featkit neighbours latest new.jpg --k 5 --out similar.png
  featkit neighbours latest holiday --out similar.csv
"""


@command(epilog=EPILOG)
@click.argument("run", type=UserPath())
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@option(
    "--k", group="Report", type=integers(1), default=12, help="Number of similar images to find."
)
@cache_option
@compute_options
@option(
    "--out",
    group="Output",
    type=UserPath(),
    metavar="FILE",
    help="File to write: .csv, or .png, .svg or .pdf for a picture with the CSV beside it.",
    show_default="none",
)
@json_option
@option("--csv", "as_csv", group="Output", is_flag=True, help="Print CSV.")
def neighbours(
    run: Path, images: tuple[str, ...], as_json: bool, as_csv: bool, **options: Any
) -> None:
    """Find the training images of a run that are most similar to given images.

    RUN is a run (its name, `latest`, its id or its directory), IMAGE an image file or a folder of
    images. Similarity is the cosine of the features.
    """
    from featkit import api

    if as_json and as_csv:
        raise click.UsageError("give either --json or --csv")
    similar = api.neighbours(run, list(images), progress=interactive(), **options)
    if as_json:
        print_json(similar.to_dict())
    elif as_csv:
        print_text(similar.to_csv(), end="")
    else:
        rows = []
        for row in similar.rows():
            # The name of a query is printed once.
            name = row["image"] if row["rank"] == 1 else ""
            rows.append([name, row["rank"], f"{row['cosine']:.3f}", row["class"], row["similar"]])
        header = ["image", "rank", "cosine", "class", "similar image"]
        print_text(table(header, rows, right=("rank", "cosine")))
