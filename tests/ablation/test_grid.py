"""Grids, their cells and their TOML files."""

from __future__ import annotations

import pytest

from featkit.ablation.grid import AXES, Grid, Skip, read_grid
from featkit.errors import SpecError


def write(tmp_path, text):
    (tmp_path / "grid.toml").write_text(text)
    return tmp_path / "grid.toml"


def test_cells_are_the_product_of_all_axes():
    grid = Grid("g", {"head": ("svm", "knn"), "seed": (0, 1)})
    assert [(cell["seed"], cell["head"]) for cell in grid.cells()] == [
        (0, "svm"),
        (0, "knn"),
        (1, "svm"),
        (1, "knn"),
    ]
    assert all(cell.keys() == AXES.keys() for cell in grid.cells())
    assert {cell["weights"] for cell in grid.cells()} == {"imagenet"}


def test_a_repeated_value_counts_once():
    assert len(Grid("g", {"seed": (0, 0, 1)}).cells()) == 2


def test_a_rule_skips_cells_that_match_on_every_axis_it_names(tmp_path):
    rule = '[[skip]]\nwhen = {head = "knn", seed = [1, 2]}\nwhy = "slow"\n'
    grid = read_grid(write(tmp_path, f'[axes]\nhead = ["svm", "knn"]\nseed = [0, 1, 2]\n{rule}'))
    left_out = [
        (cell["head"], cell["seed"]) for cell in grid.cells() if grid.why_skipped(cell) == "slow"
    ]
    assert left_out == [("knn", 1), ("knn", 2)]


def test_with_several_corrections_the_head_is_not_tuned():
    """Otherwise ``none`` would be a tuned head, compared with corrections of untuned heads."""
    several = Grid("g", {"balance": ("none", "tau_norm"), "tune": (True,)})
    assert [several.fit_config(cell).balance for cell in several.cells()] == ["none", "tau_norm"]
    single = Grid("g", {"tune": (True,)})
    assert single.fit_config(single.cells()[0]).balance is None


def test_the_id_depends_on_the_cells_and_not_on_the_name():
    axes = {"seed": (0, 1)}
    assert Grid("a", axes).id == Grid("b", axes).id
    assert len({Grid("a", axes).id, Grid("a", {}).id, Grid("a", axes, {"pool": "max"}).id}) == 3


def test_a_grid_file_is_read(tmp_path):
    grid = read_grid(
        write(tmp_path, '[axes]\nhead = ["svm"]\nseed = [1, 2]\n[fixed]\nlimit = "train=5"\n')
    )
    assert (grid.name, grid.values("head"), grid.values("seed")) == ("grid", ("svm",), (1, 2))
    assert grid.fixed == {"limit": "train=5"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[axes", "cannot be read as a grid"),
        ("[axis]\n", "did you mean axes"),
        ("[axes]\nheads = []\n", "unknown axis 'heads': did you mean head"),
        ("[axes]\nhead = []\n", "at least one value"),
        ('[axes]\nhead = "svm"\n', "must be a list"),
        ('[axes]\nseed = ["1"]\n', "a whole number from 0 up"),
        ("[axes]\nseed = [true]\n", "a whole number from 0 up"),
        ("[axes]\ntune = [1]\n", "true or false"),
        ('[fixed]\nheads = "svm"\n', "unknown fixed option"),
        ("[fixed]\nresize = true\n", "resize = True is not text or a whole number"),
        ("[fixed]\nlimit = 5\n", "limit = 5 is not text"),
        ("[fixed]\nlimit = ['train=5']\n", "is not text"),
        ("[fixed]\nviews = 'many'\n", "views = 'many' is not a whole number from 0 up"),
        ("[fixed]\nviews = -1\n", "views = -1 is not a whole number from 0 up"),
        ('[fixed]\nlimit = "a\\u0000"\n', "is not text"),
        ('[fixed]\npart = "test"\n', "unknown fixed option"),
        ("axes = 3\n", "must be a table"),
        ("skip = 3\n", "list of tables"),
        ('[[skip]]\nwhen = {head = "svm"}\n', "needs when and why"),
        ('[[skip]]\nwhen = {haed = "svm"}\nwhy = "x"\n', "did you mean head"),
        ('[[skip]]\nwhen = {head = "linear"}\nwhy = "x"\n', "has no cells"),
        ('name = "../up"\n', "letters, digits"),
    ],
)
def test_a_malformed_grid_is_refused_in_one_line_with_the_file_name(tmp_path, text, message):
    with pytest.raises(SpecError, match=message) as refused:
        read_grid(write(tmp_path, text))
    assert "grid.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_grid_file_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"missing\.toml"):
        read_grid(tmp_path / "missing.toml")


def test_a_rule_covers_only_the_listed_values():
    assert Skip({"seed": (1,)}, "x").covers({"seed": 1})
    assert not Skip({"seed": (1,)}, "x").covers({"seed": 0})
