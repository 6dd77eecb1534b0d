"""``featkit plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featkit.cli.options import cache_option, command, compute_options, option
from featkit.cli.output import interactive, print_line

HELP = """Draw one picture of a run, a network, a study or an image.

KIND is one of these, explained by --help-all:

\b
  run      projection, confusion, reliability, mistakes, curves,
           learning-curve, cam, neighbours
  network  filters, feature-maps
  study    pareto, learning-curve
  image    perturbations

TARGET is what it shows: a run (its name, `latest`, its id or its directory), a network, the
folder of a study, or an image. IMAGES are image files or folders.
"""

EPILOG = """\b
Kinds for a run:
  projection     features of the test images in two dimensions
  confusion      confusion matrix
  reliability    reliability diagram
  mistakes       the most confident mistakes with class activation maps
  curves         loss and accuracy by epoch of a trained network
  learning-curve test accuracy of the head over the number of training images
  cam            class activation maps of IMAGES, with deletion and insertion scores
  neighbours     the training images most similar to IMAGES
Kinds for a network (its name, or a run):
  filters        kernels of the first convolution
  feature-maps   channels after each stage, for the first of IMAGES
Kinds for the folder of a study:
  pareto         accuracy over latency of the networks of `featkit profile`
  learning-curve that of `featkit fewshot --curve`
Kinds for an image:
  perturbations  the first of IMAGES under every perturbation

\b
Examples:
  featkit plot projection RUN --out map.pdf
  featkit plot projection RUN --method umap --colour error --out errors.png
  featkit plot cam RUN cat.jpg dog.jpg --label cat --out cam.png
  featkit plot neighbours RUN new.jpg --count 8 --out similar.png
  featkit plot confusion RUN --style paper --out confusion.pdf
  featkit plot pareto experiments/runs/profile/0123456789ab
  featkit plot filters resnet50 --out filters.svg
  featkit plot perturbations cat.jpg --out perturbations.png
"""


@command(help=HELP, epilog=EPILOG)
@click.argument("kind")
@click.argument("target", required=False)
@click.argument("images", nargs=-1)
@option(
    "--out",
    group="Output",
    type=click.Path(path_type=Path),
    help="File to write, ending in .png, .svg or .pdf; the numbers are written beside it as CSV.",
    show_default="KIND.png",
)
@option("--dpi", group="Output", type=click.IntRange(30, 1200), default=150, help="Dots per inch.")
@option(
    "--style",
    group="Output",
    type=click.Choice(["screen", "paper"]),
    default="screen",
    help="Style for a screen or for print; paper: as wide as a column or page of an article, "
    "8-point text, no title.",
)
@option(
    "--method",
    group="Report",
    type=click.Choice(["tsne", "pca", "opentsne", "umap"]),
    default="tsne",
    help="Method of projection; opentsne and umap need the extra projection.",
)
@option(
    "--colour",
    group="Report",
    type=click.Choice(["class", "prediction", "error"]),
    default="class",
    help="What the colours of projection show.",
)
@option("--thumbnails", group="Report", is_flag=True, help="Draw images in projection.")
@option(
    "--label", group="Report", help="Class that cam explains.", show_default="the predicted class"
)
@option(
    "--count",
    group="Report",
    type=click.IntRange(min=1),
    help="Number of mistakes, or of similar images.",
    show_default="25 mistakes, 5 similar images",
)
@option(
    "--seed",
    group="Report",
    type=int,
    default=0,
    help="Seed of projection, perturbations and learning-curve.",
)
@option(
    "--weights",
    group="Backbone",
    metavar="SPEC",
    help="Weights of a network given by name: imagenet, random or a file.",
    show_default="imagenet",
)
@cache_option
@compute_options
def plot(
    kind: str, target: str | None, images: tuple[str, ...], out: Path | None, **options: Any
) -> None:
    """Draw one picture; ``HELP`` is the text for users."""
    from featkit import api

    files = list(images)
    if kind == "perturbations" and target is not None:
        files, target = [target, *files], None
    path = out if out is not None else Path(f"{kind}.png")
    api.plot(kind, target, files, out=path, progress=interactive(), **options)
    print_line(path)
