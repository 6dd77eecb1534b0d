"""Files, locks and memory: the only module that deals with differences between operating systems.

Every file that featkit writes appears whole or not at all: it is written under a temporary name,
flushed to the disk and renamed. This holds on Linux, macOS and Windows.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import platform
import re
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import import_module
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO

from featkit.errors import SpecError, StorageError, visible

Content = str | bytes | Callable[[Path], None]
"""Text, bytes, or a function that writes the file at a given path."""

TEXT_LIMIT = 2**28
"""Largest text file, in bytes, that is read into memory: JSON, TOML and CSV files are smaller."""

_POLL_SECONDS = 0.05
_BLOCK = 2**20

_FILE_TYPES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class LockHeldError(StorageError):
    """A lock that another process holds.

    Attributes:
        owner: the process that holds it, such as ``process 4711 on laptop since
            2025-01-31T12:00:00+00:00``.
    """

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(f"{path} is locked by {owner}: wait until it has finished")
        self.owner = owner


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Convert any OSError inside the block into a StorageError that names ``path``.

    Raises:
        StorageError: for any OSError inside the block.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"cannot write {path}: {reason}; free disk space or choose another folder"
        ) from error


def read_file(path: str | Path, limit: int) -> bytes:
    """Return the bytes of a regular file; links are followed.

    Args:
        path: the file.
        limit: largest size in bytes that is accepted.

    Raises:
        OSError: if the file is missing, cannot be read, is not a regular file or is larger than
            ``limit``; ``strerror`` is the reason in words.
    """
    with open_file(path, limit) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1)
        if len(data) <= size:
            return data
        # The file has grown, or its size is unknown, as in /proc.
        grown = bytearray(data)
        while len(grown) <= limit:
            block = file.read(_BLOCK)
            if not block:
                return bytes(grown)
            grown += block
    raise _too_large(path, len(grown), limit)


def read_text(path: str | Path, limit: int = TEXT_LIMIT) -> str:
    """Return the text of a regular UTF-8 file.

    Raises:
        OSError: as ``read_file`` does.
        UnicodeDecodeError: if the bytes are not UTF-8.
    """
    return read_file(path, limit).decode("utf-8")


def check_file(path: str | Path, limit: int | None = None) -> None:
    """Check that a file can be read, before a library opens it by its name.

    Raises:
        OSError: as ``read_file`` does.
    """
    open_file(path, limit).close()


def open_file(path: str | Path, limit: int | None = None) -> BufferedReader:
    """Open a regular file for reading in binary mode; links are followed.

    Named pipes, devices and sockets are refused without waiting for them.

    Args:
        path: the file.
        limit: largest size in bytes that is accepted; None for any size.

    Raises:
        OSError: as ``read_file`` does.
    """
    try:
        # Before opening: to open a device may have an effect, such as rewinding a tape.
        _check_status(path, Path(path).stat(), limit)
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115
    except ValueError as error:  # a NUL or a character that the file system cannot encode
        raise OSError(errno.EINVAL, f"not a valid path ({error})", str(path)) from error
    try:
        # Once more: the name may stand for another file by now.
        _check_status(path, os.fstat(file.fileno()), limit)
    except OSError:
        file.close()
        raise
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a named pipe waits for a writer. Windows has no such flag.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_status(path: str | Path, status: os.stat_result, limit: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _FILE_TYPES.get(stat.S_IFMT(status.st_mode), "a special file")
        code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(code, f"it is {kind}, not a file", str(path))
    if limit is not None and status.st_size > limit:
        raise _too_large(path, status.st_size, limit)


def _too_large(path: str | Path, size: int, limit: int) -> OSError:
    reason = f"{size / 1e6:,.0f} MB are more than the limit of {limit / 1e6:,.0f} MB"
    return OSError(errno.EFBIG, reason, str(path))


def write_file(path: Path, content: Content) -> None:
    """Write a file atomically: readers see the old file or the whole new one.

    Args:
        path: the file; its folder is created if needed.
        content: text (UTF-8), bytes, or a function that writes the file at the path it is given.

    Raises:
        StorageError: if the disk is full or cannot be written; ``path`` is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_content(temporary, content)
            replace_file(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def replace_file(temporary: Path, path: Path) -> None:
    """Flush a finished temporary file to the disk and rename it to ``path``, in the same folder."""
    _flush_to_disk(temporary)
    temporary.replace(path)
    # After a power loss the new name may be missing unless its folder is flushed too. Windows
    # cannot open folders, and its rename needs no such flush.
    if os.name == "posix":
        _flush_to_disk(path.parent)


def publish(directory: Path, files: Mapping[str, Content]) -> None:
    """Write files into a new directory next to ``directory``, then rename it into place.

    Raises:
        StorageError: if the disk is full or cannot be written; ``directory`` is then unchanged.
    """
    # One process at a time: the directory cannot be replaced atomically, so two would collide.
    lock = directory.parent / f".{directory.name}.lock"
    with locked(lock, on_wait=lambda owner: None), storage_errors(directory):
        scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            new, old = scratch / "new", scratch / "old"
            new.mkdir()
            for name, content in files.items():
                _write_content(new / name, content)
                _flush_to_disk(new / name)
            if directory.exists():
                directory.rename(old)
            try:
                new.rename(directory)
            except OSError:
                if old.exists():
                    old.rename(directory)
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _write_content(path: Path, content: Content) -> None:
    if isinstance(content, str):
        # newline="": the bytes are the same on every system, so that digests of text files are too.
        path.write_text(content, encoding="utf-8", newline="")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)


