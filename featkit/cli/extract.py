"""`featkit extract`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import (
    BACKBONE_HELP,
    cache_option,
    command,
    compute_options,
    data_options,
    given_request,
    layers_option,
    make_compute,
    network_options,
    option,
)
from featkit.cli.output import note, size

if TYPE_CHECKING:
    from featkit.embeddings.extract import ExtractionResult

EPILOG = """\b
Examples:
  featkit extract --data photos --backbone resnet50
  featkit extract --data photos --backbone resnet18 --backbone resnet50
  featkit extract --data labels.csv --resize 224x224 --on-error skip
  featkit extract --data cifar10:root=data,download=true --limit train=5000,test=1000
  featkit extract --backbone resnet18 --weights random --layer layer3
  featkit extract --data photos --layer layer3 --layer avgpool --precision int8
  featkit extract --data photos --augment trivial --views 8 --store float16
  featkit extract --data photos --backbone resnet50 --explain
"""


@command(epilog=EPILOG)
@data_options
@option(
    "--backbone",
    group="Backbone",
    multiple=True,
    metavar="SPEC",
    help=f"{BACKBONE_HELP} Repeatable: each image is read once.",
    show_default="resnet18",
)
@network_options
@layers_option
@cache_option
@compute_options
@option(
    "--store",
    group="Output",
    metavar="FORMAT",
    help="float32 or float16, gzip or zstd compression, or both: float16,zstd.",
    show_default="float32",
)
@option(
    "--explain",
    group="Output",
    is_flag=True,
    help="Only report whether the cache has these features, and if not, why.",
)
def extract(cache: Path, explain: bool, **options: Any) -> None:
    """Extract features of images into the embeddings cache.

    Prints the path of the HDF5 file. Features that are cached already, identified by the fingerprint
    of images, network, weights and preprocessing, are not computed again; an interrupted extraction
    resumes.
    """
    from featkit.embeddings.extract import Extractor
    from featkit.embeddings.request import Request
    from featkit.embeddings.verify import explain as explain_plan

    chosen = {name: value for name, value in given_request(options).items() if value is not None}
    backbones = chosen.pop("backbone") or ("resnet18",)
    layers = chosen.pop("layer") or (None,)
    compute = make_compute(options)
    requests = []
    for backbone in backbones:
        for layer in layers:
            request = Request(**chosen, backbone=backbone, layer=layer)
            requests.extend(request.for_device(compute.device).file_requests())
    extractor = Extractor(cache, compute, note)
    images = extractor.plan(requests[0]).images
    note(f"{images.name}: {len(images)} images, {len(images.classes)} classes, split {images.split}")
    if explain:
        for request in requests:
            click.echo(explain_plan(extractor.plan(request)))
        return
    for done in extractor.extract(requests):
        note(_summary(done))
        if "store" in chosen:
            note(_stored(done))
        click.echo(done.path)


def _stored(done: ExtractionResult) -> str:
    """Say in one line what the way of storing gains and loses."""
    from featkit.embeddings.store import describe

    entry = describe(done.path)
    plain = size(4 * entry.rows * entry.width)
    error = f"at most {entry.rounding:.1e} of the largest number"
    return f"{size(entry.size)} on disk for {plain} of float32; rounding: {error}"


def _summary(done: ExtractionResult) -> str:
    """Say in one line what an extraction came to."""
    left_out = f"; {len(done.skipped)} images left out: {', '.join(done.skipped)}" if done.skipped else ""
    if done.hit:
        return f"already in the cache{left_out}"
    since = done.changes or {"embedded": done.embedded}
    counts = ", ".join(f"{number:,} {what}" for what, number in [*since.items(), ("reused", done.reused)])
    resumed = f", {done.resumed:,} taken over from an interrupted run" if done.resumed else ""
    return f"{counts}{resumed}{left_out}; weights {done.weights}, {done.precision}"
