"""Sentences and number formats shared by the HTML report and the Markdown summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from featkit.ablation.conditions import LongTailRow
from featkit.ablation.effects import DATA, PLAIN, Findings, Selection
from featkit.evaluation.compare import format_p_value
from featkit.evaluation.effects import SEED, Average, Effect
from featkit.evaluation.folds import FoldPrecisions, FoldScores
from featkit.evaluation.intervals import Interval
from featkit.evaluation.metrics import MEAN_AVERAGE_PRECISION, TOP1
from featkit.evaluation.multilabel import MultiLabelReport
from featkit.evaluation.report import Report
from featkit.evaluation.standing import Standing
from featkit.runs.splits import GROUP_LEAK

METHODS = (
    "Each head was fitted on the features of the training and validation images and evaluated on "
    "the test images, which were used for nothing else. Hyperparameters, calibration temperatures "
    "and the selected classifier were chosen on the validation set, never on the test set. "
    "Fine-tuned and distilled networks were trained on the training images only.",
    "Intervals are 95% confidence intervals (CI). For one cell they are over test images: Wilson "
    "score intervals for top-1 accuracy, bootstrap intervals for balanced accuracy. Means and "
    "differences over several cells are paired over the same test images and over seeds: images "
    "and seeds are treated as samples, the values of all other axes as fixed. Two seeds are too "
    "few to estimate the variance between seeds: means over two seeds have intervals over test "
    "images only.",
    "The p-value of one pair of cells is McNemar's mid-p; that of a mean over several cells "
    "belongs to its interval. A difference is significant if its p-value is below 0.05 after Holm "
    "correction. Each table of differences is one family of tests: the probability of any false "
    "positive in it is at most 5%. Intervals of differences are unadjusted: each has 95% coverage "
    "by itself, so that one may exclude zero beside a difference that is not significant.",
    "Every classifier is compared with the best one on the same data, training set and "
    "perturbation: the mean over seeds by paired tests, with Holm correction over all pairs of "
    "these classifiers, since the best one was found on the same test images. A classifier that is "
    "not significantly different from the best may still be worse than it.",
)

MULTILABEL_METHOD = (
    "Images have several labels each. The metric is the mean average precision (mAP): the mean "
    "over labels of the precision at the images with the label, ranked by its probability. It is "
    "close to a mean over images of linear terms (delta method), which all intervals and paired "
    "tests use in place of correct and wrong predictions; the interval of one cell is widened to "
    "the Wilson interval at the number of images with the labels. The threshold and the "
    "calibration of each label were chosen on the validation set."
)
"""How images with several labels each are evaluated."""

NO_SELECTION = (
    "No classifier was selected on the validation set: this needs at least two classifiers, all "
    "with a validation score."
)


def headline(report: Report | MultiLabelReport) -> str:
    """Return the metric with its interval in a sentence that needs no knowledge of statistics."""
    if isinstance(report, MultiLabelReport):
        return _label_headline(report)
    top1, (low, high) = report.overall.top1, report.overall.interval95
    images, expected = f"{report.n:,} {images_word(report)}", "new images of the same kind"
    if report.test_groups is not None:
        images += f" of {report.test_groups:,} groups"
        expected = "images of new groups of the same kind"
    if report.folds is None:
        found = f"Of {images} that the classifier had not seen, it named the right class for"
    else:
        found = (
            f"In {folds_text(report.folds)}, each of {images} was classified by a head fitted "
            "without it. The class was right for"
        )
    text = (
        f"{found} {100 * top1:.1f}%. On {expected}, expect between "
        f"{100 * low:.1f} and {100 * high:.1f}% (95% confidence interval)."
    )
    without = report.without_copies
    if without is None or without.top1 is None or without.interval95 is None:
        return text
    low, high = without.interval95
    copied = "training images" if report.folds is None else "images of other folds"
    return (
        f"{text} However, {without.copies} of these images are copies of {copied}. For the "
        f"other {without.n:,} it named the right class for {100 * without.top1:.1f}% "
        f"({100 * low:.1f} to {100 * high:.1f}%)."
    )


def _label_headline(report: MultiLabelReport) -> str:
    """Return the mean average precision with its interval in words."""
    value, (low, high) = report.headline.value, report.headline.interval95
    images, expected = f"{report.n:,} {images_word(report)}", "new images of the same kind"
    if report.test_groups is not None:
        images += f" of {report.test_groups:,} groups"
        expected = "images of new groups of the same kind"
    found = f"On {images} that the classifier had not seen"
    if report.folds is not None:
        found = f"In {folds_text(report.folds)}, on {images}, each by a head fitted without it"
    text = (
        f"{found}, the mean average precision (mAP) over {len(report.per_label)} labels is "
        f"{100 * value:.1f}%: if images are ranked by the probability of a label, this is the "
        f"average share of right images among the first ones. On {expected}, expect between "
        f"{100 * low:.1f} and {100 * high:.1f}% (95% confidence interval)."
    )
    without = report.without_copies
    if without is None or without.mean_average_precision is None or without.interval95 is None:
        return text
    copied = "training images" if report.folds is None else "images of other folds"
    return (
        f"{text} However, {without.copies} of these images are copies of {copied}. Without them "
        f"the mAP is {100 * without.mean_average_precision:.1f}% "
        f"({interval_text(without.interval95)}%)."
    )


def images_word(report: Report | MultiLabelReport) -> str:
    """Return what the evaluated images are: all of the data in a cross-validation."""
    return "test images" if report.folds is None else "images"


def folds_text(folds: FoldScores | FoldPrecisions) -> str:
    """Return the scheme of a cross-validation in words."""
    text = f"{folds.folds}-fold cross-validation"
    return text if folds.repeats == 1 else f"{text}, repeated {folds.repeats} times"


def evaluated_on(report: Report | MultiLabelReport) -> str:
    """Return the number of evaluated images, and the scheme of a cross-validation."""
    text = f"{report.n:,} {images_word(report)}"
    return text if report.folds is None else f"{text}, {folds_text(report.folds)}"


def interval_text(interval: Interval) -> str:
    """Return the ends of an interval of fractions in percent or percentage points."""
    return f"{100 * interval[0]:z.1f} to {100 * interval[1]:z.1f}"


def estimate_text(value: float, interval: Interval, *, signed: bool = False) -> str:
    """Return a fraction and its interval in percent, such as ``91.2 (90.1 to 92.2)``."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}z.1f} ({interval_text(interval)})"


