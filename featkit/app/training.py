"""Choices of the page Train, and what it offers of a finished run."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

from featkit.app.jobs import Job, TrainingRequest
from featkit.app.settings import DIGITS
from featkit.backbones.saved import NETWORK_FILE
from featkit.backbones.weights import FILES, search_weights
from featkit.errors import DataError, FeatkitError
from featkit.runs.card import is_run
from featkit.storage import read_file

IMAGENET, RANDOM = "imagenet", "random"

WEIGHT_NAMES = {IMAGENET: "ImageNet", RANDOM: "Random, untrained"}

_MAX_ZIP_BYTES = 2**30
_DIGITS_RESIZE = "32"
"""Digits have 8 x 8 pixels: 224 would take fifty times longer."""


def backbone_names(runs: Sequence[Path]) -> list[str]:
    """Return the networks that can be chosen: ResNets, and the runs that have their own network."""
    trained = [str(path) for path in runs if (path / NETWORK_FILE).exists()]
    return [*FILES, *trained]


def default_weights(backbone: str) -> str:
    """Return ``imagenet`` if these weights of a network are on this machine, else ``random``."""
    if backbone not in FILES:
        return IMAGENET
    try:
        found = search_weights(backbone, "IMAGENET1K_V1")
    except FeatkitError:
        return RANDOM
    return IMAGENET if found else RANDOM


def network_resize(data: str, backbone: str) -> str | None:
    """Return the size to which images are resized; None for that of the network."""
    return _DIGITS_RESIZE if data == DIGITS and backbone in FILES else None


def training_request(
    data: str,
    backbone: str,
    heads: Sequence[str],
    *,
    weights: str,
    tune: bool = False,
    reject: float = 0.0,
    baseline: str | None = None,
) -> TrainingRequest:
    """Return the request for the choices of the page.

    Raises:
        DataError: if no head is chosen.
    """
    if not heads:
        raise DataError("no head is chosen: choose at least one, such as linear")
    return TrainingRequest(
        data=data,
        backbone=backbone,
        heads=tuple(heads),
        weights=weights,
        resize=network_resize(data, backbone),
        tune=tune,
        reject=reject or None,
        baseline=baseline,
    )


def job_title(job: Job) -> str:
    """Return what a training does, in a few words."""
    request = job.request
    heads = ", ".join(request.heads)
    return f"{heads} on {Path(request.backbone).name}, {Path(request.data).name}"


def run_zip(run: Path) -> bytes:
    """Return the files of a run directory as a ZIP archive.

    Raises:
        DataError: if it is not a run, or is larger than 1 GiB.
        OSError: if a file cannot be read.
    """
    if not is_run(run):
        raise DataError(f"{run} is not a run directory any more: train again")
    files = sorted(path for path in run.iterdir() if path.is_file() and not path.is_symlink())
    if sum(path.stat().st_size for path in files) > _MAX_ZIP_BYTES:
        raise DataError(f"{run} is larger than 1 GiB: copy the directory itself")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.writestr(f"{run.name}/{path.name}", read_file(path, _MAX_ZIP_BYTES))
    return buffer.getvalue()
