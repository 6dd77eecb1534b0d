"""Cards of runs: a card that featkit did not write is refused in one line, also with a valid checksum."""

from __future__ import annotations

import json
import os
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.embeddings.recipe import Recipe
from featkit.embeddings.request import Request
from featkit.errors import FeatkitError, RunError
from featkit.evaluation import Temperature
from featkit.runs.card import Card, read_card, seal
from featkit.runs.directory import load_run


def a_card():
    return Card(
        run="1a2b",
        request=Request(),
        recipe=Recipe(*["x"] * 8, {"crop": [8, 8]}, "fp32"),
        weights="random",
        classes=("a", "b"),
        head_spec="linear",
        head_sha256="0" * 64,
        temperature=Temperature(1.0, 0.0),
        threshold=0.5,
        cost={"fit_seconds": 1.0},
        created="now",
        files={"head.skops": "0" * 64},
    )


def write(folder, content, sealed=True):
    if sealed and isinstance(content, dict):
        content = {**content, "sha256": seal(content)}
    (folder / "card.json").write_text(json.dumps(content))


def test_a_card_is_read_as_it_was_written(tmp_path):
    (tmp_path / "card.json").write_text(a_card().to_json())
    assert read_card(tmp_path).to_json() == a_card().to_json()


def test_a_card_of_version_0_1_0_lists_no_files(tmp_path):
    content = json.loads(a_card().to_json())
    del content["files"]
    write(tmp_path, content)
    assert read_card(tmp_path).files == {}


PATHS = [
    *(
        ("run",),
        ("weights",),
        ("classes",),
        ("classes", 0),
        ("threshold",),
        ("cost",),
        ("created",),
    ),
    *(("request",), ("request", "data"), ("request", "seed"), ("request", "resize")),
    *(("recipe",), ("recipe", "layer"), ("recipe", "schema"), ("recipe", "preprocess")),
    *(("head",), ("head", "spec"), ("head", "sha256"), ("files",), ("files", "head.skops")),
    *(("temperature",), ("temperature", "value"), ("temperature", "smoothing")),
]
DEEP = json.loads("[" * 400 + "]" * 400)
WRONG = [[], {}, 3, -1, 1.5, True, float("nan"), float("inf"), 10**400, "a\0b", [None], DEEP]
VALID = {
    *{(path, "{}") for path in (("cost",), ("files",), ("request",), ("recipe", "preprocess"))},
    *{(("temperature", name), value) for name in ("value", "smoothing") for value in ("3", "1.5")},
    *{(("recipe", "schema"), "3"), (("request", "seed"), "3"), (("request", "resize"), "3")},
}


@pytest.mark.parametrize("path", PATHS)
def test_a_sealed_card_with_a_value_of_a_wrong_type_is_refused(tmp_path, path):
    for value in WRONG:
        content = json.loads(a_card().to_json())
        part = content
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        write(tmp_path, content)
        if (path, repr(value)) in VALID:
            read_card(tmp_path)
            continue
        with pytest.raises(RunError, match="cannot be read as a run") as caught:
            read_card(tmp_path)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("change", [{"classes": ["a", "a"]}, {"classes": []}, {"threshold": 1.5}])
def test_a_sealed_card_with_a_value_out_of_range_is_refused(tmp_path, change):
    write(tmp_path, {**json.loads(a_card().to_json()), **change})
    with pytest.raises(RunError, match="cannot be read as a run"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    "name", ["run", "request", "recipe", "weights", "classes", "head", "sha256"]
)
def test_a_card_without_a_part_is_refused(tmp_path, name):
    content = json.loads(a_card().to_json())
    del content[name]
    write(tmp_path, content, sealed=name != "sha256")
    with pytest.raises(RunError, match=f"'{name}' is missing"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "3", '"x"', "{", "\x00", "[" * 10**6, '{"sha256": 1e999}', "\ufeff{}"],
)
def test_a_file_that_is_no_card_is_refused(tmp_path, text):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(RunError, match=r"cannot be read as a run|was changed"):
        load_run(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a link to itself", "a huge file"])
def test_a_special_file_in_the_place_of_a_card_is_refused(tmp_path, kind):
    path = tmp_path / "card.json"
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a link to itself":
        path.symlink_to(path)
    else:
        with path.open("wb") as file:
            file.truncate(2**38)
    with pytest.raises(RunError):
        load_run(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda each: (
        st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=40)
@given(path=st.sampled_from(PATHS), value=json_values)
def test_any_sealed_value_is_read_or_refused(tmp_path_factory, path, value):
    folder = tmp_path_factory.mktemp("card")
    content = json.loads(a_card().to_json())
    part = content
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    write(folder, content)
    with suppress(FeatkitError):
        json.loads(read_card(folder).to_json())
