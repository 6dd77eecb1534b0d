"""``featkit fit``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featkit.cli.compare import print_comparison, print_further_pairs
from featkit.cli.options import (
    FiniteRange,
    UserPath,
    balance_option,
    bundle_option,
    command,
    cost_option,
    integers,
    name_option,
    option,
    store_option,
    study_options,
    subset_option,
)
from featkit.cli.output import (
    between,
    interactive,
    print_json,
    print_line,
    print_text,
    visible_lines,
)

if TYPE_CHECKING:
    from featkit.api import FitResults
    from featkit.evaluation.report import Rejection
    from featkit.runs.compare import OverSeeds
    from featkit.runs.fit import Run
    from featkit.runs.multilabel import MultiLabelRun

EPILOG = """\b
Examples:
  featkit fit --head svm
  featkit fit --data photos --backbone resnet50 --head svm:C=9,kernel=rbf
  featkit fit --head linear --head svm --head knn --head mlp --head prototypical --tune
  featkit fit --data photos --backbone resnet50 --report
  featkit fit --head knn:k=5,metric=cosine --json
  featkit fit --head linear --tune --seeds 5 --strict
  featkit fit --data scans --group parent --head linear
  featkit fit --data scenes/labels.csv --head linear --head mlp
  featkit fit --data scans --group parent --head linear --folds 5 --repeats 3
  featkit fit --head linear --reject 0.05 --unknown other-images
  featkit fit --head linear --cost costs.csv
  featkit fit --head linear --subset longtail:if=50 --balance logit-adjust
  featkit fit --head linear --perturb gaussian_noise:level=strong
  featkit fit --cache cache/photos-resnet50-0123456789ab.h5

