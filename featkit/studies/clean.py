"""Apply decisions about an audited data set: relabel and drop images, and list the rest as CSV.

Image files are never touched: the result is a list of them that ``--data list.csv`` reads.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError
from featkit.images.augment import is_augmented_view
from featkit.images.base import SPLITS, ImageSet
from featkit.images.names import normal_form
from featkit.images.sources import check_splits
from featkit.registry import unknown
from featkit.similarity import connected_groups
from featkit.storage import (
    csv_text,
    is_formula,
    read_csv,
    resolve_folders,
    safe_cell,
    with_apostrophe,
    without_apostrophe,
    write_csv,
    write_file,
)
from featkit.studies.audit import AuditResult

ACTIONS = ("keep", "relabel", "drop")
KINDS = ("labels", "duplicates", "near-duplicates")
"""Kinds of suggestions; near duplicates include identical images."""

COLUMNS = ("path", "label", "split", "group")
"""Columns of the list of images that is written."""

_KEPT_FIRST = ("test", "val", "train")
"""Of duplicates in several splits the test image is kept, so that the test set stays the same."""


@dataclass(frozen=True)
class Decision:
    """What happens to one image.

    Attributes:
        path: name of the image, as in the findings of the audit.
        action: ``keep``, ``relabel`` or ``drop``.
        label: its new class, of ``relabel``.
        kind: kind of the suggestion that is accepted, one of ``KINDS``; empty for the decision of a
            person.
        because: the other image that it duplicates; empty for other kinds.
    """

    path: str
    action: str
    label: str = ""
    kind: str = ""
    because: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return the fields by name, as columns of a decisions file."""
        return dict(vars(self))


