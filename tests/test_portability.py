"""featkit works where the modules ``fcntl`` and ``resource`` do not exist, as on Windows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import featkit

SCRIPT = """
import sys

import psutil  # on Linux it needs these modules for itself

sys.modules["fcntl"] = None
sys.modules["resource"] = None

from featkit.cli import main

options = ["--data", "digits", "--weights", "random", "--resize", "32", "--limit", "train=60,test=30"]
commands = [
    ["extract", *options, "--device", "cpu"],
    ["fit", *options, "--device", "cpu", "--head", "knn:k=1", "--out", "runs"],
    ["ablate", "grid.toml", "--device", "cpu", "--jobs", "1", "--out", "ablation"],
]
for command in commands:
    try:
        main(command)
    except SystemExit as done:
        assert not done.code, (command, done.code)
"""

GRID = """
name = "small"
[axes]
weights = ["random"]
head = ["knn:k=1", "prototypical"]
[fixed]
resize = "32"
limit = "train=60,test=30"
"""


def test_no_module_uses_names_that_only_posix_has():
    posix_only = re.compile(
        r"\b(import (fcntl|resource|pwd|grp)\b|fcntl\.|os\.(fork|getuid|geteuid)\b)"
    )
    package = Path(featkit.__file__).parent
    found = [
        path.name
        for path in package.rglob("*.py")
        if posix_only.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.slow
def test_extract_fit_and_ablate_work_without_fcntl_and_resource(tmp_path):
    (tmp_path / "grid.toml").write_text(GRID, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "cache").glob("*.h5"))) == 1
    assert len(list((tmp_path / "ablation").rglob("*.json.gz"))) == 2
