"""The choice of a classifier within a time budget."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featkit.embeddings.request import Request
from featkit.errors import DataError
from featkit.evaluation.costs import CostMatrix
from featkit.heads.search import Candidate
from featkit.runs.features import Copies, FeatureSet
from featkit.studies.train import (
    Clock,
    ExtractionTimer,
    best_so_far,
    data_problems,
    evaluate_selection,
    next_step,
    select,
    tune,
)

FAST_HEADS = ("prototypical", "knn", "linear")


@pytest.fixture
def features(vectors):
    """Return features of 240 images, of which a third are test images."""
    return FeatureSet(Request(data="x"), vectors(240, apart=1.5), Path("x.h5"), "x", "w")


def stopped_clock(seconds):
    """Return a clock that stands still: only ``seconds`` decides."""
    return Clock(seconds, now=lambda: 0.0)


def test_the_best_on_validation_is_chosen_and_the_test_labels_do_not_matter(features):
    selection = select(features, stopped_clock(100), heads=FAST_HEADS)
    assert [attempt.name for attempt in selection.attempts] == [
        f"{head} on resnet18" for head in FAST_HEADS
    ]
    best = max(attempt.fitted.val_top1 for attempt in selection.attempts)
    assert selection.best.fitted.val_top1 == best
    y = features.embeddings.y.copy()
    test = features.embeddings.splits == "test"
    y[test] = np.roll(y[test], 1)
    other = replace(features, embeddings=replace(features.embeddings, y=y))
    assert select(other, stopped_clock(100), heads=FAST_HEADS).best.name == selection.best.name


def test_without_time_the_fastest_head_is_fitted_and_the_others_are_named(features):
    said = []
    selection = select(features, stopped_clock(0), heads=FAST_HEADS, say=said.append)
    assert [attempt.name for attempt in selection.attempts] == ["prototypical on resnet18"]
    assert set(selection.skipped) == {"knn on resnet18", "linear on resnet18"}
    assert "the time is up" in said[-1]


def test_a_head_that_needs_more_time_than_is_left_is_skipped_with_what_it_needs(vectors):
    source = FeatureSet(Request(data="x"), vectors(3000), Path("x.h5"), "x", "w")
    selection = select(source, stopped_clock(1e-4), heads=("prototypical", "mlp"))
    assert "needs about" in selection.skipped["mlp on resnet18"]
    assert "are left" in selection.skipped["mlp on resnet18"]


@pytest.mark.parametrize(("top1", "spec"), [(0.01, "linear"), (1.01, "linear:C=1e-06")])
def test_a_stopped_search_gives_the_defaults_unless_a_candidate_was_better(features, top1, spec):
    tried = [Candidate({"C": 1e-6}, top1=top1, balanced_accuracy=top1, nll=1.0)]
    assert best_so_far(features, "linear", tried).head_spec == spec


def test_a_search_that_runs_out_of_time_uses_its_best_candidate(features):
    ticks = itertools.count()
    clock = Clock(12, now=lambda: float(next(ticks)))
    attempt = tune(features, "knn", clock)
    whole = tune(features, "knn", stopped_clock(100))
    assert attempt.stopped
    assert not whole.stopped
    assert 0 < attempt.candidates < whole.candidates
    assert attempt.fitted.val_top1 is not None
    assert attempt.to_dict()["head"].startswith("knn")


def test_ctrl_c_keeps_the_best_so_far(features):
    def interrupt(name):
        if name.startswith("knn"):
            raise KeyboardInterrupt

    selection = select(features, stopped_clock(100), heads=FAST_HEADS, on_candidate=interrupt)
    assert selection.interrupted
    assert [attempt.name for attempt in selection.attempts] == ["prototypical on resnet18"]
    with pytest.raises(KeyboardInterrupt):
        select(features, stopped_clock(100), heads=("knn",), on_candidate=interrupt)


def test_the_second_network_is_tried_with_the_best_heads_first(features):
    wider = replace(features, request=replace(features.request, backbone="resnet50"))
    selection = select(
        features, stopped_clock(100), heads=FAST_HEADS, second=lambda selection: wider
    )
    names = [attempt.name for attempt in selection.attempts]
    assert sorted(names[3:]) == sorted(f"{head} on resnet50" for head in FAST_HEADS)
    refused = select(
        features, stopped_clock(100), heads=("knn",), second=lambda selection: "no weights"
    )
    assert refused.skipped == {"second network": "no weights"}


def test_the_chosen_one_is_compared_with_the_others_by_paired_tests(features):
    trained = evaluate_selection(select(features, stopped_clock(100), heads=FAST_HEADS), ())
    assert len(trained.pairs) == 2
    assert all(pair.a == trained.selection.best.name for pair in trained.pairs)
    assert all(pair.comparisons == 2 for pair in trained.pairs)
    assert trained.run.report.n == 80
    assert set(trained.to_dict()["others"]) == {pair.b for pair in trained.pairs}


def test_costs_are_reported_of_the_chosen_one_and_choose_nothing(features):
    selection = select(features, stopped_clock(100), heads=FAST_HEADS)
    k = len(features.embeddings.classes)
    matrix = CostMatrix(tuple(tuple(3.0 * (a != b) for a in range(k)) for b in range(k)), "c.csv")
    trained, plain = (evaluate_selection(selection, (), costs) for costs in (matrix, None))
    found = trained.run.report
    assert found.decision_cost.mean == pytest.approx(3 * (1 - found.top1))
    assert replace(found, decision_cost=None).to_dict() == plain.run.report.to_dict()
    assert trained.pairs == plain.pairs


def test_classes_of_two_images_are_used_and_said(vectors):
    embeddings = vectors(8, splits=np.array(["train"] * 4 + ["test"] * 4))
    source = FeatureSet(Request(data="x"), embeddings, Path("x.h5"), "x", "w")
    problems = data_problems(source)
    assert "4 of 4 classes have fewer than 5 images" in problems[0]
    assert "only 4 test images" in problems[1]
    selection = select(source, stopped_clock(100), heads=("prototypical",))
    assert selection.best.fitted.val_top1 is None or selection.best.score >= 0
    assert evaluate_selection(selection, problems).run.report.n == 4


def test_too_few_images_are_an_error(vectors):
    embeddings = vectors(8, splits=np.array(["train"] * 8))
    source = FeatureSet(Request(data="x"), embeddings, Path("x.h5"), "x", "w")
    with pytest.raises(DataError, match="too few images"):
        select(source, stopped_clock(100), heads=("prototypical",))


def test_the_next_step_names_copies_first_then_the_weakest_class(features):
    trained = evaluate_selection(select(features, stopped_clock(9), heads=("knn",)), ())
    assert next_step(trained).startswith("add photos of ")
    copies = Copies(("1",), (), (), (), n=80)
    copied = replace(trained.run, source=replace(trained.run.source, copies=copies))
    assert "1 of 80 test images are copies" in next_step(replace(trained, run=copied))


def test_the_search_gets_a_share_of_a_budget_that_the_extraction_used_up():
    clock = Clock(240, reserve=20, now=iter([0.0, 250.0, 250.0, 250.0, 250.0]).__next__)
    assert clock.left == pytest.approx(-30)
    clock.allow_search()
    assert clock.left == pytest.approx(36)
    plenty = Clock(240, reserve=20, now=lambda: 0.0)
    plenty.allow_search()
    assert plenty.left == 220


def test_an_extraction_that_takes_longer_than_the_budget_is_said_once():
    said = []
    times = iter([0.0, 1.0, 11.0, 11.0, 21.0, 21.0])
    timer = ExtractionTimer(Clock(60, now=lambda: next(times)), said.append)
    timer(10, 1000)
    timer(20, 1000)
    assert timer.seconds_per_image == pytest.approx(1.0)
    timer(30, 1000)
    assert len(said) == 1
    assert "more than the 1 given; continuing" in said[0]
