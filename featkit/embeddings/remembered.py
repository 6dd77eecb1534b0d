"""What was read from files, in a file of its own: files that did not change are not read again.

An entry is used if size, inode and the times of the last changes of content and status are those
of the file. As in git, files that are younger than two seconds when they are read have no entry:
on some file systems, a later change could have the same time.

The file has a checksum and is replaced as a whole, so that readers see the old or the new one. Of
two processes that write at the same time, one wins: the entries of the other are read again. A
file that is damaged or of another version is rebuilt, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from featkit.errors import StorageError
from featkit.storage import FileStatus, is_young, parse_json, read_file, write_file

log = logging.getLogger("featkit")

_MAX_BYTES = 2**31
_writing = threading.Lock()
"""Threads of one process would write the same temporary file."""


class Remembered:
    """What was read from files, by their names.

    Args:
        path: the file; it need not exist.
        header: format and version of the entries; entries under another header are not used.
        again: what is done if the entries cannot be used, for warnings.
        most_others: entries of files that were not asked for are kept up to this number, or that of
            the files that were.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], again: str, *, most_others: int
    ) -> None:
        self.path = path
        self._most_others = most_others
        self._header = dict(header)
        self._again = again
        self._started = time.time_ns()
        self._known = self._read()
        self._new: dict[str, list[Any]] = {}
        self._asked: set[str] = set()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def new(self) -> int:
        """Number of entries that ``save`` would add or change."""
        return len(self._new)

    def get(self, name: str, status: FileStatus) -> list[Any] | None:
        """Return what was read from a file of this status, None if it must be read."""
        self._asked.add(name)
        known = self._known.get(name)
        if known is None or known[: len(status)] != status:
            return None
        return known[len(status) :]

    def put(self, name: str, status: FileStatus, values: Collection[Any]) -> None:
        """Add what was read from a file, unless it is too young.

        Args:
            name: of the file.
            status: of the file before it was read: a change in between gives it another one.
            values: JSON values.
        """
        if not is_young(status, self._started):
            self._new[name] = [*status, *values]

    def save(self) -> str:
        """Write new entries if there are any; the folder must exist.

        Returns:
            Why they cannot be written, which is only a loss of time; empty if they can.
        """
        if not self._new or not self.path.parent.is_dir():
            return ""
        self._known = self._kept() | self._new
        self._new = {}
        try:
            with _writing:
                write_file(self.path, self.content(self._known))
        except (OSError, StorageError) as error:
            return str(error)
        return ""

    def _kept(self) -> dict[str, list[Any]]:
        """Return the known entries without most of those of other files, if these are many."""
        others = self._known.keys() - self._asked
        if len(others) <= max(self._most_others, len(self._asked)):
            return self._known
        return {name: self._known[name] for name in self._known.keys() & self._asked}

    def content(self, known: Mapping[str, list[Any]]) -> bytes:
        """Return the file: a line with version and checksum, and a line with the entries."""
        entries = json.dumps(known, separators=(",", ":")).encode()
        header = {**self._header, "sha256": hashlib.sha256(entries).hexdigest()}
        return json.dumps(header).encode() + b"\n" + entries

    def _read(self) -> dict[str, list[Any]]:
        """Return the entries; none if the file does not exist or cannot be used."""
        try:
            data = read_file(self.path, _MAX_BYTES)
        except FileNotFoundError:
            return {}
        except OSError as error:
            log.warning("%s cannot be read (%s): %s", self.path, error.strerror, self._again)
            return {}
        first, _, entries = data.partition(b"\n")
        try:
            header = parse_json(first)
            checksum = header.pop("sha256")
            if header != self._header:
                log.warning("%s is of another version: %s", self.path, self._again)
                return {}
            if checksum != hashlib.sha256(entries).hexdigest():
                raise ValueError("the checksum differs")
            known: dict[str, list[Any]] = json.loads(entries)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            log.warning("%s is damaged: %s", self.path, self._again)
            return {}
        return known
