"""Tables of results for a paper or a README: LaTeX (booktabs) and Markdown."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from featkit.ablation.conditions import (
    GROUPS,
    DropRow,
    LongTailRow,
    drops_by_classifier,
    long_tail,
)
from featkit.ablation.effects import (
    BACKBONE,
    BALANCE,
    CONDITIONS,
    DATA,
    PERTURB,
    Findings,
    grouped,
)
from featkit.ablation.run import AblationResult
from featkit.errors import DataError, visible
from featkit.evaluation.effects import Average
from featkit.evaluation.intervals import Interval
from featkit.evaluation.metrics import BALANCED_ACCURACY
from featkit.evaluation.multilabel import MultiLabelReport
from featkit.evaluation.standing import Standing, standings_of_pairs
from featkit.reports.summary import escape_markdown
from featkit.reports.wording import images_word, metric_name
from featkit.runs.compare import RunComparison

FORMATS = ("latex", "markdown")

Row = TypeVar("Row", LongTailRow, DropRow)

_AXIS_NAMES = {BACKBONE: "network", BALANCE: "correction", "train_perturb": "training corruption"}
_CONDITION_NAMES = {DATA: "", "subset": "training set ", PERTURB: "test images "}
_SIZES = {
    "many": "more than 100 training images",
    "medium": "20 to 100 training images",
    "few": "fewer than 20 training images",
}
_PAIRED = "paired tests, Holm correction over all pairs"


@dataclass(frozen=True)
class Entry:
    """A number of a table with its interval.

    Attributes:
        value: the number as text; empty for an empty cell.
        interval: its interval as text.
        is_best: whether it is printed in bold.
        mark: ``tied`` for a number that is not significantly different from the best,
            ``significant`` for a difference that is significant.
    """

    value: str = ""
    interval: str = ""
    is_best: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Block:
    """Rows that are compared with each other.

    Attributes:
        heading: data and training set; empty if the table has a single block.
        rows: names, then numbers.
    """

    heading: str
    rows: Sequence[tuple[Sequence[str], Sequence[Entry]]]


@dataclass(frozen=True)
class PublicationTable:
    """A table of results.

    Attributes:
        label: for references, letters and hyphens.
        caption: what the numbers are.
        notes: what bold type and each symbol mean: the mark of an ``Entry`` or an empty text, and
            the explanation.
        names: headers of the columns of names.
        numbers: headers of the columns of numbers.
        blocks: the rows, best first.
    """

    label: str
    caption: str
    notes: Sequence[tuple[str, str]]
    names: Sequence[str]
    numbers: Sequence[str]
    blocks: Sequence[Block]

    def to_text(self, form: str) -> str:
        """Return the table in one of ``FORMATS``."""
        return self.to_latex() if form == "latex" else self.to_markdown()

    def to_latex(self) -> str:
        """Return a LaTeX ``table`` with the rules of the package booktabs."""
        columns = "l" * len(self.names) + "r" * len(self.numbers)
        headers = [escape_latex(_capitalised(name)) for name in (*self.names, *self.numbers)]
        caption = [escape_latex(self.caption)]
        caption += [f"{_LATEX_MARKS[mark]}{escape_latex(text)}" for mark, text in self.notes]
        lines = [
            "% Needs \\usepackage{booktabs} in the preamble.",
            "\\begin{table}",
            "  \\centering",
            f"  \\caption{{{' '.join(caption)}}}",
            f"  \\label{{tab:{self.label}}}",
            f"  \\begin{{tabular}}{{{columns}}}",
            "    \\toprule",
            f"    {' & '.join(headers)} \\\\",
        ]
        for block in self.blocks:
            lines.append("    \\midrule")
            if block.heading:
                heading = escape_latex(_capitalised(block.heading))
                lines.append(
                    f"    \\multicolumn{{{len(columns)}}}{{l}}{{\\emph{{{heading}}}}} \\\\"
                )
            for names, numbers in block.rows:
                cells = [*map(escape_latex, names), *map(_latex_entry, numbers)]
                lines.append(f"    {' & '.join(cells)} \\\\")
        lines += ["    \\bottomrule", "  \\end{tabular}", "\\end{table}"]
        return "\n".join(lines) + "\n"

    def to_markdown(self) -> str:
        """Return a Markdown table for each block, below the caption."""
        headers = [escape_markdown(_capitalised(name)) for name in (*self.names, *self.numbers)]
        rules = ["---"] * len(self.names) + ["---:"] * len(self.numbers)
        caption = [escape_markdown(self.caption)]
        caption += [f"{_MARKDOWN_MARKS[mark]} {escape_markdown(text)}" for mark, text in self.notes]
        parts = [" ".join(" ".join(caption).split())]
        for block in self.blocks:
            if block.heading:
                parts.append(f"**{escape_markdown(_capitalised(block.heading))}**")
            lines = [headers, rules]
            for names, numbers in block.rows:
                cells = [*map(escape_markdown, names), *map(_markdown_entry, numbers)]
                lines.append(cells)
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return "\n\n".join(parts) + "\n"


_MARKDOWN_MARKS = {"": "", "tied": "†", "significant": "\\*"}
_LATEX_MARKS = {"": "", "tied": "$^{\\dagger}$", "significant": "$^{*}$"}
_LATEX_CHARACTERS = {
    "\\": "\\textbackslash{}",
    "{": "\\{",
    "}": "\\}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    '"': "\\char34{}",
    "`": "\\textasciigrave{}",
    # After the end of a row, these would be an argument of it; two hyphens would be a dash.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "-": "-{}",
    "≥": "$\\geq$",
    **{character: f"\\{character}" for character in "#$%&_"},
}


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints literally, with UTF-8 as its input encoding."""
    escaped = "".join(_LATEX_CHARACTERS.get(character, character) for character in visible(text))
    return re.sub(r"-\{\}(?!-)", "-", escaped)


