"""Names, options and plug-ins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.errors import SpecError
from featkit.registry import Registry, Spec, check_types, parse_value

WORDS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_./-]{0,8}", fullmatch=True)
VALUES = st.one_of(
    WORDS.map(parse_value), st.integers(), st.floats(allow_nan=False), st.booleans(), st.none()
)


@given(WORDS, st.none() | WORDS, st.dictionaries(WORDS, VALUES, max_size=4))
def test_a_spec_reads_back_what_it_wrote(name, argument, options):
    spec = Spec(name, argument, options)
    assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9", 9),
        ("1e-3", 1e-3),
        ("true", True),
        ("None", None),
        ("rbf", "rbf"),
        ("a/b.pth", "a/b.pth"),
    ],
)
def test_values_have_the_type_they_look_like(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize("text", ["", ":C=1", "svm:C=1,gamma", "svm:=1", "svm:C=1,,kernel=rbf"])
def test_a_malformed_spec_raises(text):
    with pytest.raises(SpecError):
        Spec.parse(text)


def make_thing(size: int | str = 1, *, colour: str = "red") -> tuple[int | str, str]:
    return size, colour


THINGS = Registry("thing", "featkit.no-such-group", {"thing": f"{__name__}:make_thing"})


def test_options_reach_the_factory():
    assert THINGS.make("thing:size=3,colour=blue") == (3, "blue")
    assert THINGS.make("thing:big") == ("big", "red")


def test_an_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(
        SpecError, match="unknown thing 'thnig': did you mean thing\\? known: thing"
    ):
        THINGS.make("thnig")


def test_an_unknown_option_lists_the_known():
    with pytest.raises(
        SpecError, match="unknown option of thing thing 'weight': known: size, colour"
    ):
        THINGS.make("thing:weight=1")


def test_an_option_given_twice_is_refused():
    with pytest.raises(SpecError, match="its options: size, colour"):
        THINGS.make("thing:big,size=3")


def test_a_plugin_that_cannot_be_imported_says_what_to_do(monkeypatch):
    point = EntryPoint("broken", "featkit_no_such_plugin:Head", "featkit.no-such-group")
    monkeypatch.setattr("featkit.registry._installed", lambda group, path: [point])
    with pytest.raises(
        SpecError,
        match=r"thing 'broken' of plug-in .* cannot be imported .*: update, reinstall or uninstall the plug-in",
    ):
        THINGS.get("broken")


@dataclass(frozen=True)
class Options:
    text: str = ""
    count: int = 0
    number: float = 0.0
    flag: bool = False
    size: str | int | None = None
    names: tuple[str, ...] = ()
    table: Mapping[str, int] = field(default_factory=dict)
    anything: Any = None


VALID = {
    "text": ["", "x"],
    "count": [0, 5],
    "number": [0, 0.5, -1],
    "flag": [True, False],
    "size": [None, "x", 3],
    "names": [[], ["a"], ("a", "b")],
    "table": [{}, {"a": 1}],
    "anything": [None, [[]], {"a": 1}],
}
INVALID = {
    "text": [None, 1, [], "a\0"],
    "count": [-1, 1.0, True, "1", None, 2**63, 10**400],
    "number": [True, "1", None, float("nan"), float("inf"), 10**400],
    "flag": [0, 1, "true", None],
    "size": [True, 1.5, [], -1],
    "names": ["a", None, [1], [None], {"a": 1}],
    "table": [[], None, {"a": "b"}, {1: 1}],
}


def test_values_from_a_file_are_checked_against_the_types_of_a_dataclass():
    for name, values in VALID.items():
        for value in values:
            check_types(Options, {name: value, "unknown": 1})
    for name, values in INVALID.items():
        for value in values:
            with pytest.raises(SpecError, match=f"{name} = .* is not ") as caught:
                check_types(Options, {name: value})
            assert len(str(caught.value)) < 200
    with pytest.raises(SpecError, match="options must be a table"):
        check_types(Options, [])
