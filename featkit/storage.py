"""Files, locks and memory: the only module that deals with differences between operating systems.

Every file that featkit writes appears whole or not at all: it is written under a temporary name,
flushed to the disk and renamed. This holds on Linux, macOS and Windows.
"""

from __future__ import annotations

import csv
import ctypes
import errno
import glob
import hashlib
import io
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, TypeVar

from featkit.errors import DataError, FeatkitError, SpecError, StorageError, visible

Content = str | bytes | Callable[[Path], None]
"""Text, bytes, or a function that writes the file at a given path."""

TEXT_LIMIT = 2**28
"""Largest text file, in bytes, that is read into memory: JSON, TOML and CSV files are smaller."""

_POLL_SECONDS = 0.05
# Answers of file systems that do not have a system call. Some systems lack the name ENOTSUP.
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_UNSUPPORTED.add(getattr(errno, "ENOTSUP", errno.EOPNOTSUPP))
_LOCK_UNSUPPORTED = {*_UNSUPPORTED, errno.ENOLCK}
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
        raise StorageError(f"cannot write {path}: {write_failure(error)}") from error


_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR}


def write_failure(error: OSError) -> str:
    """Return why a file cannot be written, and what to do about it."""
    reason = error.strerror or str(error)
    if error.errno == errno.ENAMETOOLONG:
        return f"{reason}; choose shorter names"
    if error.errno in _FULL:
        return f"{reason}; free disk space or choose another folder"
    if error.errno in _FORBIDDEN:
        return f"{reason}; choose a folder that you may write to"
    if error.errno in _NO_FOLDER:
        return f"{reason}; choose another folder"
    return f"{reason}; free disk space or choose another folder"


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


def write_file(path: Path, content: Content, *, flush: bool = True) -> None:
    """Write a file atomically: readers see the old file or the whole new one.

    Args:
        path: the file; its folder is created if needed.
        content: text (UTF-8), bytes, or a function that writes the file at the path it is given.
        flush: whether the file is on the disk when this returns. Without it, a power failure may
            leave an empty file or none; a process that is killed leaves a whole one either way.

    Raises:
        StorageError: if the disk is full or cannot be written; ``path`` is then unchanged.
    """
    # Threads, and processes of several machines or containers that share the folder, each write a
    # file of their own.
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{_short_name(path.name)}.{unique}.tmp")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_content(temporary, content)
            if flush:
                replace_file(temporary, path)
            else:
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _short_name(name: str) -> str:
    """Return a name that can be lengthened: file systems allow 255 bytes."""
    if len(os.fsencode(name)) <= _LONG_NAME:
        return name
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


_LONG_NAME = 200


def replace_file(temporary: Path, path: Path) -> None:
    """Flush a finished temporary file to the disk and rename it to ``path``, in the same folder."""
    _flush_to_disk(temporary)
    temporary.replace(path)
    _flush_directory(path.parent)


def publish(directory: Path, files: Mapping[str, Content], own: Collection[str] = ()) -> None:
    """Write files into a new directory, then put it in the place of ``directory`` in one step.

    Readers see the old directory or the new one. Linux and macOS exchange the two atomically; on
    file systems that cannot, ``read_directory`` waits for the few microseconds between two renames.
    What an interruption leaves behind is removed when anything is published beside it again.

    Other files in the old directory, such as an exported model or notes, are kept.

    Args:
        directory: the directory; its parent is created if needed.
        files: contents by file name.
        own: names of other files that belong to such a directory: those of an earlier one are not
            kept.

    Raises:
        StorageError: if the disk is full or cannot be written; ``directory`` is then unchanged, or
            complete if only its last flush to the disk failed.
    """
    # A link stays a link. Relative paths such as "." have no name of their own.
    directory = Path(os.path.realpath(directory))
    # One process at a time, so that the names of the scratch directories can be fixed: whoever
    # holds the lock knows that what it finds there was left behind.
    with locked(_publish_lock(directory), on_wait=lambda owner: None), storage_errors(directory):
        _clean_up_beside(directory)
        if directory.exists() and not directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file of this name exists", str(directory))
        new = _scratch(directory)
        try:
            new.mkdir()
            for name, content in files.items():
                _write_content(new / name, content)
                _flush_to_disk(new / name)
            _keep_foreign_files(directory, new, own)
            _flush_directory(new)
            _put_in_place(new, directory)
            _flush_directory(directory.parent)
        finally:
            # Also after a signal between any two calls above.
            _recover(directory)


Value = TypeVar("Value")


