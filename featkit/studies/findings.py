"""The findings of an audit as lines, for tables, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.evaluation.audit import connected_groups
from featkit.studies.audit import Audit


@dataclass(frozen=True)
class Finding:
    """One line; what its kind does not have is empty.

    Attributes:
        kind: ``identical``, ``near``, ``suspect`` or ``small``.
        image, split, label: an image, and the class it is said to be of; of a small class, the label alone.
        other, other_split, other_label: the image that it is a copy of, or the class suggested for it.
        group: of copies, which of them are all one picture; -1 for other kinds.
        score: cosine of a near copy, odds of a suggested label, number of training images of a small class.
    """

    kind: str
    image: str
    split: str
    label: str
    other: str
    other_split: str
    other_label: str
    group: int
    score: float


def findings(audit: Audit) -> dict[str, list[Finding]]:
    """Return what was found, by kind, in the order of the audit."""
    classes, suspects = audit.embeddings.classes, audit.suspects
    near = zip(
        audit.near.pairs,
        connected_groups(audit.near.pairs).tolist(),
        audit.near.cosines.tolist(),
        strict=True,
    )
    labels = zip(
        suspects.rows.tolist(), suspects.suggested.tolist(), suspects.odds.tolist(), strict=True
    )
    return {
        "identical": [
            _pair(audit, "identical", np.array([rows[0], row]), group, 1.0)
            for group, rows in enumerate(audit.identical)
            for row in rows[1:]
        ],
        "near": [_pair(audit, "near", pair, group, cosine) for pair, group, cosine in near],
        "suspect": [
            Finding("suspect", *_image(audit, row), "", "", classes[suggested], -1, odds)
            for row, suggested, odds in labels
        ],
        "small": [
            Finding("small", "", "", classes[label], "", "", "", -1, float(audit.sizes[label, 0]))
            for label in audit.small
        ],
    }


def _pair(audit: Audit, kind: str, rows: NDArray[np.int64], group: int, score: float) -> Finding:
    first, second = rows.tolist()
    return Finding(kind, *_image(audit, first), *_image(audit, second), group, score)


def _image(audit: Audit, row: int) -> tuple[str, str, str]:
    embeddings = audit.embeddings
    return embeddings.ids[row], str(embeddings.splits[row]), embeddings.classes[embeddings.y[row]]


def counts(audit: Audit) -> dict[str, dict[str, int]]:
    """Return how many of each kind were found, and how many of these concern two splits, or two labels."""
    return {
        "identical": {"found": len(audit.identical), **_mixed(audit, audit.identical)},
        "near": {"found": len(audit.near.pairs), **_mixed(audit, audit.near.pairs)},
        "suspect": {"found": len(audit.suspects.rows)},
        "small": {"found": len(audit.small)},
    }


def _mixed(audit: Audit, alike: Iterable[NDArray[np.int64]]) -> dict[str, int]:
    alike, y, splits = list(alike), audit.embeddings.y, audit.embeddings.splits
    return {
        "across_splits": sum(len(np.unique(splits[rows])) > 1 for rows in alike),
        "labels_differ": sum(len(np.unique(y[rows])) > 1 for rows in alike),
    }


def to_dict(audit: Audit) -> dict[str, Any]:
    """Return all that was found as JSON can hold it: the same for the same vectors and seed on the same machine."""
    near = audit.near
    return {
        "data": audit.data,
        "images": len(audit.embeddings),
        "counts": counts(audit),
        "in_train_and_test": [audit.embeddings.ids[row] for row in audit.leaks],
        "near_duplicates": {
            "ratio": near.ratio,
            "k": near.k,
            "dimension": near.dimension if math.isfinite(near.dimension) else None,
            "median_cosine_threshold": near.cosine,
        },
        "few": audit.few,
        "notes": list(audit.notes),
        "findings": [asdict(line) for lines in findings(audit).values() for line in lines],
    }


def to_csv(audit: Audit) -> str:
    """Return one line for each finding."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([part.name for part in fields(Finding)])
    writer.writerows(astuple(line) for lines in findings(audit).values() for line in lines)
    return out.getvalue()
