"""Image sets from CSV files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PureWindowsPath

from featkit.errors import DataError, SpecError
from featkit.images.base import ImageSet
from featkit.images.files import ImageEntry, check_labels, from_entries, note_look_alikes
from featkit.images.intensity import IntensityRange
from featkit.images.multilabel import NO_LABELS, SEPARATOR, join_labels, parse_labels
from featkit.images.names import look_alike, normal_form, split_of
from featkit.images.remote import is_url, remote_image
from featkit.storage import read_csv, safe_name, without_apostrophe

_COLUMNS = ("path", "label", "split", "group")
FILE_NAME = "file_name"
"""Name of the column of paths in Hugging Face's ``imagefolder``."""
_INDICATOR = "label of "
"""Start of the name of a column that says by 0 or 1 whether an image has a label."""
_LIKE_SPLIT = ("fold", "partition", "phase", "set", "subset", "usage")
"""Columns that may hold splits under another name."""


def images_from_csv(
    path: Path, intensity: IntensityRange | None = None, group: str | None = None
) -> ImageSet:
    """Return the images listed in a CSV file with columns ``path,label[,split,group]``.

    If a label has a semicolon, or there is a column of 0 and 1 for each label in place of the
    column ``label``, images have several labels, see ``featkit.images.multilabel``. Other columns
    are ignored, unless ``group`` names one, and so is the case of the names above. Paths are
    relative to the CSV file, which is UTF-8, with or without a byte order mark. A path that does
    not exist is looked for with other spellings that look the same (Unicode NFC and NFD, invisible
    characters, spaces at the ends) and with slashes in place of backslashes. A path may be a URL
    (see ``featkit.images.remote``), which is downloaded when it is read for the first time. Without
    a column ``path``, it is ``file_name``, as in the ``metadata.csv`` of Hugging Face's
    ``imagefolder``. Labels are in normal form, without the apostrophe that ``with_apostrophe`` puts
    in front of formulas. Splits may have the usual names, such as ``training``, ``dev`` or
    ``testing``.

    A file that is missing is an error when it is read, so that it can be skipped.

    Args:
        path: the CSV file.
        intensity: see ``featkit.images.decode.decode``.
        group: name of the column that holds the groups; None for ``group``, if there is one.

    Raises:
        DataError: if a column is missing or occurs twice, only some images have a group, a file
            occurs twice, a split is unknown, a label of several is empty or repeated, or all files
            are missing.
    """
    if group and group.lower() in _COLUMNS[:3]:
        raise SpecError(
            f"--group {group}: the column {group} of {path} holds something else than groups: name "
            "the column with the patient, site, camera or the like"
        )
    lines, notes = _lines(path, group)
    if not lines:
        raise DataError(f"{path} lists no images: add a line for each image below the header")
    splits = {row["split"] for _, row in lines if "split" in row}
    finder = _FileFinder(path.parent)
    labels, multilabel = _labels(path, lines)
    entries = []
    for (line, row), label in zip(lines, labels, strict=True):
        entries.append(_entry(f"line {line} of {path}", row, label, splits, finder))
    _check_duplicates(path, entries)
    _check_groups(path, [line for line, _ in lines], entries, group)
    if not multilabel:
        check_labels(str(path), labels)
    notes += note_look_alikes(entry.id for entry in entries)
    if finder.respelled:
        notes.append(
            f"{len(finder.respelled)} paths are spelled differently on the disk (Unicode form, "
            f"invisible characters, spaces or slashes), such as {finder.respelled[0]!a}"
        )
    is_general = path.stem == "labels" or _is_imagefolder(path)
    name = path.resolve().parent.name if is_general else path.stem
    marked = _mark_missing(path, entries)
    return from_entries(
        safe_name(name), marked, notes=notes, intensity=intensity, multilabel=multilabel
    )


def line_of(path: Path, image_id: str) -> str:
    """Return ``line 3 of FILE`` for the line that lists an image, to name it in an error."""
    lines, _ = _lines(path, None)
    for line, row in lines:
        if row["path"] == image_id:
            return f"line {line} of {path}"
    return str(path)


def _labels(path: Path, lines: Sequence[tuple[int, dict[str, str]]]) -> tuple[list[str], bool]:
    """Return the class of each line, and whether it is a set of any number of labels."""
    if "label" not in lines[0][1]:
        return _indicated_labels(path, lines), True
    cells = [without_apostrophe(row["label"]) for _, row in lines]
    if not any(SEPARATOR in cell for cell in cells):
        return [normal_form(cell) for cell in cells], False
    found = []
    for (line, _), cell in zip(lines, cells, strict=True):
        found.append(parse_labels(cell, f"line {line} of {path}"))
    check_labels(str(path), [label for labels in found for label in labels])
    return [join_labels(labels) for labels in found], True


