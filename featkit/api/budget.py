"""Train the best classifier that is found within a time budget."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.api.fitting import _read_costs
from featkit.api.options import COMPUTE_OPTIONS, OUT, PathLike, log, make_compute, request_options
from featkit.api.progress import search_bar
from featkit.api.reports import report
from featkit.api.runs import load_run
from featkit.arguments import FLAG, NAME, PATH, SEED, SIZE, checked, number, text
from featkit.errors import HeadError

if TYPE_CHECKING:
    from featkit.embeddings.pipeline import Compute
    from featkit.runs.fit import Run
    from featkit.studies.train import Clock, TrainedClassifier


@dataclass(frozen=True)
class TrainResult:
    """A trained classifier and what was written.

    Attributes:
        trained: the chosen run, the other attempts, and paired tests between them.
        name: name of the run.
        path: its directory.
        report: its report as an HTML page; None if the time was up.
        model: its ONNX file; None if the time was up, or the file could not be written.
        seconds: duration.
    """

    trained: TrainedClassifier
    name: str
    path: Path
    report: Path | None
    model: Path | None
    seconds: float

    @property
    def run(self) -> Run:
        """The chosen run."""
        return self.trained.run

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON can hold them."""
        return {
            "run": self.run.id,
            "name": self.name,
            "path": str(self.path),
            "report": None if self.report is None else str(self.report),
            "model": None if self.model is None else str(self.model),
            "seconds": self.seconds,
            "n": self.run.report.n,
            "top1": self.run.report.top1,
            "interval95": list(self.run.report.interval95),
            **self.trained.to_dict(),
        }

    def _repr_html_(self) -> str:
        return self.run._repr_html_()


