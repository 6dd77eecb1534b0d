"""`featkit extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featkit.cli.options import (
    backbone_options,
    cache_option,
    compute_options,
    data_options,
    given_request,
    make_compute,
    note,
)

EPILOG = """\b
Examples:
  featkit extract --data photos --backbone resnet50
  featkit extract --data labels.csv --resize 224x224 --on-error skip
  featkit extract --data cifar10:root=data,download=true --limit train=5000,test=1000
  featkit extract --backbone resnet18 --weights random --layer layer3
"""


@click.command(epilog=EPILOG)
@data_options
@backbone_options
@cache_option
@compute_options
def extract(cache: Path, **options: Any) -> None:
    """Turn images into vectors, once.

    Prints the path of the file that holds them. What is in the cache already
    is found by its recipe (images, network, weights, preprocessing) and not made again.
    """
    from featkit.embeddings.extract import run_extraction
    from featkit.embeddings.request import Request

    chosen = {name: value for name, value in given_request(options).items() if value is not None}
    request = Request(**chosen)
    images = request.load_images()
    note(f"{images.name}: {len(images)} images, {len(images.classes)} classes, split {images.split}")
    done = run_extraction(request, images, cache, make_compute(options))
    if done.hit:
        note("already in the cache")
    else:
        note(f"{done.embedded} embedded, {done.reused} reused from other files ({done.weights})")
    if done.skipped:
        note(f"{len(done.skipped)} images left out: {', '.join(done.skipped)}")
    click.echo(done.path)
