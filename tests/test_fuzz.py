"""Mutated command lines and grids end in an error message; the whole program is a benchmark."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "experiments" / "benchmarks" / "fuzz.py"
FAST_CASES, SLOW_CASES, SEED = range(12), range(12, 120), 0


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module  # dataclasses look up the module of a class
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fuzz"]


@pytest.mark.slow
def test_mutated_commands_end_in_one_line(fuzz, tmp_path):
    assert fuzz.run_cases(FAST_CASES, SEED, tmp_path) == {}


@pytest.mark.slow
def test_more_mutated_commands_end_in_one_line(fuzz, tmp_path):
    assert fuzz.run_cases(SLOW_CASES, SEED, tmp_path) == {}


def test_a_case_depends_on_its_number_and_seed_only(fuzz):
    for number in range(50):
        assert fuzz.make_case(number, 1) == fuzz.make_case(number, 1)
    assert [fuzz.make_case(n, 1) for n in range(50)] != [fuzz.make_case(n, 2) for n in range(50)]


@pytest.mark.parametrize("raised", [ValueError("x"), SystemExit(1), SystemExit(3)])
def test_an_exception_is_found(fuzz, monkeypatch, raised):
    """Also an exit without an error message, and one with an undocumented code."""

    def fail(*arguments, **options):
        raise raised

    monkeypatch.setattr("featkit.heads.list_heads", fail)
    assert fuzz._fault(fuzz.invoke(["heads"]))
    assert not fuzz._fault(fuzz.invoke(["fit", "--nonsense"]))