def _indicated_labels(path: Path, lines: Sequence[tuple[int, dict[str, str]]]) -> list[str]:
    """Return the labels of each line of a file with a column of 0 and 1 for each label."""
    columns = {
        name: without_apostrophe(name.removeprefix(_INDICATOR))
        for name in lines[0][1]
        if name.startswith(_INDICATOR)
    }
    check_labels(str(path), columns.values())
    classes = []
    for line, row in lines:
        labels = []
        for name, label in columns.items():
            value = row[name].strip()
            if value not in ("0", "1"):
                raise DataError(
                    f"line {line} of {path} has {row[name]!r} in the column of label {label!r}: "
                    "write 1 for an image that has the label, else 0"
                )
            if value == "1":
                labels.append(label)
        classes.append(join_labels(labels))
    if NO_LABELS in columns.values():
        raise DataError(f"{path} has a label {NO_LABELS!r}, which is for none: rename the column")
    return classes


def _is_imagefolder(path: Path) -> bool:
    """Return whether a CSV file is the ``metadata.csv`` of a Hugging Face ``imagefolder``."""
    return path.stem == "metadata" and "path" not in csv_columns(path)


def _mark_missing(path: Path, entries: list[ImageEntry]) -> list[ImageEntry]:
    missing = [entry.id for entry in entries if not entry.path]
    if not missing:
        return entries
    problem = (
        f"{len(missing)} files listed in {path} are missing, the first is {missing[0]!r}: paths "
        "are relative to the CSV file"
    )
    if len(missing) == len(entries):
        raise DataError(problem)
    problem += "; correct them, or skip such files with --on-error skip"
    return [entry if entry.path else entry._replace(problem=problem) for entry in entries]


def csv_columns(path: Path) -> list[str]:
    """Return the names of the columns of a CSV file, in normal form and lower case.

    Raises:
        DataError: if the file cannot be read.
    """
    found: list[str] = []

    def columns(header: Sequence[str]) -> list[str]:
        found.extend(normal_form(column).lower() for column in header)
        return [f"{place}" for place in range(len(header))]

    read_csv(path, columns)
    return found


def _check_groups(
    path: Path, lines: Sequence[int], entries: Sequence[ImageEntry], group: str | None
) -> None:
    """Refuse a column of groups with empty cells; without ``group``, a wholly empty one is fine."""
    empty = [line for line, entry in zip(lines, entries, strict=True) if not entry.group]
    if not empty or (group is None and len(empty) == len(entries)):
        return
    raise DataError(
        f"line {empty[0]} of {path} has no group in column {group or 'group'!r} ({len(empty)} of "
        f"{len(entries)} lines have none): give each image a group, one of its own if it belongs "
        "to no other image"
    )


def _lines(path: Path, group: str | None) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """Return number and values of each line, and notes."""
    notes: list[str] = []

    def columns(header: Sequence[str]) -> list[str]:
        names, found = _columns(path, header, group)
        notes.extend(found)
        return names

    lines = read_csv(path, columns)
    if lines and "label" not in lines[0][1]:
        lines, found = _with_indicators(path, lines)
        notes.extend(found)
    return lines, notes


def _with_indicators(
    path: Path, lines: Sequence[tuple[int, dict[str, str]]]
) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """Mark the columns that start with 0 or 1 as columns of labels; return a note on the others.

    Raises:
        DataError: if there are fewer than two, or one has a semicolon in its name.
    """
    first = lines[0][1]
    unused = {name: name.partition(": ")[2] for name in first if name not in _COLUMNS}
    labels = {name: text for name, text in unused.items() if first[name].strip() in ("0", "1")}
    if len(labels) < 2:
        found = ", ".join([*(name for name in first if name in _COLUMNS), *unused.values()])
        raise DataError(
            f"{path} has no column 'label': expected path,label[,split], or a column of 0 and 1 "
            f"for each label, found {found}"
        )
    for text in labels.values():
        if SEPARATOR in text:
            raise DataError(f"{path} has a label {text!r} with a semicolon: rename the column")
    renamed = {name: f"{_INDICATOR}{text}" for name, text in labels.items()}
    marked = []
    for line, row in lines:
        marked.append((line, {renamed.get(name, name): value for name, value in row.items()}))
    others = [text for name, text in unused.items() if name not in labels]
    if not others:
        return marked, []
    return marked, [f"columns without 0 and 1 are not used as labels: {', '.join(others)}"]


