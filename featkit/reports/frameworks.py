"""Report of a comparison of torch and TensorFlow, as one HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from featkit.evaluation.compare import format_p_value
from featkit.reports.components import Table, TableCell, interval_cell, number_cell, span_of
from featkit.reports.figures import history_figures
from featkit.reports.render import render
from featkit.studies.frameworks import FrameworksResult, FrameworkTraining

CURVES_FILE = "curves.png"


@dataclass(frozen=True)
class FrameworksView:
    """Values of the template, ready to be shown.

    Attributes:
        title, lead: heading and first paragraph.
        summary: sentences.
        stages: differences by layer.
        costs: speed and memory.
        trainings: accuracy of every training.
        effects: TensorFlow compared with torch for each mode, over seeds.
        curves: the figure as data URI.
        methods: paragraphs.
    """

    title: str
    lead: str
    summary: Sequence[str]
    stages: Table
    costs: Table
    trainings: Table
    effects: Table
    curves: str
    methods: Sequence[str]


def frameworks_page(result: FrameworksResult, curves: bytes) -> str:
    """Return the page.

    Args:
        result: the comparison.
        curves: PNG of ``frameworks_figures``.
    """
    return render("frameworks.html", view=_view(result, curves))


def frameworks_figures(result: FrameworksResult) -> dict[str, bytes]:
    """Draw the training curves of the first seed, of all modes and frameworks."""
    histories = {}
    for training in result.trainings:
        for (framework, seed), run in training.runs.items():
            if seed == 0:
                histories[f"{training.mode}, {framework}"] = run.history
    title = f"{result.config.backbone} on {result.data}, first seed"
    return history_figures(histories, title=title)


def summary_lines(result: FrameworksResult) -> list[str]:
    """Return the results in sentences."""
    last = result.stages[-1]
    torch_cost, keras_cost = result.costs
    lines = [
        f"Embeddings of {last.n} images differ by at most {last.relative:.1e} of the largest "
        f"value; the smallest cosine similarity is {last.worst_cosine:.7f}.",
        f"Forward pass in batches of 32: torch {torch_cost.images_per_s:.1f} images/s and "
        f"{torch_cost.cpu_ms:.1f} ms of CPU time for an image, TensorFlow "
        f"{keras_cost.images_per_s:.1f} images/s and {keras_cost.cpu_ms:.1f} ms "
        f"(medians of {torch_cost.repeats} batches in turn).",
        f"Peak memory of a process that runs one batch: torch {torch_cost.peak_memory_mb:,.0f} MB, "
        f"TensorFlow {keras_cost.peak_memory_mb:,.0f} MB, which includes torch.",
    ]
    for training in result.trainings:
        effect = training.effect
        verdict = f"{effect.sentence()}, {effect.seeds} seeds, n = {effect.n} test images"
        lines.append(f"{training.mode} fine-tuning: {verdict}.")
    return lines


def _view(result: FrameworksResult, curves: bytes) -> FrameworksView:
    config = result.config
    encoded = base64.b64encode(curves).decode("ascii")
    return FrameworksView(
        title=f"torch and TensorFlow: {config.backbone} on {result.data}",
        lead="The same network, weights and pixels in both frameworks.",
        summary=summary_lines(result),
        stages=_stage_table(result),
        costs=_cost_table(result),
        trainings=_training_table(result.trainings),
        effects=_effect_table(result.trainings),
        curves=f"data:image/png;base64,{encoded}",
        methods=_methods(result),
    )


def _stage_table(result: FrameworksResult) -> Table:
    rows = []
    for each in result.stages:
        rows.append(
            [
                TableCell(each.stage, is_header=True),
                number_cell(f"{each.relative:.2e}", each.relative),
                number_cell(f"{each.worst_cosine:.8f}", each.worst_cosine),
                number_cell(str(each.n), each.n),
            ]
        )
    columns = ["layer", "largest relative difference", "smallest cosine similarity", "images"]
    return Table("Differences by layer", columns, rows, sortable=False)


def _cost_table(result: FrameworksResult) -> Table:
    rows = []
    for each in result.costs:
        low, high = each.quartiles
        rows.append(
            [
                TableCell(each.framework, is_header=True),
                number_cell(f"{each.images_per_s:.1f}", each.images_per_s),
                number_cell(f"{low:.1f} to {high:.1f}", low),
                number_cell(f"{each.cpu_ms:.1f}", each.cpu_ms),
                number_cell(f"{each.peak_memory_mb:,.0f}", each.peak_memory_mb),
                number_cell(str(each.repeats), each.repeats),
            ]
        )
    columns = ["framework", "images/s", "quartiles", "CPU ms/image", "peak memory, MB", "batches"]
    return Table("Speed and memory", columns, rows, sortable=False)


def _training_table(trainings: Sequence[FrameworkTraining]) -> Table:
    intervals = []
    for training in trainings:
        intervals += [run.report.interval95 for run in training.runs.values()]
    span = span_of(intervals)
    rows = []
    for training in trainings:
        for (framework, seed), run in training.runs.items():
            report = run.report
            low, high = (100 * end for end in report.interval95)
            rows.append(
                [
                    TableCell(training.mode, is_header=True),
                    TableCell(framework),
                    number_cell(str(seed), seed),
                    number_cell(f"{100 * report.top1:.1f}", report.top1),
                    number_cell(f"{low:.1f} to {high:.1f}", low),
                    interval_cell(report.top1, report.interval95, span),
                    number_cell(str(report.n), report.n),
                ]
            )
    columns = ["mode", "framework", "seed", "top-1 %", "95% CI", "", "n"]
    return Table("Accuracy of the trained networks", columns, rows)


def _effect_table(trainings: Sequence[FrameworkTraining]) -> Table:
    span = span_of([each.effect.interval95 for each in trainings], zero=True)
    rows = []
    for training in trainings:
        effect = training.effect
        low, high = (100 * end for end in effect.interval95)
        rows.append(
            [
                TableCell(training.mode, is_header=True),
                number_cell(f"{100 * effect.difference:+.2f}", effect.difference),
                number_cell(f"{low:+.2f} to {high:+.2f}", low),
                interval_cell(
                    effect.difference,
                    effect.interval95,
                    span,
                    significant=effect.significant,
                    zero=True,
                ),
                number_cell(format_p_value(effect.p_holm), effect.p_holm),
                number_cell(f"{100 * training.agreement:.1f}", training.agreement),
                number_cell(f"{training.loss_difference:.1e}", training.loss_difference),
                number_cell(f"{effect.n} x {effect.seeds}", effect.n),
            ]
        )
    columns = [
        *("mode", "TensorFlow - torch, points", "95% CI", "", "p after Holm"),
        *("same class %", "largest difference of loss", "images x seeds"),
    ]
    return Table("TensorFlow compared with torch", columns, rows, sortable=False)


def _methods(result: FrameworksResult) -> list[str]:
    options = ", ".join(
        f"{name} = {value}" for name, value in sorted(result.config.options.items())
    )
    limits = [f"{each.mode}: {each.limit}" for each in result.trainings if each.limit]
    about = ", ".join(f"{name} {value}" for name, value in result.about.items())
    return [
        f"Weights: {result.weights}. Options of the trainings: {options}."
        + (f" Subsets: {'; '.join(limits)}." if limits else ""),
        "Images are decoded, resized, cropped, normalised and augmented by the same code. Both "
        "trainings of a seed start from the same weights and classifier and see the same batches; "
        "all seeds have the same test images. The networks are trained in float32 and evaluated "
        "in the framework that trained them.",
        "Relative difference: largest absolute difference divided by the largest absolute value of "
        "torch. The interval of the difference in accuracy covers test images and seeds; "
        "p-values are corrected over the modes.",
        f"Measured with {about}.",
    ]
