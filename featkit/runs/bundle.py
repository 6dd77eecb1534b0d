"""Runs with the weights of their network, which predict on another machine with nothing else."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from featkit.backbones.base import Backbone
from featkit.backbones.bundle import BUNDLE_FILE, load_bundled, save_weights
from featkit.backbones.saved import INT8_CARD, NETWORK_FILE, is_int8, is_path
from featkit.backbones.saved import network_file as file_of_network
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.request import Request
from featkit.errors import RunError, WeightsError
from featkit.runs.card import CARD_FILE, read_card
from featkit.storage import file_sha256, storage_errors, user_path, write_file

if TYPE_CHECKING:
    from featkit.runs.directory import SavedRun


def is_bundled(directory: Path) -> bool:
    """Return whether a run has its network: a bundle, or that of a trained network."""
    return any((directory / name).is_file() for name in (BUNDLE_FILE, NETWORK_FILE, INT8_CARD))


def bundle_run(run: SavedRun) -> Path:
    """Write the weights of a run's network into its directory; return the new file.

    The digest of the file is recorded in the card, and verified whenever it is used. If the run
    has its network already, nothing is written.

    Raises:
        WeightsError: if the weights are not found, or are not those of the run.
        StorageError: if the disk is full or cannot be written.
    """
    directory = run.path
    for name in (BUNDLE_FILE, NETWORK_FILE, INT8_CARD):
        if (directory / name).is_file():
            run.load_backbone()  # verifies it
            return directory / name
    backbone = run.load_backbone()
    with tempfile.TemporaryDirectory(prefix="featkit-") as folder:
        written = Path(folder, BUNDLE_FILE)
        name = _write_network(run.request.backbone, backbone, written)
        target = directory / name
        with storage_errors(target):
            write_file(target, partial(shutil.copyfile, written))
    _record(directory, target)
    return target


def _write_network(spec: str, backbone: Backbone, file: Path) -> str:
    """Write a network; return the name that its file has in a run directory."""
    if is_int8(spec):
        shutil.copyfile(user_path(spec) / INT8_CARD, file)
        return INT8_CARD
    if is_path(spec):
        shutil.copyfile(file_of_network(spec), file)
        return NETWORK_FILE
    save_weights(backbone, file)
    return BUNDLE_FILE


def _record(directory: Path, file: Path) -> None:
    """Record the digest of a new file in the card of its run."""
    card = read_card(directory)
    files = {**card.files, file.name: file_sha256(file)}
    write_file(directory / CARD_FILE, replace(card, files=files).to_json())


def bundled_backbone(directory: Path, request: Request, recipe: Recipe) -> Backbone | None:
    """Return the network that is bundled with a run; None if there is none.

    Raises:
        RunError: if the file is not the one that was bundled.
    """
    file = directory / BUNDLE_FILE
    if not file.is_file():
        return None
    card = read_card(directory)
    recorded = card.files.get(BUNDLE_FILE)
    try:
        unchanged = recorded is not None and file_sha256(file) == recorded
    except OSError as error:
        raise RunError(f"{file} cannot be read ({error.strerror}): copy the run again") from error
    if not unchanged:
        raise RunError(
            f"{file} is not the network that was bundled with this run: copy the run again, or "
            "remove the file and run `featkit bundle`"
        )
    return load_bundled(
        request.backbone,
        file,
        layer=request.layer,
        pool=request.pool,
        preprocess=recipe.preprocess,
        digest=recipe.weights,
        label=card.weights,
    )


def missing_weights(directory: Path, request: Request, recipe: Recipe, error: WeightsError) -> str:
    """Return the message for a run whose weights are not on this machine."""
    label = read_card(directory).weights
    return (
        f"{directory} needs the weights {label} of {request.backbone}, SHA-256 {recipe.weights}, "
        f"which are not on this machine ({error.text([])}): copy that file into the folder in "
        "FEATKIT_WEIGHTS, or run `featkit bundle` where they are, and copy the run again"
    )