def _columns(path: Path, header: Sequence[str], group: str | None) -> tuple[list[str], list[str]]:
    """Return the names of the columns as they are used, and notes.

    Raises:
        DataError: if a column is missing or occurs twice.
    """
    columns = _with_path([normal_form(column) for column in header])
    for name in (*_COLUMNS, *([group.lower()] if group else [])):
        _check_column(path, header, columns, name)
    lower = [column.lower() for column in columns]
    if group:
        # The column of the groups takes the place of one that is called so.
        renamed = {"group": "other group", normal_form(group).lower(): "group"}
        lower = [renamed.get(name, name) for name in lower]
    notes = []
    similar = [column for column in columns if column.lower() in _LIKE_SPLIT]
    if "split" not in lower and similar:
        notes.append(
            f"column {similar[0]!r} is not used: if it holds the splits, rename it to split"
        )
    # Other columns are numbered, so that none of them can replace one that is used.
    # Their names keep their case: without a column of labels, they may be labels themselves.
    return [
        name if name in _COLUMNS else f"{place}: {columns[place]}"
        for place, name in enumerate(lower)
    ], notes


def _with_path(columns: list[str]) -> list[str]:
    """Return names of columns with ``path`` in place of ``file_name``, if there is no ``path``."""
    if any(column.lower() == "path" for column in columns):
        return columns
    return ["path" if column.lower() == FILE_NAME else column for column in columns]


def _check_column(path: Path, header: Sequence[str], columns: Sequence[str], name: str) -> None:
    matching = [column for column in columns if column.lower() == name]
    if len(matching) > 1:
        raise DataError(
            f"{path} has {len(matching)} columns {name!r} ({', '.join(map(repr, header))}): "
            "rename or remove all but one"
        )
    if not matching and name == "path":
        found = ", ".join(columns) or "no columns"
        raise DataError(
            f"{path} has no column {name!r}: expected path,label[,split], found {found}"
        )


def _entry(
    where: str, row: dict[str, str], label: str, splits: set[str], finder: _FileFinder
) -> ImageEntry:
    if not row["path"] or not label:
        raise DataError(f"{where} has an empty path or label: every image needs both")
    split = ""
    if "split" in row:
        found = split_of(row["split"], splits)
        if found is None:
            raise DataError(
                f"{where} has an unknown split {row['split']!r}: known: train, val, test and their "
                "usual names"
            )
        split = found
    group = without_apostrophe(row.get("group", "").strip())
    entry = ImageEntry(row["path"], "", label, split, group=group)
    if is_url(entry.id):
        remote = remote_image(entry.id, where)
        return entry._replace(path=str(remote.local_path()), remote=remote)
    return entry._replace(path=finder.find(entry.id, where))


def _check_duplicates(path: Path, entries: Iterable[ImageEntry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        path_key = os.path.normpath(entry.path or entry.id)
        if path_key in seen:
            raise DataError(f"{path} lists {entry.id!r} twice: list each image once")
        seen.add(path_key)


class _FileFinder:
    """Find files by paths that may be spelled differently.

    Attributes:
        respelled: the paths that were found under another spelling.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.respelled: list[str] = []
        self._listed: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str, where: str) -> str:
        """Return the path of an existing file, an empty string if there is none.

        Raises:
            DataError: if several files are spelled so that they look the same as ``name``.
        """
        exact = str(self.base / name)
        # Not is_file: a named pipe is refused when it is read, with a message that says so.
        if _exists(exact):
            return exact
        for spelled in (name, PureWindowsPath(name).as_posix()):
            found = self._walk(spelled, where)
            if found:
                self.respelled.append(name)
                return found
        return ""

    def _walk(self, name: str, where: str) -> str:
        """Replace each part of a path that does not exist by the only name that looks the same."""
        path = str(self.base)
        for part in Path(name).parts:
            inner = str(Path(path, part))
            if not _exists(inner):
                similar = self._similar(path).get(look_alike(part), [])
                if len(similar) > 1:
                    names = " and ".join(ascii(other) for other in similar[:2])
                    raise DataError(
                        f"{where}: {name!r} does not exist, and several names in {path} look the "
                        f"same ({names}): correct the path"
                    )
                if not similar:
                    return ""
                inner = str(Path(path, similar[0]))
            path = inner
        return path

    def _similar(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._listed:
            names: dict[str, list[str]] = {}
            with suppress(OSError, ValueError):  # there is nothing to find in it
                for inner in sorted(Path(folder).iterdir()):
                    names.setdefault(look_alike(inner.name), []).append(inner.name)
            self._listed[folder] = names
        return self._listed[folder]


def _exists(path: str) -> bool:
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except ValueError:  # a NUL, or text that the file system cannot encode
        return False
    except OSError:
        return True  # it cannot be read, and reading it says why
    return True