\b
Without --data or --backbone, the newest cache file that matches the other options is used.
If the data set has no validation split, a fifth of train is used for validation. After tuning,
the head is fitted on train and validation together and evaluated once on the test set.
"""


@command(epilog=EPILOG)
@study_options
@option(
    "--head",
    group="Head",
    metavar="SPEC",
    multiple=True,
    help="Classifier: linear, svm, knn, mlp, prototypical or a plug-in, with hyperparameters "
    "such as svm:C=9 (see `featkit heads`), or all. Repeatable.",
    show_default="linear",
)
@option(
    "--tune",
    group="Head",
    is_flag=True,
    help="Tune hyperparameters on the validation set: those of the correction if --balance has "
    "any, else those of the head.",
)
@balance_option
@subset_option
@option(
    "--seeds",
    group="Head",
    type=integers(1),
    default=1,
    metavar="N",
    help="Repeat with N random seeds: --seed, --seed + 1, ...",
)
@option(
    "--reject",
    group="Head",
    type=FiniteRange(0, 1, max_open=True),
    metavar="FRACTION",
    help="Predict `unknown` at low confidence: the threshold rejects this fraction of the "
    "validation images.",
    show_default="off",
)
@option(
    "--strict",
    group="Data",
    is_flag=True,
    help="Stop with an error if a test image has a copy or near copy in train or validation "
    "(with --folds: an image one in another fold).",
)
@option(
    "--folds",
    group="Data",
    type=integers(2),
    metavar="K",
    help="Evaluate by cross-validation: each image by a head fitted without it; the final head is "
    "fitted on all images.",
    show_default="evaluate on the test set",
)
@option(
    "--repeats",
    group="Data",
    type=integers(1),
    default=1,
    metavar="R",
    help="Divide the images into folds R times.",
)
@option(
    "--unknown",
    group="Data",
    type=UserPath(),
    metavar="DIR",
    help="Images of none of the classes: how well confidence tells them from test images, and with "
    "--reject how many are accepted.",
)
@cost_option
@store_option
@name_option
@option(
    "--report",
    group="Output",
    is_flag=True,
    help="Write report.html into each run directory (see `featkit report`).",
)
@bundle_option
def fit(
    head: tuple[str, ...], seeds: int, report: bool, bundle: bool, as_json: bool, **options: Any
) -> None:
    """Fit a head on cached features and evaluate it on the test set.

    Several heads are compared with paired tests. Images of a CSV file may have several labels each,
    as in `bus;car`: the metric is then the mean average precision.

    Hyperparameters, temperature and rejection threshold are chosen on the validation set; the test
    set is used once. Writes a run directory: card.json, results.json, predictions.csv, the head,
    and figures.
    """
    from featkit import api

    def show(run: Run | MultiLabelRun) -> None:
        if not as_json:
            print_text(run_text(run))

    found = api.fit_heads(
        head or ("linear",), seeds=seeds, on_run=show, progress=interactive(), **options
    )
    if bundle:
        for path in found.paths:
            api.bundle(path)
    if report:
        compute = ("cache", "device", "batch_size", "workers", "engine", "compile", "on_error")
        shared = {name: options[name] for name in compute}
        for path in found.paths:
            api.report(path, progress=interactive(), **shared)
    if as_json:
        _print_results_json(found)
        return
    for name, summary in found.seeds.items():
        print_line(f"{name} over {seeds} seeds: {_seeds_text(summary)}")
    if found.comparison:
        print_line("")
        print_comparison(found.comparison.runs, found.comparison.pairs)
        print_further_pairs(found.comparison)


def _print_results_json(found: FitResults) -> None:
    """Print one object per head that was fitted with several seeds, else the runs."""
    written = list(zip(found.runs, found.paths, strict=True))
    for name, summary in found.seeds.items():
        runs = [run for run in found.runs if run.head_spec == name]
        ids, counts = [run.id for run in runs], [run.report.n for run in runs]
        paths = [str(path) for run, path in written if run.head_spec == name]
        print_json({"runs": ids, "paths": paths, "n": counts, **summary.to_dict()})
    if found.seeds:
        return
    values = [{"name": run.name, "path": str(path), **run.to_dict()} for run, path in written]
    print_json(values if len(values) > 1 else values[0])


def multilabel_text(run: MultiLabelRun) -> str:
    """Return the lines that describe a run: head, mean average precision, weakest labels, cost."""
    from featkit.evaluation.multilabel import multilabel_summary

    report = run.report
    lines = [f"{run.head_spec} on {run.source.request.backbone}, weights {run.source.weights}"]
    if run.candidates:
        best = max(run.candidates, key=lambda each: each.mean_average_precision)
        chosen = ", ".join(f"{name}={value}" for name, value in best.options.items())
        score = f"validation mAP {100 * best.mean_average_precision:.1f}%"
        lines.append(f"tuned over {len(run.candidates)} candidates: {chosen} ({score})")
    lines.append(multilabel_summary(report))
    rated = [
        (label.average_precision, label)
        for label in report.per_label
        if label.average_precision is not None
    ]
    weakest = []
    for value, label in sorted(rated, key=lambda pair: pair[0])[:3]:
        interval = f", 95% CI {between(label.interval95)}" if label.interval95 else ""
        weakest.append(f"{label.name} {100 * value:.1f} %{interval} (n = {label.n})")
    lines.append(f"lowest average precision: {'; '.join(weakest)}")
    seconds, memory = report.cost["fit_seconds"], report.cost["peak_memory_mb"]
    lines.append(f"fitted in {seconds:.1f} s, peak memory {memory:.0f} MB")
    return visible_lines(lines)


def run_text(run: Run | MultiLabelRun) -> str:
    """Return the lines that describe a run: head, accuracy, most confused classes, cost."""
    from featkit.evaluation.costs import cost_sentence
    from featkit.evaluation.report import summary
    from featkit.evaluation.unknown import unknown_sentence
    from featkit.runs.fit import Run

    if not isinstance(run, Run):
        return multilabel_text(run)
    report = run.report
    lines = [f"{run.head_spec} on {run.source.request.backbone}, weights {run.source.weights}"]
    if run.search:
        best, tried = run.search.best, len(run.search.candidates)
        chosen = ", ".join(f"{name}={value}" for name, value in best.options.items())
        score = f"validation {run.search.metric_name} {100 * run.search.score(best):.1f}%"
        lines.append(f"tuned over {tried} candidates: {chosen} ({score})")
    lines.append(summary(report))
    if report.rejection:
        lines.append(_rejection_text(report.rejection, folded=report.folds is not None))
    if report.unknown:
        lines.append(unknown_sentence(report.unknown))
    if report.decision_cost:
        lines.append(cost_sentence(report.decision_cost))
    if report.confused:
        pairs = [f"{pair.true} as {pair.predicted} ({pair.count})" for pair in report.confused[:3]]
        lines.append(f"most confused: {', '.join(pairs)}")
    seconds, memory = report.cost["fit_seconds"], report.cost["peak_memory_mb"]
    lines.append(f"fitted in {seconds:.1f} s, peak memory {memory:.0f} MB")
    return visible_lines(lines)


def _rejection_text(rejection: Rejection, *, folded: bool) -> str:
    """Return the realised coverage beside the requested one, and the accuracy of the answers."""
    images, limit = "test images", f"confidence >= {rejection.threshold:.3f}"
    if folded:
        images = "images"
        limit = f"the threshold of each fold (final head: {rejection.threshold:.3f})"
    text = f"answered {100 * rejection.coverage:.1f}% of {images}"
    if rejection.coverage_interval95 is not None:
        text += f" (95% CI {between(rejection.coverage_interval95)})"
    text += f" at {limit}, chosen to answer {100 * (1 - rejection.share):.1f}% of validation images"
    if rejection.top1 is None or rejection.interval95 is None:
        return text
    return (
        f"{text}; {100 * rejection.top1:.1f}% of the answers are correct "
        f"(95% CI {between(rejection.interval95)}, n = {rejection.answered})"
    )


def _seeds_text(summary: OverSeeds) -> str:
    low, high = (100 * end for end in summary.interval95)
    # Two seeds are too few to estimate the variance between seeds.
    covered = "test images and seeds" if len(summary.values) > 2 else "test images"
    interval = f"95% CI {low:.2f} to {high:.2f} over {covered}"
    return (
        f"{summary.metric} {100 * summary.mean:.2f}% ({interval}), "
        f"standard deviation {100 * summary.deviation:.2f}, n = {summary.n} test images"
    )
