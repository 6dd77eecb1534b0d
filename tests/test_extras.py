"""Optional dependencies: a missing one is an error that names its extra."""

from __future__ import annotations

import json
import sys

import pytest

from featkit.errors import MissingExtraError
from featkit.extras import is_installed, require


def test_an_installed_module_is_returned():
    assert require("json", "some") is json
    assert is_installed("json")


def test_a_missing_module_names_its_package_and_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    assert not is_installed("hdf5plugin")
    with pytest.raises(MissingExtraError, match=r"hdf5plugin .*featkit\[zstd\]"):
        require("hdf5plugin", "zstd")
    with pytest.raises(MissingExtraError, match=r"plugin-package .*featkit\[zstd\]"):
        require("hdf5plugin.filters", "zstd", "plugin-package")
