"""Fit and evaluate heads on cached features."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.api.features import check_copies, load_features, with_unknown
from featkit.api.options import FEATURE_OPTIONS, PathLike, correction_spec, log
from featkit.api.progress import candidate_bar
from featkit.arguments import FLAG, NAME, PATH, checked, integer, number, text
from featkit.errors import OptionsError

if TYPE_CHECKING:
    from featkit.runs.compare import OverSeeds, RunComparison
    from featkit.runs.costs import CostTable
    from featkit.runs.features import FeatureSet
    from featkit.runs.fit import FitConfig, Run
    from featkit.runs.multilabel import MultiLabelRun


@checked(
    **FEATURE_OPTIONS,
    head=text("svm:C=9"),
    tune=FLAG,
    balance=text("logit-adjust"),
    subset=text("longtail:if=50"),
    reject=number(0, 1, below_high=True),
    strict=FLAG,
    folds=integer(2),
    repeats=integer(1),
    unknown=PATH,
    cost=PATH,
    store=text("float16"),
    name=NAME,
)
def fit(
    data: PathLike | None = None,
    *,
    head: str = "linear",
    tune: bool = False,
    balance: str | None = None,
    subset: str | None = None,
    reject: float | None = None,
    strict: bool = False,
    folds: int | None = None,
    repeats: int = 1,
    unknown: PathLike | None = None,
    cost: PathLike | None = None,
    split: str | None = None,
    limit: str | None = None,
    intensity_range: str | None = None,
    group: str | None = None,
    allow_group_leak: bool | None = None,
    seed: int | None = None,
    augment: str | None = None,
    views: int | None = None,
    perturb: str | None = None,
    backbone: PathLike | None = None,
    weights: str | None = None,
    layer: str | None = None,
    pool: str | None = None,
    resize: str | int | None = None,
    crop: str | int | None = None,
    precision: str | None = None,
    decode: str | None = None,
    store: str | None = None,
    name: str | None = None,
    cache: PathLike = "cache",
    out: PathLike | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    on_error: str = "fail",
    progress: bool = False,
) -> Run | MultiLabelRun:
    """Fit a head on features and evaluate it on the test set.

    Hyperparameters, temperature and rejection threshold are chosen on the validation set: the
    data's own, else a fifth of train. The head is then fitted on train and validation together and
    evaluated once.

    Args:
        data: spec of the images. Without ``data`` or ``backbone``, the newest cache file that
            matches the other options is used; without one, ``digits`` and ``resnet18``.
        head: ``linear``, ``svm``, ``knn``, ``mlp``, ``prototypical`` or a plug-in, with
            hyperparameters such as ``svm:C=9``.
        tune: choose the hyperparameters of the head, or with ``balance`` those of the correction,
            on the validation set.
        balance: class-imbalance correction, such as ``logit-adjust``.
        subset: part of train to fit on, such as ``longtail:if=50`` or ``kshot:k=5``.
        reject: fraction of validation images that are rejected because of their low confidence,
            which determines the threshold; None to reject none.
        strict: refuse data with test images that are copies or near copies of train or val images.
        folds: evaluate by cross-validation with this many folds: all images are used, whatever
            their split, each evaluated by a head that was fitted without it, and the final head is
            fitted on all of them; None to evaluate on the test set.
        repeats: number of random divisions into folds.
        unknown: folder of images of none of the classes, in any subfolders; the report says how
            well the confidence tells them from test images, and with ``reject`` how many of them
            are accepted.
        cost: CSV file with the cost of each predicted class (columns) for each true class (rows);
            the report has the mean cost of an image. It changes no other number.
        split, limit, intensity_range, group, allow_group_leak, seed, augment, views, perturb:
            images, as for ``extract``.
        backbone, weights, layer, pool, resize, crop, precision, decode: network, as for
            ``extract``.
        store: storage format of the features, as for ``extract``.
        name: name of the run for tables and figures; None for a composed one.
        cache: folder of the embeddings cache, or one file in it.
        out: folder in which a run directory is written; None to write nothing.
        device, batch_size, workers, engine, compile, on_error, progress: as for ``extract``.

    Returns:
        The run: ``report`` (accuracy with confidence intervals, calibration, confusion), ``head``
        and ``predictions``. If images have several labels, a ``MultiLabelRun``, whose report has
        the mean average precision.

    Raises:
        SpecError: if an option is unknown.
        DataError: if train has fewer than two classes, test has no image, or ``strict`` finds a
            shared image.

    Example:
        >>> run = featkit.fit("photos", head="knn:k=1", weights="random", resize=32)
        >>> run.report.n
        4
        >>> featkit.predict(run, "new.png")[0].predicted
        'red'
    """
    options = dict(locals())
    del options["head"]
    if head == "all":
        raise OptionsError("fit takes one head: call it once for each head, or use ablate")
    return fit_heads([head], **options).runs[0]


@dataclass(frozen=True)
class FitResults:
    """Runs of several heads and seeds.

    Attributes:
        runs: by seed, then by head.
        paths: their run directories; empty where nothing is written.
        comparison: paired tests between the heads; None for one head, several seeds, or nothing
            written.
        seeds: mean and interval over the seeds by head; empty for one seed.
    """

    runs: tuple[Run | MultiLabelRun, ...]
    paths: tuple[Path, ...]
    comparison: RunComparison | None
    seeds: Mapping[str, OverSeeds]


def _run_name(given: str, head: str, heads: Sequence[str], seeds: int, seed: int | None) -> str:
    """Return the given name, with the head and the seed if there are runs with several."""
    if not given:
        return ""
    parts = [given]
    if len(heads) > 1:
        parts.append(head)
    if seeds > 1:
        parts.append(f"seed {seed}")
    return ", ".join(parts)


def fit_heads(
    heads: Sequence[str],
    *,
    seeds: int = 1,
    on_run: Callable[[Run | MultiLabelRun], None] = lambda run: None,
    name: str | None = None,
    out: PathLike | None = None,
    **options: Any,
) -> FitResults:
    """Fit several heads, with several seeds, on the same features; see ``fit``.

    Args:
        heads: specs; ``all``: every head, including plug-ins.
        seeds: number of seeds, from ``options["seed"]`` on.
        on_run: called with each run when it is evaluated, before its files are written.
        name: name of the run; several get their head, and their seed, added to it.
        out: folder for run directories; None to write nothing.
        options: the other options of ``fit``.
    """
    from featkit.heads import make_head
    from featkit.runs.compare import compare_runs
    from featkit.runs.fit import FitConfig
    from featkit.runs.registry import check_name

    given_heads = _canonical_specs(heads)
    heads = expand_heads(given_heads)
    for head in heads:  # fail on an unknown head before features are extracted
        make_head(head)
    given = "" if name is None else NAME.check("name", name)
    check_name(given)
    _check_evaluation(seeds, options)
    table = _read_costs(options["cost"])
    config = FitConfig(
        tune=options["tune"],
        subset=options["subset"],
        balance=correction_spec(options["balance"]),
        reject=options["reject"],
    )
    runs, paths = [], []
    first_seed = options["seed"] or 0
    for offset in range(seeds):
        if seeds > 1:
            options = {**options, "seed": first_seed + offset}
        features = load_features(options, multilabel=True)
        heads = _fitting_heads(features, heads, given_heads, config, options)
        costs = None if table is None else table.matrix(features.embeddings.classes)
        config = replace(config, costs=costs)
        features = with_unknown(check_copies(features, options), options)
        for head in heads:
            run = _fit_head(features, head, config, options)
            run = replace(run, name=_run_name(given, head, heads, seeds, options["seed"]))
            runs.append(run)
            on_run(run)
            if out is not None:
                paths.append(_save_run(run, Path(out)))
    comparison = None
    summaries: dict[str, OverSeeds] = {}
    if seeds > 1:
        summaries = _summarise_seeds(runs, heads, out)
    elif len(set(paths)) > 1:
        comparison = compare_runs(paths)
    return FitResults(tuple(runs), tuple(paths), comparison, summaries)


def _canonical_specs(heads: Sequence[str]) -> tuple[str, ...]:
    """Return specs as runs have them, such as ``linear:C=0.001`` for ``linear:C=1e-3``."""
    from featkit.registry import Spec

    return tuple(str(Spec.parse(head)) for head in heads)


def _read_costs(path: PathLike | None) -> CostTable | None:
    """Read a file of costs; None without one."""
    from featkit.runs.costs import read_costs
    from featkit.storage import user_path

    return None if path is None else read_costs(user_path(str(path)))


def _fitting_heads(
    features: FeatureSet,
    heads: Sequence[str],
    given: Sequence[str],
    config: FitConfig,
    options: Mapping[str, Any],
) -> tuple[str, ...]:
    """Return the heads to fit: of ``all``, those that can give images their several labels.

    Raises:
        HeadError: if a head that was given by its name cannot give an image several labels.
        OptionsError: if an option needs one label per image.
    """
    if not features.embeddings.multilabel:
        return tuple(heads)
    from featkit.errors import HeadError
    from featkit.images.multilabel import one_label_message
    from featkit.runs.multilabel import check_multilabel_config

    for name in ("unknown", "cost"):
        if options[name] is not None:
            raise OptionsError(one_label_message(name))
    kept = []
    for head in heads:
        try:
            check_multilabel_config(head, config)
        except HeadError as error:
            if head in given:
                raise
            log.info("%s is left out: %s", head, error)
        else:
            kept.append(head)
    return tuple(kept)


def _save_run(run: Run | MultiLabelRun, out: Path) -> Path:
    """Write the directory of a run with its figures."""
    # matplotlib is imported when the result is known: whoever waits for it has it a second earlier.
    from featkit.reports.figures import multilabel_figures, run_figures
    from featkit.runs.directory import save_run
    from featkit.runs.multilabel import MultiLabelRun

    figures = multilabel_figures(run) if isinstance(run, MultiLabelRun) else run_figures(run)
    path = save_run(run, out, figures)
    log.info("run: %s", path)
    return path


def _check_evaluation(seeds: int, options: Mapping[str, Any]) -> None:
    """Refuse options that contradict each other, before features are extracted.

    Raises:
        OptionsError: if options contradict each other.
        DataError: if the unknown images are not in a folder.
    """
    from featkit.runs.features import check_unknown
    from featkit.storage import user_path

    if options["unknown"] is not None:
        check_unknown(user_path(str(options["unknown"])))
    if not options["folds"]:
        if options["repeats"] > 1:
            raise OptionsError("--repeats are repetitions of folds: give --folds too, such as 5")
        return
    if seeds > 1:
        raise OptionsError("--folds are repeated with --repeats: leave out --seeds")
    if options["split"] is not None:
        log.warning("--split has no effect: --folds test all images")
    if options["perturb"]:
        raise OptionsError(
            "--perturb changes test images, and --folds test all images: leave out one"
        )
    if options["unknown"] is not None:
        raise OptionsError("--unknown images are compared with a test set: leave out --folds")


def _fit_head(
    features: FeatureSet, head: str, config: FitConfig, options: Mapping[str, Any]
) -> Run | MultiLabelRun:
    """Fit and evaluate one head, on the test set or on folds; log its warnings."""
    from tqdm import tqdm

    from featkit.runs.fit import fit_run
    from featkit.runs.folds import fit_folds
    from featkit.runs.label_folds import fit_label_folds
    from featkit.runs.multilabel import fit_labels

    seed, progress = features.request.seed, options["progress"]
    several = features.embeddings.multilabel
    run: Run | MultiLabelRun
    if options["folds"]:
        folds, repeats = options["folds"], options["repeats"]
        evaluate = fit_label_folds if several else fit_folds
        with tqdm(total=folds * repeats, unit="fold", disable=not progress) as bar:
            run = evaluate(
                features,
                head,
                folds=folds,
                repeats=repeats,
                seed=seed,
                config=config,
                on_fold=bar.update,
            )
    else:
        fit = fit_labels if several else fit_run
        with candidate_bar(progress and config.tune) as count:
            run = fit(features, head, seed=seed, config=replace(config, progress=count))
    for warning in run.report.warnings:
        log.warning(warning)
    return run


def expand_heads(heads: Sequence[str]) -> tuple[str, ...]:
    """Return the specs of heads, with ``all`` replaced by every head, plug-ins included."""
    from featkit.heads import list_heads

    found: list[str] = []
    for head in heads:
        found.extend([row.name for row in list_heads()] if head == "all" else [head])
    return tuple(dict.fromkeys(found))


def _summarise_seeds(
    runs: Sequence[Run | MultiLabelRun], heads: Sequence[str], out: PathLike | None
) -> dict[str, OverSeeds]:
    """Return mean and interval over the seeds of each head, and write them to ``out``."""
    from featkit.runs.compare import over_seeds
    from featkit.storage import digest, publish

    summaries = {}
    for head in heads:
        own = [run for run in runs if run.head_spec == head]
        summaries[head] = over_seeds([run.predictions for run in own])
        if out is None:
            continue
        ids = [run.id for run in own]
        values = {
            "runs": ids,
            "n": [run.report.n for run in own],
            **summaries[head].to_dict(),
        }
        directory = Path(out) / own[0].source.data / f"seeds-{digest(ids)[:12]}"
        publish(directory, {"results.json": json.dumps(values, indent=2)})
        log.info("seeds: %s", directory)
    return summaries
