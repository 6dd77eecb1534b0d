"""Extractions that are killed at any moment or run out of disk space can be resumed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="needs fork and resource limits"),
]
KILLS = int(os.environ.get("FEATKIT_KILLS", "6"))

FAULTS = """
import hashlib, os, signal, sys, time
from pathlib import Path
import numpy as np
import torch
from featkit import Compute, ImageSet
from featkit.embeddings.extract import extract_embeddings
from featkit.embeddings.request import Request
import featkit.backbones.engines.torch  # before the fork

kills, cache = int(sys.argv[1]), Path(sys.argv[2])
pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)

def load(row):
    time.sleep(0.01)
    return pixels[row]

rows = np.arange(40)
images = ImageSet("colours", tuple(f"{row}.png" for row in rows), rows % 2, ("even", "odd"),
                  np.where(rows < 30, "train", "test"), "own", load,
                  lambda row: hashlib.sha256(pixels[row].tobytes()).hexdigest())

def run(cache, batch_size, workers):
    compute = Compute(device="cpu", batch_size=batch_size, workers=workers)
    request = Request(data="", weights="random", resize="32", precision="fp32")
    return extract_embeddings(request, cache, compute, images=images)

def in_child(*arguments, after=None):
    start, child = time.perf_counter(), os.fork()
    if child == 0:
        run(*arguments)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] in (0, signal.SIGKILL)
    return time.perf_counter() - start

in_child(cache / "whole", 4, 2)
whole = in_child(cache / "again", 4, 2)
rng = np.random.default_rng(0)
equal = close = left = 0
worst = 0.0
for number in range(kills):
    place = cache / str(number)
    in_child(place, 4, 2, after=rng.uniform(0, 1.05 * whole))
    left += any(place.glob(".*.partial"))
    same = number % 2 == 0
    in_child(place, *((4, 2) if same else (7, 3)))
    assert [path.suffix for path in place.iterdir()] == [".h5"], list(place.iterdir())
    found, reference = run(place, 4, 2), run(cache / "whole", 4, 2)
    assert found.ids == reference.ids
    equal += np.array_equal(found.x, reference.x)
    difference = np.abs(found.x - reference.x).max() / np.abs(reference.x).max()
    worst = max(worst, difference)
    close += difference < 1e-5
    assert np.array_equal(found.x, reference.x) or not same
print(f"{kills} kills, {left} of them while vectors were being made: {equal} files equal bit for bit, {close} close, "
      f"the largest difference {worst:.1e} of the largest value")
"""


def test_a_killed_extraction_resumes_and_makes_the_same_file(tmp_path):
    """With the same batch size bit for bit, with another within 1e-5: a batch of one image rounds otherwise.

    FEATKIT_KILLS=50 kills more often.
    """
    command = [sys.executable, "-W", "ignore", "-c", FAULTS, str(KILLS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sys.stdout.write(done.stdout)
    assert f"{KILLS} close" in done.stdout


FULL = """
import resource, sys
from pathlib import Path
from featkit import Compute
from featkit.embeddings.extract import extract_embeddings
from featkit.embeddings.request import Request
from featkit.errors import StorageError

def run(cache):
    compute = Compute(device="cpu", batch_size=8)
    options = {"weights": "random", "resize": "8", "limit": "train=60,test=30", "precision": "fp32"}
    return extract_embeddings(Request(**options), Path(cache), compute)

before = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in (1_000, 50_000, 150_000, 250_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        run(sys.argv[1])
    except StorageError as error:
        print("refused:", error)
    assert not list(Path(sys.argv[1]).glob("*.h5"))
resource.setrlimit(resource.RLIMIT_FSIZE, before)
print(len(run(sys.argv[1])), "rows;", [path.suffix for path in Path(sys.argv[1]).iterdir()])
"""


def test_a_full_disk_is_reported_and_the_next_run_with_space_finishes(tmp_path):
    """A limit of the file size simulates a full disk: the same writes fail."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused: cannot write") == 4
    assert done.stdout.endswith("rows; ['.h5']\n")


@pytest.mark.parametrize("command", ["extract", "fit"])
def test_a_full_disk_is_an_error_of_one_line_and_exit_code_1(tmp_path, command):
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from featkit.cli import main
main(["{command}", "--weights", "random", "--resize", "8", "--limit", "train=60,test=30", "--cache", {str(tmp_path)!r}])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: cannot write")
    assert "Traceback" not in done.stderr
