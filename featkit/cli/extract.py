"""``featkit extract``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featkit.cli.options import (
    BACKBONE_HELP,
    cache_option,
    cluster_option,
    command,
    compute_options,
    data_options,
    layers_option,
    network_options,
    option,
    rehash_option,
    store_option,
)
from featkit.cli.output import interactive, note, print_line, size
from featkit.errors import OptionsError

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
  featkit extract --data photos --backbone resnet50 --shard 17/1000
  featkit extract --data photos --backbone resnet50 --cluster local:8
  featkit extract --data photos --backbone resnet50 --cluster tcp://head-node:8786
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
@rehash_option
@cluster_option
@store_option
@option(
    "--explain",
    group="Output",
    is_flag=True,
    help="Only report whether these features are in the cache, and if not, why.",
)
@option(
    "--shard",
    group="Compute",
    metavar="I/N",
    help="Extract only part I of N, such as 17/1000; `featkit cache merge` joins all parts.",
    show_default="all images",
)
def extract(
    backbone: tuple[str, ...],
    layer: tuple[str, ...],
    explain: bool,
    shard: str | None,
    **options: Any,
) -> None:
    """Extract features of images into the embeddings cache.

    Prints the path of the HDF5 file. A fingerprint of images, network, weights and preprocessing
    identifies the file; features that are in the cache are not computed again. Interrupted
    extractions resume.
    """
    from featkit import api

    options["progress"] = interactive()
    if explain and shard is not None:
        raise OptionsError("--explain and --shard exclude each other: leave one out")
    if explain:
        for line in api.explain_cache(backbone, layer, **options):
            print_line(line)
        return
    if shard is not None:
        _extract_shard(shard, backbone, layer, options)
        return
    for result in api.extract_files(backbone, layer, **options):
        note(_summary(result))
        if options["store"]:
            note(_storage(result))
        print_line(result.path)


def _storage(result: ExtractionResult) -> str:
    """Return a line about the size of the file and the rounding of the storage format."""
    from featkit.embeddings.store import describe

    entry = describe(result.path)
    plain = size(4 * entry.rows * entry.width)
    return (
        f"{size(entry.size)} on disk, {plain} as plain float32; "
        f"rounding error at most {entry.rounding:.1e} of the largest value"
    )


def _extract_shard(
    shard: str, backbone: Sequence[str], layer: Sequence[str], options: dict[str, Any]
) -> None:
    """Extract one part of the images and print the paths of its files.

    Raises:
        OptionsError: if a cluster is given, which divides the images by itself.
    """
    from featkit import api

    if options.pop("cluster") is not None:
        raise OptionsError("--shard and --cluster exclude each other: leave one out")
    for part in api.extract_shard(shard, backbone, layer, **options):
        if part is None:
            note(f"no image is in shard {shard}")
        else:
            note(_summary(part))
            print_line(part.path)


def _summary(result: ExtractionResult) -> str:
    """Return a line about what was computed and what was found in the cache."""
    skipped = ""
    if result.skipped:
        skipped = f"; {len(result.skipped)} images skipped: {', '.join(result.skipped)}"
    if result.hit:
        return f"cache hit{skipped}"
    counts = {**(result.changes or {"embedded": result.embedded}), "reused": result.reused}
    text = ", ".join(f"{number:,} {name}" for name, number in counts.items())
    resumed = f", {result.resumed:,} resumed from an interrupted run" if result.resumed else ""
    return f"{text}{resumed}{skipped}; weights {result.weights}, {result.precision}"
