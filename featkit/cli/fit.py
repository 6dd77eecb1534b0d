"""`featkit fit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import (
    backbone_option,
    cache_option,
    compute_options,
    data_options,
    given_request,
    json_option,
    layer_option,
    make_compute,
    network_options,
    note,
    out_option,
)

if TYPE_CHECKING:
    from featkit.studies.run import Run

EPILOG = """\b
Examples:
  featkit fit --head svm
  featkit fit --head svm:C=9,kernel=rbf --data photos --backbone resnet50
  featkit fit --head knn:k=5,metric=cosine --json
  featkit fit --cache cache/photos-resnet50-0123456789ab.h5

\b
Without --data or --backbone, the newest cache that agrees with the other options is used.
"""


@click.command(epilog=EPILOG)
@click.option(
    "--head",
    metavar="SPEC",
    default="linear",
    show_default=True,
    help="linear, svm, knn, mlp or prototypical, with options; see `featkit heads`.",
)
@data_options
@backbone_option
@network_options
@layer_option
@cache_option
@compute_options
@out_option
@json_option
def fit(head: str, cache: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Fit a head on vectors and judge it.

    It is judged on test images that nothing else has seen. Leaves a run directory:
    card.json, results.json, confusion.png and the head, enough to predict anywhere.
    """
    from featkit.heads import make_head
    from featkit.studies.run import fit_run, open_source
    from featkit.studies.rundir import results, save_run

    make_head(head)
    given = given_request(options)
    source = open_source(given, cache, make_compute(options))
    for line in source.notes:
        note(line)
    note(f"vectors: {source.path}, weights: {source.weights}")
    run = fit_run(source, head, seed=source.request.seed)
    directory = save_run(run, out, {"confusion.png": _confusion(run)})
    for warning in run.report.warnings:
        note(f"warning: {warning}")
    click.echo(json.dumps(results(run), indent=2) if as_json else _text(run))
    note(f"run: {directory}")


def _text(run: Run) -> str:
    from featkit.evaluation.report import summary

    request, cost = run.source.request, run.report.cost
    made = f"{run.head_spec} on {request.backbone}, weights {run.source.weights}"
    time = f"fitted in {cost['fit_seconds']:.1f} s, peak memory {cost['peak_memory_mb']:.0f} MB"
    return f"{made}\n{summary(run.report)}\n{time}"


def _confusion(run: Run) -> bytes:
    from featkit.plots.confusion import plot_confusion
    from featkit.plots.files import png_bytes

    low, high = (100 * end for end in run.report.interval95)
    untrained = ", untrained" if "untrained" in run.source.weights else ""
    title = (
        f"{run.head_spec} on {run.source.request.backbone}{untrained}: "
        f"top-1 {100 * run.report.top1:.1f} % ({low:.1f} to {high:.1f}), n = {run.report.n}"
    )
    return png_bytes(plot_confusion(run.report.confusion, run.report.classes, title=title))
