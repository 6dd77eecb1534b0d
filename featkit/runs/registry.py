"""Find runs by name, by the start of a name or id, by path, or as ``latest``.

Runs are directories that may lie anywhere. Each command that writes one adds its folder for results
to a short list in the user's home folder, so that a run is found from every working directory.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from featkit.backbones.saved import is_path
from featkit.errors import RunError
from featkit.runs.card import (
    CARD_FILE,
    RUNS_FOLDER,
    is_run,
)
from featkit.storage import HOME_VARIABLE, default_folder, read_json, read_text, user_path

LATEST = "latest"
"""Stands for the run that was written last."""

LIST_FILE = "runs.txt"

_RESULTS_FILE = "results.json"
_SHORTEST_PREFIX = 3
_MOST_NAMED = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunEntry:
    """A run as it is listed.

    Attributes:
        run: its id.
        name: name that the user gave to it; empty if none was given.
        path: its directory, absolute.
        created: date and time at which it was written, ISO 8601 in UTC.
    """

    run: str
    name: str
    path: Path
    created: str

    @property
    def short(self) -> str:
        """What a user types to refer to the run."""
        return self.name or self.run


# Folders of results -------------------------------------------------------------------------------


def list_file() -> Path | None:
    """Return the file that lists folders for results; None if the home folder is not known."""
    given = os.environ.get(HOME_VARIABLE)
    if given:
        return user_path(given) / LIST_FILE
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    folder = default_folder(f"{state}/featkit")
    return None if folder is None else folder / LIST_FILE


def remember_folder(out: Path) -> None:
    """Add a folder for results to the list, so that its runs are found from everywhere.

    Runs can be used by their path without the list: where it cannot be written, that is logged.
    """
    file, line = list_file(), str(out.resolve())
    if file is None or "\n" in line or line in _read_list(file):
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # One short write in append mode: processes that write at the same time keep their lines.
        with file.open("a", encoding="utf-8") as target:
            target.write(f"{line}\n")
    except OSError as error:
        log.info(
            "%s cannot be written (%s): runs are found by name from this folder only; "
            "set %s to a folder that can be written",
            file,
            error.strerror,
            HOME_VARIABLE,
        )


def _read_list(file: Path) -> list[str]:
    try:
        return list(dict.fromkeys(read_text(file).splitlines()))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log.info("%s cannot be read (%s): remove it", file, error)
        return []


def result_folders() -> list[Path]:
    """Return the default folder for results and those on the list, as far as they exist."""
    file = list_file()
    folders = [RUNS_FOLDER, *map(Path, _read_list(file) if file else [])]
    return list(dict.fromkeys(folder.resolve() for folder in folders if folder.is_dir()))


# Runs ---------------------------------------------------------------------------------------------


def list_runs(folders: Sequence[Path] | None = None) -> list[RunEntry]:
    """Return all runs in folders for results, the newest first.

    Args:
        folders: None for ``result_folders()``.
    """
    found: dict[Path, RunEntry] = {}
    for folder in result_folders() if folders is None else folders:
        for entry in _runs_in(folder):
            found[entry.path] = entry
    return sorted(found.values(), key=lambda entry: (entry.created, entry.run), reverse=True)


def _runs_in(folder: Path) -> Iterator[RunEntry]:
    """Yield the runs that lie two levels below a folder, or one; unreadable ones are left out."""
    for pattern in (f"*/*/{CARD_FILE}", f"*/{CARD_FILE}"):
        for file in folder.glob(pattern):
            entry = _read_entry(file.parent) if is_run(file.parent) else None
            if entry is not None:
                yield entry


def _read_entry(directory: Path) -> RunEntry | None:
    """Return a run without verifying it; None if its card cannot be read."""
    with suppress(OSError, ValueError, AttributeError):
        card = read_json(directory / CARD_FILE)
        values = [card.get("run"), card.get("name", ""), card.get("created", "")]
        if all(isinstance(value, str) for value in values):
            return RunEntry(values[0], values[1], directory.resolve(), values[2])
    return None


def find_run(reference: str | Path) -> Path:
    """Return the directory of a run.

    Args:
        reference: ``latest``, the name of a run, its id, the start of either (3 characters or
            more), or the path of its directory. If several runs have the name, the newest is
            taken. A path that exists comes before the start of a name.

    Raises:
        RunError: if there is no such run, naming the nearest; or if several begin so.
    """
    path = user_path(reference)
    if is_run(path) or is_path_like(reference):
        return path
    text, runs = str(reference), list_runs()
    if text == LATEST:
        if not runs:
            raise RunError(f"there is no latest run: {_how_to_make_one()}")
        log.info("%s: %s in %s", LATEST, runs[0].short, runs[0].path)
        return runs[0].path
    exact = [entry for entry in runs if text in (entry.name, entry.run)]
    if exact:
        return _newest(text, exact)
    if path.exists():
        return path
    similar = [entry for entry in runs if _starts(entry, text)]
    if len(similar) == 1:
        return similar[0].path
    if similar:
        raise RunError(f"{text} is the start of several runs: give one of {_names(similar)}")
    raise RunError(_unknown_run(text, runs))


def find_network(spec: str) -> str:
    """Return the directory of the run with a name, for a network that is given by it.

    Any other text is returned as it is: whoever loads the network says what is wrong with it.
    """
    if is_path(spec):
        return spec
    if spec == LATEST:
        return str(find_run(spec))
    for entry in list_runs():
        if spec in (entry.name, entry.run):
            return str(entry.path)
    return spec


def free_name(name: str, own: Path) -> str:
    """Return a name that no other run has: the given one, or with a number at its end.

    Args:
        name: the name.
        own: directory of the run that gets it, which may have it already.
    """
    own = own.resolve()
    used = {entry.name for entry in list_runs() if entry.path != own} | {LATEST}
    free, number = name, 1
    while free in used:
        number += 1
        free = f"{name}-{number}"
    return free


def is_path_like(reference: str | Path) -> bool:
    """Return whether a text is a path for sure: it names a folder, the home or this folder."""
    text = str(reference)
    return text.startswith((".", "~")) or any(part in text for part in ("/", os.sep))


def _newest(text: str, exact: Sequence[RunEntry]) -> Path:
    if len(exact) > 1:
        log.info("%d runs are named %s: using the newest, %s", len(exact), text, exact[0].path)
    return exact[0].path


def _starts(entry: RunEntry, text: str) -> bool:
    if len(text) < _SHORTEST_PREFIX:
        return False
    return entry.run.startswith(text) or entry.name.startswith(text)


def _unknown_run(text: str, runs: Sequence[RunEntry]) -> str:
    """Return the message for a text that no run has, with the nearest names and ids."""
    if not runs:
        return f"there is no run {text}: {_how_to_make_one()}"
    known: dict[str, str] = {}
    for entry in runs:
        for name in (entry.name, entry.run):
            if name:
                known.setdefault(name.lower(), name)
    close = get_close_matches(text.lower(), list(known), n=_MOST_NAMED, cutoff=0.5)
    if close:
        nearest = ", ".join(known[name] for name in close)
        return f"there is no run {text}: did you mean {nearest}? `featkit runs ls` lists all"
    return (
        f"there is no run {text}: give {LATEST}, which is {runs[0].short}, or one of `featkit runs "
        "ls`, or the path of its directory"
    )


def _how_to_make_one() -> str:
    return (
        "make one with `featkit train PHOTOS` or `featkit fit`, or give the path of its directory, "
        f"which is in {RUNS_FOLDER} by default"
    )


def _names(entries: Sequence[RunEntry]) -> str:
    more = [f"{len(entries) - _MOST_NAMED} more"] if len(entries) > _MOST_NAMED else []
    return ", ".join([*(entry.short for entry in entries[:_MOST_NAMED]), *more])


def check_name(name: str) -> None:
    """Refuse a name that cannot be told from other references to runs.

    Raises:
        RunError: with what to do.
    """
    if name == LATEST:
        raise RunError(f"{LATEST} stands for the newest run: choose another name")
    if is_path_like(name):
        raise RunError(f"{name} looks like a path: choose a name without / and not beginning so")


def check_name_is_free(name: str) -> None:
    """Refuse a name that a run has already, or that cannot be told from other references.

    Raises:
        RunError: with what to do.
    """
    check_name(name)
    for entry in list_runs():
        if entry.name == name:
            raise RunError(
                f"a run named {name} exists ({entry.path})",
                fixes=["choose another name", "replace it with --overwrite"],
            )
