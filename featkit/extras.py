"""Optional dependencies: packages that ``pip install 'featkit[EXTRA]'`` adds."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from featkit.errors import MissingExtraError


def require(module: str, extra: str, package: str | None = None) -> Any:
    """Import an optional dependency and return the module.

    Args:
        module: dotted name of the module, such as ``pyarrow.parquet``.
        extra: the extra of featkit that installs it.
        package: name of the package on PyPI, where it differs from the module's.

    Raises:
        MissingExtraError: if it is not installed; the message names the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(package or module.partition(".")[0], extra) from error


def is_installed(module: str) -> bool:
    """Return whether an optional dependency can be imported, importing it if so."""
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def package_version(package: str) -> str:
    """Return the version of a package, ``unknown`` if none of that name is installed.

    A module may come from a package of another name, such as ``onnxruntime`` from
    ``onnxruntime-gpu``.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
