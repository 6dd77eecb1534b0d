import subprocess
import sys

import pytest

from featkit.errors import SpecError
from featkit.heads import HEADS, list_corrections, list_heads, make_head, parse_correction
from featkit.registry import Spec
from featkit.testing import check_head

PLUGIN = '''
from featkit.heads.knn import KNNHead


class NearestHead(KNNHead):
    """The single nearest neighbour."""

    def __init__(self, *, k=1, metric="euclidean", weights="uniform"):
        super().__init__(k=k, metric=metric, weights=weights)
'''


@pytest.fixture
def plugin(install):
    """An installed package that adds one head."""
    install("nearest_plugin", PLUGIN, "[featkit.heads]\nnearest = nearest_plugin:NearestHead\n")
    return "nearest"


@pytest.mark.parametrize(
    "spec",
    ["linear", "svm", "svm:kernel=rbf", "knn", "knn:k=1,metric=cosine", "mlp", "prototypical"],
)
def test_every_head_passes_the_checks_for_plugins(spec):
    check_head(make_head(spec))


def test_options_of_a_spec_reach_the_head():
    head = make_head("svm:C=9,kernel=linear")
    assert (head.C, head.kernel, head.gamma) == (9, "linear", "scale")
    assert make_head(Spec("knn", options={"k": 3})).k == 3


def test_seed_is_passed_to_heads_that_have_one_unless_the_spec_sets_it():
    assert make_head("mlp", seed=4).seed == 4
    assert make_head("mlp:seed=5", seed=4).seed == 5
    assert make_head("mlp").seed == 0
    assert not hasattr(make_head("linear", seed=4), "seed")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("forest", r"unknown head 'forest': known: linear, svm, knn, mlp, prototypical$"),
        ("svn", r"unknown head 'svn': did you mean svm\? known: "),
        ("svm:c=9", r"unknown option of head svm 'c': .*known: C, kernel, gamma, scale$"),
        ("svm:9", r"its options: C, kernel, gamma, scale$"),
        (
            "svm:kernel=poly",
            r"^head 'svm:kernel=poly': The 'kernel' parameter .*'linear'.* Got 'poly' instead\.$",
        ),
        ("svm:gamma=auto", r"'gamma' parameter .*'scale'"),
        ("svm:C=0", r"'C' parameter .*\(0(\.0)?, inf\)"),
        ("linear:C=nan", r"'C' parameter"),
        ("linear:scale=max", r"'scale' parameter .*'standard'"),
        ("knn:k=2.5", r"'k' parameter .* must be an int"),
        ("knn:metric=manhattan", r"'metric' parameter .*'cosine'"),
        ("knn:weights=gauss", r"'weights' parameter .*'temperature'"),
        ("knn:temperature=0", r"'temperature' parameter"),
        ("svm:scale=max", r"'scale' parameter .*'standard'"),
        ("prototypical:shrinkage=0", r"'shrinkage' parameter .*\(0(\.0)?, 1(\.0)?\]"),
        ("mlp:width=0", r"'width' parameter .*\[1, inf\)"),
        ("mlp:seed=-1", r"'seed' parameter"),
        ("prototypical:metric=dot", r"'metric' parameter .*'euclidean'"),
    ],
)
def test_invalid_spec_raises_a_one_line_error_before_fitting(spec, message):
    with pytest.raises(SpecError, match=message) as caught:
        make_head(spec)
    assert "\n" not in str(caught.value)


def test_a_plugin_adds_a_head(plugin):
    assert HEADS.names() == ["linear", "svm", "knn", "mlp", "prototypical", "nearest"]
    head = make_head("nearest:metric=cosine")
    assert (head.k, head.metric) == (1, "cosine")
    listed = {info.name: info for info in list_heads()}
    assert listed["nearest"].summary == "The single nearest neighbour."
    assert [info.name for info in listed.values() if not info.builtin] == ["nearest"]


def test_a_plugin_needs_no_parameter_constraints(install):
    code = """
from sklearn.base import BaseEstimator, ClassifierMixin


class Plain(ClassifierMixin, BaseEstimator):
    def __init__(self, sharpness=1.0):
        self.sharpness = sharpness
"""
    install("plain_plugin", code, "[featkit.heads]\nplain = plain_plugin:Plain\n")
    assert make_head("plain:sharpness=3").sharpness == 3


def test_list_heads_gives_summary_and_options():
    rows = {row.name: row for row in list_heads()}
    assert list(rows) == ["linear", "svm", "knn", "mlp", "prototypical"]
    assert rows["svm"].summary == "Support vector machine with an RBF or a linear kernel."
    assert rows["svm"].options == {"C": 3.0, "kernel": "rbf", "gamma": "scale", "scale": "root"}
    assert rows["prototypical"].options == {"metric": "cosine", "shrinkage": 0.3, "scale": None}


def test_list_corrections_gives_summary_options_and_aliases():
    corrections = {info.name: info for info in list_corrections()}
    assert corrections["class_aware"].aliases == ("crt",)
    assert corrections["logit_adjust"].options == {"tau": 1.0}
    assert corrections["undersample"].summary.startswith("Draw as many images")


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("logit-adjust:tau=2", "logit_adjust:tau=2"),
        ("logit_adjust", "logit_adjust"),
        ("class-aware", "class_aware"),
        ("crt", "class_aware"),
        ("logit-ajust", "logit-ajust"),
    ],
)
def test_correction_names_accept_hyphens_and_aliases(text, spec):
    assert str(parse_correction(text)) == spec


def test_importing_heads_imports_neither_numpy_nor_sklearn():
    code = "import sys, featkit.heads; assert not {'sklearn', 'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
