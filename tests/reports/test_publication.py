"""Tables for LaTeX and Markdown: numbers, marks, and names that are shown literally."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from featkit.ablation.cells import CellResult
from featkit.ablation.grid import Grid
from featkit.ablation.run import AblationResult
from featkit.errors import DataError
from featkit.evaluation import Predictions, compare, evaluate
from featkit.reports.publication import (
    Block,
    Entry,
    PublicationTable,
    escape_latex,
    publication_table,
)
from featkit.runs.compare import RunComparison

N = 300
Y = np.arange(N) % 3
DATA = "/home/me/photos_&_more"
WRONG = {"svm": 12, "linear": 15, "knn:k=1": 90}
"""Number of wrong predictions of each head: the first two do not differ significantly."""


def predict(wrong):
    """Return report and predictions that are wrong on the first images."""
    predicted = np.where(np.arange(N) < wrong, (Y + 1) % 3, Y)
    scores = np.eye(3)[predicted] * 0.8 + 0.2 / 3
    report = evaluate(scores, Y, tuple("abc"), train_counts=[200, 50, 4])
    return report, Predictions(tuple(map(str, range(N))), Y, predicted)


def result(name, axes, wrong):
    """Return a grid of which each cell is wrong on as many images as ``wrong`` says."""
    grid = Grid(name, {"data": (DATA,), "head": tuple(WRONG), **axes})
    cells = []
    for values in grid.cells():
        report, predictions = predict(wrong(values))
        cell = CellResult(
            values, "ok", data="photos_&_more", report=report, predictions=predictions
        )
        cells.append(replace(cell, val_score=0.5))
    return AblationResult(grid, tuple(cells))


def rows(latex):
    """Return the cells of each row of a LaTeX table, without those of headings."""
    lines = re.search(r"\\midrule(.*)\\bottomrule", latex, re.DOTALL)[1].splitlines()
    found = [line.strip() for line in lines if "&" in line.replace("\\&", "")]
    assert all(line.endswith(" \\\\") for line in found)
    return [[cell.strip() for cell in line[:-3].split(" & ")] for line in found]


def test_the_best_is_bold_and_ties_with_it_are_marked():
    table = publication_table(result("ablate", {}, lambda values: WRONG[values["head"]]))
    latex = table.to_latex()
    assert rows(latex) == [
        ["svm", "\\textbf{96.0} [93.1, 97.7]"],
        ["linear", "95.0$^{\\dagger}$ [91.9, 96.9]"],
        ["knn:k=1", "70.0 [64.6, 74.9]"],
    ]
    caption = re.search(r"\\caption\{(.*)\}", latex)[1]
    assert caption == (
        "Top-1 accuracy on the test images of photos\\_\\&\\_more (n = 300), in \\% with 95\\% CI. "
        "Bold: best top-1 accuracy. $^{\\dagger}$Not significantly different from the best (p $\\geq$ 0.05, paired "
        "tests, Holm correction over all pairs)."
    )
    assert "\\begin{tabular}{lr}" in latex
    for rule in ("toprule", "midrule", "bottomrule"):
        assert latex.count(f"\\{rule}") == 1
    markdown = table.to_markdown()
    assert "| svm | **96.0** [93.1, 97.7] |" in markdown
    assert "| linear | 95.0† [91.9, 96.9] |" in markdown
    assert "† Not significantly different from the best" in markdown


def test_each_training_set_is_a_block_with_its_own_best():
    found = result(
        "ablate",
        {"subset": ("all", "kshot:k=5"), "seed": (0, 1)},
        lambda values: abs(WRONG[values["head"]] - 90 * (values["subset"] != "all")),
    )
    table = publication_table(found)
    assert [block.heading for block in table.blocks] == [
        "training set all, n = 300, mean over 2 seeds",
        "training set kshot:k=5, n = 300, mean over 2 seeds",
    ]
    assert [block.rows[0][0] for block in table.blocks] == [["svm"], ["knn:k=1"]]
    assert [block.rows[0][1][0].is_best for block in table.blocks] == [True, True]
    assert "\\multicolumn{2}{l}{\\emph{Training set all, n = 300" in table.to_latex()
    assert "Bold: best balanced accuracy of each block." in table.to_markdown()


def test_a_long_tail_table_has_gains_and_groups_of_classes():
    def wrong(values):
        return WRONG[values["head"]] + 60 * (values["balance"] == "none")

    table = publication_table(result("longtail", {"balance": ("none", "smote")}, wrong))
    assert (table.names, table.numbers[:2]) == (
        ["head", "correction"],
        ["balanced accuracy", "gain"],
    )
    assert table.numbers[2:] == ["many", "medium", "few"]
    first = rows(table.to_latex())[0]
    assert first[:2] == ["svm", "smote"]
    assert first[3].startswith("+20.0$^{*}$ [")
    assert "Significant after Holm correction over all gains (p < 0.05)." in table.notes[-1][1]
    assert next(row for row in rows(table.to_latex()) if row[1] == "none")[3] == ""


def test_a_robustness_table_has_clean_and_perturbed_accuracy_drop_and_error():
    perturb = ("none", "fog:level=mild", "jpeg:level=mild")

    def wrong(values):
        return WRONG[values["head"]] + 30 * (values["perturb"] != "none")

    found = result("robustness", {"perturb": perturb}, wrong)
    table = publication_table(found)
    assert table.numbers == ["clean", "perturbed", "drop", "mCE"]
    best, tied, worse = (numbers for _, numbers in table.blocks[0].rows)
    assert [each.is_best for each in best] == [True, True, False, False]
    assert [each.mark for each in tied] == ["tied", "tied", "", ""]
    assert not any(each.mark or each.is_best for each in worse)
    assert best[2].value == "10.0"
    assert "mean over 2 perturbations" in table.notes[0][1]


def test_a_table_of_runs_agrees_with_their_paired_tests():
    runs = {name: predict(wrong) for name, wrong in WRONG.items()}
    pairs = compare({name: predictions for name, (_, predictions) in runs.items()})
    found = RunComparison(tuple((name, report) for name, (report, _) in runs.items()), pairs)
    table = publication_table(found)
    marks = {names[0]: numbers[0] for names, numbers in table.blocks[0].rows}
    assert marks["svm"].is_best
    for pair in pairs:
        if pair.a == "svm":
            assert (marks[pair.b].mark == "tied") == (not pair.significant)
    assert table.caption.startswith("Accuracy on the same n = 300 test images")


HOSTILE = 'a_b & 50% $x$ #1 {y} ~ ^ \\input{z} <i> | "q" [0] *c* `d` -- e'


def test_names_are_shown_literally_in_latex():
    escaped = escape_latex(HOSTILE)
    assert escaped == (
        "a\\_b \\& 50\\% \\$x\\$ \\#1 \\{y\\} \\textasciitilde{} \\textasciicircum{} "
        "\\textbackslash{}input\\{z\\} \\textless{}i\\textgreater{} \\textbar{} \\char34{}q\\char34{} "
        "{[}0{]} {*}c{*} \\textasciigrave{}d\\textasciigrave{} -{}- e"
    )


def test_names_are_shown_literally_in_every_part_of_a_table():
    block = Block(HOSTILE, [([HOSTILE], [Entry("1.0", "[-0.5, 1.5]", True)])])
    table = PublicationTable("t", HOSTILE, [("", HOSTILE)], [HOSTILE], ["n"], [block])
    latex = table.to_latex()
    escaped = escape_latex(HOSTILE)
    capitalised = escaped[0].upper() + escaped[1:]
    assert latex.count(escaped) + latex.count(capitalised) == 5
    assert "\\textbf{1.0} [$-$0.5, 1.5]" in latex
    assert len(rows(latex)) == 1
    markdown = table.to_markdown()
    for line in markdown.splitlines():
        if line.startswith("|"):  # a bar in a name is no border of a cell
            assert len(re.findall(r"(?<!\\)\|", line)) == 3
    assert not re.search(r"(?<!\\)[<`$#]", markdown)


def test_braces_are_balanced_in_every_table():
    for axes, name in product(({}, {"seed": (0, 1, 2)}), ("ablate", "longtail", "robustness")):
        table = publication_table(result(name, axes, lambda values: WRONG[values["head"]]))
        latex = re.sub(r"\\[{}]", "", table.to_latex())
        assert latex.count("{") == latex.count("}")


def test_a_grid_without_results_has_no_table():
    grid = Grid("ablate", {"data": ("x",), "head": ("svm",)})
    failed = tuple(CellResult(values, "failed", "broken") for values in grid.cells())
    with pytest.raises(DataError, match="has no results for a table"):
        publication_table(AblationResult(grid, failed))