def _latex_entry(entry: Entry) -> str:
    value = f"\\textbf{{{entry.value}}}" if entry.is_best else entry.value
    text = f"{value}{_LATEX_MARKS[entry.mark]} {entry.interval}".strip()
    # A hyphen is too short for a minus sign.
    return text.replace("-", "$-$")


def _markdown_entry(entry: Entry) -> str:
    value = f"**{entry.value}**" if entry.is_best else entry.value
    return f"{value}{_MARKDOWN_MARKS[entry.mark]} {entry.interval}".strip()


def _capitalised(text: str) -> str:
    """Return the text with a capital at its start; ``mCE`` and the like stay as they are."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


# Numbers ------------------------------------------------------------------------------------------


def _percent(
    value: float, interval: Interval, standing: Standing | None = None, *, sign: str = ""
) -> Entry:
    """Return a fraction in percent with its interval: ``91.2 [90.1, 92.2]``."""
    low, high = (f"{100 * end:z.1f}" for end in interval)
    is_best = standing is not None and standing.is_best
    mark = "tied" if standing is not None and standing.is_tied else ""
    return Entry(f"{100 * value:{sign}z.1f}", f"[{low}, {high}]", is_best, mark)


def _mean(average: Average | None, standing: Standing | None = None) -> Entry:
    return Entry() if average is None else _percent(average.value, average.interval95, standing)


def _sizes(averages: Iterable[Average]) -> str:
    """Return the number of test images, and of seeds if there are several."""
    found = list(averages)
    counts = sorted({average.n for average in found})
    text = f"n = {counts[0]:,}" if len(counts) == 1 else f"n = {counts[0]:,} to {counts[-1]:,}"
    groups = sorted({average.groups for average in found if average.groups is not None})
    if groups:
        text = f"{text} in {groups[0]:,} groups or more, which the intervals resample"
    seeds = max(average.seeds for average in found)
    return f"{text}, mean over {seeds} seeds" if seeds > 1 else text


def _notes(blocks: Sequence[Block], columns: Sequence[str], *texts: str) -> list[tuple[str, str]]:
    """Return explanations, and what bold type and symbols mean, as far as the table has them.

    Args:
        blocks: of the table.
        columns: headers of the numbers; not all of them have paired tests.
        texts: explanations that come first; empty ones are left out.
    """
    rows = [numbers for block in blocks for _, numbers in block.rows]
    entries = list(itertools.chain.from_iterable(rows))
    with_best: dict[str, None] = {}  # a dictionary, as it keeps the order
    for numbers in rows:
        best = [entry.is_best for entry in numbers]
        with_best.update(dict.fromkeys(itertools.compress(columns, best)))
    notes = [("", text) for text in texts if text]
    if with_best:
        ending = " of each block" if len(blocks) > 1 else ""
        notes.append(("", f"Bold: best {' and '.join(with_best)}{ending}."))
    if any(entry.mark == "tied" for entry in entries):
        notes.append(("tied", f"Not significantly different from the best (p ≥ 0.05, {_PAIRED})."))
    if any(entry.mark == "significant" for entry in entries):
        notes.append(
            ("significant", "Significant after Holm correction over all gains (p < 0.05).")
        )
    return notes


# Tables -------------------------------------------------------------------------------------------


def publication_table(
    result: AblationResult | RunComparison, *, baseline: str = ""
) -> PublicationTable:
    """Return the table of a comparison of runs, or of a grid, for a publication.

    The columns follow the study: a grid of ``longtail`` has gains and the accuracy of many, medium
    and few-shot classes, one of ``robustness`` the drop and the mean corruption error.

    Args:
        result: of ``compare``, ``ablate``, ``longtail`` or ``robustness``.
        baseline: backbone that the mean corruption error is relative to; empty for the first.

    Raises:
        DataError: if there is no result to show.
    """
    if isinstance(result, RunComparison):
        return _comparison_table(result)
    findings = result.findings
    if not findings.scored:
        raise DataError(f"grid {findings.name} has no results for a table: run it again")
    if findings.name == "longtail":
        return _long_tail_table(findings)
    if findings.name == "robustness":
        return _robustness_table(findings, baseline or str(result.grid.values(BACKBONE)[0]))
    return _grid_table(findings)


def _multilabel_table(
    reports: Sequence[tuple[str, MultiLabelReport]], comparison: RunComparison
) -> PublicationTable:
    """Return the table of runs with several labels per image."""
    values = {name: report.headline.value for name, report in reports}
    found = standings_of_pairs(values, comparison.pairs)
    rows = []
    for name, report in reports:
        numbers = [
            _percent(report.headline.value, report.headline.interval95, found.get(name)),
            _percent(report.micro_f1, report.micro_interval95),
            _percent(report.macro_f1, report.macro_interval95),
        ]
        rows.append(([name], numbers))
    first = reports[0][1]
    n, labels = first.n, len(first.per_label)
    blocks = [Block("", rows)]
    columns = ["mAP", "micro F1", "macro F1"]
    return PublicationTable(
        label="comparison",
        caption=(
            f"Mean average precision and F1 of {labels} labels on the same n = {n:,} "
            f"{images_word(first)}, in % with 95% CI."
        ),
        notes=_notes(blocks, columns, comparison.note),
        names=["run"],
        numbers=columns,
        blocks=blocks,
    )


def _common_table(comparison: RunComparison, found: Mapping[str, Standing]) -> PublicationTable:
    """Return the table of runs on folds and on test sets, on the images that all have."""
    rows = []
    for (name, _), common in zip(comparison.runs, comparison.common, strict=True):
        rows.append(([name], [_percent(common.top1, common.interval95, found.get(name))]))
    blocks = [Block("", rows)]
    columns = ["top-1 accuracy"]
    return PublicationTable(
        label="comparison",
        caption=f"Accuracy on the same n = {comparison.common[0].n:,} images, in % with 95% CI.",
        notes=_notes(blocks, columns, comparison.note),
        names=["run"],
        numbers=columns,
        blocks=blocks,
    )


def _comparison_table(comparison: RunComparison) -> PublicationTable:
    reports = []
    several = []
    for name, report in comparison.runs:
        if isinstance(report, MultiLabelReport):
            several.append((name, report))
        else:
            reports.append((name, report))
    if several:
        return _multilabel_table(several, comparison)
    found = standings_of_pairs(comparison.values, comparison.pairs)
    if comparison.common:
        return _common_table(comparison, found)
    rows = []
    for name, report in reports:
        top1 = _percent(report.overall.top1, report.overall.interval95, found.get(name))
        balanced = _percent(report.balanced_accuracy, report.balanced_interval95)
        rows.append(([name], [top1, balanced]))
    n, images = reports[0][1].n, images_word(reports[0][1])
    blocks = [Block("", rows)]
    columns = ["top-1 accuracy", "balanced accuracy"]
    return PublicationTable(
        label="comparison",
        caption=f"Accuracy on the same n = {n:,} {images}, in % with 95% CI.",
        notes=_notes(blocks, columns, comparison.note),
        names=["run"],
        numbers=columns,
        blocks=blocks,
    )


def _grid_table(findings: Findings) -> PublicationTable:
    """Return the classifiers of a grid by metric, in a block for each condition."""
    axes = _name_axes(findings, without=())
    conditions = _varying_conditions(findings)
    blocks: list[Block] = []
    averages: list[Average] = []
    by_condition = grouped(findings.scored, conditions)
    for values in sorted(by_condition, key=partial(_place, findings, conditions)):
        cells = by_condition[values]
        found = []
        for own in grouped(cells, findings.classifier_axes).values():
            first = own[0].cell.values
            found.append((first, findings.mean(own), findings.standing(first)))
        found.sort(key=lambda each: -each[1].value)
        rows = []
        for first, mean, standing in found:
            rows.append((_shown(findings, first, axes), [_mean(mean, standing)]))
        means = [mean for _, mean, _ in found]
        averages += means
        heading = _heading(findings, dict(zip(conditions, values, strict=True)), means)
        blocks.append(Block(heading, rows))
    metric = metric_name(findings)
    return PublicationTable(
        label=_label(findings.name),
        caption=_caption(findings, metric, averages),
        notes=_notes(blocks, [metric]),
        names=_headers(axes),
        numbers=[metric],
        blocks=_without_single_heading(blocks),
    )


def _long_tail_table(findings: Findings) -> PublicationTable:
    """Return the corrections on each training set: metric, gain, and groups of classes."""
    axes = _name_axes(findings, without=(BALANCE,))
    found = long_tail(findings)
    if not found:
        return _grid_table(findings)
    groups = [name for name in GROUPS if any(name in row.groups for row in found)]
    blocks = []
    for condition, members in _by_condition(findings, found).items():
        rows = []
        for row in sorted(members, key=lambda row: -row.mean.value):
            numbers = [_mean(row.mean, row.standing), _gain(row)]
            numbers += [_mean(row.groups.get(name)) for name in groups]
            rows.append(([*_shown(findings, row.values, axes), row.balance], numbers))
        means = [row.mean for row in members]
        blocks.append(Block(_heading(findings, dict(condition), means), rows))
    columns = [BALANCED_ACCURACY, "gain", *groups]
    explanations = [
        "Gain: difference from no correction, in points.",
        *(f"{_capitalised(name)}: accuracy on classes with {_SIZES[name]}." for name in groups),
    ]
    return PublicationTable(
        label=_label(findings.name),
        caption=_caption(findings, BALANCED_ACCURACY, [row.mean for row in found]),
        notes=_notes(blocks, columns, *explanations),
        names=[*_headers(axes), "correction"],
        numbers=columns,
        blocks=_without_single_heading(blocks),
    )


def _robustness_table(findings: Findings, baseline: str) -> PublicationTable:
    """Return the classifiers on clean and on perturbed images, with the drop and the error."""
    axes = _name_axes(findings, without=())
    found = drops_by_classifier(findings, baseline)
    if not found:
        return _grid_table(findings)
    blocks = []
    for condition, members in _by_condition(findings, found, without=(PERTURB,)).items():
        rows = []
        for row in sorted(members, key=lambda row: -row.perturbed.value):
            numbers = _drop_entries(row)
            rows.append((_shown(findings, row.values or {}, axes), numbers))
        means = [row.perturbed for row in members]
        blocks.append(Block(_heading(findings, dict(condition), means), rows))
    network = findings.shown(BACKBONE, baseline)
    columns = ["clean", "perturbed", "drop", "mCE"]
    explanation = (
        f"Perturbed: mean over {found[0].perturbations} perturbations of the test images. Drop: "
        "clean minus perturbed, in points. mCE: mean corruption error in %, relative to the same "
        f"head on {network}."
    )
    return PublicationTable(
        label=_label(findings.name),
        caption=_caption(findings, metric_name(findings), [row.perturbed for row in found]),
        notes=_notes(blocks, columns, explanation),
        names=_headers(axes),
        numbers=columns,
        blocks=_without_single_heading(blocks),
    )


def _gain(row: LongTailRow) -> Entry:
    if row.gain is None:
        return Entry()
    entry = _percent(row.gain.difference, row.gain.interval95, sign="+")
    mark = "significant" if row.gain.significant else ""
    return Entry(entry.value, entry.interval, mark=mark)


def _drop_entries(row: DropRow) -> list[Entry]:
    error = Entry()
    if row.mce is not None and row.mce_interval95 is not None:
        error = _percent(row.mce, row.mce_interval95)
    return [
        _mean(row.clean, row.clean_standing),
        _mean(row.perturbed, row.perturbed_standing),
        _percent(row.drop.difference, row.drop.interval95),
        error,
    ]


# Parts of tables ----------------------------------------------------------------------------------


def _name_axes(findings: Findings, without: Sequence[str]) -> list[str]:
    """Return the axes that name a classifier: those that vary, else backbone and head."""
    axes = [axis for axis in findings.classifier_axes if axis not in without]
    return axes or [BACKBONE, "head"]


def _headers(axes: Sequence[str]) -> list[str]:
    return [_AXIS_NAMES.get(axis, axis.replace("_", " ")) for axis in axes]


def _shown(findings: Findings, values: Mapping[str, object], axes: Sequence[str]) -> Sequence[str]:
    return [findings.shown(axis, values.get(axis, "")) for axis in axes]


def _varying_conditions(findings: Findings, without: Sequence[str] = ()) -> list[str]:
    return [axis for axis in CONDITIONS if axis in findings.axes and axis not in without]


def _by_condition(
    findings: Findings, rows: Sequence[Row], without: Sequence[str] = ()
) -> dict[tuple[tuple[str, object], ...], list[Row]]:
    """Return rows by data, training set and perturbation, as far as they vary."""
    axes = _varying_conditions(findings, without)
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        values = row.values or {}
        found.setdefault(tuple(values.get(axis) for axis in axes), []).append(row)
    ordered = sorted(found, key=partial(_place, findings, axes))
    return {tuple(zip(axes, values, strict=True)): found[values] for values in ordered}


def _place(findings: Findings, axes: Sequence[str], values: Sequence[object]) -> list[int]:
    """Return a sort key: the order of the grid. Cells and rows come best first."""
    return [findings.axes[axis].index(value) for axis, value in zip(axes, values, strict=True)]


def _heading(findings: Findings, condition: Mapping[str, object], means: Sequence[Average]) -> str:
    parts = [
        f"{_CONDITION_NAMES[axis]}{findings.shown(axis, value)}"
        for axis, value in condition.items()
    ]
    return ", ".join([*parts, _sizes(means)])


def _without_single_heading(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks; a single one needs no heading, as the caption says the same."""
    return [Block("", blocks[0].rows)] if len(blocks) == 1 else list(blocks)


def _caption(findings: Findings, metric: str, averages: Sequence[Average]) -> str:
    data = findings.same.get(DATA)
    where = f" of {findings.shown(DATA, data)}" if data else ""
    sizes = _sizes(averages)
    return f"{_capitalised(metric)} on the test images{where} ({sizes}), in % with 95% CI."


def _label(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "grid"
