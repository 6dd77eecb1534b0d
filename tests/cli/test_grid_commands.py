"""Commands that run a grid: ablate, longtail, robustness."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from featkit.ablation.cells import lock_grid
from featkit.cli import main


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def call(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in (*arguments, "--jobs", 1)])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def grid_file(photos, more="", axes=""):
    text = f'[axes]\ndata = ["{photos}"]\nweights = ["random"]\nhead = ["prototypical"]\n{axes}\n'
    Path("colours.toml").write_text(f'{text}[fixed]\nresize = "32"\n{more}')
    return "colours.toml"


def test_a_dry_run_estimates_and_writes_nothing(photos):
    rule = '[[skip]]\nwhen = {seed = 1}\nwhy = "enough"\n'
    done = call("ablate", grid_file(photos, rule, "seed = [0, 1]"), "--dry-run")
    assert "2 cells, 0 of them finished, 1 heads to fit" in done.stdout
    assert "1 skipped: enough" in done.stdout
    assert "1 cache files to extract with resnet18: 24 images" in done.stdout
    assert not Path("experiments").exists()
    assert not list(Path("cache").glob("*.h5"))


def test_a_second_run_of_a_grid_writes_the_same_results(photos):
    texts = []
    for _ in range(2):
        call("ablate", grid_file(photos, axes="seed = [0, 1]"))
        (folder,) = (each.parent for each in Path("experiments/runs/colours").glob("*/results.csv"))
        texts.append([(folder / name).read_text() for name in ("results.csv", "summary.md")])
    assert texts[0] == texts[1]
    assert "; run time " in texts[0][1]
    assert len(list(Path("experiments/runs/colours/cells").glob("*.json.gz"))) == 2


@pytest.mark.parametrize(
    ("more", "axes", "message"),
    [
        ("", 'haed = ["svm"]', "unknown axis 'haed': did you mean head"),
        ('[[skip]]\nwhen = {head = "prototypical"}\nwhy = "x"\n', "", "has no cells"),
        ("", 'subset = ["longtail:if=1000"]', "the largest possible one is"),
    ],
)
def test_an_invalid_grid_prints_one_line_and_exits_with_1(photos, more, axes, message):
    done = call("ablate", grid_file(photos, more, axes), code=1)
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_grid_that_is_running_is_refused(photos):
    path = grid_file(photos)
    with lock_grid(Path("experiments/runs/colours/cells")):
        assert (
            "is running the grid in experiments/runs/colours" in call("ablate", path, code=1).stderr
        )


def test_longtail_marks_the_best_correction_on_validation(photos):
    small = ("--data", photos, "--weights", "random", "--subset", "longtail:profile=natural")
    done = call("longtail", *small, "--balance", "none", "--balance", "tau_norm")
    assert done.stdout.count("best on val") == 1
    header = next(line for line in done.stdout.splitlines() if "Holm-adjusted p" in line)
    assert "gain, unadjusted 95% CI" in header
    assert "of 1 gains are significant (p below 0.05 after Holm correction)" in done.stdout
    assert "Options tuned on the validation set: tau_norm over 11 values" in done.stdout
    (path,) = Path("experiments/runs/longtail").glob("*/longtail.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert {row["balance"] for row in rows} == {"none", "tau_norm"}
    assert [bool(row["gain"]) for row in rows] == [row["balance"] != "none" for row in rows]
    tried = {row["balance"]: row["values_tried"] for row in rows}
    assert tried == {"none": "1", "tau_norm": "11"}


def test_longtail_takes_factors_or_subsets(photos):
    done = CliRunner().invoke(main, ["longtail", "--if", "10", "--subset", "kshot:k=2"])
    assert done.exit_code == 2


def test_robustness_reports_drops_and_corruption_errors(photos):
    small = ("--data", photos, "--weights", "random", "--head", "prototypical")
    done = call(
        "robustness", *small, "--family", "flip", "--family", "fog", "--level", "strong", "--json"
    )
    found = json.loads(done.stdout)
    assert [(row["family"], row["level"]) for row in found["robustness"]] != []
    (head,) = found["robustness_heads"]
    assert head["baseline"] == "resnet18"
    assert head["perturbations"] == 2
    assert head["mce"] in (None, 1.0)


def test_an_unknown_family_is_named(photos):
    assert "did you mean fog" in call("robustness", "--family", "fogg", code=1).stderr


def test_tables_for_a_publication_are_written_or_printed(photos):
    heads = 'head = ["prototypical", "knn:k=1"]\n'
    file = grid_file(photos)
    Path(file).write_text(Path(file).read_text().replace('head = ["prototypical"]\n', heads))
    done = call("ablate", file, "--latex", "tables/t.tex", "--markdown", "-")
    latex = Path("tables/t.tex").read_text()
    assert "\\begin{tabular}{lr}" in latex
    assert latex.count("\\textbf{") >= 1
    assert done.stdout.startswith("Top-1 accuracy on the test images of photos (n = ")
    assert "| Head | Top-1 accuracy |" in done.stdout
    assert "fit s" not in done.stdout  # the plain table
    assert "written: tables/t.tex" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--latex", "-", "--json"), "--latex - and --json both print"),
        (("--latex", "-", "--markdown", "-"), "both print: give one of them a file"),
        (("--markdown", "t.md", "--dry-run"), "--dry-run has no results: leave out --markdown"),
        (("--latex", "."), "is a directory"),
    ],
)
def test_options_of_tables_that_exclude_each_other_are_refused(photos, options, message):
    done = call("ablate", grid_file(photos), *options, code=2)
    assert message in done.stderr
    assert not Path("experiments").exists()


def test_every_row_says_how_it_compares_with_the_best(photos):
    heads = 'head = ["prototypical", "knn:k=1"]\n'
    file = grid_file(photos, axes="seed = [0, 1]")
    Path(file).write_text(Path(file).read_text().replace('head = ["prototypical"]\n', heads))
    done = call("ablate", file)
    assert "compared" in done.stdout.splitlines()[2]
    assert "tied: not significantly different from the best" in done.stdout
    (results,) = Path("experiments/runs/colours").glob("*/results.csv")
    with results.open(newline="") as opened:
        standings = {row["head"]: row["standing"] for row in csv.DictReader(opened)}
    assert "best" in standings.values()
    (stored,) = Path("experiments/runs/colours").glob("*/results.json")
    cells = json.loads(stored.read_text())["cells"]
    assert {cell["head"]: cell["standing"] for cell in cells} == standings
    summary = results.with_name("summary.md").read_text()
    assert "compared with the best (Holm-adjusted p)" in summary
