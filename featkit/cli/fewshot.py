"""`featkit fewshot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featkit.cli.options import command, given_request, make_compute, option, study_options
from featkit.cli.output import note, table
from featkit.errors import SpecError

if TYPE_CHECKING:
    from featkit.studies.fewshot import FewShotScore

EPILOG = """\b
Examples:
  featkit fewshot --way 5 --shot 1,5 --query 15 --episodes 1000
  featkit fewshot --head prototypical --head knn:k=1 --head linear --episodes 200
  featkit fewshot --data photos --backbone resnet50 --curve 1,2,4,8,16 --draws 10
"""


@command(epilog=EPILOG)
@option("--way", group="Episodes", type=click.IntRange(min=2), default=5, help="Classes per episode.")
@option(
    "--shot",
    group="Episodes",
    default="1,5",
    metavar="K,K...",
    help="Support images per class.",
)
@option(
    "--query",
    group="Episodes",
    type=click.IntRange(min=1),
    default=15,
    help="Query images per class.",
)
@option(
    "--episodes",
    group="Episodes",
    type=click.IntRange(min=2),
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
    help="Also fit on K train images per class and evaluate on the test set.",
    show_default="off",
)
@option(
    "--draws",
    group="Episodes",
    type=click.IntRange(min=2),
    default=5,
    help="Random draws per point of the curve.",
)
@study_options
def fewshot(cache: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Evaluate heads on few-shot episodes.

    Each episode draws new classes from all images; the accuracy is the mean over episodes with its
    95% confidence interval. Writes results.json, and curve.png with --curve.
    """
    from tqdm import tqdm

    from featkit.runs.features import load_features
    from featkit.storage import digest, publish
    from featkit.studies.fewshot import EpisodeConfig, episode_scores, learning_curve, to_json

    heads, shots = options["head"] or ("prototypical", "knn:k=1"), _numbers(options["shot"])
    points = _numbers(options["curve"]) if options["curve"] else []
    source = load_features(given_request(options), cache, make_compute(options))
    for line in source.notes:
        note(line)
    setting = EpisodeConfig(options["way"], options["query"], options["episodes"], source.request.seed)
    embeddings = source.embeddings
    with tqdm(total=setting.episodes, unit="episode", disable=not make_compute(options).progress) as bar:
        scores = list(episode_scores(embeddings, heads, shots, setting, lambda done: bar.update(done - bar.n)))
    total, hidden = len(points) * len(heads), not make_compute(options).progress
    curve = list(
        tqdm(learning_curve(embeddings, heads, points, options["draws"], setting.seed), total=total, disable=hidden)
        if points
        else []
    )
    text = to_json(setting, embeddings.recipe.fingerprint, scores, curve)
    directory = out / source.data / f"fewshot-{digest([text])[:12]}"
    publish(directory, {"results.json": text, **({"curve.png": _figure(curve, source.data)} if curve else {})})
    click.echo(text if as_json else _tables(scores, curve, setting.way))
    note(f"results: {directory}")


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise SpecError(f"{text!r} is not a list of whole numbers from 1, such as 1,5")
    return numbers


def _tables(scores: list[FewShotScore], curve: list[FewShotScore], way: int) -> str:
    parts = [f"{scores[0].draws} episodes of {way} classes", _table(scores)]
    return "\n".join([*parts, "", f"top-1 on test, {curve[0].draws} draws", _table(curve)] if curve else parts)


def _table(scores: list[FewShotScore]) -> str:
    columns = ["head", "shot", "accuracy %", "95 % interval"]
    rows = [
        [s.head, s.shot, f"{100 * s.mean:.2f}", f"{100 * s.interval95[0]:.2f} to {100 * s.interval95[1]:.2f}"]
        for s in scores
    ]
    return table(columns, rows, right=tuple(columns[1:]))


def _figure(curve: list[FewShotScore], data: str) -> bytes:
    import numpy as np

    from featkit.plots.curve import Line, plot_curve
    from featkit.plots.files import png_bytes

    lines = []
    for head in dict.fromkeys(score.head for score in curve):
        own = [score for score in curve if score.head == head]
        x, y = (np.array([getattr(score, name) for score in own], dtype=np.float64) for name in ("shot", "mean"))
        lines.append(Line(head, x, y, np.array([score.interval95 for score in own])))
    title = f"{data}: top-1 on test, mean of {curve[0].draws} draws, with 95 % intervals"
    return png_bytes(plot_curve(lines, title=title, x_label="train images of each class", y_label="top-1"))
