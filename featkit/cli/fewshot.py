"""``featkit fewshot``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featkit.cli.options import cluster_option, command, integers, option, study_options
from featkit.cli.output import interactive, print_json, print_line, print_text, table
from featkit.errors import SpecError

if TYPE_CHECKING:
    from featkit.studies.fewshot import FewShotScore

EPILOG = """\b
Examples:
  featkit fewshot --way 5 --shot 1,5 --query 15 --episodes 1000
  featkit fewshot --head prototypical --head knn:k=1 --head linear --episodes 200
  featkit fewshot --data photos --backbone resnet50 --curve 1,2,4,8,16 --draws 10
  featkit fewshot --data photos --head linear --head svm --curve 1,2,4,8,16 --episodes 50
  featkit fewshot --data photos --head linear --head svm --cluster local:4
"""


@command(epilog=EPILOG)
@option("--way", group="Episodes", type=integers(2), default=5, help="Classes per episode.")
@option(
    "--shot",
    group="Episodes",
    default="1,5",
    metavar="K,K...",
    help="Support images per class; 1,5 evaluates 1-shot and 5-shot episodes.",
)
@option(
    "--query",
    group="Episodes",
    type=integers(1),
    default=15,
    help="Query images per class.",
)
@option(
    "--episodes",
    group="Episodes",
    type=integers(2),
    default=1000,
    help="Number of episodes.",
)
@option(
    "--head",
    group="Head",
    multiple=True,
    metavar="SPEC",
    help="Head to evaluate. Repeatable.",
    show_default="prototypical and knn:k=1",
)
@option(
    "--curve",
    group="Episodes",
    metavar="K,K...",
    help="Also fit on K train images per class and evaluate on the test set (learning curve).",
    show_default="off",
)
@option(
    "--draws",
    group="Episodes",
    type=integers(2),
    default=5,
    help="Random samples per point of the learning curve.",
)
@study_options
@cluster_option
def fewshot(shot: str, head: tuple[str, ...], curve: str, as_json: bool, **options: Any) -> None:
    """Evaluate heads on few-shot episodes.

    Each episode samples classes, support and query images from all splits; the accuracy is the
    mean over episodes with its 95% confidence interval. Writes results.json, and curve.png with
    --curve.
    """
    from featkit import api

    result = api.fewshot(
        shot=_numbers(shot),
        head=head or ("prototypical", "knn:k=1"),
        curve=_numbers(curve) if curve else (),
        progress=interactive(),
        **options,
    )
    if as_json:
        print_json(result.to_dict())
        return
    n = result.scores[0].n
    print_line(
        f"{options['episodes']} episodes of {options['way']} classes from n = {n} images; "
        "95% CI over episodes"
    )
    print_text(_table(result.scores))
    if result.curve:
        n = result.curve[0].n
        print_text(f"\ntest accuracy, {options['draws']} draws, n = {n} test images")
        print_text(_table(result.curve))
        for line in _outlook(result.curve):
            print_line(line)


def _numbers(text: str) -> list[int]:
    """Return the numbers of a comma-separated list.

    Raises:
        SpecError: if it is not one of positive integers.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise SpecError(f"{text!r} is not a list of positive integers, such as 1,5")
    return numbers


def _outlook(curve: Sequence[FewShotScore]) -> list[str]:
    """Return what twice the images would bring, one line per head, by a fitted power law."""
    from featkit.evaluation.learning import fit_power_law

    lines = []
    for head in dict.fromkeys(score.head for score in curve):
        points = sorted((score for score in curve if score.head == head), key=lambda p: p.shot)
        law = fit_power_law(
            [point.shot for point in points],
            [point.mean for point in points],
            [point.interval95 for point in points],
        )
        if law is None:
            return ["give --curve four numbers or more to see what twice the images would bring"]
        low, high = (100 * end for end in law.gain_interval95)
        lines.append(
            f"{head}: {2 * law.last} images per class in place of {law.last} would bring about "
            f"{100 * law.gain:+.1f} points (95% CI {low:.1f} to {high:.1f}; fitted power law)"
        )
    return lines


def _table(scores: Sequence[FewShotScore]) -> str:
    columns = ["head", "shot", "accuracy %", "95% CI"]
    rows = []
    for score in scores:
        low, high = (100 * end for end in score.interval95)
        rows.append([score.head, score.shot, f"{100 * score.mean:.2f}", f"{low:.2f} to {high:.2f}"])
    return table(columns, rows, right=columns[1:])
