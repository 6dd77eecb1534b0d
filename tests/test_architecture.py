"""Import contracts and other rules of the structure, as in `make lint`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import featkit
from featkit.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "featkit").rglob("*.py"))


def run_python(code: str, **options) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_contracts_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_heavy_package(command):
    code = f"""
import sys
from featkit.cli import main
try:
    main({[command, "--help"] if command else ["--help"]!r})
except SystemExit as stop:
    assert stop.code == 0
heavy = {{"torch", "torchvision", "sklearn", "scipy", "h5py", "numpy", "matplotlib", "PIL"}} & sys.modules.keys()
assert not heavy, heavy
"""
    assert "Examples:" in run_python(code)


def test_public_names_can_be_imported():
    for name in featkit.__all__:
        assert getattr(featkit, name).__doc__
    with pytest.raises(AttributeError, match="nonsense"):
        featkit.nonsense  # noqa: B018


PICKLE_MODULES = {"pickle", "dill", "cloudpickle", "shelve"}


def imported_names(tree: ast.Module) -> set[str]:
    """Return the dotted names that a module imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_unpickles_files(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = imported_names(tree)
    assert not PICKLE_MODULES & {name.split(".")[0] for name in names}
    assert not {"joblib.load", "joblib.dump"} & names
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in calls:
        function = ast.unparse(call.func)
        assert function != "joblib.load"
        if function == "torch.load":
            assert "weights_only=True" in ast.unparse(call)
        if function == "np.load":
            assert "allow_pickle=False" in ast.unparse(call)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_storage_imports_modules_of_one_operating_system(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {"fcntl", "msvcrt", "resource", "pwd", "grp"} & imported_names(tree)
