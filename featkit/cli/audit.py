"""``featkit audit``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import (
    UserPath,
    command,
    feature_options,
    integers,
    json_option,
    option,
)
from featkit.cli.output import interactive, print_json, print_text, table
from featkit.errors import visible

if TYPE_CHECKING:
    from featkit.studies.audit import AuditResult, Finding

EPILOG = """\b
Examples:
  featkit audit --data photos
  featkit audit --data photos --backbone resnet50 --top 30
  featkit audit --data photos --strict
  featkit audit --cache cache/photos-resnet50-0123456789ab.h5 --json
  featkit audit --data photos --decisions decisions.csv --out clean.csv
  featkit audit --data photos --apply labels --apply duplicates --out clean.csv
  featkit fit --data clean.csv

\b
A decisions file is CSV with the columns path,action,label: action is keep, relabel (to the class
label) or drop. The lines of suggestions.csv that you accept are such a file.

\b
Without --data or --backbone, the newest cache file that matches the other options is used.
"""


@command(epilog=EPILOG)
@option(
    "--few",
    group="Report",
    type=integers(1),
    default=20,
    help="Report classes with fewer train images than this number.",
)
@option(
    "--top",
    group="Report",
    type=integers(0),
    default=10,
    help="Maximum number of findings to print of each kind.",
)
@option(
    "--quality/--no-quality",
    group="Report",
    default=True,
    help="Read every image once to find dark, bright and blurred ones, those with little "
    "information, and odd sizes and aspect ratios.",
)
@option(
    "--strict",
    group="Report",
    is_flag=True,
    help="Exit with code 1 if an image is in both train and test.",
)
@feature_options
@option(
    "--out",
    group="Output",
    type=UserPath(),
    default="experiments/runs",
    metavar="DIR|FILE.csv",
    help="Directory for results, or a CSV file that lists the images after --decisions and --apply "
    "(path,label,split,group).",
)
@option(
    "--decisions",
    group="Output",
    type=UserPath(),
    metavar="FILE",
    help="Decisions about images to apply in --out FILE.csv.",
)
@option(
    "--apply",
    group="Output",
    type=click.Choice(["labels", "duplicates", "near-duplicates"]),
    multiple=True,
    help="Accept all suggestions of a kind in --out FILE.csv: suggested labels of train and val "
    "images; one image of each group of identical images, or of near duplicates too. Repeatable.",
)
@json_option
def audit(top: int, strict: bool, as_json: bool, **options: Any) -> None:
    """Find duplicates, label errors, small classes and images of odd quality.

    Reports identical images, near duplicates, labels that contradict both the nearest neighbours
    and a cross-validated head, and classes with few images, in all splits. Writes audit-<data>/
    with audit.json, findings.csv, suggestions.csv and contact.png, or with --out FILE.csv a list
    of the images after decisions and accepted suggestions. Image files are never changed.
    """
    from featkit import api
    from featkit.errors import DataError

    result = api.audit(progress=interactive(), **options)
    if as_json:
        print_json(result.to_dict())
    else:
        in_folder = options["out"].suffix.lower() != ".csv"
        print_text(_text(result, top, " in findings.csv" if in_folder else ""))
    if strict and len(result.leaks):
        first = result.embeddings.ids[result.leaks[0]]
        raise DataError(
            f"{len(result.leaks)} test images are in train too, such as {first}; "
            "remove them from one of the splits"
        )


def _text(result: AuditResult, top: int, where: str) -> str:
    """Return the counts of all kinds of findings, then the first findings of each kind.

    Args:
        result: the audit.
        top: number of findings of each kind.
        where: where the others are, with a space in front; empty if they are not written.
    """
    rows = []
    for kind, count in result.counts().items():
        across, differ = count.get("across_splits", ""), count.get("labels_differ", "")
        rows.append([_TITLES.get(kind, kind), count["found"], across, differ])
    header = ["finding", "found", "across splits", "labels differ"]
    images, classes = len(result.embeddings), len(result.embeddings.classes)
    parts = [
        f"{visible(result.data)}: {images} images, {classes} classes",
        table(header, rows, right=header[1:]),
        f"{_threshold(result)}\n"
        f"A small class has fewer than {result.few} train images, or none in test.",
    ]
    if result.quality is not None:
        parts[-1] += f"\n{result.quality.sentence()}"
    for kind, lines in result.findings().items():
        if not lines or not top:
            continue
        shown = [_cells(kind, finding) for finding in lines[:top]]
        header = _HEADERS.get(kind, _QUALITY_HEADER)
        part = f"{_TITLES.get(kind, kind)}\n{table(header, shown)}"
        if len(lines) > top:
            part += f"\n... and {len(lines) - top} more{where}"
        parts.append(part)
    return "\n\n".join(parts)


def _threshold(result: AuditResult) -> str:
    """Return the definition of near duplicates in this data set."""
    near = result.near
    if not near.ratio:
        return "Near duplicates: no threshold, there are too few features or they are too similar."
    return (
        f"Near duplicates are closer than {near.ratio:.2f} of the distance to the "
        f"{near.k}th neighbour (about one chance match expected in this data set);\n"
        f"for the median image, a cosine above {near.cosine:.3f}."
    )


_TITLES = {
    "identical": "identical images",
    "near": "near duplicates",
    "suspect": "suspect labels",
    "small": "small classes",
}
_HEADERS = {
    "identical": ["image", "class", "same as", "class "],
    "near": ["cosine", "image", "class", "near", "class "],
    "suspect": ["odds", "image", "class", "suggested"],
    "small": ["class", "train images"],
}
_QUALITY_HEADER = ["deviations", "image", "class"]
"""Of the findings about the quality of images."""


def _cells(kind: str, finding: Finding) -> list[str]:
    """Return the cells of a finding in the table of its kind."""
    from featkit.reports.figures import odds_text

    if kind == "small":
        return [finding.label, f"{finding.score:.0f}"]
    image = f"{finding.image} ({finding.split})"
    if kind not in _HEADERS:
        return [f"{finding.score:+.1f}", image, finding.label]
    if kind == "suspect":
        return [odds_text(finding.score), image, finding.label, finding.other_label]
    pair = [image, finding.label, f"{finding.other} ({finding.other_split})", finding.other_label]
    return pair if kind == "identical" else [f"{finding.score:.3f}", *pair]
