"""Checkpoints of a training: written atomically, read without executing code."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from featkit.errors import StorageError, TrainingError
from featkit.storage import write_file

CHECKPOINT_FILE = "checkpoint.pt"


def save_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Replace the checkpoint in a folder; an interruption leaves the old one.

    Args:
        folder: created if needed.
        content: tensors, numbers and strings in dicts and lists.

    Raises:
        StorageError: if the disk is full or cannot be written.
    """
    path = folder / CHECKPOINT_FILE
    try:
        write_file(path, partial(torch.save, content))
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
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = content["fingerprint"]
    except Exception as error:  # torch raises many types for files that are not checkpoints
        raise TrainingError(f"{path} is damaged: start again without --resume") from error
    if found != fingerprint:
        raise TrainingError(
            f"{path} is of another training: images, network or options have changed since; "
            "start again without --resume"
        )
    return content
