"""Decisions about an audited data set, as the page Clean makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featkit.errors import DataError
from featkit.evaluation.compare import PairedComparison, compare
from featkit.evaluation.predictions import Predictions
from featkit.runs.directory import load_run
from featkit.runs.results import read_run
from featkit.storage import (
    csv_text,
    digest,
    locked,
    safe_cell,
    safe_name,
    without_apostrophe,
    write_file,
)
from featkit.studies.audit import AuditResult
from featkit.studies.clean import Decision, read_decisions, suggest_decisions

KIND_NAMES = {
    "labels": "Suspect labels",
    "duplicates": "Identical images",
    "near-duplicates": "Near duplicates",
}
"""Kinds of suggestions with their names on the page."""

_COLUMNS = ("path", "action", "label", "kind", "because")


@dataclass(frozen=True)
class ReviewItem:
    """A suggestion to look at.

    Attributes:
        suggestion: what the audit suggests.
        label: the present class of the image.
        split: its split.
        note: why, in a few words.
        other: name of the image that it duplicates; empty for a suspect label.
    """

    suggestion: Decision
    label: str
    split: str
    note: str
    other: str = ""

    @property
    def path(self) -> str:
        """Name of the image."""
        return self.suggestion.path


def review_items(result: AuditResult) -> dict[str, list[ReviewItem]]:
    """Return the suggestions of an audit by kind, the most certain first; empty kinds too."""
    embeddings = result.embeddings
    row_of = {name: row for row, name in enumerate(embeddings.ids)}
    findings = result.findings()
    odds = {each.image: each.score for each in findings["suspect"]}
    cosines = {frozenset((each.image, each.other)): each.score for each in findings["near"]}
    items: dict[str, list[ReviewItem]] = {kind: [] for kind in KIND_NAMES}
    seen: set[str] = set()
    for suggestion in suggest_decisions(result):
        name, other = suggestion.path, suggestion.because
        if suggestion.action == "drop" and name in seen:  # near duplicates include identical ones
            continue
        if suggestion.action == "drop":
            seen.add(name)
        row = row_of[name]
        label, split = embeddings.classes[embeddings.y[row]], str(embeddings.splits[row])
        note = _note(suggestion, odds, cosines)
        items[suggestion.kind].append(ReviewItem(suggestion, label, split, note, other))
    return items


def _note(
    suggestion: Decision, odds: Mapping[str, float], cosines: Mapping[frozenset[str], float]
) -> str:
    if suggestion.kind == "labels":
        found = odds.get(suggestion.path)
        return "a copy of a suspect image" if found is None else f"odds {found:.0f} to 1"
    if suggestion.kind == "duplicates":
        return "byte for byte the same image"
    cosine = cosines.get(frozenset((suggestion.path, suggestion.because)))
    return "near duplicate" if cosine is None else f"cosine similarity {cosine:.3f}"


class DecisionBook:
    """Decisions about one data set, kept in a file so that a reload loses nothing.

    Args:
        out: folder for results.
        spec: spec of the images.
    """

    def __init__(self, out: Path, spec: str) -> None:
        name = f"{safe_name(Path(spec).name)}-{digest([spec])[:8]}"
        self._path = out / ".app" / f"decisions-{name}.csv"
        self.list_file = out / f"clean-{name}.csv"

    def read(self) -> dict[str, Decision]:
        """Return the decisions by image.

        Raises:
            DataError: if the file was damaged.
        """
        if not self._path.exists():
            return {}
        known = {}
        for decision in read_decisions(self._path):
            path = without_apostrophe(decision.path)
            known[path] = replace(decision, path=path)
        return known

    def decide(self, decisions: Sequence[Decision]) -> None:
        """Add decisions, in the place of earlier ones about the same images.

        Raises:
            StorageError: if the disk is full.
        """
        with self._changing() as known:
            for decision in decisions:
                known[decision.path] = decision

    def forget(self, names: Sequence[str]) -> None:
        """Remove the decisions about some images."""
        with self._changing() as known:
            for name in names:
                known.pop(name, None)

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Decision]]:
        """Yield the decisions, which are written when the block ends; two pages take turns."""
        with locked(self._path.with_suffix(".lock"), on_wait=lambda owner: None):
            known = self.read()
            yield known
            rows = [decision.to_dict() for decision in known.values()]
            write_file(self._path, csv_text(rows, _COLUMNS))


def compare_on_same_images(before: Path, after: Path) -> PairedComparison:
    """Compare a run on cleaned data with one on the original data, on the test images of both.

    Images are the same if their files are. Where their classes differ, the cleaned one counts.

    Args:
        before: the run on the original data.
        after: the run on the cleaned data.

    Raises:
        RunError: if a run was changed.
        DataError: if the runs have no test image in common.
    """
    old, new = _test_predictions(before), _test_predictions(after)
    common = [file for file in new if file in old]
    if not common:
        raise DataError(f"{before} and {after} have no test image in common: train both again")
    y = np.array([new[file][0] for file in common])
    tables = {}
    for name, found in (("cleaned data", new), ("original data", old)):
        predicted = np.array([found[file][1] for file in common])
        tables[name] = Predictions(common, y, predicted)
    return compare(tables)[0]


def _test_predictions(run: Path) -> dict[str, tuple[str, str]]:
    """Return true and predicted class of each test image, by the resolved path of its file."""
    _, _, predictions = read_run(run)
    images = load_run(run).load_images()
    if not images.files:
        raise DataError(f"the images of {run} are not single files and cannot be compared")
    file_of = {
        str(safe_cell(name)): str(Path(file).resolve())
        for name, file in zip(images.ids, images.files, strict=True)
    }
    found = {}
    rows = zip(predictions.ids, predictions.y, predictions.predicted, strict=True)
    for name, true, predicted in rows:
        if name in file_of:
            found[file_of[name]] = (str(true), str(predicted))
    return found
