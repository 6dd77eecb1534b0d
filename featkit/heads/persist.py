"""A head on disk, in skops' format: arrays and a list of types, no pickle, and so no code that runs on loading."""

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
"""Types a file may hold beyond numbers, texts, containers, NumPy arrays and scikit-learn's own
estimators, which skops trusts by itself. The classes that installed plug-ins name as heads are
trusted too."""


def save_head(head: Any, path: Path, trusted: Iterable[str] = ()) -> None:
    """Write a fitted head to ``path``, with the version of scikit-learn that fitted it.

    Args:
        head: the estimator.
        path: the file, ``*.skops``.
        trusted: full names of further types that the head of a plug-in holds.

    Raises:
        HeadError: if the head holds a type that ``load_head`` would refuse, or that cannot be
            written.
    """
    try:
        data = _skops().dumps({"scikit-learn": sklearn.__version__, "head": head})
    except Exception as error:  # whatever a plug-in's attributes raise
        raise HeadError(
            f"{_name(head)} cannot be written to {path} without pickle: {_line(error)}"
        ) from error
    refused = set(_skops().get_untrusted_types(data=data)) - _trusted(trusted)
    if refused:
        raise HeadError(f"{_name(head)} cannot be written to {path}: {_refused(refused)}")
    path.write_bytes(data)


def load_head(path: Path, trusted: Iterable[str] = ()) -> Any:
    """Read a head that ``save_head`` wrote; nothing in the file is executed.

    A file from another version of scikit-learn is read, and says so in the head's ``warnings_``.

    Args:
        path: the file.
        trusted: full names of further types that the head of a plug-in holds.

    Raises:
        HeadError: if the file is missing, damaged, foreign, or holds a type that is not trusted, or
            is a head whose options were others.
    """
    allowed = _trusted(trusted)
    head, version = _read(path, allowed)
    if _name(head) not in allowed:
        raise HeadError(f"{path} holds a {_name(head)}, which is not a head: fit it again")
    try:
        head.get_params()
    except AttributeError as error:
        raise HeadError(
            f"{path} was written by another version of featkit ({_line(error)}): fit it again"
        ) from error
    if version != sklearn.__version__:
        text = f"fitted with scikit-learn {version}, used with {sklearn.__version__}: predictions may differ"
        head.warnings_ = (*getattr(head, "warnings_", ()), text)
    return head


def _read(path: Path, allowed: set[str]) -> tuple[Any, str]:
    """Return what the file holds: a head, and the version of scikit-learn that fitted it."""
    try:
        data = path.read_bytes()
        refused = set(_skops().get_untrusted_types(data=data)) - allowed
        if not refused:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InconsistentVersionWarning)
                content = _skops().loads(data, trusted=sorted(allowed))
            return content["head"], content["scikit-learn"]
    except Exception as error:  # a damaged file can fail at any point of the format
        raise HeadError(
            f"{path} is not a head that featkit saved ({_line(error)}): fit it again"
        ) from error
    raise HeadError(f"{path} is not read: {_refused(refused)}")


@cache
def _skops() -> ModuleType:
    """Import ``skops.io`` without torch.

    skops asks scikit-learn for all its estimators, which walks over the adapters of other array
    libraries and so imports torch where that is installed: seconds, for nothing. A module that is
    None cannot be imported.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            # Where torch is there already, skops looks at every name in it, and some of them are deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            return import_module("skops.io")
    finally:
        if hidden:
            del sys.modules["torch"]


def _trusted(more: Iterable[str]) -> set[str]:
    """Return the fixed list, the classes of installed plug-ins (named, not imported), and what the caller adds."""
    return {
        *TRUSTED,
        *(point.value.replace(":", ".") for point in entry_points(group=HEADS.group)),
        *more,
    }


def _refused(types: Iterable[str]) -> str:
    return f"it holds {', '.join(sorted(types))}, not on featkit's list of trusted types"


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
