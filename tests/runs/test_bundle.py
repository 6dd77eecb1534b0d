"""Runs with the weights of their network predict elsewhere, with nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import featkit
from featkit.backbones import load_backbone
from featkit.backbones.bundle import load_bundled
from featkit.errors import FeatkitError, RunError, WeightsError

ELSEWHERE = """
import json, pickle, socket, sys

import numpy, skops.io, torch
import featkit

def refuse(*arguments, **options):
    raise RuntimeError("not available")

socket.socket.connect = refuse
class Refused:
    __init__ = refuse

pickle.load = pickle.loads = refuse
pickle.Unpickler = Refused
found = featkit.load_run(sys.argv[1]).predict(sys.argv[2], all_probabilities=True)
print(json.dumps([each.to_dict() for each in found]))
"""


@pytest.fixture
def weights(tmp_path):
    """Return a file of weights that only exists here."""
    state = load_backbone("resnet18", weights="random:7", layer="fc").build().state_dict()
    file = tmp_path / "mine.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return file


@pytest.fixture
def run(photos, weights, tmp_path):
    fitted = featkit.fit(
        photos,
        weights=str(weights),
        resize="32",
        head="prototypical",
        cache=tmp_path / "cache",
        out=tmp_path / "runs",
    )
    return tmp_path / "runs" / "photos" / fitted.id


def test_a_bundle_predicts_the_same_in_an_empty_folder_of_another_process(
    run, photos, weights, tmp_path
):
    expected = featkit.predict(run, photos / "red", all_probabilities=True)
    file = featkit.bundle(run)
    assert file.name == "backbone.safetensors"
    assert featkit.bundle(run) == file  # nothing more to do
    shutil.copytree(run, tmp_path / "empty" / "bundle")
    for path in (run, weights, tmp_path / "cache", tmp_path / "runs"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    kept = {name: value for name, value in os.environ.items() if name != "FEATKIT_WEIGHTS"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, "bundle", str(photos / "red")],
        cwd=tmp_path / "empty",
        env={**kept, "PYTHONPATH": str(Path(featkit.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [each.to_dict() for each in expected]


def test_a_bundle_that_was_changed_is_refused(run, photos):
    file = featkit.bundle(run)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunError, match="is not the network that was bundled"):
        featkit.predict(run, photos / "red")
    # A bundle that no card knows is refused too, not used unverified.
    card = json.loads((run / "card.json").read_text())
    del card["files"]["backbone.safetensors"]
    (run / "card.json").write_text(json.dumps(card))
    with pytest.raises(FeatkitError, match="changed after the run"):
        featkit.predict(run, photos / "red")


def test_without_the_weights_the_message_says_which_and_how_to_bundle(run, photos, weights):
    digest = json.loads((run / "card.json").read_text())["recipe"]["weights"]
    weights.unlink()
    with pytest.raises(WeightsError) as caught:
        featkit.predict(run, photos / "red")
    for part in ("mine.safetensors", digest, "featkit bundle", "FEATKIT_WEIGHTS"):
        assert part in str(caught.value)
    with pytest.raises(WeightsError, match="featkit bundle"):
        featkit.bundle(run)


def test_weights_of_another_network_are_refused_when_they_are_loaded(run, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    backbone = load_bundled(
        "resnet18",
        tmp_path / "other.safetensors",
        layer=None,
        pool="avg",
        preprocess=featkit.load_run(run).recipe.preprocess,
        digest="0" * 64,
        label="other",
    )
    with pytest.raises(WeightsError):
        backbone.build()
