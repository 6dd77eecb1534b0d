"""The report of an ablation: one row per cell, correct claims, and nothing selected on test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from featkit.ablation.cells import CellResult
from featkit.ablation.conditions import (
    drops_by_classifier,
    drops_by_perturbation,
    family_and_level,
    long_tail,
)
from featkit.ablation.effects import analyze_grid
from featkit.evaluation import evaluate
from featkit.evaluation.predictions import Predictions
from featkit.reports.ablation import write_report
from featkit.reports.wording import duration_text, effect_sentence

N, CLASSES = 240, ("cat", "dog", "<script>alert(1)</script>")
Y = np.arange(N) % 3


def cell(
    values: dict[str, Any],
    skill: float,
    val: float | None = 0.5,
    train: Sequence[int] | None = None,
) -> CellResult:
    """Make a cell that is right on the images whose difficulty is below the skill."""
    difficulty = np.random.default_rng(0).permutation(N) / N
    noise = np.random.default_rng([ord(letter) for letter in repr(sorted(values.items()))]).normal(
        size=N
    )
    predicted = np.where(difficulty + 0.05 * noise < skill, Y, (Y + 1) % 3)
    scores = np.eye(3)[predicted] * 0.8 + 0.2 / 3
    report = evaluate(scores, Y, CLASSES, columns=np.arange(3), train_counts=train)
    ids = tuple(f"{place}.png" for place in range(N))
    return CellResult(
        values, "ok", "", "", "photos", "w", "r", report, Predictions(ids, Y, predicted), val, 1.5
    )


AXES: dict[str, list[Any]] = {
    "data": ["/home/me/photos"],
    "backbone": ["resnet18", "resnet50"],
    "head": ["knn", "linear"],
    "seed": [0, 1],
}


def cells() -> list[CellResult]:
    """Make cells: resnet50 is better on test, linear has the higher validation score only."""
    return [
        cell(
            {"data": "/home/me/photos", "backbone": backbone, "head": head, "seed": seed},
            0.7 + 0.15 * (backbone == "resnet50"),
            val=0.6 + 0.2 * (head == "linear") + 0.1 * (backbone == "resnet18"),
        )
        for backbone, head, seed in product(AXES["backbone"], AXES["head"], AXES["seed"])
    ]


def report(
    found: Sequence[CellResult], axes: dict[str, list[Any]] = AXES, **options: Any
) -> tuple[str, str]:
    given = {"commands": ["featkit ablate grid.toml"], "versions": {"featkit": "0.1"}, **options}
    files = write_report(analyze_grid("a study", axes, found), **given)
    return str(files["report.html"]), str(files["summary.md"])


def section(html: str, heading: str) -> str:
    """Return the section of the page below a heading."""
    return html.split(f">{heading}</h2>")[1].split("</section>")[0]


def test_every_cell_is_a_row() -> None:
    """Also those without a result."""
    html, _ = report(
        [*cells(), CellResult({**cells()[0].values, "head": "svm"}, "skipped", "out of memory")]
    )
    assert section(html, "All cells").count("<tr>") == 1 + 8 + 1
    assert "out of memory" in section(html, "Skipped and failed cells")


def test_significant_and_other_differences_are_listed_apart() -> None:
    """In the summary; the page lists the significant ones."""
    html, summary = report(cells())
    significant, rest = summary.split("## Significant differences")[1].split(
        "## No significant difference"
    )
    assert re.search(
        r"- ResNet-50 - ResNet-18: \+1\d\.\d points \(unadjusted 95% CI \d\S* to \S+\), unadjusted p \\< 0",
        significant,
    )
    assert "mean over 2 settings of the other axes and 2 seeds, n = 240" in significant
    assert "not significant after Holm correction over 2 pairs (p = " in rest
    assert "ResNet-50 - ResNet-18: +1" in section(html, "Summary")


def test_the_classifier_is_selected_on_validation() -> None:
    """Even if another one is better on test."""
    (chosen,) = analyze_grid("a", AXES, cells()).selections
    assert (chosen.choice, chosen.of, chosen.test.seeds) == (
        "backbone ResNet-18, head linear",
        4,
        2,
    )
    assert sum(effect.difference < 0 and effect.significant for effect in chosen.versus) == 2
    without = [*cells()[1:], cell(dict(cells()[0].values), 0.7, val=None)]
    assert analyze_grid("a", AXES, without).selections == ()
    assert "No classifier was selected" in report(without)[1]


def with_val_top1(found: CellResult, value: float) -> CellResult:
    assert found.report
    return replace(found, report=replace(found.report, provenance={"val_top1": value}))


def test_the_metric_shown_is_the_one_that_the_classifier_was_selected_by() -> None:
    """Top-1 on validation where it was recorded, else balanced accuracy on both."""
    made = [cell({"head": head}, 0.7, val=val) for head, val in (("a", 0.9), ("b", 0.8))]
    (old,) = analyze_grid("a", {"head": ["a", "b"]}, made).selections
    assert (old.choice, old.metric, old.val) == ("head a", "balanced accuracy", 0.9)
    text = report(made, {"head": ["a", "b"]})[1]
    assert "(90.0% balanced accuracy). Test balanced accuracy: " in text
    assert made[0].report
    assert f"Test balanced accuracy: {100 * made[0].report.balanced_accuracy:.1f}%" in text

    recorded = [with_val_top1(made[0], 0.5), with_val_top1(made[1], 0.6)]
    (new,) = analyze_grid("a", {"head": ["a", "b"]}, recorded).selections
    assert (new.choice, new.metric, new.val) == ("head b", "top-1", 0.6)
    assert (
        "(60.0% top-1 accuracy). Test top-1 accuracy: " in report(recorded, {"head": ["a", "b"]})[1]
    )


def test_ties_on_validation_are_not_broken_by_test() -> None:
    """The first by name is selected, even if it is worse on test."""
    for skills in ((0.9, 0.5), (0.5, 0.9)):
        found = [cell({"head": head}, skill) for head, skill in zip("ab", skills, strict=True)]
        assert analyze_grid("a", {"head": ["a", "b"]}, found).selections[0].choice == "head a"


def test_the_order_of_cells_does_not_matter() -> None:
    """The files have the same bytes."""
    found = [*cells(), CellResult({**cells()[0].values, "head": "svm"}, "failed", "broke")]
    assert report(found) == report(found[::-1]) == report(found)


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", '"onload=', "</script>", "]]>", "a|b`*[x](y)\n# z"]
)
def test_texts_of_users_are_escaped(text: str) -> None:
    """Of names, paths, reasons, logs, commands and versions."""
    values = {"data": text, "backbone": text, "head": text, "seed": 0}
    axes: dict[str, list[Any]] = {
        "data": [text],
        "backbone": [text, "b"],
        "head": [text, "c"],
        "seed": [0],
    }
    found = [
        cell(values, 0.9),
        cell({**values, "backbone": "b"}, 0.5),
        CellResult({**values, "head": "c"}, "failed", text, text),
    ]
    html, summary = report(found, axes, commands=[text], versions={text: text})
    assert html.count("<script>") == html.count("</script>") == 1
    assert not re.search(r'[^&;]"onload=', html)
    body = "\n".join(line for line in summary.splitlines() if not line.startswith("    "))
    assert "<script>" not in body.replace("\\<", "")
    assert "# z" not in [line.strip() for line in summary.splitlines()]


def test_a_grid_without_any_result_still_has_a_report() -> None:
    """It gives the reasons."""
    failed = [
        CellResult({"head": head, "seed": 0}, "failed", f"{head} broke", "log.txt")
        for head in ("a", "b")
    ]
    html, summary = report(failed, {"head": ["a", "b"], "seed": [0]})
    assert "a broke" in html
    assert "- failed: b broke" in summary
    assert "No cell has a result." in summary
    alone, _ = report([cell({"head": "a"}, 0.9)], {"head": ["a"]})
    assert section(alone, "All cells").count("<tr>") == 2


def tail_cells() -> list[CellResult]:
    return [
        cell(
            {"subset": "longtail:if=50", "balance": balance, "seed": seed},
            skill,
            train=[500, 60, 10],
        )
        for balance, skill in (("logit_adjust", 0.9), ("none", 0.7))
        for seed in (0, 1, 2)
    ]


TAIL: dict[str, list[Any]] = {
    "subset": ["longtail:if=50"],
    "balance": ["logit_adjust", "none"],
    "seed": [0, 1, 2],
}


def test_a_long_tail_has_gains_over_none_and_groups() -> None:
    """In balanced accuracy, whatever comes first in the grid."""
    findings = analyze_grid("a", TAIL, tail_cells())
    assert findings.metric == "balanced accuracy"
    none, adjusted = long_tail(findings)
    assert (none.balance, none.gain) == ("none", None)
    assert adjusted.gain is not None
    assert adjusted.gain.difference == pytest.approx(adjusted.mean.value - none.mean.value)
    assert adjusted.gain.significant
    assert list(adjusted.groups) == ["many", "medium", "few"]
    assert adjusted.groups["few"].seeds == 3
    html, summary = report(tail_cells(), TAIL)
    assert "balanced accuracy by correction" in html
    assert "## Long tail" in summary


def robust_cells() -> list[CellResult]:
    return [
        cell({"perturb": perturb, "head": head}, skill)
        for perturb, skill in (("none", 0.9), ("fog:level=mild", 0.8), ("jpeg:level=strong", 0.4))
        for head in ("knn", "linear")
    ]


ROBUST: dict[str, list[Any]] = {
    "perturb": ["none", "fog:level=mild", "jpeg:level=strong"],
    "head": ["knn", "linear"],
}


def test_drops_are_relative_to_the_clean_images_of_the_same_classifier() -> None:
    """By classifier over all perturbations, and by perturbation over all classifiers."""
    findings = analyze_grid("a", ROBUST, robust_cells())
    rows = drops_by_classifier(findings)
    assert {row.name for row in rows} == {"head knn", "head linear"}
    for row in rows:
        assert row.drop.difference == pytest.approx(row.clean.value - row.perturbed.value)
        assert row.relative == pytest.approx(1 - row.perturbed.value / row.clean.value)
        assert row.worst is not None
        assert row.worst[0] == "jpeg"
        assert row.drop.cells == 2
    fog, jpeg = drops_by_perturbation(findings)
    assert (fog.name, jpeg.name) == ("fog:level=mild", "jpeg:level=strong")
    assert 0 < fog.drop.difference < jpeg.drop.difference
    html, summary = report(robust_cells(), ROBUST)
    assert "strong" in section(html, "Robustness")
    assert "## Robustness" in summary
    assert family_and_level("jpeg:quality=15") == ("jpeg", "quality 15")


def test_a_relative_drop_has_the_interval_of_a_ratio() -> None:
    """By the delta method: the uncertainty of the clean accuracy counts too."""
    found = [
        one
        for one in robust_cells()
        if one.values["head"] == "knn" and "jpeg" not in str(one.values["perturb"])
    ]
    (row,) = drops_by_classifier(analyze_grid("a", ROBUST, found))
    clean, harmed = (
        np.asarray(one.predictions.predicted == Y, float) for one in found if one.predictions
    )
    relative = 1 - harmed.mean() / clean.mean()
    half = 1.96 * np.std(clean - harmed - relative * clean) / clean.mean() / np.sqrt(N)
    assert row.relative == pytest.approx(relative)
    assert row.relative_interval95 == pytest.approx((relative - half, relative + half), abs=0.01)


def test_perturbations_without_clean_cells_have_no_drops() -> None:
    """The first perturbation is not mistaken for clean images."""
    found = [one for one in robust_cells() if one.values["perturb"] != "none"]
    findings = analyze_grid("a", ROBUST, found)
    assert drops_by_classifier(findings) == drops_by_perturbation(findings) == []


def test_data_sets_are_pooled_but_never_compared() -> None:
    """Their images differ, even if they have the same names."""
    found = [
        cell({"data": data, "head": head}, 0.7) for data in ("p", "q") for head in ("knn", "linear")
    ]
    findings = analyze_grid("a", {"data": ["p", "q"], "head": ["knn", "linear"]}, found)
    assert {effect.axis for effect in findings.effects} == {"head"}
    assert findings.effects[0].n == 2 * N


def test_values_that_are_unclear_alone_are_named_with_their_axis() -> None:
    """Such as True."""
    found = [cell({"tune": tune}, 0.7 + 0.2 * tune) for tune in (False, True)]
    findings = analyze_grid("a", {"tune": [False, True]}, found)
    assert effect_sentence(findings, findings.effects[0]).startswith("tune True - tune False: +")
    found = [
        cell({"weights": weights}, 0.9 - 0.4 * (weights != "imagenet"))
        for weights in ("imagenet", "random:3")
    ]
    findings = analyze_grid("a", {"weights": ["imagenet", "random:3"]}, found)
    assert effect_sentence(findings, findings.effects[0]).startswith(
        "imagenet - random:3 (untrained): +"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "0.012 s"),
        (9.9, "9.9 s"),
        (59.4, "59 s"),
        (59.7, "1 min 0 s"),
        (754, "12 min 34 s"),
        (7260, "2 h 1 min"),
    ],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    """With two digits, or in minutes."""
    assert duration_text(seconds) == text
