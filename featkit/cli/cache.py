"""`featkit cache ls|show|verify|merge|export|import|gc|rm`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from featkit.cli.options import Command, UserPath, cache_option, json_option, option
from featkit.cli.output import (
    age,
    interactive,
    note,
    print_json,
    print_line,
    print_text,
    size,
    table,
)
from featkit.errors import CacheError, OptionsError

EPILOG = """\b
Examples:
  featkit cache ls
  featkit cache show cache/digits-resnet18-0123456789ab.h5
  featkit cache verify
  featkit cache merge
  featkit cache merge --virtual
  featkit cache export cache/digits-resnet18-0123456789ab.h5 digits.npz
  featkit cache import features.csv
  featkit cache gc
  featkit cache rm cache/digits-resnet18-0123456789ab.h5
"""


@click.group(epilog=EPILOG)
def cache() -> None:
    """List, verify, export and remove cached features."""


@cache.command("ls", cls=Command)
@cache_option
@json_option
def list_files(cache: Path, as_json: bool) -> None:
    """List the embeddings files, newest first."""
    from featkit.embeddings.store import entries

    _check_folder(cache)
    good, bad = entries(cache)
    for error in bad:
        note(f"warning: {error}")
    if as_json:
        lines = [
            {"path": str(e.path), "rows": e.rows, "width": e.width, "bytes": e.size} for e in good
        ]
        print_json(lines)
        return
    rows = [
        [e.path.name, e.rows, e.width, size(e.size), age(e.modified), e.provenance["weights"]]
        for e in good
    ]
    print_text(
        table(
            ["file", "rows", "width", "size", "age", "weights"],
            rows,
            right=("rows", "width", "size", "age"),
        )
    )


@cache.command("show", cls=Command)
@click.argument("file", type=UserPath())
def show(file: Path) -> None:
    """Print recipe and provenance of an embeddings file as JSON."""
    from featkit.embeddings.store import describe

    entry = describe(file)
    found = {
        "path": str(file),
        "rows": entry.rows,
        "width": entry.width,
        "unreadable_images": entry.invalid,
        "bytes": entry.size,
        "rounding": entry.rounding,
        "fingerprint": entry.recipe.fingerprint,
        "recipe": json.loads(entry.recipe.to_json()),
        "provenance": entry.provenance,
    }
    print_json(found)


@cache.command("verify", cls=Command)
@click.argument("files", nargs=-1, type=UserPath(), metavar="[FILE...]")
@cache_option
def verify_files(files: tuple[Path, ...], cache: Path) -> None:
    """Verify files against their recipe and the images on disk.

    Without FILE, verifies all files of the cache. Exit code 1 if a file is damaged or stale.
    """
    from featkit.embeddings.pipeline import Compute
    from featkit.embeddings.verify import verify

    if not files:
        _check_folder(cache)
    problems: list[str] = []
    for file in files or sorted(cache.glob("*.h5")):
        problems.extend(verify(file, Compute()))
    for line in problems:
        print_line(line)
    if problems:
        raise CacheError(f"{len(problems)} problems found: extract these files again")
    note("no problems found")


@cache.command("merge", cls=Command)
@click.argument("files", nargs=-1, type=UserPath(), metavar="[SHARD...]")
@cache_option
@option(
    "--virtual",
    group="Output",
    is_flag=True,
    help="Write a virtual HDF5 file that refers to the features in the shards.",
)
@option(
    "--remove",
    group="Output",
    is_flag=True,
    help="Remove the shards when they are merged.",
)
def merge(files: tuple[Path, ...], cache: Path, virtual: bool, remove: bool) -> None:
    """Merge the shards of `featkit extract --shard` into one embeddings file each.

    Without SHARD, merges every extraction whose shards are in the cache. Each shard is verified.
    The file has the same rows and the same fingerprint as that of an extraction on one machine.
    """
    from featkit.embeddings.shards import find_shards, merge_shards, remove_shards

    if virtual and remove:
        raise OptionsError("--virtual needs the shards: leave out --remove")
    _check_folder(cache)
    groups = [list(files)] if files else find_shards(cache)
    if not groups:
        raise CacheError(
            f"there are no shards in {cache}: make some with `featkit extract --shard`"
        )
    problems = []
    for group in groups:
        try:
            merged = merge_shards(group, cache, virtual=virtual, progress=interactive(), note=note)
        except CacheError as error:  # the others are merged
            problems.append(error)
            continue
        known = "already merged: " if merged.hit else ""
        skipped = f", {merged.invalid:,} unreadable" if merged.invalid else ""
        note(f"{known}{merged.rows:,} images from {len(merged.shards):,} shards{skipped}")
        if remove:
            remove_shards(merged.shards)
        print_line(merged.path)
    for problem in problems[1:]:
        note(f"error: {problem}")
    if problems:
        raise problems[0]


@cache.command("export", cls=Command)
@click.argument("file", type=UserPath())
@click.argument("out", type=UserPath(dir_okay=False))
def export_features(file: Path, out: Path) -> None:
    """Export the features of FILE to OUT: a .csv, .npz or .parquet file.

    CSV and Parquet have columns id, label, split, x0, x1, ...; npz has arrays
    embeddings, labels, ids, splits, classes and recipe.
    """
    from featkit.embeddings.exchange import export_file

    export_file(file, out)
    note(f"wrote {out}, {size(out.stat().st_size)}")


@cache.command("import", cls=Command)
@click.argument("file", type=UserPath())
@cache_option
def import_features(file: Path, cache: Path) -> None:
    """Import features from FILE, in the format of `featkit cache export`.

    Prints the path of the new cache file, for `featkit fit --cache PATH`.
    """
    from featkit.embeddings.exchange import import_file

    print_line(import_file(file, cache))


@cache.command("gc", cls=Command)
@cache_option
def collect(cache: Path) -> None:
    """Remove partial files of interrupted extractions."""
    from featkit.embeddings.verify import collect_garbage

    _check_folder(cache)
    removed, busy = collect_garbage(cache)
    for owner in busy:
        note(f"kept: {owner} is in use")
    for path in removed:
        note(f"removed {path}")


@cache.command("rm", cls=Command)
@click.argument("files", nargs=-1, required=True, type=UserPath(), metavar="FILE...")
def remove(files: tuple[Path, ...]) -> None:
    """Remove embeddings files; they can be extracted again."""
    for file in files:
        if file.suffix != ".h5" or not file.is_file():
            raise CacheError(
                f"{file} is not an embeddings file (*.h5); list them with `featkit cache ls`"
            )
    for file in files:
        file.unlink()
        note(f"removed {file}")


def _check_folder(cache: Path) -> None:
    """Refuse a cache folder that does not exist; the default one may not have been made yet."""
    if cache != Path("cache") and not cache.is_dir():
        raise CacheError(
            f"cache folder {cache} does not exist: correct --cache, or extract features into it "
            "with `featkit extract`"
        )
