"""Checkpoints of a training: written atomically, read without executing code."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from featkit.errors import StorageError, TrainingError
from featkit.storage import check_file, file_sha256, read_text, write_file

CHECKPOINT_FILE = "checkpoint.pt"
DIGEST_FILE = "checkpoint.pt.sha256"
"""Digests of the checkpoint and of the one before: one of them matches whenever a write stops."""

_MAX_DIGEST_BYTES = 1000
_KEYS = {"fingerprint", "number", "step", "sums", "seconds", "model", "optimiser", "history"}


def save_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Replace the checkpoint in a folder; an interruption leaves the old one.

    Args:
        folder: created if needed.
        content: tensors, numbers and strings in dicts and lists.

    Raises:
        StorageError: if the disk is full or cannot be written.
    """
    path = folder / CHECKPOINT_FILE

    def write(temporary: Path) -> None:
        torch.save(content, temporary)
        # Before the checkpoint gets its name: a kill in between leaves the old one, which the
        # second digest is of.
        digests = [file_sha256(temporary), *_read_digests(folder)[:1]]
        write_file(folder / DIGEST_FILE, "\n".join(digests))

    try:
        write_file(path, write)
    except RuntimeError as error:
        # torch.save raises RuntimeError, not OSError, when the disk is full.
        reason = str(error).partition("\n")[0]
        raise StorageError(
            f"cannot write {path}: {reason}; free disk space, then continue with --resume"
        ) from error


def load_checkpoint(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the checkpoint in a folder, or None if there is none.

    Args:
        folder: where ``save_checkpoint`` wrote it.
        fingerprint: digest of everything that decides the weights.

    Raises:
        TrainingError: if it is damaged, or belongs to a training with other images, another network
            or other settings.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        check_file(path)
        _check_content(path, _read_digests(folder))
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        missing = _KEYS - content.keys()
    except MemoryError:
        raise
    except Exception as error:  # torch raises many types for files that are not checkpoints
        raise TrainingError(f"{path} is damaged: start again without --resume") from error
    if missing:
        raise TrainingError(f"{path} is damaged: start again without --resume")
    if content["fingerprint"] != fingerprint:
        raise TrainingError(
            f"{path} is of another training: images, network or options have changed since; "
            "start again without --resume"
        )
    return content


def _read_digests(folder: Path) -> list[str]:
    """Return the digests beside a checkpoint; empty if version 0.1.0 or 0.2.0 wrote it."""
    try:
        return read_text(folder / DIGEST_FILE, _MAX_DIGEST_BYTES).split()
    except FileNotFoundError:
        return []


def _check_content(path: Path, digests: list[str]) -> None:
    """Raise ValueError if the bytes of a checkpoint are not those that were written."""
    if digests:
        damaged = file_sha256(path) not in digests
    else:
        with zipfile.ZipFile(path) as archive:  # torch does not compare these checksums
            damaged = archive.testzip() is not None
    if damaged:
        raise ValueError("the checksum does not match")
