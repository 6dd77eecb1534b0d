"""`featkit fit`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import (
    balance_option,
    command,
    given_request,
    make_compute,
    option,
    study_options,
    subset_option,
)
from featkit.cli.output import note

if TYPE_CHECKING:
    from featkit.embeddings.pipeline import Compute
    from featkit.runs.features import FeatureSet
    from featkit.runs.fit import Run

EPILOG = """\b
Examples:
  featkit fit --head svm
  featkit fit --data photos --backbone resnet50 --head svm:C=9,kernel=rbf
  featkit fit --head linear --head svm --head knn --head mlp --head prototypical --tune
  featkit fit --head knn:k=5,metric=cosine --json
  featkit fit --head linear --tune --seeds 5 --strict
  featkit fit --head linear --reject 0.05
  featkit fit --head linear --subset longtail:if=50 --balance logit-adjust
  featkit fit --head linear --perturb gaussian_noise:level=strong
  featkit fit --cache cache/photos-resnet50-0123456789ab.h5

\b
Without --data or --backbone, the newest cache file that matches the other options is used.
Validation images are the data's own, else a fifth of train. After tuning, the head is fitted on
train and validation together and evaluated on the test set once.
"""


@command(epilog=EPILOG)
@study_options
@option(
    "--head",
    group="Head",
    metavar="SPEC",
    multiple=True,
    help="linear, svm, knn, mlp, prototypical or a plug-in, with hyperparameters such as svm:C=9 "
    "(see `featkit heads`), or all. Repeatable.",
    show_default="linear",
)
@option(
    "--tune",
    group="Head",
    is_flag=True,
    help="Choose hyperparameters of the head, or with --balance of the correction, on the validation set.",
)
@balance_option
@subset_option
@option(
    "--seeds",
    group="Head",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Repeat with N seeds, starting at --seed.",
)
@option(
    "--reject",
    group="Head",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="FRACTION",
    help="Answer `unknown` below the confidence that rejects this fraction of the validation images.",
    show_default="off",
)
@option(
    "--strict",
    group="Data",
    is_flag=True,
    help="Fail if an image is in both train and test.",
)
def fit(cache: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Fit a head on cached features and evaluate it on the test set.

    Several heads are compared with paired tests. Hyperparameters, temperature and rejection
    threshold are chosen on the validation set; the test set is used once. Writes a run directory:
    card.json, results.json, predictions.csv, the head, and figures.
    """
    from featkit.heads import make_head

    heads = options["head"] or ("linear",)
    for head in heads:
        make_head(head)
    runs = _runs(cache, out, heads, options, show=not as_json)
    for head in heads if options["seeds"] > 1 else ():
        _print_seeds([run for run in runs if run.head_spec == head], out, as_json)
    if options["seeds"] == 1:
        _print_heads(runs, out, as_json)


def _runs(cache: Path, out: Path, heads: tuple[str, ...], options: dict[str, Any], *, show: bool) -> list[Run]:
    """Fit each head for each seed; the vectors of a seed are read once."""
    from featkit.runs.fit import FitConfig, fit_run

    runs = []
    for number in range(options["seeds"]):
        given = given_request(options)
        if options["seeds"] > 1:
            given["seed"] = (options["seed"] or 0) + number
        source = _open(given, cache, options)
        for head in heads:
            with _counted(make_compute(options), options["tune"]) as progress:
                chosen = {name: options[name] for name in ("tune", "subset", "balance", "reject")}
                config = FitConfig(**chosen, progress=progress)
                run = fit_run(source, head, seed=source.request.seed, config=config)
            for warning in run.report.warnings:
                note(f"warning: {warning}")
            runs.append(run)
            note(f"run: {_save(run, out)}")
            if show:
                click.echo(run_text(run))
    return runs


def _open(given: dict[str, Any], cache: Path, options: dict[str, Any]) -> FeatureSet:
    from featkit.errors import DataError
    from featkit.runs.features import leak_warning, load_features

    source = load_features(given, cache, make_compute(options))
    for line in source.notes:
        note(line)
    note(f"vectors: {source.path}, weights: {source.weights}")
    shared = leak_warning(source)
    if shared and options["strict"]:
        raise DataError(f"{shared}: mend the data, or leave out --strict")
    if shared:
        note(f"warning: {shared}")
    return source


@contextmanager
def _counted(compute: Compute, tune: bool) -> Iterator[Any]:
    """Give a function that counts the settings tried, on stderr where a person watches."""
    from tqdm import tqdm

    with tqdm(unit="setting", disable=not (tune and compute.progress)) as bar:
        yield lambda tried: bar.update()


