"""Runs are found by name, by the start of a name or id, by path, and as ``latest``."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from featkit.errors import RunError
from featkit.runs import registry
from featkit.runs.registry import (
    check_name_is_free,
    find_network,
    find_run,
    free_name,
    list_runs,
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def make(run, name="", created="2026-01-01T00:00:00+00:00", out="experiments/runs"):
    directory = Path(out) / "photos" / run
    directory.mkdir(parents=True)
    (directory / "card.json").write_text(json.dumps({"run": run, "name": name, "created": created}))
    (directory / "head.skops").touch()
    return directory.resolve()


@pytest.fixture
def three():
    return (
        make("aaaa11112222", "flowers-v1", "2026-01-01T00:00:00+00:00"),
        make("aaaa99998888", "flowers-v2", "2026-01-02T00:00:00+00:00"),
        make("bbbb00001111", "", "2026-01-03T00:00:00+00:00"),
    )


def test_a_run_is_found_by_everything_that_refers_to_it(three):
    first, second, third = three
    for reference in ("flowers-v1", "aaaa11112222", "aaaa1", first, str(first)):
        assert find_run(reference) == first
    assert find_run("flowers-v2") == second
    for reference in ("latest", "bbb", "bbbb00001111"):
        assert find_run(reference) == third
    assert find_run("experiments/runs/photos/bbbb00001111").resolve() == third


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("flowers-v3", "did you mean flowers-v"),
        ("Flowers_v1", "did you mean flowers-v1"),
        ("aaaa11112223", "did you mean aaaa11112222"),
        ("bb", "there is no run bb: give latest, which is bbbb00001111"),
        ("lastest", "there is no run lastest"),
        ("aaaa", "start of several runs: give one of flowers-v2, flowers-v1"),
        ("flowers", "start of several runs"),
        ("*", "there is no run *"),
    ],
)
def test_an_unknown_run_is_answered_with_the_nearest(three, reference, said):
    with pytest.raises(RunError, match=re.escape(said)):
        find_run(reference)


def test_without_any_run_the_message_says_how_to_make_one():
    for reference in ("latest", "flowers"):
        with pytest.raises(RunError, match="featkit train PHOTOS"):
            find_run(reference)


def test_a_path_that_is_no_run_is_left_to_the_reader(three):
    Path("flower").mkdir()
    assert find_run("flower") == Path("flower")  # not the start of flowers-v1
    assert find_run("./nowhere") == Path("nowhere")
    Path("flowers-v1").mkdir()  # a folder of images: only the run can be meant
    assert find_run("flowers-v1") == three[0]


def test_the_newest_of_several_runs_with_a_name_is_taken_and_said(three, caplog):
    newer = make("cccc00001111", "flowers-v1", "2026-01-04T00:00:00+00:00")
    with caplog.at_level(logging.INFO):
        assert find_run("flowers-v1") == newer
    assert "2 runs are named flowers-v1: using the newest" in caplog.text


def test_the_latest_of_runs_of_one_second_is_the_one_written_last():
    # Runs of versions before 0.4 have whole seconds.
    make("cccc11112222", "", "2026-01-01T00:00:00+00:00")
    make("bbbb11112222", "", "2026-01-01T00:00:00.017+00:00")
    last = make("aaaa11112222", "", "2026-01-01T00:00:00.120+00:00")
    make("dddd11112222", "", "2026-01-01T00:00:00.003+00:00")
    assert find_run("latest") == last


def test_runs_are_found_from_another_folder_once_theirs_is_remembered(three, tmp_path, monkeypatch):
    folder = Path("experiments/runs")
    for _ in range(3):
        registry.remember_folder(folder)
    assert registry.list_file().read_text().splitlines() == [str(folder.resolve())]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_run("latest") == three[2]
    assert [entry.path for entry in list_runs()] == list(reversed(three))
    (three[2] / "card.json").write_text("{")
    assert find_run("latest") == three[1]


def test_a_list_that_cannot_be_written_is_said_and_no_error(three, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEATKIT_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO):
        registry.remember_folder(Path("experiments/runs"))
        assert find_run("latest") == three[2]
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("name", ["latest", "a/b", "./a", "~a", "flowers-v1"])
def test_names_that_cannot_refer_to_a_run_are_refused(three, name):
    with pytest.raises(RunError, match="choose"):
        check_name_is_free(name)
    check_name_is_free("flowers-v9")


def test_a_run_that_is_made_again_keeps_its_name(three):
    assert free_name("flowers-v1", three[0]) == "flowers-v1"
    assert free_name("flowers-v1", three[1]) == "flowers-v1-2"
    assert free_name("latest", three[0]) == "latest-2"
    assert free_name("new", three[0]) == "new"


def test_a_network_is_found_by_the_name_of_its_run(three):
    assert find_network("flowers-v1") == str(three[0])
    assert find_network("resnet19") == "resnet19"
