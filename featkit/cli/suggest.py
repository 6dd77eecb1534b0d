"""``featkit suggest``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.arguments import MAX_SEED
from featkit.cli.options import (
    UserPath,
    cache_option,
    command,
    compute_options,
    integers,
    json_option,
    option,
    out_option,
)
from featkit.cli.output import interactive, print_json, print_text, table

if TYPE_CHECKING:
    from featkit.studies.suggest import Suggestions

EPILOG = """\b
Examples:
  featkit suggest latest unlabelled
  featkit suggest latest unlabelled --n 50 --out .
  featkit suggest latest unlabelled --on-error skip --json

\b
Among the images with the smallest margin between the two most probable classes (Settles 2009), one
image is chosen from each group of similar ones (k-means, Zhdanov 2019).
"""


@command(epilog=EPILOG)
@click.argument("run", type=UserPath())
@click.argument("images", nargs=-1, required=True, metavar="FOLDER...")
@option("--n", group="Report", type=integers(1), default=100, help="Number of images to suggest.")
@option(
    "--top", group="Report", type=integers(0), default=10, help="Maximum number of images to print."
)
@option(
    "--seed",
    group="Report",
    type=integers(0, MAX_SEED),
    default=0,
    help="Random seed of the selection.",
)
@cache_option
@compute_options
@out_option
@json_option
def suggest(run: Path, images: tuple[str, ...], top: int, as_json: bool, **options: Any) -> None:
    """Suggest which unlabelled images to label next.

    RUN is a run (its name, `latest`, its id or its directory), FOLDER holds unlabelled images;
    image files may be given too. Suggests images that the classifier is least certain about and
    that differ from each other. Images of the run's own data and identical copies are left out and
    counted. Writes suggest-<folder>/ with suggestions.csv and contact.png.
    """
    from featkit import api

    found = api.suggest(run, list(images), progress=interactive(), **options)
    if as_json:
        print_json(found.to_dict())
    else:
        print_text(_text(found, top))


def _text(found: Suggestions, top: int) -> str:
    """Return the number of suggestions, and a table of the first ones."""
    parts = [f"{len(found.images)} images to label next, of {found.pool} unlabelled images"]
    header = ["rank", "image", "class", "confidence", "second class", "confidence ", "margin"]
    rows = []
    for each in found.images[:top]:
        first, second = f"{100 * each.confidence:.1f} %", f"{100 * each.confidence2:.1f} %"
        margin = f"{each.margin:.3f}"
        rows.append([each.rank, each.path, each.predicted, first, each.top2, second, margin])
    if rows:
        parts.append(table(header, rows, right=("rank", "confidence", "confidence ", "margin")))
    if len(found.images) > len(rows) > 0:
        parts.append(f"... and {len(found.images) - len(rows)} more in suggestions.csv")
    return "\n\n".join(parts)