@dataclass(frozen=True)
class CleanData:
    """A data set after decisions were applied.

    Attributes:
        images: the images that are kept, with their new labels, splits and groups.
        decisions: the decisions that were applied, in the order of the data set.
        notes: what a reader must know, one line each.
    """

    images: ImageSet
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of images that are listed, relabelled and dropped."""
        actions = Counter(decision.action for decision in self.decisions)
        return {
            "listed": len(self.images),
            "relabelled": actions["relabel"],
            "dropped": actions["drop"],
        }

    def rows(self, folder: Path) -> list[dict[str, str]]:
        """Return path, label, split and group of each image.

        Args:
            folder: of the CSV file. Paths of images in it or below it are relative to it, those of
                others are absolute; images that were downloaded are listed by their URL.

        Raises:
            DataError: if the name of a file is not UTF-8.
        """
        images, base = self.images, folder.resolve()
        rows = []
        for row, file in enumerate(resolve_folders(map(Path, images.files))):
            rows.append(
                {
                    "path": (images.urls and images.urls[row]) or _listed_path(file, base),
                    "label": images.classes[images.labels[row]],
                    "split": str(images.splits[row]),
                    "group": images.groups[row],
                }
            )
        return rows

    def to_csv(self, folder: Path) -> str:
        """Return the rows as CSV text, see ``rows``.

        Values are those that ``--data`` must find, so invisible characters are not escaped; labels
        and groups that a spreadsheet would take for a formula start with an apostrophe, which
        ``--data`` removes.
        """
        values = []
        for row in self.rows(folder):
            label, group = with_apostrophe(row["label"]), with_apostrophe(row["group"])
            values.append([row["path"], label, row["split"], group])
        out = io.StringIO()
        # Without quotes, csv takes a carriage return for the end of a line.
        quote_all = any("\r" in cell for line in values for cell in line)
        write_csv(out, COLUMNS, values, quote_all=quote_all)
        return out.getvalue()

    def write(self, path: Path) -> None:
        """Write the list of images as a CSV file that ``--data`` reads.

        Raises:
            DataError: if the name of a file is not UTF-8.
            StorageError: if the disk is full or cannot be written.
        """
        write_file(path, self.to_csv(path.parent))


def _listed_path(file: Path, folder: Path) -> str:
    """Return the absolute path of an image as a CSV file in ``folder`` lists it."""
    listed = (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix()
    try:
        listed.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the name of {listed!a} is not UTF-8, so that no CSV file can list it: rename the file"
        ) from error
    # "./" and not an apostrophe: the path must stay that of the file.
    return f"./{listed}" if is_formula(listed) else listed


def check_kinds(kinds: Iterable[str]) -> None:
    """Raise SpecError if a kind of suggestion is unknown."""
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of suggestion", kind, list(KINDS))


# Decisions ----------------------------------------------------------------------------------------


def read_decisions(path: Path) -> list[Decision]:
    """Read a decisions file: CSV with columns ``path,action[,label]``; others are ignored.

    Raises:
        DataError: if it cannot be read, or a column is missing; the message names the line if an
            action is unknown or a label is missing.
    """

    def columns(header: Sequence[str]) -> list[str]:
        names = [normal_form(name).lower() for name in header]
        for name in ("path", "action"):
            if names.count(name) != 1:
                raise DataError(
                    f"{path} has {names.count(name)} columns {name!r}: a decisions file has the "
                    "columns path,action,label"
                )
        return names

    decisions = []
    for line, row in read_csv(path, columns):
        decision = Decision(
            path=row["path"],
            action=row["action"].strip().lower(),
            label=normal_form(without_apostrophe(row.get("label", ""))),
        )
        _check_action(decision, f"line {line} of {path}")
        decisions.append(decision)
    return decisions


def _check_action(decision: Decision, where: str) -> None:
    if decision.action not in ACTIONS:
        raise DataError(f"{where} has the action {decision.action!r}: choose {', '.join(ACTIONS)}")
    if decision.action == "relabel" and not decision.label:
        raise DataError(f"{where} has no label: relabel needs the new class")


def suggest_decisions(result: AuditResult) -> list[Decision]:
    """Return the decisions that the findings of an audit suggest, at most one per image.

    Labels come first, the most certain ones in front, then duplicates and near duplicates.
    They are suggestions: a person should look at them, those for test images in particular.
    """
    found: dict[int, Decision] = {}
    for kind in KINDS:
        found |= _suggestions(result, kind, found)
    return list(found.values())


def suggestions_csv(result: AuditResult) -> str:
    """Return the suggested decisions as a CSV text that ``read_decisions`` reads."""
    split_of = dict(zip(result.embeddings.ids, result.embeddings.splits.tolist(), strict=True))
    rows = []
    for decision in suggest_decisions(result):
        rows.append({**decision.to_dict(), "split": split_of[decision.path]})
    return csv_text(rows, ["path", "action", "label", "kind", "split", "because"])


def _suggestions(
    result: AuditResult, kind: str, decided: Mapping[int, Decision]
) -> dict[int, Decision]:
    """Return the suggested decisions of one kind by row, given those that are made."""
    if kind == "labels":
        return _suggested_labels(result)
    return _suggested_drops(result, kind, decided)


def _suggested_labels(result: AuditResult) -> dict[int, Decision]:
    """Return the suggested classes of suspect images and of their copies with the same label."""
    embeddings, suspects = result.embeddings, result.suspects
    copies = {int(rows[0]): rows for rows in result.identical}
    found: dict[int, Decision] = {}
    for row, suggested in zip(suspects.rows.tolist(), suspects.suggested, strict=True):
        same = copies.get(row, np.array([row]))
        for copy in same[embeddings.y[same] == embeddings.y[row]].tolist():
            label = embeddings.classes[suggested]
            found[copy] = Decision(embeddings.ids[copy], "relabel", label, "labels")
    return found


def _suggested_drops(
    result: AuditResult, kind: str, decided: Mapping[int, Decision]
) -> dict[int, Decision]:
    """Return decisions that keep one image of each group of duplicates, or all that were chosen."""
    names = result.embeddings.ids
    found: dict[int, Decision] = {}
    for group in duplicate_groups(result, near=kind == "near-duplicates"):
        present = [row for row in group if row not in decided or decided[row].action != "drop"]
        chosen = [row for row in present if row in decided and not decided[row].kind]
        kept = chosen or sorted(present, key=lambda row: _keeping_order(result, row))[:1]
        for row in present:
            if row not in kept:
                found[row] = Decision(names[row], "drop", "", kind, because=names[kept[0]])
    return found


def _keeping_order(result: AuditResult, row: int) -> tuple[int, int]:
    return _KEPT_FIRST.index(str(result.embeddings.splits[row])), row


def duplicate_groups(result: AuditResult, *, near: bool) -> list[list[int]]:
    """Return the rows of each group of identical images, ascending.

    Args:
        result: the audit.
        near: whether near duplicates are in one group too; they are, if they are linked by others.
    """
    pairs: list[tuple[int, int]] = []
    for rows in result.identical:
        pairs += [(int(rows[0]), int(row)) for row in rows[1:]]
    if near:
        pairs += [(int(first), int(second)) for first, second in result.near.pairs]
    if not pairs:
        return []
    members: dict[int, set[int]] = {}
    for pair, number in zip(pairs, connected_groups(np.array(pairs)).tolist(), strict=True):
        members.setdefault(number, set()).update(pair)
    return [sorted(rows) for rows in members.values()]


# Applying them ------------------------------------------------------------------------------------


def clean(
    result: AuditResult,
    decisions: Iterable[Decision] = (),
    apply: Sequence[str] = (),
    *,
    images: ImageSet | None = None,
) -> CleanData:
    """Apply decisions, and all suggestions of some kinds, to an audited data set.

    A decision about an image comes before every suggestion for it. Suggested labels are applied to
    train and validation images only: a model must not change the labels that it is evaluated on. Of
    duplicates one image is kept: that of the test split, then of the validation split, then the
    first. Images whose features could not be extracted are left out.

    Args:
        result: the audit.
        decisions: of a person, at most one per image.
        apply: kinds of suggestions to accept, some of ``KINDS``.
        images: the images that were audited; None to look them up.

    Returns:
        The images that are kept. ``group`` is that of the data set if it defines groups, else the
        number of the group of duplicates and near duplicates, all of which are then in the split
        whose images must not be trained on: test, else validation.

    Raises:
        SpecError: if a kind is unknown.
        DataError: if the images are not files or have changed, if a decision names an unknown image
            or class, or one image twice, or if train or test would be empty or have one class.
    """
    check_kinds(apply)
    images = result.request.load_images() if images is None else images
    if not images.files:
        raise DataError(
            f"the images of {result.data} are not single files, so that no CSV file can list them: "
            "use a folder of images or a CSV file"
        )
    places = result.rows_in(images)
    decided = _rows_of_decisions(result, decisions)
    notes: list[str] = []
    for kind in KINDS:
        if kind in apply:
            suggested = _without_decided(_suggestions(result, kind, decided), decided)
            decided |= _applicable(result, kind, suggested, decided, notes)
    dropped = [row for row, decision in decided.items() if decision.action == "drop"]
    kept = np.setdiff1d(np.arange(len(places)), dropped)
    labels = _new_labels(result, decided, images)
    cleaned = replace(images.take(places[kept]), labels=labels[kept], split="own")
    if not images.groups:
        cleaned = replace(cleaned, groups=_group_numbers(result, kept.tolist()))
        cleaned = _join_groups(cleaned, notes)
    check_splits(cleaned)
    notes += _lost_images(result, images, cleaned)
    return CleanData(cleaned, tuple(decided[row] for row in sorted(decided)), tuple(notes))


def _rows_of_decisions(result: AuditResult, decisions: Iterable[Decision]) -> dict[int, Decision]:
    """Return decisions by the row of their image.

    Names may be those of the images, or the cells that stand for them in the findings.

    Raises:
        DataError: if an image or a class is unknown, or an image occurs twice.
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(result.embeddings.ids):
        for spelling in {name, safe_cell(name)}:
            rows.setdefault(spelling, []).append(row)
    found: dict[int, Decision] = {}
    for decision in decisions:
        _check_action(decision, f"the decision about {decision.path!r}")
        named = rows.get(decision.path, [])
        if len(named) != 1:
            problem = "is not an image of" if not named else "may be several images of"
            raise DataError(
                f"a decision names {decision.path!r}, which {problem} {result.data}: write paths "
                "as in findings.csv"
            )
        row = named[0]
        if row in found:
            raise DataError(f"there are two decisions about {decision.path!r}: keep one of them")
        found[row] = _with_known_label(decision, result.embeddings.classes)
    return found