def _save(run: Run, out: Path) -> Path:
    from featkit.runs.directory import save_run

    return save_run(run, out, draw_run(run))


def _print_heads(runs: list[Run], out: Path, as_json: bool) -> None:
    """Print which heads differ; JSON of one is its results.json, of several a list of them."""
    from featkit.cli.compare import print_compared
    from featkit.runs.compare import compare_runs

    if as_json:
        found = [run.to_dict() for run in runs]
        click.echo(json.dumps(found if len(runs) > 1 else found[0], indent=2))
    elif len({run.id for run in runs}) > 1:
        click.echo("")
        compared = compare_runs([out / run.source.data / run.id for run in runs])
        print_compared(compared.runs, compared.pairs)


def _print_seeds(runs: list[Run], out: Path, as_json: bool) -> None:
    """Print what the seeds of a head have in common."""
    from featkit.runs.compare import over_seeds
    from featkit.storage import digest, publish

    found = over_seeds([run.report.top1 for run in runs])
    values = {"runs": [run.id for run in runs], "n": [run.report.n for run in runs], **found.to_dict()}
    directory = out / runs[0].source.data / f"seeds-{digest(values['runs'])[:12]}"
    text = json.dumps(values, indent=2)
    publish(directory, {"results.json": text})
    low, high = (100 * end for end in found.interval95)
    name = runs[0].head_spec
    line = f"top-1 {100 * found.mean:.2f} % ({low:.2f} to {high:.2f}), standard deviation {100 * found.deviation:.2f}"
    click.echo(text if as_json else f"{name} over {len(runs)} seeds: {line}")
    note(f"seeds: {directory}")


def run_text(run: Run) -> str:
    """Return what a person reads of a run."""
    from featkit.evaluation.report import summary

    request, cost, report = run.source.request, run.report.cost, run.report
    made = f"{run.head_spec} on {request.backbone}, weights {run.source.weights}"
    if run.search:
        best = run.search.best
        options = ", ".join(f"{name} {value}" for name, value in best.options.items())
        made += f"\nchosen among {len(run.search.candidates)} settings: {options} (top-1 on val {100 * best.top1:.1f} %)"
    lines = [made, summary(report), *_unknown(report)]
    confused = [f"{pair.true} as {pair.predicted} ({pair.count})" for pair in report.confused[:3]]
    lines += [f"most confused: {', '.join(confused)}"] if confused else []
    return "\n".join([*lines, f"fitted in {cost['fit_seconds']:.1f} s, peak memory {cost['peak_memory_mb']:.0f} MB"])


def _unknown(report: Any) -> list[str]:
    found = report.rejection
    if found is None:
        return []
    if found.top1 is None:
        return [f"every test image is below confidence {found.threshold:.3f}: all unknown"]
    low, high = (100 * end for end in found.interval95)
    right = f"{100 * found.top1:.1f} % ({low:.1f} to {high:.1f})"
    return [f"{100 * found.coverage:.1f} % answered (confidence from {found.threshold:.3f}), of these {right} right"]


def draw_run(run: Run) -> dict[str, bytes]:
    """Draw the confusion matrix, the reliability diagram and the search of a run, by file name."""
    from featkit.plots.confusion import plot_confusion
    from featkit.plots.files import png_bytes
    from featkit.plots.reliability import plot_reliability
    from featkit.plots.search import plot_search

    report = run.report
    low, high = (100 * end for end in report.interval95)
    untrained = ", untrained" if "untrained" in run.source.weights else ""
    name = f"{run.head_spec}{' tuned' if run.search else ''} on {run.source.request.backbone}{untrained}"
    title = f"{name}: top-1 {100 * report.top1:.1f} % ({low:.1f} to {high:.1f}), n = {report.n}"
    figures = {"confusion.png": png_bytes(plot_confusion(report.confusion, report.classes, title=title))}
    if report.reliability:
        temperature = report.temperature.value if report.temperature else None
        drawn = plot_reliability(
            report.reliability, title=name, calibrated=report.reliability_calibrated, temperature=temperature
        )
        figures["reliability.png"] = png_bytes(drawn)
    if run.search:
        tried = [(each.options, each.top1) for each in run.search.candidates]
        figures["search.png"] = png_bytes(plot_search(tried, title=f"{name}: {len(tried)} settings"))
    return figures
