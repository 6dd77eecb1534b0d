"""Grids of experiments: ablation, class imbalance, robustness."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.api.features import open_cluster
from featkit.api.fitting import expand_heads
from featkit.api.options import (
    GRID_OPTIONS,
    OUT,
    PathLike,
    Strings,
    as_strings,
    comparable,
    correction_specs,
    log,
    make_compute,
    network_spec,
    request_options,
)
from featkit.api.progress import cell_bar
from featkit.arguments import FLAG, PATH, checked, number, sequence, several, text
from featkit.errors import FeatkitError, OptionsError

if TYPE_CHECKING:
    from featkit.ablation.estimate import Estimate
    from featkit.ablation.executors.cluster import ClusterExecutor
    from featkit.ablation.grid import AxisValue, Grid
    from featkit.ablation.run import AblationConfig, AblationResult, Progress
    from featkit.embeddings.request import Request
    from featkit.runs.compare import RunComparison


@checked(**GRID_OPTIONS, grid=PATH, tune=FLAG)
def ablate(
    grid: PathLike | None = None,
    *,
    data: Strings | None = None,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | Sequence[int] | None = None,
    subset: Strings | None = None,
    augment: str | None = None,
    views: int | None = None,
    perturb: Strings | None = None,
    train_perturb: Strings | None = None,
    backbone: Strings | None = None,
    weights: Strings | None = None,
    layer: Strings | None = None,
    pool: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    precision: Strings | None = None,
    head: Strings | None = None,
    tune: bool = False,
    balance: Strings | None = None,
    jobs: int | None = None,
    cluster: str | None = None,
    cache: PathLike = "cache",
    out: PathLike = OUT,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> AblationResult:
    """Run every combination of backbones, heads and options, each on the same protocol as ``fit``.

    Finished cells are kept in ``out``: an interrupted grid resumes, a changed one computes only
    what is new. Tables, report and figures are written to ``out/<name>/<id>``.

    Args:
        grid: TOML file with ``[axes]``, ``[fixed]`` and ``[[skip]]``; then none of the options that
            define cells.
        data, seed, subset, perturb, train_perturb, backbone, weights, layer, precision, head,
            balance: one value or several, of which every combination is run. By default: the data
            of the newest cache file, else ``digits``; weights ``imagenet`` and ``random``;
            featkit's five heads (``all`` adds plug-ins).
        split, limit, intensity_range, group, allow_group_leak, augment, views, pool, resize, crop,
            tune: the same in all cells, as for ``fit``.
        jobs: heads fitted in parallel; None for one per core.
        cluster: ``local:4``, ``tcp://host:8786`` or a scheduler file: extract features and fit
            heads on the workers of a Dask cluster; None for this machine.
        cache, device, batch_size, workers, engine, compile, on_error, progress: as for ``extract``.
        out: folder for results.

    Returns:
        The grid and a result for each cell; a cell that failed has the reason.

    Raises:
        SpecError: if the grid or an option is not valid.
        FeatkitError: if no cell has a result.

    Example:
        >>> heads = ["prototypical", "knn:k=1"]
        >>> result = featkit.ablate(data="photos", head=heads, weights="random", resize=32)
        >>> len(result.cells)
        2
    """
    options = locals()
    return run_study(ablation_grid(options), options)


@checked(**GRID_OPTIONS, factors=sequence(number(1), least=1))
def longtail(
    data: Strings | None = None,
    *,
    factors: Sequence[float] | None = None,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | Sequence[int] | None = None,
    subset: Strings | None = None,
    augment: str | None = None,
    views: int | None = None,
    perturb: Strings | None = None,
    train_perturb: Strings | None = None,
    backbone: Strings | None = None,
    weights: Strings | None = None,
    layer: Strings | None = None,
    pool: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    precision: Strings | None = None,
    head: Strings | None = None,
    balance: Strings | None = None,
    jobs: int | None = None,
    cluster: str | None = None,
    cache: PathLike = "cache",
    out: PathLike = OUT,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> AblationResult:
    """Compare class-imbalance corrections on long-tailed training sets.

    A grid of imbalance factors, corrections and heads; see ``ablate``. Hyperparameters of
    corrections are tuned on the validation set.

    Args:
        data: spec of the images, or several.
        factors: imbalance factors: largest class size over smallest; None for 10 and 50.
        subset: subsets of train in place of ``factors``, such as ``longtail:if=50,profile=step``.
        balance: corrections to compare; None for all.
        split, limit, intensity_range, group, allow_group_leak, seed, augment, views, perturb,
            train_perturb, backbone, weights, layer, pool, resize, crop, precision, head, jobs,
            cluster, cache, out, device, batch_size, workers, engine, compile, on_error, progress:
            as for ``ablate``.

    Returns:
        The grid and a result for each cell, as of ``ablate``.

    Raises:
        SpecError: if an option is not valid.
        FeatkitError: if no cell has a result.
    """
    options = locals()
    return run_study(longtail_grid(options), options)


@checked(
    **GRID_OPTIONS,
    family=several(text("fog")),
    level=several(text("mild")),
    baseline=text("resnet18"),
    tune=FLAG,
)
def robustness(
    data: Strings | None = None,
    *,
    family: Strings = (),
    level: Strings = (),
    baseline: str = "",
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | Sequence[int] | None = None,
    subset: Strings | None = None,
    augment: str | None = None,
    views: int | None = None,
    train_perturb: Strings | None = None,
    backbone: Strings | None = None,
    weights: Strings | None = None,
    layer: Strings | None = None,
    pool: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    precision: Strings | None = None,
    head: Strings | None = None,
    tune: bool = False,
    balance: Strings | None = None,
    jobs: int | None = None,
    cluster: str | None = None,
    cache: PathLike = "cache",
    out: PathLike = OUT,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> AblationResult:
    """Evaluate heads on corrupted test images.

    A grid of corruptions, severities and heads; see ``ablate``. Only test images are corrupted.

    Args:
        data: spec of the images, or several.
        family: corruptions, such as ``fog``; empty for all.
        level: severities ``mild``, ``medium``, ``strong``; empty for all three.
        baseline: backbone by whose errors those of the others are divided in the mean corruption
            error; empty for the first.
        split, limit, intensity_range, group, allow_group_leak, seed, subset, augment, views,
            train_perturb, backbone, weights, layer, pool, resize, crop, precision, head, tune,
            balance, jobs, cluster, cache, out, device, batch_size, workers, engine, compile,
            on_error, progress: as for ``ablate``.

    Returns:
        The grid and a result for each cell, as of ``ablate``.

    Raises:
        SpecError: if an option is not valid.
        FeatkitError: if no cell has a result.
    """
    options = locals()
    return run_study(robustness_grid(options), options, baseline)


@checked(
    result=comparable(),
    format=text("latex"),
    baseline=text("resnet18"),
)
def publication_table(
    result: AblationResult | RunComparison, *, format: str = "latex", baseline: str = ""
) -> str:
    """Return a comparison as a table for a paper, with the best in bold and ties with it marked.

    Numbers are in percent with one decimal and a 95% confidence interval. A tie is a result that is
    not significantly different from the best by paired tests with Holm correction; the caption
    explains the marks.

    Args:
        result: of ``compare``, ``ablate``, ``longtail`` or ``robustness``.
        format: ``latex`` (needs the package booktabs) or ``markdown``.
        baseline: as for ``robustness``.

    Raises:
        SpecError: if the format is unknown.
        DataError: if no cell of a grid has a result.

    Example:
        >>> comparison = featkit.compare(["colours", "neighbour"])
        >>> table = featkit.publication_table(comparison, format="markdown")
    """
    from featkit.registry import unknown
    from featkit.reports import publication

    if format not in publication.FORMATS:
        raise unknown("format", format, list(publication.FORMATS))
    return publication.publication_table(result, baseline=baseline).to_text(format)


def ablation_grid(options: Mapping[str, Any]) -> Grid:
    """Return the grid of ``ablate``, from its options or its file.

    Raises:
        SpecError: if the file cannot be read, is not a grid, or options that define cells are given
            as well.
    """
    from featkit.ablation.grid import BUILT_IN, Grid, read_grid
    from featkit.embeddings.request import NO_EARLIER, resolve

    axes, fixed = _axes(options), _fixed(options)
    if options["grid"] is not None:
        if axes or fixed:
            names = ", ".join(name.replace("_", "-") for name in (*axes, *fixed))
            raise OptionsError(f"the grid is defined in {options['grid']}: leave out {names}")
        grid = read_grid(Path(options["grid"]))
        if "balance" not in grid.axes:
            return grid
        return replace(grid, axes={**grid.axes, "balance": correction_specs(grid.axes["balance"])})
    if "data" not in axes:
        request, newest = resolve({}, Path(options["cache"]))
        log.info("data: %s (%s)", request.data, f"from {newest}" if newest else NO_EARLIER)
        axes["data"] = (request.data,)
    return Grid("ablate", {**BUILT_IN, **axes}, fixed)


def longtail_grid(options: Mapping[str, Any]) -> Grid:
    """Return the grid of ``longtail``, from its options.

    Raises:
        OptionsError: if both ``factors`` and ``subset`` are given.
    """
    from featkit.studies import longtail

    axes, factors = _axes(options), options["factors"]
    if factors and "subset" in axes:
        raise OptionsError("--if and --subset both define the subset of train: leave one out")
    return longtail.longtail_grid(axes, factors or (10.0, 50.0), _fixed(options))


def robustness_grid(options: Mapping[str, Any]) -> Grid:
    """Return the grid of ``robustness``, from its options."""
    from featkit.studies import robustness

    family, level = as_strings(options["family"]), as_strings(options["level"])
    return robustness.robustness_grid(_axes(options), family, level, _fixed(options))


def _axis_values(value: Any) -> Sequence[AxisValue]:
    """Return the values of an axis, given as one value or several; paths become text."""
    values = (value,) if isinstance(value, str | int | Path) else tuple(value)
    return tuple(str(each) if isinstance(each, Path) else each for each in values)


def _axes(options: Mapping[str, Any]) -> dict[str, Sequence[AxisValue]]:
    """Return the axes of a grid that were given."""
    from featkit.ablation.grid import AXES

    axes: dict[str, Sequence[AxisValue]] = {}
    for name in AXES:
        value = options.get(name)
        if value is not None and value is not False and value != ():
            axes[name] = _axis_values(value)
    if "backbone" in axes:
        axes["backbone"] = tuple(network_spec(str(each)) for each in axes["backbone"])
    if "head" in axes:
        axes["head"] = expand_heads([str(head) for head in axes["head"]])
    if "balance" in axes:
        axes["balance"] = correction_specs(axes["balance"])
    return axes


def _fixed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given and are the same in all cells of a grid."""
    from featkit.ablation.grid import FIXED

    given = request_options(options)
    return {name: given[name] for name in FIXED if given.get(name) is not None}


