"""Results of runs in one line each, and their removal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featkit.errors import RunError, StorageError
from featkit.evaluation.intervals import Interval
from featkit.evaluation.metrics import TOP1
from featkit.images.archives import archive_name, is_archive_spec
from featkit.images.remote import is_url
from featkit.images.url_folder import folder_name
from featkit.runs.bundle import is_bundled
from featkit.runs.card import CARD_FILE, HEAD_FILE, is_run, missing_run_message, read_card
from featkit.runs.registry import is_path_like
from featkit.runs.results import read_any_run


@dataclass(frozen=True)
class RunSummary:
    """A run with its result.

    Attributes:
        run, name, path, created: as in ``RunEntry``; the path is text.
        data: name of the images.
        head: spec of the head.
        backbone: spec of the network, or name of a saved one; of a trained run that of the network
            it was trained from.
        classes: number of classes.
        n: number of test images; in a cross-validation of all images.
        top1, interval95: top-1 accuracy on them with its 95% confidence interval; in a
            cross-validation the mean over all repeats. With several labels per image, the mean
            average precision, as ``metric`` says.
        bytes: size of the files of the run.
        bundled: whether the weights of the network are among them.
        folds: number of folds of a cross-validation; 0 for a test set.
        metric: ``top-1`` or ``mAP``.
    """

    run: str
    name: str
    path: str
    created: str
    data: str
    head: str
    backbone: str
    classes: int
    n: int
    top1: float
    interval95: Interval
    bytes: int
    bundled: bool
    folds: int = 0
    metric: str = TOP1

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON can represent them."""
        values = asdict(self)
        if values.pop("metric") != TOP1:
            values["mean_average_precision"] = values.pop("top1")
        return values


def summarise_run(directory: Path) -> RunSummary:
    """Return a run with its result.

    Raises:
        RunError: if its card is damaged, or its result is missing or was changed.
    """
    card = read_card(directory)
    report = read_any_run(directory)[1]
    return RunSummary(
        run=card.run,
        name=card.name,
        path=str(directory.resolve()),
        created=card.created,
        data=_data_name(card.request.data),
        head=card.head_spec,
        backbone=card.network,
        classes=len(card.classes),
        n=report.n,
        top1=report.headline.value,
        interval95=report.headline.interval95,
        bytes=sum(_sizes(directory)),
        bundled=is_bundled(directory),
        folds=report.folds.folds if report.folds else 0,
        metric=report.headline.metric,
    )


def _data_name(spec: str) -> str:
    """Return the short name of a data source, as ``featkit.images`` gives it to paths."""
    if is_archive_spec(spec):
        return archive_name(spec)
    if is_url(spec):
        return folder_name(spec.rstrip("/"))
    if not is_path_like(spec):
        return spec.partition(":")[0] or "images"
    path = Path(spec)
    return path.parent.name if path.stem == "labels" else path.stem


def _sizes(directory: Path) -> Iterator[int]:
    for file in directory.rglob("*"):
        if file.is_file() and not file.is_symlink():
            yield file.stat().st_size


def remove_run(directory: Path) -> None:
    """Remove the directory of a run with everything in it.

    Raises:
        RunError: if it is not the directory of a run.
        StorageError: if it cannot be removed.
    """
    if not is_run(directory):
        raise RunError(missing_run_message(directory, CARD_FILE))
    try:
        # The card first: what is left of an interrupted removal is no run any more.
        (directory / CARD_FILE).unlink()
        (directory / HEAD_FILE).unlink()
        shutil.rmtree(directory)
    except OSError as error:
        raise StorageError(
            f"cannot remove {directory}: {error.strerror}; check its permissions"
        ) from error