def read_directory(directory: Path, read: Callable[[], Value]) -> Value:
    """Return ``read()``, called again if ``directory`` was replaced by ``publish`` meanwhile.

    Args:
        directory: the directory that is read.
        read: reads files of the directory; raises FeatkitError or OSError if they do not belong
            together.
    """
    directory = Path(os.path.realpath(directory))
    while True:
        before = _identity(directory)
        try:
            return read()
        except (FeatkitError, OSError):
            interrupted = not directory.exists() and _retired(directory).exists()
            if not interrupted and _identity(directory) == before:
                raise
            # Without write access the lock cannot be taken; a published directory is complete.
            if interrupted:
                with locked(_publish_lock(directory), on_wait=lambda owner: None):
                    _recover(directory)


# A directory is written and removed under the first name, so that it can be discarded at any time.
# The second holds the complete old directory while there is none in its place.
_SCRATCH_SUFFIX, _RETIRED_SUFFIX = ".new~", ".old~"


def _publish_lock(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.lock")


def _scratch(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}{_SCRATCH_SUFFIX}")


def _retired(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}{_RETIRED_SUFFIX}")


def _identity(directory: Path) -> tuple[int, int, int] | None:
    """Return what tells a directory from the one that replaces it, None if there is none."""
    try:
        status = directory.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _put_in_place(new: Path, directory: Path) -> None:
    """Rename ``new`` to ``directory``; an old directory ends under the name of ``new``."""
    if not directory.exists():
        new.rename(directory)
    elif not exchange(new, directory):
        retired = _retired(directory)
        directory.rename(retired)
        new.rename(directory)
        # Only complete directories have this name: ``_recover`` would put back half of one.
        retired.rename(new)


def _recover(directory: Path) -> None:
    """Undo or finish what an interrupted ``publish`` began; its lock must be held."""
    retired = _retired(directory)
    if retired.exists():
        if directory.exists():
            _remove(_scratch(directory))
            retired.rename(_scratch(directory))
        else:
            retired.rename(directory)
    _remove(_scratch(directory))
    _recover_legacy(directory)


def _recover_legacy(directory: Path) -> None:
    """Undo an interrupted ``publish`` of version 0.1.0: ``.<name>.<8 characters>/new`` and old."""
    pattern = f".{glob.escape(directory.name)}.{'[a-z0-9_]' * 8}"
    for scratch in directory.parent.glob(pattern):
        names = {path.name for path in scratch.iterdir()} if scratch.is_dir() else set()
        if not names or not names <= {"new", "old"}:
            continue
        if not directory.exists() and (scratch / "old").exists():
            (scratch / "old").rename(directory)
        _remove(scratch)


def _clean_up_beside(directory: Path) -> None:
    """Recover ``directory`` and all others in its folder whose ``publish`` was killed."""
    _recover(directory)
    for path in list(directory.parent.iterdir()):
        found = re.fullmatch(r"\.(.+)\.(new~|old~|lock|softlock|owner)", path.name)
        if not found or found[1] == directory.name:
            continue
        other = directory.with_name(found[1])
        # A process that holds the lock is publishing it now.
        with suppress(StorageError, OSError), locked(_publish_lock(other)):
            _recover(other)


def _keep_foreign_files(old: Path, new: Path, own: Collection[str]) -> None:
    """Link what others have put into a published directory into the one that replaces it."""
    if not old.is_dir():
        return
    for path in old.iterdir():
        target = new / path.name
        if path.name in own or target.exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(path, target)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):  # a file system or a system without hard links
        shutil.copy2(source, target, follow_symlinks=False)


def _remove(directory: Path) -> None:
    if directory.is_symlink():
        directory.unlink()
    elif directory.exists():
        shutil.rmtree(directory, ignore_errors=True)


def exchange(a: Path, b: Path) -> bool:
    """Exchange two paths atomically; return False if the system or the file system cannot.

    Raises:
        OSError: if one does not exist, or may not be renamed.
    """
    rename = _exchange_function()
    if rename is None:
        return False
    code = rename(os.fsencode(a), os.fsencode(b))
    if code in _EXCHANGE_UNSUPPORTED:
        return False
    if code:
        raise OSError(code, os.strerror(code), str(b))
    return True


# EPERM is the answer of container runtimes whose seccomp profile does not know the system call.
_EXCHANGE_UNSUPPORTED = {*_UNSUPPORTED, errno.EPERM, errno.EXDEV}