def run_study(
    grid: Grid,
    options: Mapping[str, Any],
    baseline: str = "",
    command: str = "",
    on_result: Callable[[AblationResult], None] = lambda result: None,
) -> AblationResult:
    """Run a grid and write its tables, report and figures.

    Args:
        grid: from ``ablation_grid``, ``longtail_grid`` or ``robustness_grid``.
        options: of ``ablate``.
        baseline: as for ``robustness``.
        command: how the study was started, for its report.
        on_result: called with the result, also if no cell has one.

    Raises:
        OptionsError: if the baseline is not a backbone of the grid.
        SpecError: if a head, a correction or another value of the grid is unknown.
        FeatkitError: if no cell has a result.
    """
    import time

    from featkit.ablation.grid import check_specs
    from featkit.ablation.run import run_grid
    from featkit.reports.ablation import ablation_files
    from featkit.storage import publish

    if baseline and baseline not in grid.values("backbone"):
        backbones = ", ".join(map(str, grid.values("backbone")))
        raise OptionsError(f"baseline {baseline} is not a backbone of the grid: {backbones}")
    check_specs(grid)
    start = time.perf_counter()
    folders = Path(options["out"], grid.name, "cells"), Path(options["cache"])
    with (
        open_cluster(options, folders, lambda: _networks_of(grid)) as executor,
        cell_bar(options["progress"]) as show,
    ):
        config = _ablation_config(options, show, executor)
        cells = config.out / grid.name / "cells"
        resumed = any(cells.glob("*"))
        result = run_grid(grid, config)
    seconds = _wall_seconds(cells, grid, None if resumed else time.perf_counter() - start)
    files = ablation_files(
        result, command=command or f"featkit.{grid.name}", baseline=baseline, wall_seconds=seconds
    )
    directory = config.out / grid.name / grid.id
    publish(directory, files)
    log.info("%s: %s", ", ".join(files), directory)
    on_result(result)
    if not any(cell.report for cell in result.cells):
        reason = next(cell.reason for cell in result.cells if cell.status != "ok")
        raise FeatkitError(f"none of the {len(result.cells)} cells has a result: {reason}")
    return result