def average_text(average: Average) -> str:
    """Return a mean accuracy and its interval in percent."""
    return estimate_text(average.value, average.interval95)


def accuracy_text(report: Report) -> str:
    """Return the top-1 accuracy with its interval and n, for the title of a figure."""
    interval = f"95% CI {interval_text(report.overall.interval95)}"
    return f"top-1 accuracy {100 * report.overall.top1:.1f}% ({interval}), n = {report.n}"


def standing_text(standing: Standing | None) -> str:
    """Return how a classifier compares with the best one; empty without another classifier.

    >>> standing_text(Standing(False, 0.21, 10))
    'not significantly different from the best (p = 0.210)'
    """
    if standing is None or standing.p_holm is None:
        return standing.text if standing else ""
    return f"{standing.text} ({format_p_value(standing.p_holm)})"


def p_text(p: float) -> str:
    """Return a p-value with three decimals."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def duration_text(seconds: float) -> str:
    """Return a duration with two digits, in minutes or in hours."""
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def method_paragraphs(findings: Findings) -> list[str]:
    """Return paragraphs about protocol and statistics of a grid."""
    labels = [MULTILABEL_METHOD] if findings.metric == MEAN_AVERAGE_PRECISION else []
    return [*METHODS, *labels, *group_sentences(findings)]


def metric_name(findings: Findings) -> str:
    """Return the metric of a grid in words: ``top-1 accuracy`` or ``balanced accuracy``."""
    return metric_in_words(findings.metric)


def metric_in_words(metric: str) -> str:
    """Return ``top-1 accuracy`` for ``top-1``; ``balanced accuracy`` and ``mAP`` as they are."""
    return "top-1 accuracy" if metric == TOP1 else metric


def basis_text(average: Average) -> str:
    """Return what a mean is over, such as ``6 cells, n = 1000``."""
    return f"{average.cells} cell{'s' if average.cells > 1 else ''}, n = {average.n}"


def effect_sentence(findings: Findings, effect: Effect) -> str:
    """Return the difference between two values of an axis in words.

    The value of the higher metric comes first. The axis is named where its value alone would be
    unclear, such as True.
    """
    effect = effect.better_first()
    names: dict[Hashable, str] = {}
    for value in (effect.a, effect.b):
        shown = findings.shown(effect.axis, value)
        is_clear = isinstance(value, str) and value not in PLAIN
        names[value] = shown if is_clear else f"{effect.axis} {shown}"
    sentence = effect.sentence(names[effect.a], names[effect.b])
    return f"{sentence}; {_mean_over(effect)}n = {effect.n}"


def _mean_over(effect: Effect) -> str:
    if effect.cells == 1:
        return ""
    settings = effect.cells // effect.seeds if effect.cells % effect.seeds == 0 else effect.cells
    parts = []
    if settings > 1:
        parts.append(f"{settings} settings of the other axes")
    if effect.seeds > 1:
        parts.append(f"{effect.seeds} seeds")
    return f"mean over {' and '.join(parts)}, "


def tuning_notes(rows: Sequence[LongTailRow]) -> list[str]:
    """Return a note that names the corrections that were tuned over several values.

    ``none`` has no option. A correction that is the best of several on the validation set has a
    head start over it, which does not depend on the kind of the correction.
    """
    tuned = {row.balance: row.candidates for row in rows if row.candidates > 1}
    if not tuned:
        return []
    named = ", ".join(f"{name} over {count}" for name, count in tuned.items())
    return [
        f"Options tuned on the validation set: {named} values. All other corrections, and none, "
        "have a single value; part of a gain may be due to tuning."
    ]


def selection_sentence(findings: Findings, selection: Selection) -> str:
    """Return which classifier was selected on validation, and its test result."""
    better = sum(effect.significant and effect.difference > 0 for effect in selection.versus)
    worse = sum(effect.significant and effect.difference < 0 for effect in selection.versus)
    similar = len(selection.versus) - better - worse
    condition = f"{selection.condition}: " if selection.condition else ""
    test = selection.test
    return (
        f"{condition}{selection.choice} has the highest validation score of {selection.of} "
        f"classifiers ({100 * selection.val:.1f}% {metric_in_words(selection.metric)}). Test "
        f"{metric_in_words(selection.metric)}: {100 * test.value:.1f}% (95% CI "
        f"{interval_text(test.interval95)}), n = {test.n}; significantly better than {better} of "
        f"the other classifiers, significantly worse than {worse}, no significant difference from "
        f"{similar}."
    )


def cell_counts(findings: Findings) -> str:
    """Return the number of cells, in total and by status."""
    found = Counter(cell.status for cell in findings.cells)
    states = ", ".join(
        f"{found[state]} {state}" for state in ("ok", "failed", "skipped") if found[state]
    )
    return f"{len(findings.cells)} cells: {states}"


def _test_set_size(findings: Findings) -> list[str]:
    """Return the text for the number of test images, or nothing without results."""
    sizes = {cell.report.n for cell, _ in findings.scored if cell.report}
    if not sizes:
        return []
    smallest, largest = min(sizes), max(sizes)
    n = str(smallest) if smallest == largest else f"{smallest} to {largest}"
    return [f"n = {n} test images"]


def lead_parts(findings: Findings, wall_seconds: float | None) -> list[str]:
    """Return the size of a grid: cells, test images, seeds, axes with a single value, duration."""
    parts = [cell_counts(findings), *_test_set_size(findings)]
    seeds = findings.axes.get(SEED, ())
    if seeds:
        parts.append(f"{len(seeds)} seeds ({', '.join(map(str, seeds))})")
    for axis, value in findings.same.items():
        is_default = value in PLAIN or value is False
        if axis == DATA or not is_default:
            parts.append(f"{axis} {findings.shown(axis, value)}")
    if wall_seconds:
        parts.append(f"run time {duration_text(wall_seconds)}")
    return parts


def group_sentences(findings: Findings) -> list[str]:
    """Return how groups of test images, such as patients, were treated; nothing without groups."""
    reports = [cell.report for cell in findings.cells if cell.report]
    counts = sorted(report.test_groups for report in reports if report.test_groups is not None)
    if not counts:
        return []
    number = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    sentences = [
        f"The test images come in groups ({number} in a cell): no split separates a group unless a "
        "leak is named here, and intervals and paired tests resample groups in place of images."
    ]
    leaks: dict[str, None] = {}
    for report in reports:
        named = [warning for warning in report.warnings if warning.startswith(GROUP_LEAK)]
        leaks |= dict.fromkeys(named)
    return [*sentences, *leaks]