@cache
def _exchange_function() -> Callable[[bytes, bytes], int] | None:
    """Return a function that exchanges two paths and returns errno; None if there is none."""
    if sys.platform == "win32":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    name, folder, flag = "renameat2", [-100], 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fs.h
    if sys.platform == "darwin":
        name, folder, flag = "renamex_np", [], 2  # RENAME_SWAP of sys/stdio.h
    call = getattr(libc, name, None)
    if call is None:
        return None

    def rename(a: bytes, b: bytes) -> int:
        if call(*folder, a, *folder, b, ctypes.c_uint(flag)):
            return ctypes.get_errno()
        return 0

    return rename


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


def _flush_directory(directory: Path) -> None:
    # After a power loss a new name may be missing unless its folder is flushed too. Windows cannot
    # open folders, and its rename needs no such flush. Some network file systems cannot flush them.
    if os.name == "posix":
        try:
            _flush_to_disk(directory)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise


@contextmanager
def locked(path: Path, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock file at ``path`` until the block ends.

    The operating system releases the lock of a process that dies. On file systems without locks,
    and everywhere with ``FEATKIT_LOCKS=lease``, a file with the host, the process and a heartbeat
    is the lock: it is ignored once that process has ended, or has not renewed it for a minute.
    ``flock`` on some network file systems holds on one machine only; leases hold on all.

    Args:
        path: the lock file; it is removed when the lock is released.
        on_wait: called with the owner of the lock before waiting for it; None to raise an error
            instead of waiting.

    Raises:
        LockHeldError: if another process holds the lock and ``on_wait`` is None.
        StorageError: if the lock file cannot be written.
    """
    from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout, UnixFileLock

    def lease() -> BaseFileLock:
        return SoftFileLease(_soft_lock_file(path), lease_duration=_LEASE_SECONDS)

    leases = os.environ.get("FEATKIT_LOCKS") == "lease"
    lock: BaseFileLock = lease() if leases else FileLock(path, fallback_to_soft=False)
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except OSError as error:
                # Some network file systems cannot lock.
                if isinstance(error, Timeout) or error.errno not in _LOCK_UNSUPPORTED:
                    raise
                path.unlink(missing_ok=True)
                lock = lease()
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


_LEASE_SECONDS = 60.0


def lock_owner(path: Path) -> str:
    """Return the owner of the lock file at ``path``, an empty string if no process holds it."""
    if not path.exists() and not _soft_lock_file(path).exists():
        return ""
    try:
        with locked(path):
            return ""
    except LockHeldError as error:
        return error.owner


def _soft_lock_file(path: Path) -> Path:
    return path.with_suffix(".softlock")


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


def processes_using(path: Path) -> list[str]:
    """Return the processes that have a file open, such as ``process 4711 (python notebook.py)``.

    Processes of other users are not found, as the system does not show their files.
    """
    import psutil

    target = path.absolute().resolve()
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if any(Path(opened.path) == target for opened in process.open_files()):
                command = " ".join(process.cmdline())[:80]
                found.append(f"process {process.pid} ({command})")
    return found


def write_csv(
    file: TextIO, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, quote_all: bool = False
) -> None:
    r"""Write a header and rows as CSV, lines ending in ``\n``.

    Args:
        file: opened with ``newline=""`` if it is on the disk.
        columns: names of the columns.
        rows: one value per column; None becomes an empty field.
        quote_all: whether to quote every value; needed for values that contain ``\r``.
    """
    writer = csv.writer(
        file, lineterminator="\n", quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    )
    writer.writerow(columns)
    writer.writerows(rows)


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return rows as CSV text with a header; text is escaped by ``safe_cell``.

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


def read_csv(
    path: Path, columns: Callable[[Sequence[str]], Sequence[str]]
) -> list[tuple[int, dict[str, str]]]:
    """Return the line number and the values by column of each row of a UTF-8 CSV file.

    Args:
        path: the file, with or without a byte order mark.
        columns: returns the names of the columns for the header of the file; may raise DataError.

    Raises:
        DataError: if the file cannot be read, is not CSV in UTF-8, or a row has not as many values
            as the header.
    """
    try:
        text = read_file(path, TEXT_LIMIT).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        reader.fieldnames = columns(reader.fieldnames or [])
        rows = [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it as CSV UTF-8") from error
    except csv.Error as error:
        raise DataError(
            f"{path} is not CSV ({error}): save it as comma-separated UTF-8 text"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check the file") from error
    for line, row in rows:
        if None in row or None in row.values():
            raise DataError(
                f"line {line} of {path} has not as many values as the header: put quotes around "
                "values that contain a comma"
            )
    return rows


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
    return f"'{text}" if is_formula(text) else text


def is_formula(text: str) -> bool:
    """Return whether a spreadsheet would take a cell for a formula."""
    return text.lstrip()[:1] in _FORMULA_STARTS and not _NUMBER.fullmatch(text)


def with_apostrophe(text: str) -> str:
    """Return text with an apostrophe in front of a formula; ``without_apostrophe`` removes it."""
    return f"'{text}" if is_formula(text.lstrip("'")) else text


def without_apostrophe(cell: str) -> str:
    """Return a CSV cell without the apostrophe in front of a formula."""
    return cell[1:] if cell.startswith("'") and is_formula(cell.lstrip("'")) else cell


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
    except RecursionError as error:
        raise SpecError(f"{path} cannot be read as {kind}: nested too deeply") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise SpecError(f"{path} cannot be read as {kind}: {error}") from error


def read_json(path: Path, limit: int = TEXT_LIMIT) -> Any:
    """Return the content of a JSON file.

    Args:
        path: the file.
        limit: largest size in bytes that is accepted.

    Raises:
        OSError: as ``read_file`` does.
        ValueError: if it is not JSON in UTF-8, or is nested too deeply.
    """
    return parse_json(read_file(path, limit))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; raises ValueError for any text that cannot be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def expand_variables(value: Any) -> Any:
    """Replace environment variables such as ``$HOME`` in text; return other values unchanged."""
    return os.path.expandvars(value) if isinstance(value, str) else value


def digest(parts: Iterable[str]) -> str:
    """Return the SHA-256 (hex) of a sequence of strings, different for different sequences."""
    found = SequenceDigest()
    remaining = iter(parts)
    while block := list(islice(remaining, _DIGEST_BLOCK)):
        found.update(block)
    return found.hexdigest()


_DIGEST_BLOCK = 4096


class SequenceDigest:
    """``digest`` of a sequence that is given block by block: it may be longer than memory."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b"[")
        self._separator = ""

    def update(self, parts: Sequence[str]) -> None:
        """Append strings to the sequence."""
        if parts:
            self._hash.update(f"{self._separator}{json.dumps(list(parts))[1:-1]}".encode())
            self._separator = ", "

    def hexdigest(self) -> str:
        """Return the SHA-256 (hex) of the strings so far, as JSON."""
        whole = self._hash.copy()
        whole.update(b"]")
        return whole.hexdigest()


def file_sha256(path: Path, limit: int | None = None) -> str:
    """Return the SHA-256 (hex) of a file's bytes.

    Raises:
        OSError: as ``read_file`` does.
    """
    with open_file(path, limit) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_name(name: str) -> str:
    """Return ``name`` as a file name of letters, digits, dots, dashes and underscores.

    A name of more than 120 characters is shortened, and ends in a digest of the whole: names of
    networks and fingerprints are appended to it, and file systems allow 255 bytes. Names of devices
    on Windows, such as ``aux`` and ``nul.txt``, start with an underscore.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "images"
    if _DEVICE.fullmatch(safe.partition(".")[0]):
        safe = f"_{safe}"
    if len(safe) <= _LONGEST_PART:
        return safe
    return f"{safe[: _LONGEST_PART - 9]}-{digest([name])[:8]}"


_LONGEST_PART = 120
_DEVICE = re.compile("con|prn|aux|nul|com[0-9]|lpt[0-9]", re.IGNORECASE)


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user gave, with ``~`` and ``~name`` replaced by the home folder.

    Raises:
        SpecError: if the home folder is not known, or the path contains a NUL character.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise SpecError(f"{text!r} is not a path: remove the NUL character")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # of pathlib: no entry for the user id, and HOME is not set
        if not (text == "~" or text.startswith(("~/", f"~{os.sep}"))):
            return Path(text)  # a file whose name starts with "~"
        raise SpecError(
            f"{text} cannot be used: the home folder is not known; set HOME or give a path "
            "without ~"
        ) from error


def resolve_folders(files: Iterable[Path]) -> list[Path]:
    """Return absolute paths of files without links in their folders; links to files stay."""
    resolved = cache(Path.resolve)
    return [resolved(file.parent) / file.name for file in files]


FileStatus = list[int]
"""Size, times of the last changes of content and status in ns, and inode of a file."""

YOUNG = 2_000_000_000
"""Nanoseconds: the resolution of time stamps on FAT, the coarsest."""


def file_status(path: str) -> FileStatus:
    """Return the status of a file; raises OSError if there is none."""
    found = os.stat(path)  # noqa: PTH116, pathlib takes three times as long
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def is_young(status: FileStatus, read_at: int) -> bool:
    """Return whether a file may change again without another status, as it had just been changed.

    Args:
        status: of the file before it was read.
        read_at: when reading began, in ns since 1970.
    """
    return max(status[1], status[2]) >= read_at - YOUNG


def default_folder(path: str) -> Path | None:
    """Return a default folder below ``~``; None if the home folder is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return None


HOME_VARIABLE = "FEATKIT_HOME"
"""Environment variable with the folder of what featkit remembers about this machine: the list of
folders for results, and the engines that were chosen."""


def cache_folder(name: str) -> Path | None:
    """Return a folder of featkit in the user's cache folder; None if no home folder is known."""
    return default_folder(f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/featkit/{name}")


OFFLINE_VARIABLE = "FEATKIT_OFFLINE"
"""Environment variable that forbids downloads of weights, data sets and images if it is set."""


def is_offline() -> bool:
    """Return whether downloads are forbidden."""
    return bool(os.environ.get(OFFLINE_VARIABLE))


def data_folder() -> Path:
    """Return the folder of downloaded data: ``$FEATKIT_DATA``, or one in the user's cache folder.

    Raises:
        DataError: if neither is known.
    """
    given = os.environ.get("FEATKIT_DATA")
    if given:
        return user_path(given)
    folder = cache_folder("data")
    if folder is None:
        raise DataError("the home folder is not known: set FEATKIT_DATA or HOME, or give root=DIR")
    return folder


def available_cores() -> int:
    """Return the number of threads that this process may use for computing.

    That is the number of CPU cores that it is bound to, of those that the CPU quota of its
    container allows, or the value of ``OMP_NUM_THREADS`` or ``LOKY_MAX_CPU_COUNT``: the smallest.
    """
    limits = [_bound_cores()]
    quota = cpu_quota()
    if quota is not None:
        limits.append(math.ceil(quota))
    for name in ("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT"):
        # OpenMP accepts one number per level of nesting, such as "4,2".
        first = os.environ.get(name, "").partition(",")[0].strip()
        if first.isdecimal():
            limits.append(int(first))
    return max(1, min(limits))


def _bound_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    import psutil

    process = psutil.Process()
    # macOS cannot bind a process to cores, and psutil has no such method there.
    cores = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count()
    return cores or 1


def cpu_quota(
    root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Return the CPU quota of this process in cores, as containers set it; None without one.

    Args:
        root: where control groups are mounted.
        groups: the file that names the groups of the process.

    Source: Linux kernel documentation, "Control Group v2", ``cpu.max``, and "CFS Bandwidth
    Control", ``cpu.cfs_quota_us``, for version 1.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    quotas = []
    for line in lines:
        for folder in _group_folders(line, root):
            quotas.append(_group_quota(folder))
    return min((quota for quota in quotas if quota is not None), default=None)


def _group_folders(line: str, root: Path) -> list[Path]:
    """Return the folders of a CPU control group and of the groups that contain it.

    Args:
        line: ``number:controllers:name``; version 2 has no controllers.
        root: where control groups are mounted.
    """
    _, _, rest = line.partition(":")
    controllers, colon, name = rest.partition(":")
    mounts: list[Path] = []
    if colon and not controllers:
        mounts = [root, root / "unified"]
    elif "cpu" in controllers.split(","):
        mounts = [root / "cpu", root / controllers]
    folders = []
    for mount in mounts:
        # A limit of an outer group holds for the groups in it. Inside of a container the name may
        # be that on the host, which does not exist: the mount itself is the group then.
        group = mount / name.lstrip("/")
        folders += [each for each in (group, *group.parents) if each.is_relative_to(mount)]
    return folders


def _group_quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max": no limit
        return None


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in megabytes (10^6 bytes)."""
    import psutil

    with suppress(OSError), open("/proc/self/status", "rb") as status:  # noqa: PTH123, Linux
        # Not getrusage: after fork and exec its maximum includes the memory of the parent process.
        found = re.search(rb"VmHWM:\s+(\d+) kB", status.read())
        if found:
            return 1024 * int(found[1]) / 1e6
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return float(memory.peak_wset / 1e6)
    usage = import_module("resource")  # macOS and BSD; psutil knows only the current memory there
    unit = 1 if platform.system() == "Darwin" else 1024
    return float(usage.getrusage(usage.RUSAGE_SELF).ru_maxrss * unit / 1e6)