def estimate_study(grid: Grid, options: Mapping[str, Any]) -> tuple[Estimate, int]:
    """Return what a grid would compute, without running it, and the number of jobs it would use.

    Args:
        grid: as for ``run_study``.
        options: of ``ablate``; with ``measure`` true, some images go through the networks to
            measure their throughput.

    Raises:
        SpecError: if a head, a correction or another value of the grid is unknown.
    """
    from featkit.ablation.estimate import estimate
    from featkit.ablation.grid import check_specs

    check_specs(grid)
    config = _ablation_config(options, lambda progress: None)
    return estimate(grid, config, measure=options["measure"]), config.jobs


def _networks_of(grid: Grid) -> list[Request]:
    """Return one request for each combination of images and network that can be loaded."""
    from featkit.ablation.plan import cell_features

    requests: dict[tuple[str, str, str], Request] = {}
    for values in grid.cells():
        with suppress(FeatkitError):  # the cells of the others get their error as their reason
            request = cell_features(values, grid.fixed).clean
            request.load_backbone()
            requests.setdefault((request.data, request.backbone, request.weights), request)
    return list(requests.values())


def _ablation_config(
    options: Mapping[str, Any],
    show: Callable[[Progress], None],
    executor: ClusterExecutor | None = None,
) -> AblationConfig:
    from featkit.ablation.run import AblationConfig
    from featkit.storage import available_cores

    jobs = executor.jobs if executor else options["jobs"] or available_cores()
    return AblationConfig(
        out=Path(options["out"]),
        cache=Path(options["cache"]),
        compute=make_compute(options),
        jobs=jobs,
        executor=executor,
        note=log.info,
        progress=show,
    )


def _wall_seconds(cells: Path, grid: Grid, seconds: float | None) -> float | None:
    """Return the duration of a grid that ran without interruption; None if it was resumed."""
    from featkit.storage import read_json, write_file

    file = cells / "wall.json"
    if seconds is not None:
        write_file(file, json.dumps({grid.id: seconds}))
        return seconds
    try:
        known = read_json(file)
    except (OSError, ValueError):
        return None
    found = known.get(grid.id) if isinstance(known, dict) else None
    return float(found) if isinstance(found, int | float) else None
