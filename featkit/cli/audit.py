"""`featkit audit`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import command, given_request, make_compute, option, study_options
from featkit.cli.output import note, table

if TYPE_CHECKING:
    from featkit.images.base import ImageSet
    from featkit.plots.contact import Section
    from featkit.runs.features import FeatureSet
    from featkit.studies.audit import AuditResult, Finding

EPILOG = """\b
Examples:
  featkit audit --data photos
  featkit audit --data photos --backbone resnet50 --top 30
  featkit audit --data photos --strict
  featkit audit --cache cache/photos-resnet50-0123456789ab.h5 --json

\b
Without --data or --backbone, the newest cache file that matches the other options is used.
"""

_SHEET = 50


@command(epilog=EPILOG)
@option(
    "--few",
    group="Report",
    type=click.IntRange(min=1),
    default=20,
    help="Report classes with fewer train images than this.",
)
@option(
    "--top",
    group="Report",
    type=click.IntRange(min=0),
    default=10,
    help="Findings of each kind to print.",
)
@option(
    "--strict",
    group="Report",
    is_flag=True,
    help="Exit with code 1 if an image is in both train and test.",
)
@study_options
def audit(cache: Path, out: Path, as_json: bool, *, few: int, top: int, strict: bool, **options: Any) -> None:
    """Find duplicates, label errors and small classes.

    Reports identical images, near duplicates, labels that contradict both the nearest neighbours and
    a cross-validated head, and classes with few images, in all splits. The data set is not changed.
    Writes audit-<data>/ with audit.json, findings.csv and contact.png.
    """
    from featkit.errors import DataError
    from featkit.runs.features import load_features
    from featkit.storage import publish, safe_name
    from featkit.studies.audit import audit as run_audit

    compute = make_compute(options)
    source = load_features(given_request(options), cache, compute)
    for line in source.notes:
        note(line)
    note(f"vectors: {source.path}, weights: {source.weights}")
    done = run_audit(source, few=few, progress=compute.progress)
    for line in done.notes:
        note(f"warning: {line}")
    text = json.dumps(done.to_dict(), indent=2, allow_nan=False)
    directory = out / f"audit-{safe_name(done.data)}"
    publish(directory, {"audit.json": text, "findings.csv": done.to_csv(), **_sheet(done, source)})
    click.echo(text if as_json else _text(done, done.findings(), top))
    note(f"audit: {directory}")
    if strict and len(done.leaks):
        raise DataError(
            f"{len(done.leaks)} test images are in train too, {_safe(done.embeddings.ids[done.leaks[0]])} for one: "
            "remove them from one of the two"
        )


def _safe(text: str) -> str:
    """Return a name with what a terminal might obey written as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _text(done: AuditResult, found: dict[str, list[Finding]], top: int) -> str:
    """Write the counts, then the first findings of each kind."""
    rows = [
        [_TITLES[kind], count["found"], count.get("across_splits", ""), count.get("labels_differ", "")]
        for kind, count in done.counts().items()
    ]
    header = ["finding", "found", "across splits", "labels differ"]
    parts = [
        f"{_safe(done.data)}: {len(done.embeddings)} images, {len(done.embeddings.classes)} classes",
        table(header, rows, right=tuple(header[1:])),
        f"{_threshold(done)}\nA small class has fewer than {done.few} train images, or none in test.",
    ]
    for kind, lines in found.items():
        if lines and top:
            more = f"\n... and {len(lines) - top} more in findings.csv" if len(lines) > top else ""
            shown = [[_safe(str(cell)) for cell in _CELLS[kind](line)] for line in lines[:top]]
            parts.append(f"{_TITLES[kind]}\n{table(_HEADERS[kind], shown)}{more}")
    return "\n\n".join(parts)


def _threshold(done: AuditResult) -> str:
    """Say when two images are near duplicates."""
    near = done.near
    if not near.ratio:
        return "No threshold for near duplicates follows from these vectors: they are too few, or too much alike."
    return (
        f"Near duplicates are closer than {near.ratio:.2f} of the distance to the {near.k}th neighbour, as by chance "
        f"about one of all these images is;\nas a cosine: over {near.cosine:.3f} for the median image."
    )


_TITLES = {
    "identical": "identical images",
    "near": "near duplicates",
    "suspect": "suspect labels",
    "small": "small classes",
}
_HEADERS = {
    "identical": ["image", "class", "same as", "class "],
    "near": ["cosine", "image", "class", "nearly", "class "],
    "suspect": ["odds", "image", "class", "suggested"],
    "small": ["class", "train images"],
}
_CELLS: dict[str, Callable[[Finding], list[Any]]] = {
    "identical": lambda line: _pair(line),
    "near": lambda line: [f"{line.score:.3f}", *_pair(line)],
    "suspect": lambda line: [_odds(line.score), _where(line.image, line.split), line.label, line.other_label],
    "small": lambda line: [line.label, f"{line.score:.0f}"],
}


def _pair(line: Finding) -> list[str]:
    return [_where(line.image, line.split), line.label, _where(line.other, line.other_split), line.other_label]


def _where(image: str, split: str) -> str:
    return f"{image} ({split})"


def _odds(odds: float) -> str:
    return f"{odds:.0f} : 1" if odds >= 10 else f"{odds:.1f} : 1"


def _sheet(done: AuditResult, source: FeatureSet) -> dict[str, bytes]:
    """Draw the contact sheet, unless the images are gone."""
    from featkit.errors import FeatkitError
    from featkit.plots.contact import plot_contact
    from featkit.plots.files import png_bytes

    try:
        sections = _sections(done, source.request.load_images())
    except FeatkitError as error:
        note(f"no contact.png: {error}")
        return {}
    return {"contact.png": png_bytes(plot_contact(sections, title=f"Audit of {done.data}"))}


def _sections(done: AuditResult, images: ImageSet) -> list[Section]:
    from featkit.errors import DataError
    from featkit.plots.contact import Section, Tile, thumbnail

    found = done.findings()
    places = {name: row for row, name in enumerate(images.ids)}
    if not places.keys() >= set(done.embeddings.ids):
        raise DataError(f"{done.data} has changed since the vectors were made: extract again")

    def tile(line: Finding, text: tuple[str, ...]) -> Tile:
        names = [name for name in (line.image, line.other) if name]
        return Tile(tuple(thumbnail(images.load(places[name])) for name in names), text)

    suspect = [
        tile(line, (f"{line.label} →", f"{line.other_label}?", _odds(line.score), line.image))
        for line in found["suspect"][:_SHEET]
    ]
    groups = _first_of_groups(found["near"])
    near = [tile(line, _near_lines(line, more)) for line, more in groups[:_SHEET]]
    return [
        Section(f"Suspect labels, the surest {len(suspect)} of {len(found['suspect'])}: given → suggested", suspect),
        Section(f"Near duplicates, the surest pair of {len(near)} of {len(groups)} groups", near),
    ]


def _first_of_groups(lines: list[Finding]) -> list[tuple[Finding, int]]:
    """Return the first line of each group, and how many other pairs the group has."""
    sizes = Counter(line.group for line in lines)
    first = {line.group: line for line in reversed(lines)}
    return [(line, sizes[line.group] - 1) for line in lines if line is first[line.group]]


def _near_lines(line: Finding, more: int) -> tuple[str, ...]:
    """Say what is said of a pair; what is the same of both is said once."""
    labels = " ≠ ".join(dict.fromkeys([line.label, line.other_label]))
    others = f", {more} more like it" if more else ""
    return labels, f"cosine {line.score:.3f}{others}", line.image, line.other
