"""Writing when the disk may be full: one line for the user, and nothing lost that was good."""

from __future__ import annotations

import fcntl
import io
from pathlib import Path
from typing import Any


class Disk(io.FileIO):
    """A file that keeps its first failed write for ``check`` and takes all others as done.

    HDF5 cannot close a file that it cannot write: it crashes the process on a full disk (h5py issue 914).
    """

    failure: OSError | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        fcntl.flock(self, fcntl.LOCK_EX)  # for who collects garbage

    def write(self, data: Any) -> int:
        """Write all of ``data``, or keep the reason why not."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left and self.failure is None:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self.failure = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the length of the file, or keep the reason why not."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self.failure is not None:
            raise self.failure
