"""Sentences and numbers of a matrix, for its page and its summary alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping

from featkit.ablation.effects import DATA, PLAIN, Chosen, Findings
from featkit.evaluation.effects import SEED, Average, Effect
from featkit.evaluation.intervals import Interval

PROTOCOL = (
    "Each head was fitted on the vectors of train and val together and judged on the test images, which nothing else "
    "had seen. Settings, temperatures and the classifier called chosen were picked on val, never on test.",
    "Intervals are 95 % intervals. That of one cell is over test images: Wilson's for top-1, a bootstrap for balanced "
    "accuracy. Means and differences over cells are paired over the same test images and over seeds. They are about "
    "these values of the axes, on other images and with other seeds of the same kind.",
    "The p-value of one pair of cells is McNemar's (mid-p), that of a mean belongs to its interval. A difference is "
    "claimed where it is below 0.05 after Holm's correction. Each table of differences is a family of its own: the "
    "chance of any false claim in it is at most 5 %.",
)

NOT_CHOSEN = "No classifier is chosen: that takes two or more that all have a score on val."


def points(value: float, interval: Interval, *, signed: bool = False) -> str:
    """Return a fraction and its interval in percent or in points."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}z.1f} ({ends(interval)})"


def ends(interval: Interval) -> str:
    """Return the ends of an interval, in percent or in points."""
    return f"{100 * interval[0]:z.1f} to {100 * interval[1]:z.1f}"


def share(average: Average) -> str:
    """Return a mean with its interval, in percent."""
    return points(average.value, average.interval95)


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def chance(p: float) -> str:
    """Return a p-value with as many digits as it is worth."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def sentence(effect: Effect, names: Mapping[Hashable, str] | None = None) -> str:
    """Say what can be said of two values, with the interval of their difference and what it is a mean over."""
    effect = effect.better_first()
    a, b = ((names or {}).get(value, str(value)) for value in (effect.a, effect.b))
    size = f"{100 * effect.difference:.1f} points ({ends(effect.interval95)})"
    verdict = (
        f"{a} is better than {b} by {size}"
        if effect.significant
        else f"no difference can be claimed between {a} and {b}: {size}"
    )
    return f"{verdict}, {_over(effect.cells, effect.seeds)}n = {effect.n}"


def _over(cells: int, seeds: int) -> str:
    if cells == 1:
        return ""
    settings = cells // seeds if cells % seeds == 0 else cells
    parts = [f"{settings} settings of the other axes"] if settings > 1 else []
    parts += [f"{seeds} seeds"] if seeds > 1 else []
    return f"averaged over {' and '.join(parts)}, "


def effect_sentence(findings: Findings, effect: Effect) -> str:
    """Say what can be said of two values of an axis; the axis is named where a value alone would say nothing."""
    axis, names = effect.axis, {}
    for value in (effect.a, effect.b):
        shown = findings.shown(axis, value)
        names[value] = f"{axis} {shown}" if value in PLAIN or not isinstance(value, str) else shown
    return sentence(effect, names)


def chosen_sentence(findings: Findings, chosen: Chosen) -> str:
    """Say what val chose, and what that is worth on test."""
    before = f"{chosen.condition}: of" if chosen.condition else "Of"
    better = sum(effect.significant and effect.difference > 0 for effect in chosen.versus)
    worse = sum(effect.significant and effect.difference < 0 for effect in chosen.versus)
    return (
        f"{before} {chosen.of} classifiers val chooses {chosen.choice} ({100 * chosen.val:.1f} % balanced accuracy "
        f"on val). On test it has {findings.metric} {share(chosen.test)} %, n = {chosen.test.n}: better than {better} "
        f"of the others, worse than {worse}, not told apart from {len(chosen.versus) - better - worse}."
    )


def basis(average: Average) -> str:
    """Return what a mean is a mean of."""
    return f"{average.cells} cell{'s' if average.cells > 1 else ''}, n = {average.n}"


def counts(findings: Findings) -> str:
    """Return how many cells there are, by status."""
    found = Counter(cell.status for cell in findings.cells)
    states = ", ".join(f"{found[state]} {state}" for state in ("ok", "failed", "skipped") if found[state])
    return f"{len(findings.cells)} cells: {states}"


def scope(findings: Findings) -> list[str]:
    """Return test images, seeds and what is the same in all cells."""
    sizes = {cell.report.n for cell, _ in findings.judged if cell.report}
    shown = f"{min(sizes)} to {max(sizes)}" if len(sizes) > 1 else str(*sizes)
    same = [
        f"{axis} {findings.shown(axis, value)}"
        for axis, value in findings.same.items()
        if axis == DATA or not (value in PLAIN or value is False)
    ]
    seeds = findings.axes.get(SEED, ())
    return [
        *([f"n = {shown} test images"] if sizes else []),
        *([f"{len(seeds)} seeds ({', '.join(map(str, seeds))})"] if seeds else []),
        *same,
    ]
