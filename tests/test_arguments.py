"""Arguments of public functions: a wrong one is named before any work starts."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featkit
from featkit.ablation.run import AblationResult
from featkit.arguments import MAX_SEED, checked, integer, number, several, text
from featkit.errors import FeatkitError, SpecError

FUNCTIONS = [name for name in featkit.__all__ if inspect.isfunction(getattr(featkit, name))]

REQUIRED = {
    "backbone": "resnet18",
    "backbones": "resnet18",
    "classes": ["a", "b"],
    "files": "new.jpg",
    "images": "new.jpg",
    "kind": "confusion",
    "photos": "photos",
    "run": "nowhere",
    "runs": ["one", "two"],
    "result": AblationResult.__new__(AblationResult),
    "scores": [[1.0, 0.0]],
    "spec": "resnet18",
    "teacher": "resnet18",
    "y": [0],
}
"""Values of required parameters."""

WRONG = [object(), b"bytes", 2j, "null\0character", {1: 2}, float("nan"), lambda: None, ...]
"""Values that no parameter accepts."""


def call(name, /, **arguments):
    function = getattr(featkit, name)
    parameters = inspect.signature(function).parameters.values()
    required = {
        each.name: REQUIRED[each.name] for each in parameters if each.default is inspect._empty
    }
    return function(**{**required, **arguments})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_value_of_a_wrong_kind_is_refused_by_the_name_of_its_parameter(name, monkeypatch):
    """No argument gets as far as a library that fails on it: nothing is read or written."""
    monkeypatch.chdir("/")
    for parameter in inspect.signature(getattr(featkit, name)).parameters:
        for value in WRONG:
            with pytest.raises(FeatkitError) as raised:
                call(name, **{parameter: value})
            message = str(raised.value)
            assert "\n" not in message
            assert message.startswith(f"{parameter}="), (parameter, value, message)
            assert ": give " in message


@pytest.mark.parametrize("name", FUNCTIONS)
def test_none_is_accepted_only_where_it_is_the_default(name):
    for parameter in inspect.signature(getattr(featkit, name)).parameters.values():
        if parameter.default is not None:
            with pytest.raises(SpecError, match=f"^{parameter.name}=None: give "):
                call(name, **{parameter.name: None})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fit", {"limit": 50}, "limit=50: give text, such as 'train=500,test=100'"),
        ("fit", {"seed": "x"}, "seed='x': give an integer from 0 to 4294967295"),
        ("fit", {"seed": -1}, "seed=-1"),
        ("fit", {"seed": True}, "seed=True"),
        ("fit", {"seed": 2.0}, "seed=2.0"),
        ("fit", {"views": "a"}, "views='a': give an integer from 1 to 100"),
        ("fit", {"reject": 1.0}, "reject=1.0"),
        ("fit", {"tune": 1}, "tune=1: give True or False"),
        ("fit", {"cache": " "}, "cache=' '"),
        ("profile", {"backbones": []}, "at least 1"),
        ("quantize", {"images": 0}, "images=0: give an integer of 1 or more"),
        ("compare", {"runs": "abc"}, "runs='abc': give a list"),
        ("ablate", {"head": []}, "at least 1"),
        ("ablate", {"seed": [0, "1"]}, "seed="),
        ("fewshot", {"shot": [0]}, "shot="),
        ("finetune", {"epochs": 1.5}, "epochs=1.5: give an integer from 1 to 100000"),
        ("finetune", {"lr": float("inf")}, "lr=inf"),
        ("prune", {"sparsity": [0.5, 1.0]}, "sparsity="),
        ("Compute", {"batch_size": "16"}, "batch_size='16'"),
        ("Compute", {"workers": 0}, "workers=0"),
        ("Compute", {"progress": None}, "progress=None"),
    ],
)
def test_the_message_names_argument_value_and_what_is_accepted(name, arguments, message):
    with pytest.raises(SpecError) as raised:
        call(name, **arguments)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "name",
    [
        "weights",
        "layer",
        "pool",
        "resize",
        "crop",
        "precision",
        "split",
        "limit",
        "augment",
        "perturb",
        "store",
        "device",
        "on_error",
    ],
)
def test_nonsense_text_is_refused(name, tmp_path):
    """Also where the command line offers a choice, which Python does not check."""
    small = {"weights": "random", "resize": "32", "limit": "train=20,test=10"}
    for value in ("nonsense", ""):
        if name in ("layer", "augment", "perturb") and not value:
            continue  # as None
        with pytest.raises(FeatkitError) as raised:
            featkit.extract("digits", **{**small, name: value}, cache=tmp_path)
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("*.h5"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(3, int)}, "labels (3,)"),
        ({"splits": np.array(["train"])}, "splits (1,)"),
        ({"ids": ("a",) * 12}, "an id twice"),
        ({"labels": np.full(12, 2)}, "integers in 0..1"),
        ({"labels": np.full(12, -1)}, "integers in 0..1"),
        ({"labels": np.full(12, 0.5)}, "integers in 0..1"),
        ({"splits": np.full(12, "validation")}, "split 'validation'"),
        ({"load": None}, "must be functions"),
    ],
)
def test_images_in_memory_are_checked(colours, tmp_path, change, message):
    with pytest.raises(FeatkitError, match=re.escape(message)):
        featkit.extract(replace(colours(), **change), weights="random", cache=tmp_path)


def test_an_unknown_split_is_not_an_empty_one(colours, vectors):
    for part in (colours().rows, vectors().part):
        with pytest.raises(SpecError, match="unknown split 'tset': did you mean test"):
            part("tset")


def test_the_message_is_short_and_in_one_line():
    with pytest.raises(SpecError) as raised:
        featkit.fit(limit=np.zeros((100, 100)))
    assert len(str(raised.value)) < 200
    assert "\n" not in str(raised.value)


@given(st.integers(), st.integers(-5, 5), st.integers(0, 10))
def test_an_integer_is_accepted_in_its_range_only(value, low, width):
    kind = integer(low, low + width)
    if low <= value <= low + width:
        assert kind.check("n", value) == value
    else:
        with pytest.raises(SpecError, match=f"^n={value}: give an integer from"):
            kind.check("n", value)


@given(st.floats(allow_nan=True))
def test_a_number_is_finite_and_in_its_range(value):
    kind = number(0, 1, below_high=True)
    if 0 <= value < 1:
        assert kind.check("x", value) == value
    else:
        with pytest.raises(SpecError):
            kind.check("x", value)


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64])
def test_numpy_numbers_become_numbers_of_python(kind):
    assert type(integer(0).check("n", kind(3))) is int
    assert type(number(0).check("x", np.float32(3))) is float
    assert several(integer(0)).check("n", np.arange(3)) == (0, 1, 2)


def test_numbers_of_python_keep_their_type():
    """They are part of fingerprints, in which 1 and 1.0 differ."""
    assert type(number(0).check("x", 1)) is int
    assert type(number(0).check("x", 1.0)) is float


def test_seeds_are_those_that_numpy_accepts():
    np.random.RandomState(MAX_SEED)
    with pytest.raises(ValueError, match="Seed must be between"):
        np.random.RandomState(MAX_SEED + 1)


def test_a_parameter_without_a_kind_is_an_error_when_the_function_is_defined():
    with pytest.raises(TypeError, match="without a kind"):

        @checked(a=text("x"))
        def function(a, b):
            return a, b


def test_a_path_may_be_a_path_object(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    for path in (tmp_path / "notes.txt", str(tmp_path / "notes.txt")):
        with pytest.raises(FeatkitError, match="neither a folder nor a CSV file"):
            featkit.load_images(path)
        with pytest.raises(FeatkitError, match="is not a run directory but a file"):
            featkit.load_run(Path(path))
