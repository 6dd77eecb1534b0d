"""Names of runs and networks in tables and figures."""

from __future__ import annotations

import json
import re

import pytest

from featkit.arguments import MAX_NAME, NAME
from featkit.backbones.base import Preprocess
from featkit.backbones.saved import INT8_CARD, NETWORK_FILE, Int8Description, NetworkDescription
from featkit.backbones.weights import DESCRIPTION_KEY
from featkit.errors import SpecError
from featkit.runs.names import (
    NAME_FIELD,
    distinct_names,
    network_name,
    readable,
    run_details,
    run_title,
)


@pytest.mark.parametrize(
    ("spec", "options", "name"),
    [
        ("resnet18", {}, "ResNet-18"),
        ("resnet152", {"weights": "imagenet", "precision": "fp32"}, "ResNet-152"),
        ("resnet50", {"precision": "int8"}, "ResNet-50, int8"),
        ("resnet50", {"precision": "int8-openvino"}, "ResNet-50, int8 (OpenVINO)"),
        ("resnet18", {"weights": "random:3"}, "ResNet-18, untrained"),
        ("resnet18", {"weights": "models/flowers.pth"}, "ResNet-18 (flowers.pth)"),
        ("resnet18:stem=small", {}, "ResNet-18 (stem=small)"),
        ("timm:resnet50.a1_in1k", {}, "resnet50.a1_in1k (timm)"),
        ("my_network", {"precision": "bf16"}, "my_network, bf16"),
    ],
)
def test_a_network_is_named_as_a_reader_would_call_it(spec, options, name):
    assert network_name(spec, **options) == name


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("resnet18-pruned-1a2b3c4d", "ResNet-18, pruned"),
        ("resnet18-deep-1a2b3c4d-int8-0a0b0c0d", "ResNet-18, fine-tuned, int8"),
        ("resnet18, layer4 fine-tuned on photos", "ResNet-18, layer4 fine-tuned on photos"),
        (
            "resnet50, 50 % of MACs, then 3 epochs at 0.1 (1a2b3c4d)",
            "ResNet-50, 50 % of MACs, then 3 epochs at 0.1",
        ),
        ("resnet18:stem=small, fine-tuned", "ResNet-18 (stem=small), fine-tuned"),
        ("0123456789ab", ""),
    ],
)
def test_digests_are_left_out_of_a_name(label, name):
    assert readable(label) == name


def save_description(folder, label):
    """Write the header of a saved network, which is all that a name needs."""
    folder.mkdir()
    described = NetworkDescription("resnet18", "resnet18-pruned-1a2b3c4d", label, Preprocess())
    header = json.dumps({"__metadata__": {DESCRIPTION_KEY: described.to_json()}}).encode()
    (folder / NETWORK_FILE).write_bytes(len(header).to_bytes(8, "little") + header)
    return folder


def test_a_saved_network_has_the_name_it_was_given_else_how_it_was_made(tmp_path):
    folder = save_description(tmp_path / "resnet18-pruned-1a2b3c4d", "resnet18, 50 % of MACs")
    assert network_name(str(folder)) == "ResNet-18, 50 % of MACs"
    assert network_name(str(folder / NETWORK_FILE)) == "ResNet-18, 50 % of MACs"
    (folder / "prune.json").write_text(json.dumps({NAME_FIELD: "Small & fast"}))
    assert network_name(str(folder)) == "Small & fast"
    assert network_name(str(folder / NETWORK_FILE), precision="bf16") == "Small & fast, bf16"


def test_an_int8_network_of_an_earlier_version_is_named_by_its_description(tmp_path):
    folder = tmp_path / "resnet18-int8-1a2b3c4d"
    folder.mkdir()
    described = Int8Description(
        *("resnet18", "resnet18-int8-1a2b3c4d", "w, int8 (minmax)", Preprocess(), "", "avg"),
        *("0" * 64, 1, 1, 1),
    )
    (folder / INT8_CARD).write_text(described.to_json())
    assert network_name(str(folder), precision="int8") == "ResNet-18, int8"
    assert network_name(str(folder), precision="int8-openvino") == "ResNet-18, int8, OpenVINO"


def test_a_network_that_is_gone_is_never_shown_by_its_digest(tmp_path):
    missing = str(tmp_path / "runs" / "0123456789ab")
    assert network_name(missing) == "saved network"
    assert network_name(missing, made_by="resnet18, fine-tuned on photos") == (
        "ResNet-18, fine-tuned on photos"
    )
    assert network_name(str(tmp_path / "resnet34-pruned-1a2b3c4d")) == "ResNet-34, pruned"
    damaged = tmp_path / "resnet50-pruned-1a2b3c4d"
    damaged.mkdir()
    (damaged / "prune.json").write_text("{")
    assert network_name(str(damaged)) == "ResNet-50, pruned"


def test_the_title_of_a_run_names_head_and_network():
    request = {"backbone": "resnet18", "weights": "imagenet", "precision": "int8", "perturb": "fog"}
    provenance = {"head": "svm", "tuned": True, "balance": "reweight", "weights": "w"}
    title = run_title({**provenance, "subset": None, "request": request})
    assert title == "svm tuned reweight fog on ResNet-18, int8"


def test_equal_names_get_what_tells_them_apart():
    details = [{"seed": "0", "layer": "layer3"}, {"seed": "1", "layer": "layer3"}, {}]
    assert distinct_names(["a", "a", "b"], details) == ["a, seed 0", "a, seed 1", "b"]
    assert distinct_names(["a", "a"], [{}, {}]) == ["a (1)", "a (2)"]
    both = [{"s": "0", "l": "1"}, {"s": "0", "l": "2"}, {"s": "1", "l": "2"}]
    assert distinct_names(["a"] * 3, both) == ["a, s 0, l 1", "a, s 0, l 2", "a, s 1, l 2"]


@pytest.mark.parametrize("name", ["Flowers, second try", "猫 & 狗", "می‌خواهم", "x" * MAX_NAME])
def test_any_printable_line_is_a_name(name):
    assert NAME.check("name", f" {name} ") == name


@pytest.mark.parametrize(
    "name", ["", " ", "a\nb", "a\x1b[31m", "a\u202eb", "x" * (MAX_NAME + 1), 3]
)
def test_other_names_are_refused_in_one_line(name):
    with pytest.raises(SpecError, match=r"^name=.*: give a name of 1 to 80 printable") as caught:
        NAME.check("name", name)
    assert not re.search(r"[\n\x1b]", str(caught.value))


def test_runs_with_and_without_augmentation_are_told_apart_by_it():
    plain = {"request": {"data": "photos", "views": 4}}
    light = {"request": {"data": "photos", "augment": "light", "views": 2}}
    trained = {"request": {"data": "photos", "views": 4}, "training": {"augment": "basic"}}
    for provenances in ((plain, light, trained), (trained, light, plain)):
        details = [run_details(each) for each in provenances]
        found = distinct_names(["svm"] * 3, details)
        assert set(found) == {"svm, augment none", "svm, augment light", "svm, augment basic"}
