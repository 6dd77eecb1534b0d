"""Use finished runs: load, predict, compare, export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from featkit.api.options import COMPUTE_OPTIONS, PathLike, log, make_compute, run_or_path
from featkit.arguments import FLAG, NAME, PATH, checked, integer, sequence, several, text

if TYPE_CHECKING:
    from featkit.compression.export import ExportAgreement
    from featkit.embeddings.pipeline import Compute
    from featkit.runs.compare import RunComparison
    from featkit.runs.directory import SavedRun
    from featkit.runs.fit import Run
    from featkit.runs.multilabel import MultiLabelRun
    from featkit.runs.predict import Prediction


@checked(
    **COMPUTE_OPTIONS,
    run=run_or_path(),
    files=several(PATH),
    top=integer(1),
    all_probabilities=FLAG,
    sort_into=PATH,
)
def predict(
    run: PathLike | Run | SavedRun,
    files: PathLike | Sequence[PathLike],
    *,
    top: int = 5,
    all_probabilities: bool = False,
    sort_into: PathLike | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> list[Prediction]:
    """Classify new images with a run.

    Args:
        run: a run, by name, id or directory, or a file written by ``export`` (``.onnx``).
        files: image files, and folders with images in them or below them.
        top: number of classes to return, the most probable first.
        all_probabilities: whether each prediction has the probability of every class too.
        sort_into: folder into which the images are copied, with one subfolder for each predicted
            class and ``unknown`` for rejected images; None for no copies.
        device, batch_size, workers, engine, compile, on_error, progress: as for ``extract``.

    Returns:
        One prediction per image; images that cannot be read are left out with ``on_error="skip"``.

    Raises:
        RunError: if the run is not found or was changed.
        DataError: if there is no image.
        DecodeError: if an image cannot be read.

    Example:
        >>> (prediction,) = featkit.predict("colours", "new.png")
        >>> prediction.predicted
        'red'
    """
    compute = make_compute(locals())
    from featkit.runs.predict import image_names
    from featkit.runs.predict import sort_into as copy_into

    names = image_names([files] if isinstance(files, str | Path) else files)
    found = _predict(run, names, compute, top, all_probabilities)
    if sort_into is not None:
        counts = copy_into(found, Path(sort_into))
        listed = ", ".join(f"{count} in {name}" for name, count in counts.items())
        log.info("copied into %s: %s", sort_into, listed or "nothing")
    return found


def _predict(
    run: PathLike | Run | SavedRun,
    names: list[str],
    compute: Compute,
    top: int,
    all_probabilities: bool,
) -> list[Prediction]:
    """Classify image files with a run or an exported classifier."""
    from featkit.runs.predict import predict as predict_run
    from featkit.runs.predict import predict_exported

    if isinstance(run, str | Path) and Path(run).suffix == ".onnx":
        from featkit.compression.onnx_reader import load_exported

        exported = load_exported(Path(run))
        return predict_exported(
            exported, names, compute, top=top, all_probabilities=all_probabilities
        )
    return predict_run(load_run(run), names, compute, top=top, all_probabilities=all_probabilities)


@checked(run=run_or_path())
def load_run(run: PathLike | Run | MultiLabelRun | SavedRun) -> SavedRun:
    """Load a run: head, class names, temperature and the description of its network.

    Args:
        run: its name, ``latest``, its id or the start of one of them, or its directory; a run in
            memory is converted.

    Raises:
        RunError: if there is no such run, or a part is missing, cannot be read or was changed.
        HeadError: if the head file holds anything that is not on the trusted list.

    Example:
        >>> run = featkit.load_run("colours")
        >>> run.head_spec
        'prototypical'
    """
    from featkit.runs.directory import SavedRun, label_rules
    from featkit.runs.directory import load_run as load
    from featkit.runs.fit import Run
    from featkit.runs.multilabel import MultiLabelRun
    from featkit.runs.registry import find_run

    if isinstance(run, SavedRun):
        return run
    if not isinstance(run, Run | MultiLabelRun):
        return load(find_run(run), multilabel=True)
    recipe = run.source.embeddings.recipe
    quantized = None
    if recipe.calibration != "none":
        from featkit.embeddings.calibration import find_by_digest

        quantized = run.source.request.load_backbone().quantized
        quantized = quantized or find_by_digest(run.source.path.parent, recipe.calibration)
    saved = SavedRun(
        path=Path(run.id),
        request=run.source.request,
        classes=run.source.embeddings.classes,
        head=run.head,
        head_spec=run.head_spec,
        recipe=recipe,
        quantized=quantized,
        name=run.name,
    )
    if isinstance(run, MultiLabelRun):
        return replace(saved, classes=run.report.labels, labels=label_rules(run.report))
    rejection = run.report.rejection
    return replace(
        saved,
        temperature=run.report.temperature,
        threshold=rejection.threshold if rejection else 0.0,
    )


def load_plain_run(run: PathLike | Run | SavedRun) -> SavedRun:
    """Load a run with one label per image; raises RunError for another one."""
    from featkit.runs.directory import refuse_multilabel_run

    saved = load_run(run)
    refuse_multilabel_run(saved)
    return saved


@checked(run=PATH)
def bundle(run: PathLike) -> Path:
    """Write the weights of a run's network into its directory.

    The directory is then all that another machine with featkit needs in order to predict.

    Args:
        run: its name, ``latest``, its id or the start of one of them, or its directory.

    Returns:
        The path of the new file.

    Raises:
        RunError: if there is no such run.
        WeightsError: if the weights are not found, or are not those of the run.
        StorageError: if the disk is full or cannot be written.
    """
    from featkit.runs.bundle import bundle_run

    return bundle_run(load_run(run))


@checked(run=PATH, name=NAME)
def rename_run(run: PathLike, name: str) -> Path:
    """Give a run another name and return its directory; nothing else in it changes.

    Args:
        run: its name, ``latest``, its id or the start of one of them, or its directory.
        name: the new name.

    Raises:
        RunError: if there is no such run, or another run has the name.
        StorageError: if the disk is full or cannot be written.
    """
    from featkit.runs.directory import rename_run as rename
    from featkit.runs.registry import check_name_is_free, find_run

    directory = find_run(run)
    check_name_is_free(name)
    rename(directory, name)
    return directory


@checked(runs=sequence(PATH, least=1))
def compare(runs: Sequence[PathLike]) -> RunComparison:
    """Compare runs that were evaluated on the same test images.

    Args:
        runs: two or more runs, by name, id or directory; folders without a run, which
            ``runs/photos/*`` also matches, are left out as long as two runs remain.

    Returns:
        The runs, best first, and for each pair the difference of top-1 accuracy with its 95%
        confidence interval and McNemar's test with Holm correction. Runs on the same folds are
        compared by the corrected resampled t-test too, runs on folds with runs on a test set over
        the images that all were evaluated on.

    Raises:
        SpecError: if there are fewer than two runs, or one is given twice.
        RunError: if a path does not exist, or a run is damaged.
        DataError: if two runs were evaluated on different images or labels.

    Example:
        >>> comparison = featkit.compare(["colours", "neighbour"])
        >>> len(comparison.runs)
        2
    """
    from featkit.runs.compare import compare_runs
    from featkit.runs.registry import find_run

    return compare_runs(_without_other_folders([find_run(run) for run in runs]))


def _without_other_folders(directories: Sequence[Path]) -> list[Path]:
    """Leave out folders that hold no file of a run, such as results of ``audit``, and log them."""
    from featkit.runs.card import CARD_FILE, HEAD_FILE, PREDICTIONS_FILE

    runs: list[Path] = []
    others: list[Path] = []
    for directory in directories:
        files = [directory / name for name in (CARD_FILE, HEAD_FILE, PREDICTIONS_FILE)]
        is_other = directory.is_dir() and not any(file.exists() for file in files)
        (others if is_other else runs).append(directory)
    if len(runs) < 2:  # then the message says what is wrong with the others
        return list(directories)
    if others:
        log.info("left out, not runs: %s", ", ".join(map(str, others)))
    return runs


@checked(
    **COMPUTE_OPTIONS,
    run=run_or_path(),
    format=text("onnx"),
    out=PATH,
    check=integer(0),
    data=PATH,
)
def export(
    run: PathLike | SavedRun,
    *,
    format: str = "onnx",
    out: PathLike | None = None,
    check: int = 256,
    data: PathLike | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> ExportedRun:
    """Export a run to one file that needs no featkit: network, head and temperature.

    The file is written only if it predicts the same classes and rejects the same images as the
    run, with probabilities within 0.001. With several labels per image it gives the calibrated
    probability of each label, and its metadata has their thresholds.

    Args:
        run: a run directory.
        format: ``onnx`` or ``torch``.
        out: the file; None for ``model.onnx`` or ``model.pt2`` in the run directory.
        check: largest number of test images on which the file is verified; 0 for none: the file is
            written unverified.
        data: images whose test images are used to verify it, such as the new folder of images that
            were moved; None for those of the run.
        device, batch_size, workers, engine, compile, on_error, progress: as for ``extract``.

    Returns:
        The path of the file, and how its predictions agree with those of the run.

    Raises:
        DataError: if the images of the run are no longer where they were.
        HeadError: if the head cannot be exported.
        OptionsError: if images are given to verify nothing.
        SpecError: if the file gives other answers.
    """
    compute = make_compute(locals())
    from featkit.compression.export import SUFFIXES
    from featkit.errors import OptionsError
    from featkit.runs.export import export_run

    saved = load_run(run)
    if format not in SUFFIXES:
        from featkit.registry import unknown

        raise unknown("format", format, list(SUFFIXES))
    path = Path(out) if out is not None else saved.path / f"model{SUFFIXES[format]}"
    if not check and data is not None:
        raise OptionsError("--check 0 verifies nothing: leave out --data or --check 0")
    if check and saved.request.precision == "bf16":
        log.info("the run uses bf16, the file fp32: it will be compared with the run in fp32")
    if check and saved.request.precision == "int8-openvino":
        log.info("the run uses OpenVINO: the file will be compared with it in ONNX Runtime")
    images = None if data is None else str(data)
    found = export_run(saved, path, to=format, most=check, data=images, compute=compute)
    return ExportedRun(path, found)


@dataclass(frozen=True)
class ExportedRun:
    """An exported run: the file, and the comparison of its predictions with those of the run.

    The comparison is None if the file was not verified.
    """

    path: Path
    check: ExportAgreement | None