@checked(
    **COMPUTE_OPTIONS,
    photos=PATH,
    minutes=number(0.05, 1440),
    name=NAME,
    overwrite=FLAG,
    backbone=PATH,
    weights=PATH,
    resize=SIZE,
    decode=text("full"),
    split=text("70/15/15"),
    seed=SEED,
    cost=PATH,
    bundle=FLAG,
    cache=PATH,
    out=PATH,
)
def train(
    photos: PathLike,
    *,
    minutes: float = 5.0,
    name: str | None = None,
    overwrite: bool = False,
    backbone: PathLike | None = None,
    weights: str | None = None,
    resize: str | int | None = None,
    decode: str | None = None,
    split: str | None = None,
    seed: int = 0,
    cost: PathLike | None = None,
    bundle: bool = False,
    cache: PathLike = "cache",
    out: PathLike = OUT,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "skip",
    progress: bool = False,
) -> TrainResult:
    """Train the best classifier of images that is found within a time budget.

    Extracts features, tunes all heads on validation images as far as time allows, chooses one,
    evaluates it once on the test images, compares it with the others by paired tests, and writes a
    run with its report and an ONNX file. If there is time, ResNet-50 is tried after ResNet-18.
    Ctrl-C during the search continues with the best so far.

    Args:
        photos: a folder with one subfolder per class, or another spec of images.
        minutes: time budget. If the features alone take longer, the fastest head is still fitted.
        name: name of the run; None for the name of the folder.
        overwrite: whether a run with this name is replaced.
        backbone: network to use; None to try ResNet-18 and, if there is time, ResNet-50.
        weights: weights of the network, as for ``extract``.
        resize: size of the images, as for ``extract``.
        decode: how large JPEG files are decoded, as for ``extract``.
        cost: file with the cost of each error, as for ``fit``: the report has the mean cost of an
            image; the choice of the classifier does not depend on it.
        bundle: whether the weights of the network are put into the run, see ``bundle``.
        split, seed, cache, device, batch_size, workers, engine, compile, on_error, progress: as for
            ``extract``.
        out: folder for results.

    Returns:
        The run, what was tried, and the paths of the files.

    Raises:
        RunError: if the name is in use.
        DataError: if there are fewer than two classes, or no image to test on.

    Example:
        >>> result = featkit.train("photos", minutes=2)  # doctest: +SKIP
        >>> featkit.predict(result.name, "new.png")  # doctest: +SKIP
    """
    options = dict(locals())
    from featkit.reports.figures import run_figures
    from featkit.runs.bundle import bundle_run
    from featkit.runs.directory import save_run
    from featkit.runs.registry import check_name, check_name_is_free, free_name
    from featkit.studies.train import (
        FIRST_NETWORK,
        Clock,
        ExtractionTimer,
        SecondNetwork,
        evaluate_selection,
        finishing_seconds,
        read_photos,
        select,
    )

    clock = Clock(60 * minutes)
    table = _read_costs(cost)
    if name is not None:
        check = check_name if overwrite else check_name_is_free
        check(name)
    timer = ExtractionTimer(clock, log.info)
    compute = make_compute(options)
    given = {**request_options(options), "data": str(photos)}
    first = {**given, "backbone": given["backbone"] or FIRST_NETWORK}
    timed = replace(compute, on_batch=timer)
    features, problems = read_photos(first, Path(cache), timed, log.info)
    costs = None if table is None else table.matrix(features.embeddings.classes)
    clock.reserve = finishing_seconds(features, timer.seconds_per_image)
    clock.allow_search()
    second = SecondNetwork(given, Path(cache), compute, clock, log.info, timer.seconds_per_image)
    with search_bar(clock, progress) as on_candidate:
        selection = select(features, clock, second=second, say=log.info, on_candidate=on_candidate)
    trained = evaluate_selection(selection, problems, costs)
    earlier = _runs_named(name) if name is not None and overwrite else []
    own = Path(out) / features.data / trained.run.id
    title = name if name is not None else free_name(features.data, own)
    run = replace(trained.run, name=title)
    content = json.dumps(trained.to_dict(), indent=2)
    path = save_run(run, Path(out), {**run_figures(run), "train.json": content})
    log.info("run: %s", path)
    _remove_replaced(earlier, path)
    if bundle:
        bundle_run(load_run(path))
    page, model = None, None
    if not selection.interrupted:
        page = _report_in_time(path, clock, options)
        model = _export_in_time(path, compute)
    return TrainResult(replace(trained, run=run), title, path, page, model, clock.elapsed)


def _runs_named(name: str) -> list[Path]:
    """Return the directories of the runs with a name."""
    from featkit.runs.registry import list_runs

    return [entry.path for entry in list_runs() if entry.name == name]


def _remove_replaced(earlier: Sequence[Path], path: Path) -> None:
    """Remove the runs that a new run of the same name replaces."""
    from featkit.runs.summary import remove_run

    for other in earlier:
        if other != path.resolve():
            remove_run(other)
            log.info("removed the earlier run of this name: %s", other)


def _report_in_time(path: Path, clock: Clock, options: Mapping[str, Any]) -> Path:
    """Write the report of a new run, without class activation maps if the time is up."""
    compute = (
        "cache",
        "device",
        "batch_size",
        "workers",
        "engine",
        "compile",
        "on_error",
        "progress",
    )
    shared = {name: options[name] for name in compute}
    heat_maps = clock.left > 0
    if not heat_maps:
        log.info("no class activation maps, since the time is up: `featkit report` draws them")
    return report(path, heat_maps=heat_maps, **shared)


def _export_in_time(path: Path, compute: Compute) -> Path | None:
    """Export a new run to ONNX; without the extra for it, say so."""
    from featkit.errors import MissingExtraError
    from featkit.runs.export import export_run

    model = path / "model.onnx"
    try:
        export_run(load_run(path), model, most=_CHECKED_IMAGES, compute=compute)
    except (MissingExtraError, HeadError) as error:
        log.warning("no ONNX file: %s", error)
        return None
    return model


_CHECKED_IMAGES = 64
"""Test images on which ``train`` verifies the ONNX file."""
