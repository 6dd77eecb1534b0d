"""``fit --cost``: the mean cost of an image in runs, folds and comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import featkit
from featkit.cli.compare import compare as compare_command
from featkit.cli.fit import fit as fit_command
from featkit.cli.fit import run_text
from featkit.embeddings.pipeline import Compute
from featkit.errors import DataError
from featkit.evaluation.report import Report
from featkit.reports.run import run_report
from featkit.runs.compare import compare_runs
from featkit.runs.costs import read_costs
from featkit.runs.directory import load_run
from featkit.runs.results import read_run
from featkit.studies.inspect import inspect_run

OPTIONS = {
    "backbone": "resnet18",
    "weights": "random",
    "resize": "32",
    "layer": "layer1",
    "limit": "train=150,val=30,test=60",
}
DIGITS = [str(digit) for digit in range(10)]


def write_matrix(path: Path, classes: list[str] = DIGITS, *, high: float = 5) -> Path:
    """Write costs of 1, and ``high`` where the last class is mistaken for another."""
    lines = [",".join(["true", *classes])]
    for true in classes:
        cost = high if true == classes[-1] else 1
        lines.append(",".join([true, *("0" if true == other else f"{cost}" for other in classes)]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def fit(cache: Path, **options: Any) -> Any:
    return featkit.fit("digits", cache=cache, **{**OPTIONS, "head": "prototypical", **options})


def test_the_mean_cost_of_the_test_images_is_reported(cache: Path, tmp_path: Path) -> None:
    """All other results stay as they are; the order of rows and columns of the file is free."""
    costs = write_matrix(tmp_path / "costs.csv", DIGITS[::-1])
    plain, run = fit(cache), fit(cache, cost=costs, out=tmp_path)
    found, predictions = run.report.decision_cost, run.predictions
    wrong = predictions.predicted != predictions.y
    expected = np.where(wrong, np.where(predictions.y == 0, 5, 1), 0)
    assert found.mean == pytest.approx(expected.mean())
    assert found.n == 60
    assert found.least_mean is not None
    values = run.report.to_dict()
    del values["decision_cost"]
    assert values == plain.report.to_dict()
    assert run.id != plain.id
    assert fit(cache).id == plain.id

    path = next(tmp_path.rglob("results.json"))
    results = json.loads(path.read_text(encoding="utf-8"))
    assert Report.from_dict(results).decision_cost == found
    assert f"mean cost {found.mean:.3g} (" in run_text(run)
    page = run_report(
        inspect_run(load_run(path.parent), cache=cache, compute=Compute(), heat_maps=False)
    )
    assert f"Mean cost {found.mean:.3g} (" in page
    assert f"--cost {costs}" in page


def test_prediction_answers_with_the_most_probable_class(cache: Path, tmp_path: Path) -> None:
    """A matrix that makes one class always the cheapest changes no prediction."""
    lines = [",".join(["", *DIGITS])]
    lines += [
        ",".join([digit, *("0" if other == "3" else "9" for other in DIGITS)]) for digit in DIGITS
    ]
    (tmp_path / "costs.csv").write_text("\n".join(lines), encoding="utf-8")
    run = fit(cache, cost=tmp_path / "costs.csv")
    assert np.array_equal(run.predictions.predicted, fit(cache).predictions.predicted)
    assert run.report.decision_cost.least_mean == 0
    assert run.report.decision_cost.changed == np.sum(run.predictions.predicted != 3)


def test_folds_report_the_cost_of_out_of_fold_predictions(cache: Path, tmp_path: Path) -> None:
    """Of the first repeat, as all other numbers of the report."""
    run = fit(cache, cost=write_matrix(tmp_path / "costs.csv"), folds=3)
    y, predicted = run.predictions.y, run.predictions.predicted
    expected = np.where(predicted == y, 0, np.where(y == 9, 5, 1))
    assert run.report.decision_cost.n == len(y) == 240
    assert run.report.decision_cost.mean == pytest.approx(expected.mean())


def test_runs_with_the_same_costs_are_compared_by_them(cache: Path, tmp_path: Path) -> None:
    """Image by image; runs with others by their accuracy only, which a note says."""
    costs = write_matrix(tmp_path / "costs.csv")
    for head in ("prototypical", "knn:k=1"):
        fit(cache, cost=costs, head=head, out=tmp_path / "runs")
    paths = [path.parent for path in (tmp_path / "runs").rglob("results.json")]
    found = compare_runs(paths)
    (pair,) = found.costs
    means = {name: report.decision_cost.mean for name, report in found.runs}
    assert pair.difference == pytest.approx(means[pair.a] - means[pair.b])
    assert found.to_dict()["costs"][0]["n"] == 60
    assert found.to_dict()["runs"][0]["mean_cost"] == found.runs[0][1].decision_cost.mean
    result = CliRunner().invoke(compare_command, list(map(str, paths)))
    assert result.exit_code == 0
    assert "mean cost (95% CI)" in result.output
    assert pair.sentence in result.output

    other = write_matrix(tmp_path / "other.csv", high=7)
    fit(cache, cost=other, head="knn:k=3", out=tmp_path / "other")
    (more,) = [path.parent for path in (tmp_path / "other").rglob("results.json")]
    mixed = compare_runs([*paths, more])
    assert not mixed.costs
    assert "Mean costs are not compared" in mixed.note
    assert read_run(more)[1].decision_cost.matrix.file == str(other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "line 1 of .* names 0 classes", id="empty"),
        pytest.param("true,a\na,0\n", "line 1 of .* names 1 classes", id="one class"),
        pytest.param(
            ",a,b\na,0,1\n", "has 2 columns and 1 rows: add a row for b", id="row missing"
        ),
        pytest.param(",a,b\na,0,1\nc,1,0\n", "line 3 of .*: 'c' is not a class of the", id="row"),
        pytest.param(",a,b\na,0,1\na,1,0\n", "line 3 of .*: 'a' has a row already", id="twice"),
        pytest.param(",a,a\na,0,1\n", "line 1 of .* names 'a' twice", id="column twice"),
        pytest.param(",a,\na,0,1\n", "line 1 of .* has a column without a name", id="unnamed"),
        pytest.param(",a,b\na,0,-1\nb,1,0\n", "line 2 of .*cost '-1' in column 'b'", id="negative"),
        pytest.param(",a,b\na,0,1\nb,nan,0\n", "line 3 of .*cost 'nan' in column 'a'", id="nan"),
        pytest.param(",a,b\na,0,1\nb,,0\n", "line 3 of .*cost '' in column 'a'", id="no number"),
        pytest.param(",a,b\na,0,inf\nb,1,0\n", "line 2 of .*cost 'inf'", id="infinite"),
        pytest.param(",a,b\na,0,1\nb,1\n", "line 3 of .* not as many values", id="short"),
        pytest.param(",a,b\na,1,1\nb,1,1\n", "all costs in .* are equal", id="equal"),
    ],
)
def test_a_wrong_matrix_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "costs.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as raised:
        read_costs(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_classes_must_be_those_of_the_data(cache: Path, tmp_path: Path) -> None:
    """A name that the data lack is named with its line, a missing one too."""
    costs = write_matrix(tmp_path / "costs.csv", [*DIGITS, "ten"])
    with pytest.raises(
        DataError, match=r"line 12 of .*costs.csv: 'ten' is not a class of the data"
    ):
        fit(cache, cost=costs)
    costs = write_matrix(tmp_path / "costs.csv", DIGITS[:8])
    with pytest.raises(DataError, match=r"no row and column for 2 of the 10 classes .*\(8, 9\)"):
        fit(cache, cost=costs)


def test_the_file_is_read_before_features_are_extracted(tmp_path: Path) -> None:
    """A missing file costs no time, and nothing is written."""
    given = ["--data", "digits", "--cost", str(tmp_path / "no.csv"), "--cache", str(tmp_path / "c")]
    result = CliRunner().invoke(fit_command, given)
    assert result.exit_code
    assert isinstance(result.exception, DataError)
    assert "no.csv cannot be read" in str(result.exception)
    assert not (tmp_path / "c").exists()