def _with_known_label(decision: Decision, classes: Sequence[str]) -> Decision:
    """Return a decision whose label, if it needs one, is spelled as the class."""
    if decision.action != "relabel":
        return decision
    class_of = {normal_form(name): name for name in classes}
    label = class_of.get(normal_form(decision.label))
    if label is None:
        mistake = unknown("class", decision.label, classes)
        raise DataError(f"the decision about {decision.path!r}: {mistake}")
    return replace(decision, label=label)


def _without_decided(
    suggested: Mapping[int, Decision], decided: Mapping[int, Decision]
) -> dict[int, Decision]:
    """Return the suggestions for images that no person has decided about."""
    return {
        row: decision
        for row, decision in suggested.items()
        if row not in decided or decided[row].kind
    }


def _applicable(
    result: AuditResult,
    kind: str,
    suggested: dict[int, Decision],
    decided: Mapping[int, Decision],
    notes: list[str],
) -> dict[int, Decision]:
    """Return the suggestions that need no person; add notes on what a person should look at."""
    embeddings = result.embeddings
    if kind == "labels":
        tests = [row for row in suggested if embeddings.splits[row] == "test"]
        if tests:
            notes.append(
                f"{len(tests)} suggested labels of test images are not applied: decide about them "
                "in a decisions file"
            )
        return {row: suggested[row] for row in suggested if row not in tests}
    row_of = {name: row for row, name in enumerate(embeddings.ids)}

    def label(row: int) -> str:
        relabelled = row in decided and decided[row].action == "relabel"
        return decided[row].label if relabelled else embeddings.classes[embeddings.y[row]]

    differing = 0
    for row, decision in suggested.items():
        differing += label(row) != label(row_of[decision.because])
    if differing:
        notes.append(
            f"{differing} dropped {kind} have another label than the image that is kept: look at "
            "both"
        )
    return suggested