def _flush_to_disk(path: Path) -> None:
    # Windows flushes only files that are open for writing; POSIX folders can only be opened for
    # reading.
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock file at ``path`` until the block ends.

    The operating system releases the lock of a process that dies.

    Args:
        path: the lock file; it is removed when the lock is released.
        on_wait: called with the owner of the lock before waiting for it; None to raise an error
            instead of waiting.

    Raises:
        LockHeldError: if another process holds the lock and ``on_wait`` is None.
        StorageError: if the lock file cannot be written.
    """
    from filelock import FileLock, Timeout, UnixFileLock

    lock = FileLock(path)
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            owner = _read_owner(path)
            if on_wait is None:
                raise LockHeldError(path, owner) from None
            on_wait(owner)
            lock.acquire(poll_interval=_POLL_SECONDS)
    try:
        with storage_errors(path):
            _owner_file(path).write_text(_describe_this_process(), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            _owner_file(path).unlink(missing_ok=True)
            # On POSIX the file may be removed while it is locked: whoever locks the removed file
            # next notices that and opens a new one. On Windows an open file cannot be removed, and
            # filelock does it after the release.
            if isinstance(lock, UnixFileLock):
                path.unlink(missing_ok=True)
        lock.release()


def lock_owner(path: Path) -> str:
    """Return the owner of the lock file at ``path``, an empty string if no process holds it."""
    if not path.exists():
        return ""
    try:
        with locked(path):
            return ""
    except LockHeldError as error:
        return error.owner


def _owner_file(path: Path) -> Path:
    # Not in the lock file itself: a locked file cannot be read on Windows.
    return path.with_suffix(".owner")


def _describe_this_process() -> str:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return f"process {os.getpid()} on {platform.node()} since {since}"


def _read_owner(path: Path) -> str:
    try:
        return _owner_file(path).read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"


def write_csv(file: TextIO, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    r"""Write a header and rows as CSV, lines ending in ``\n``.

    Args:
        file: opened with ``newline=""`` if it is on the disk.
        columns: names of the columns.
        rows: one value per column; None becomes an empty field.
    """
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return rows as CSV text with a header, for people: see ``safe_cell``.

    Args:
        rows: values by column name; a missing value becomes an empty field.
        columns: names and order of the columns; None for all that occur in ``rows``, in order of
            appearance.
    """
    if columns is None:
        columns = column_names(rows)
    values = []
    for row in rows:
        values.append([safe_cell(row.get(name)) for name in columns])
    out = io.StringIO()
    write_csv(out, [safe_cell(name) for name in columns], values)
    return out.getvalue()


def safe_cell(value: Any) -> Any:
    """Return the value of a CSV cell as text that a spreadsheet and a terminal show and not obey.

    Invisible characters are escaped, and text that a spreadsheet would take for a formula gets an
    apostrophe in front, as OWASP recommends ("CSV Injection"). Numbers stay numbers, also those
    that are formatted already. Applied twice, the result is the same, so that a reader of the file
    can compare its cells with other names by applying the function to these.
    """
    if not isinstance(value, str):
        return value
    text = visible(value)
    if text.lstrip()[:1] in _FORMULA_STARTS and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


# The last four are the full-width forms, which some spreadsheets take for the others.
_FORMULA_STARTS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def column_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return all names that occur in rows, in order of appearance."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    return list(names)


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """Return the content of a TOML file.

    Args:
        path: the file.
        kind: description of the file for error messages, such as ``a grid``.

    Raises:
        SpecError: if the file does not exist or is not TOML.
    """
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        raise SpecError(f"{path} cannot be read as {kind}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise SpecError(f"{path} cannot be read as {kind}: {error}") from error


def expand_variables(value: Any) -> Any:
    """Replace environment variables such as ``$HOME`` in text; return other values unchanged."""
    return os.path.expandvars(value) if isinstance(value, str) else value


def digest(parts: Iterable[str]) -> str:
    """Return the SHA-256 (hex) of a sequence of strings, different for different sequences."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


def file_sha256(path: Path, limit: int | None = None) -> str:
    """Return the SHA-256 (hex) of a file's bytes.

    Raises:
        OSError: as ``read_file`` does.
    """
    with open_file(path, limit) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_name(name: str) -> str:
    """Return ``name`` as a file name of letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "images"


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    import psutil

    process = psutil.Process()
    # macOS cannot bind a process to cores, and psutil has no such method there.
    cores = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count()
    return cores or 1


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in megabytes (10^6 bytes)."""
    import psutil

    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: after fork and exec its maximum includes the memory of the parent process.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if found:
            return 1024 * int(found[1]) / 1e6
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return float(memory.peak_wset / 1e6)
    usage = import_module("resource")  # macOS and BSD; psutil knows only the current memory there
    unit = 1 if platform.system() == "Darwin" else 1024
    return float(usage.getrusage(usage.RUSAGE_SELF).ru_maxrss * unit / 1e6)
