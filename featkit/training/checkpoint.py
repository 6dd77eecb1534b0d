"""What training has reached, on disk: written by rename, read without code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from featkit.errors import StorageError, TrainingError

CHECKPOINT_FILE = "checkpoint.pt"


def save_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Replace the checkpoint in a folder; whatever happens, there is a whole one, the old or the new.

    Args:
        folder: made if need be.
        content: tensors, numbers and texts in dicts and lists.

    Raises:
        StorageError: if the disk is full or cannot be written.
    """
    path = folder / CHECKPOINT_FILE
    partial = path.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        # torch's own writer says RuntimeError where the disk is full.
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise StorageError(f"cannot write {path}: {reason}; make room, then go on with --resume") from error


def load_checkpoint(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the checkpoint in a folder, or None where there is none.

    Args:
        folder: where training left it.
        fingerprint: of all that decides the weights.

    Raises:
        TrainingError: if it is damaged, or of a training whose images, network or settings were others.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = content["fingerprint"]
    except Exception as error:  # bytes that are no checkpoint make torch raise almost anything
        raise TrainingError(f"{path} is damaged: begin anew without --resume") from error
    if found != fingerprint:
        raise TrainingError(f"{path} is of another training (images, network or settings changed): leave --resume out")
    return content