def _new_labels(
    result: AuditResult, decided: Mapping[int, Decision], images: ImageSet
) -> NDArray[np.int64]:
    """Return the label of each audited image after the decisions, as positions in the classes."""
    position = {name: place for place, name in enumerate(images.classes)}
    classes = result.embeddings.classes
    labels = np.array([position[classes[label]] for label in result.embeddings.y], np.int64)
    for row, decision in decided.items():
        if decision.action == "relabel":
            labels[row] = position[decision.label]
    return labels


def _group_numbers(result: AuditResult, kept: Sequence[int]) -> tuple[str, ...]:
    """Return the number of the group of duplicates of each kept image, as text."""
    remaining = set(kept)
    number_of: dict[int, str] = {}
    groups = [remaining.intersection(rows) for rows in duplicate_groups(result, near=True)]
    for number, rows in enumerate([rows for rows in groups if len(rows) > 1], start=1):
        number_of |= dict.fromkeys(rows, str(number))
    # Other images are groups of their own.
    for row in kept:
        number_of.setdefault(row, str(len(groups) + row + 1))
    return tuple(number_of[row] for row in kept)


def _join_groups(images: ImageSet, notes: list[str]) -> ImageSet:
    """Return images with all duplicates of a test image in test, and those of val images in val."""
    splits_of: dict[str, set[str]] = {}
    for group, split in zip(images.groups, images.splits.tolist(), strict=True):
        splits_of.setdefault(group, set()).add(split)
    splits = images.splits.copy()
    for row, group in enumerate(images.groups):
        # SPLITS are in the order of how important it is that none of their images is trained on.
        splits[row] = max(splits_of[group], key=SPLITS.index)
    moved = int(np.sum(splits != images.splits))
    if moved:
        notes.append(
            f"{moved} images are moved to the split of their duplicates or near duplicates, so "
            "that no split separates them"
        )
    return replace(images, splits=splits)


def _lost_images(result: AuditResult, images: ImageSet, cleaned: ImageSet) -> list[str]:
    """Return notes on images without features, and on classes without a training image."""
    notes = []
    originals = sum(not is_augmented_view(name) for name in images.ids)
    unread = originals - len(result.embeddings)
    if unread:
        notes.append(f"{unread} images are left out: they could not be read")
    before = np.unique(images.labels[images.splits == "train"])
    after = np.unique(cleaned.labels[cleaned.splits == "train"])
    lost = [cleaned.classes[label] for label in np.setdiff1d(before, after)]
    if lost:
        notes.append(f"{len(lost)} classes have no train image any more, such as {lost[0]}")
    return notes
