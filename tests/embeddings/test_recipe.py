"""The fingerprint depends on everything that decides the features, and on nothing else."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.embeddings.recipe import Recipe
from featkit.errors import CacheError
from featkit.storage import digest

TEXT = st.text(max_size=8)
RECIPES = st.builds(
    Recipe,
    images=TEXT,
    labels=TEXT,
    split=TEXT,
    perturb=TEXT,
    backbone=TEXT,
    weights=TEXT,
    layer=TEXT,
    pool=TEXT,
    preprocess=st.dictionaries(TEXT, st.integers() | TEXT | st.lists(st.integers()), max_size=3),
    precision=TEXT,
    calibration=TEXT,
    store=TEXT,
    intensity=TEXT,
    schema=st.integers(),
)
NAMES = [field.name for field in fields(Recipe)]


@given(RECIPES)
def test_a_recipe_survives_json(recipe):
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_json(recipe.to_json()).fingerprint == recipe.fingerprint


@given(RECIPES, RECIPES, st.sampled_from(NAMES))
def test_each_single_field_changes_the_fingerprint(recipe, other, name):
    changed = replace(recipe, **{name: getattr(other, name)})
    differs = getattr(recipe, name) != getattr(other, name)
    assert (changed.fingerprint != recipe.fingerprint) == differs
    assert set(recipe.differences(changed)) == ({name} if differs else set())


@given(RECIPES, st.sampled_from(NAMES))
def test_other_images_have_the_same_network_digest(recipe, name):
    value = {"a": "something else"} if name == "preprocess" else "something else"
    changed = replace(recipe, **{name: value})
    assert recipe.same_network(changed) == (name in {"images", "labels", "split", "perturb"})


@given(st.lists(TEXT, max_size=4), st.lists(TEXT, max_size=4))
def test_two_sequences_share_a_digest_only_if_they_are_equal(one, two):
    assert (digest(one) == digest(two)) == (one == two)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"images": 3}'])
def test_invalid_recipes_are_refused(text):
    with pytest.raises(CacheError):
        Recipe.from_json(text)


def test_an_intensity_range_is_recorded_only_if_it_is_given():
    """Fingerprints of recipes without one are those of earlier versions."""
    recipe = Recipe(*["x"] * 8, {}, "fp32")
    assert "intensity" not in recipe.to_json()
    assert recipe.fingerprint.startswith("0577e75f884b")
    ranged = replace(recipe, intensity="0:4095")
    assert '"intensity":"0:4095"' in ranged.to_json()
    assert recipe.differences(ranged) == {"intensity": ("none", "0:4095")}


@pytest.mark.parametrize("name", [each.name for each in fields(Recipe)])
def test_the_same_network_is_one_of_the_same_digest(name):
    recipe = Recipe(*["x"] * 8, {"resize": 32, "crop": (32, 32)}, "fp32")
    read = Recipe.from_json(recipe.to_json())
    assert recipe.same_network(read)
    value = {"preprocess": {"resize": 33, "crop": (32, 32)}, "schema": 99}.get(name, "other")
    other = replace(read, **{name: value})
    assert recipe.same_network(other) == (recipe.network == other.network)
    assert recipe.same_network(other) == (name in {"images", "labels", "split", "perturb"})
