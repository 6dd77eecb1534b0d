"""Commands that reports print: the command line reads the same request and options from them."""

from __future__ import annotations

import inspect
import shlex
from dataclasses import fields, replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

import featkit
from featkit.api.options import correction_spec, make_request
from featkit.cli import main
from featkit.cli.fit import fit
from featkit.embeddings.request import REQUEST_FIELDS, Request
from featkit.evaluation import evaluate
from featkit.evaluation.costs import CostMatrix, DecisionCost
from featkit.evaluation.folds import FoldScores
from featkit.evaluation.report import Rejection
from featkit.evaluation.unknown import UnknownImages
from featkit.reports.run_parts import run_commands
from featkit.runs.commands import fit_command, option_words
from featkit.runs.directory import SavedRun
from featkit.runs.results import read_run

OTHER = Request(
    data="/photos/with space; and 'quotes'",
    split="60/20/20",
    limit="train=50,test=10",
    seed=7,
    intensity_range="-1:4095",
    backbone="resnet50",
    weights="random:3",
    layer="layer3",
    pool="max",
    resize="64x48",
    crop="none",
    precision="bf16",
    augment="trivial",
    views=2,
    perturb="fog:level=mild",
    store="float16,gzip",
    group="(scan[0-9]+)/$",
    allow_group_leak=True,
    decode="scaled",
)
"""A request without any default value, but for the part, which no user gives."""

FITTED = {"head": "svm:C=9,kernel=rbf", "balance": "logit_adjust:tau=0.3", "subset": "kshot:k=5"}
NO_EFFECT = {
    *("cache", "out", "device", "batch_size", "workers", "engine", "compile", "on_error"),
    *("strict", "report", "bundle", "as_json", "seeds"),
}
"""Options of fit that change no number of a run; of several seeds, each run has its own seed."""


def report(**changes):
    made = evaluate(np.eye(3)[[0, 1, 2, 0]], [0, 1, 2, 2], ["a", "b", "c"])
    return replace(made, **changes)


def saved(request=OTHER, head="svm:C=9,kernel=rbf", name="one; two"):
    return SavedRun(Path("/runs/a b"), request, ("a", "b"), None, head, None, name=name)


def parsed(words):
    """Return the options that ``featkit fit`` reads from a command, and those that were given."""
    assert words[:2] == ["featkit", "fit"]
    context = fit.make_context("fit", words[2:])
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    return context.params, given


def test_every_field_of_a_request_has_another_value_in_this_test():
    for each in fields(Request):
        if each.name != "part":
            assert getattr(OTHER, each.name) != each.default, each.name


def test_a_command_of_all_options_is_read_as_the_same_request_and_options():
    costs = CostMatrix(((0.0, 1.0), (1.0, 0.0)), file="/costs and more.csv")
    found = report(
        provenance={"balance": FITTED["balance"], "subset": FITTED["subset"], "tuned": True},
        rejection=Rejection(0.123456789012, 0.5, 3, 0.75, None, None),
        unknown=UnknownImages("/other images", 3, 4, 0.5, (0.4, 0.6)),
        decision_cost=DecisionCost(4, 0.5, (0.4, 0.6), costs),
        folds=FoldScores(5, 3, (), (), (), 0.5, (0.4, 0.6), ""),
    )
    (text,) = [text for name, text in run_commands(saved(), found) if name == "Repeat the run"]
    options, given = parsed(shlex.split(text))
    assert make_request(options) == OTHER
    assert {name: options[name] for name in ("balance", "subset")} == {
        name: FITTED[name] for name in ("balance", "subset")
    }
    assert options["head"] == (FITTED["head"],)
    assert options["tune"] is True
    assert options["reject"] == 0.123456789012
    assert (options["folds"], options["repeats"]) == (5, 3)
    assert options["unknown"] == Path("/other images")
    assert options["cost"] == Path("/costs and more.csv")
    assert options["name"] == "one; two"
    # A new option must be written by the command, or have no effect on the numbers.
    assert given == {each.name for each in fit.params} - NO_EFFECT


@pytest.mark.parametrize("name", [name for name in REQUEST_FIELDS if name != "data"])
def test_one_field_of_a_request_is_read_as_it_was(name):
    request = replace(Request(data="/photos"), **{name: getattr(OTHER, name)})
    words = fit_command(saved(request, name=""), report(provenance={}))
    options, given = parsed(words)
    assert make_request(options) == request
    assert given == {"data", "backbone", "head", name}


def test_fields_of_a_request_and_options_of_fit_are_the_same():
    assert set(REQUEST_FIELDS) <= {each.name for each in fit.params}
    assert set(REQUEST_FIELDS) <= set(inspect.signature(featkit.fit).parameters)


def test_a_correction_is_recorded_as_the_command_line_reads_it():
    assert correction_spec(FITTED["balance"]) == FITTED["balance"]


def test_options_that_are_off_are_left_out():
    assert option_words([("a_b", True), ("c", False), ("d", None), ("e_f", 0.1), ("g", 0)]) == [
        *("--a-b", "--e-f", "0.1", "--g", "0")
    ]
    words = fit_command(
        saved(Request(allow_group_leak=False), "linear", ""), report(provenance={"tuned": False})
    )
    assert shlex.join(words) == "featkit fit --data digits --backbone resnet18 --head linear"


def test_runs_that_no_command_repeats_have_none():
    assert fit_command(saved(Request(data="")), report(provenance={})) is None
    trained = report(provenance={"begun_with": {"backbone": "resnet18"}})
    assert fit_command(saved(), trained) is None
    assert len(run_commands(saved(), trained)) == 2


def test_the_command_of_a_run_gives_the_same_run(photos, tmp_path):
    """Also from features in half precision, which the command asks for."""
    common = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "runs")]
    words = ["--data", str(photos), "--weights", "random", "--resize", "32", "--seed", "3"]
    words += ["--split", "50/20/30", "--store", "float16", "--head", "linear", "--reject", "0.1"]
    words += ["--balance", "logit-adjust:tau=0.5", "--group", "none", "--allow-group-leak"]
    CliRunner().invoke(main, ["fit", *words, *common], catch_exceptions=False)
    (directory,) = (tmp_path / "runs" / "photos").iterdir()
    run = featkit.load_run(directory)
    repeat = fit_command(run, read_run(directory)[1])
    assert repeat is not None
    done = CliRunner().invoke(main, [*repeat[1:], "--cache", common[1], "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "photos" / directory.name).is_dir()
