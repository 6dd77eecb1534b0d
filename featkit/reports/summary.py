"""What a README could quote of a matrix, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from featkit.ablation.conditions import drops_by_choice, long_tail
from featkit.ablation.effects import PERTURB, Findings, grouped, unperturbed
from featkit.evaluation.effects import SEED
from featkit.reports.markup import readable
from featkit.reports.wording import NOT_CHOSEN, chosen_sentence, counts, effect_sentence, points, share

_BEST = 10
_SAID = 12
_MARKUP = re.compile(r"([\\`*\[\]<>|&#])")


def markdown(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return _MARKUP.sub(r"\\\1", readable(text))


def summary_text(findings: Findings, lead: Sequence[str], commands: Sequence[str]) -> str:
    """Return the best cells, what can and what cannot be claimed, and how it was made.

    Args:
        findings: of the matrix.
        lead: its size and scope.
        commands: what was typed.
    """
    claimed, doubtful = (
        [effect_sentence(findings, effect) for effect in findings.spoken if effect.significant == state]
        for state in (True, False)
    )
    parts = [
        f"# {markdown(findings.name)}",
        f"{markdown('; '.join(lead))}.",
        "## Chosen on val",
        _bullets([chosen_sentence(findings, one) for one in findings.chosen]) or NOT_CHOSEN,
        f"## Highest {findings.metric} on test",
        _best(findings),
        "## What can be claimed",
        _said(claimed),
        "## What cannot be claimed",
        _said(doubtful),
        *_long_tail(findings),
        *_robustness(findings),
        *_troubles(findings),
        "## How it was made",
        "\n".join(f"    {readable(command)}" for command in commands),
        "Every number with its 95 % interval; differences are paired over test images and claimed at a Holm-adjusted "
        "p below 0.05. Nothing was selected on test; the whole list is in report.html.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bullets(texts: Sequence[str]) -> str:
    return "\n".join(f"- {markdown(text)}" for text in texts)


def _said(sentences: Sequence[str]) -> str:
    """Return as many as one reads, and how many there are besides."""
    left = len(sentences) - _SAID
    more = [f"{left} more: see report.html"] if left > 0 else []
    return _bullets([*sentences[:_SAID], *more]) or "Nothing."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *[[markdown(text) for text in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _best(findings: Findings) -> str:
    """Rank what is not perturbed, seeds averaged."""
    axes = [axis for axis in findings.axes if axis not in (SEED, PERTURB)]
    means = [(place, findings.mean(its)) for place, its in grouped(unperturbed(findings), axes).items()]
    means.sort(key=lambda one: -one[1].value)
    rows = [
        [*map(findings.shown, axes, place), share(mean), str(mean.seeds), str(mean.n)] for place, mean in means[:_BEST]
    ]
    return _table([*axes, f"{findings.metric} % (95 %)", "seeds", "n"], rows) if rows else "Not one cell has a result."


def _long_tail(findings: Findings) -> list[str]:
    rows = [
        [
            row.condition,
            row.balance,
            share(row.mean),
            points(row.gain.difference, row.gain.interval95, signed=True) if row.gain else "",
            str(row.mean.n),
        ]
        for row in long_tail(findings)
    ]
    columns = ["training set", "correction", "balanced % (95 %)", "gain, points (95 %)", "n"]
    return ["## Long tail", _table(columns, rows)] if rows else []


def _robustness(findings: Findings) -> list[str]:
    rows = [
        [
            row.name or "the only one",
            share(row.clean),
            share(row.perturbed),
            points(row.drop.difference, row.drop.interval95),
            f"{row.worst[0]} ({100 * row.worst[1]:.1f})" if row.worst else "",
            str(row.drop.n),
        ]
        for row in drops_by_choice(findings)
    ]
    columns = ["classifier", "clean % (95 %)", "perturbed % (95 %)", "drop, points (95 %)", "worst family %", "n"]
    return ["## Robustness", _table(columns, rows)] if rows else []


def _troubles(findings: Findings) -> list[str]:
    reasons = dict.fromkeys(f"{cell.status}: {cell.reason}" for cell in findings.cells if cell.status != "ok")
    return [f"## {counts(findings)}", _said(list(reasons))] if reasons else []
