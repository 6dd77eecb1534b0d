"""The summary of an ablation as Markdown, short enough to quote."""

from __future__ import annotations

import re
from collections.abc import Sequence

from featkit.ablation.conditions import drops_by_classifier, long_tail
from featkit.ablation.effects import PERTURB, Findings, grouped, unperturbed
from featkit.errors import visible
from featkit.evaluation.effects import SEED
from featkit.reports.wording import (
    NO_SELECTION,
    average_text,
    cell_counts,
    effect_sentence,
    estimate_text,
    group_sentences,
    metric_name,
    p_text,
    selection_sentence,
    standing_text,
    tuning_notes,
)

_MAX_RANKED = 10
_MAX_BULLETS = 12
# An underscore inside of a word is no emphasis.
_SPECIAL = re.compile(r"([\\`*\[\]<>|&#$~]|(?<!\w)_|_(?!\w))")


def summary_markdown(findings: Findings, lead: Sequence[str], commands: Sequence[str]) -> str:
    """Return the best classifiers, the differences and how to reproduce them.

    Args:
        findings: analysis of the grid.
        lead: its size, see ``wording.lead_parts``.
        commands: command lines that made it.
    """
    significant: list[str] = []
    not_significant: list[str] = []
    for effect in findings.short_axis_effects:
        sentences = significant if effect.significant else not_significant
        sentences.append(effect_sentence(findings, effect))
    selections = [selection_sentence(findings, selection) for selection in findings.selections]
    parts = [
        f"# {escape_markdown(findings.name)}",
        f"{escape_markdown('; '.join(lead))}.",
        "## Selected on the validation set",
        _bullets(selections) or NO_SELECTION,
        f"## Highest test {metric_name(findings)}",
        _ranking(findings),
        "## Significant differences",
        _first_bullets(significant),
        "## No significant difference",
        _first_bullets(not_significant),
        *_long_tail(findings),
        *_robustness(findings),
        *_problems(findings),
        "## Reproduce",
        "\n".join(f"    {visible(command)}" for command in commands),
        "Intervals are 95% confidence intervals; differences are paired over test images and "
        "significant if their p-value is below 0.05 after Holm correction. The intervals of "
        "differences are unadjusted for the number of comparisons. The best classifier of each "
        "test and training set is compared with the others by paired tests, with Holm correction "
        "over all pairs of them. Nothing was selected on the test set. All cells and tests: "
        "report.html.",
        *map(escape_markdown, group_sentences(findings)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows literally."""
    return _SPECIAL.sub(r"\\\1", visible(text))


def _bullets(texts: Sequence[str]) -> str:
    return "\n".join(f"- {escape_markdown(text)}" for text in texts)


def _first_bullets(texts: Sequence[str]) -> str:
    shown = list(texts[:_MAX_BULLETS])
    if len(texts) > len(shown):
        shown.append(f"{len(texts) - len(shown)} more in report.html")
    return _bullets(shown) or "None."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(columns), ["---"] * len(columns)]
    for row in rows:
        lines.append([escape_markdown(text) for text in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ranking(findings: Findings) -> str:
    """Return the classifiers of highest test metric without perturbation, means over seeds."""
    axes = [axis for axis in findings.axes if axis not in (SEED, PERTURB)]
    means = []
    for values, cells in grouped(unperturbed(findings), axes).items():
        standing = findings.standing(cells[0].cell.values)
        means.append((values, findings.mean(cells), standing))
    means.sort(key=lambda entry: -entry[1].value)
    rows = []
    for values, mean, standing in means[:_MAX_RANKED]:
        shown = [findings.shown(axis, value) for axis, value in zip(axes, values, strict=True)]
        numbers = [average_text(mean), standing_text(standing), str(mean.seeds), str(mean.n)]
        rows.append([*shown, *numbers])
    columns = [
        *axes,
        f"{metric_name(findings)}, % (95% CI)",
        "compared with the best (Holm-adjusted p)",
        "seeds",
        "n",
    ]
    return _table(columns, rows) if rows else "No cell has a result."


def _long_tail(findings: Findings) -> list[str]:
    rows = []
    found = long_tail(findings)
    for row in found:
        gain, p = "", ""
        if row.gain:
            gain = estimate_text(row.gain.difference, row.gain.interval95, signed=True)
            p = p_text(row.gain.p_holm)
        tried, n = str(row.candidates), str(row.mean.n)
        mean, standing = average_text(row.mean), standing_text(row.standing)
        rows.append([row.condition, row.balance, mean, standing, gain, p, tried, n])
    columns = [
        "training set",
        "correction",
        "balanced accuracy, % (95% CI)",
        "compared with the best (Holm-adjusted p)",
        "gain, points (unadjusted 95% CI)",
        "Holm-adjusted p",
        "values tried",
        "n",
    ]
    notes = tuning_notes(found)
    return ["## Long tail", _table(columns, rows), *map(escape_markdown, notes)] if rows else []


def _robustness(findings: Findings) -> list[str]:
    rows = []
    for row in drops_by_classifier(findings):
        drop = estimate_text(row.drop.difference, row.drop.interval95)
        worst = f"{row.worst[0]} ({100 * row.worst[1]:.1f})" if row.worst else ""
        clean, perturbed = average_text(row.clean), average_text(row.perturbed)
        p, n = p_text(row.drop.p_holm), str(row.drop.n)
        standing = standing_text(row.perturbed_standing)
        rows.append([row.name or "the only one", clean, perturbed, standing, drop, p, worst, n])
    columns = [
        "classifier",
        "clean, % (95% CI)",
        "perturbed, % (95% CI)",
        "perturbed, compared with the best (Holm-adjusted p)",
        "drop, points (unadjusted 95% CI)",
        "Holm-adjusted p",
        "worst family, %",
        "n",
    ]
    return ["## Robustness", _table(columns, rows)] if rows else []


def _problems(findings: Findings) -> list[str]:
    reasons = dict.fromkeys(
        f"{cell.status}: {cell.reason}" for cell in findings.cells if cell.status != "ok"
    )
    return [f"## {cell_counts(findings)}", _first_bullets(list(reasons))] if reasons else []
