"""``featkit report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featkit.cli.options import cache_option, command, compute_options, option
from featkit.cli.output import interactive, print_line

EPILOG = """\b
Examples:
  featkit report latest
  featkit report latest --projection umap --out report.html
"""


@command(epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@option(
    "--out",
    group="Output",
    type=click.Path(path_type=Path),
    help="HTML file to write.",
    show_default="report.html in the run directory",
)
@option(
    "--projection",
    group="Report",
    type=click.Choice(["tsne", "pca", "opentsne", "umap"]),
    default="tsne",
    help="Method of the embedding map; opentsne and umap need the extra projection.",
)
@option(
    "--heat-maps/--no-heat-maps",
    group="Report",
    default=True,
    help="Compute class activation maps of the images shown.",
)
@option("--seed", group="Report", type=int, default=0, help="Seed of the projection.")
@cache_option
@compute_options
def report(run: Path, **options: Any) -> None:
    """Write the report of a run as one HTML page.

    RUN is a run (its name, `latest`, its id or its directory). The page opens from disk without a
    network: accuracy with its interval, mistakes with class activation maps and similar training
    images, the confusion matrix, an interactive embedding map, calibration, the data, and how to
    use and repeat the run. With several labels per image: the mean average precision, the metrics
    and calibration of each label, and the labels that were missed and wrongly added.
    """
    from featkit import api

    print_line(api.report(run, progress=interactive(), **options))
