"""Saving and loading of heads in the skops format, which stores no pickle and executes no code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import sklearn
from sklearn.exceptions import InconsistentVersionWarning

from featkit.errors import HeadError
from featkit.heads import HEADS

TRUSTED = (
    "featkit.heads.balance.BalancedHead",
    "featkit.heads.knn.KNNHead",
    "featkit.heads.linear.LinearHead",
    "featkit.heads.mlp.MLPHead",
    "featkit.heads.prototypical.PrototypicalHead",
    "featkit.heads.svm.SVMHead",
)
"""Types that a file may contain, besides those that skops trusts by itself: data types of Python
and NumPy, and the estimators of scikit-learn. Head classes of installed plug-ins are trusted too.

Files name these classes by module, so that a class that moves must stay importable by its old name.
"""


def save_head(head: Any, path: Path, trusted: Iterable[str] = ()) -> None:
    """Save a fitted head and the version of scikit-learn that fitted it.

    Args:
        head: the estimator.
        path: the file, ``*.skops``.
        trusted: full names of additional types, for heads of plug-ins.

    Raises:
        HeadError: if the head cannot be stored without pickle, or contains a type that
            ``load_head`` would not trust.
    """
    try:
        data = _skops().dumps({"scikit-learn": sklearn.__version__, "head": head})
    except Exception as error:  # attributes of a plug-in may raise anything
        raise HeadError(
            f"{_type_name(head)} cannot be saved to {path} without pickle: {_first_line(error)}"
        ) from error
    untrusted = set(_skops().get_untrusted_types(data=data)) - _trusted_types(trusted)
    if untrusted:
        raise HeadError(f"{_type_name(head)} cannot be saved to {path}: {_describe(untrusted)}")
    path.write_bytes(data)


def load_head(path: Path, trusted: Iterable[str] = ()) -> Any:
    """Load a head that ``save_head`` saved, without executing code from the file.

    If another version of scikit-learn fitted the head, a note is added to its ``warnings_``.

    Args:
        path: the file.
        trusted: full names of additional types, for heads of plug-ins.

    Raises:
        HeadError: if the file is missing or damaged, is not a head, contains a type that is not
            trusted, or was saved by a version of featkit whose heads had other parameters.
    """
    allowed = _trusted_types(trusted)
    head, version = _read(path, allowed)
    if _type_name(head) not in allowed:
        raise HeadError(f"{path} contains a {_type_name(head)}, which is not a head: fit it again")
    try:
        head.get_params()
    except AttributeError as error:
        raise HeadError(
            f"{path} was saved by another version of featkit ({_first_line(error)}): fit it again"
        ) from error
    if version != sklearn.__version__:
        note = (
            f"fitted with scikit-learn {version}, used with {sklearn.__version__}: "
            "predictions may differ"
        )
        head.warnings_ = (*getattr(head, "warnings_", ()), note)
    return head


def _read(path: Path, allowed: set[str]) -> tuple[Any, str]:
    """Return the head in a file, and the version of scikit-learn that fitted it."""
    try:
        data = path.read_bytes()
        untrusted = set(_skops().get_untrusted_types(data=data)) - allowed
        if not untrusted:
            with warnings.catch_warnings():
                # load_head reports the version itself.
                warnings.simplefilter("ignore", InconsistentVersionWarning)
                content = _skops().loads(data, trusted=sorted(allowed))
            return content["head"], content["scikit-learn"]
    except Exception as error:  # a damaged file can raise anything
        raise HeadError(
            f"{path} is not a head saved by featkit ({_first_line(error)}): fit it again"
        ) from error
    raise HeadError(f"{path} was not loaded: {_describe(untrusted)}")


@cache
def _skops() -> ModuleType:
    """Import ``skops.io`` without importing torch.

    skops lists all estimators of scikit-learn, which imports its adapters of other array libraries
    and with them torch, where it is installed. That takes seconds and is not needed. ``None`` in
    ``sys.modules`` makes an import fail.
    """
    hide_torch = "torch" not in sys.modules
    if hide_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            # If torch is imported already, skops accesses all its attributes, also deprecated ones.
            warnings.simplefilter("ignore", FutureWarning)
            return import_module("skops.io")
    finally:
        if hide_torch:
            del sys.modules["torch"]


def _trusted_types(additional: Iterable[str]) -> set[str]:
    """Return ``TRUSTED``, the heads of installed plug-ins (not imported), and ``additional``."""
    plugins = {point.value.replace(":", ".") for point in entry_points(group=HEADS.group)}
    return {*TRUSTED, *plugins, *additional}


def _describe(untrusted: Iterable[str]) -> str:
    return f"it contains types that featkit does not trust: {', '.join(sorted(untrusted))}"


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
