"""Validation of the fitted attributes of a head that was read from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.errors import FeatkitError, HeadError
from featkit.heads import HEADS
from featkit.heads.balance import BalancedHead
from featkit.heads.base import Head
from featkit.heads.knn import KNNHead
from featkit.heads.linear import LinearHead
from featkit.heads.mlp import MLPHead
from featkit.heads.multilabel import MultiLabelHead
from featkit.heads.prototypical import PrototypicalHead
from featkit.heads.svm import SVMHead
from featkit.registry import Spec

_COMMON = {"classes_", "n_features_in_", "feature_names_in_", "warnings_"}
_OPTIONAL = {"feature_names_in_", "calibration_"}

Shapes = Mapping[str, tuple[int, ...]]


class _InvalidHeadError(ValueError):
    """A fitted attribute that no ``fit`` could have set."""


def check_fitted_head(head: Any) -> None:
    """Check parameters, attributes, types, shapes and ranges of a built-in head.

    Heads of other types, such as those of plug-ins, are not checked.

    Raises:
        HeadError: if an attribute is missing, unknown or invalid.
    """
    try:
        if type(head) is BalancedHead:
            _check_balanced(head)
        elif type(head) is MultiLabelHead:
            _check_multilabel(head)
        elif type(head) in _SHAPES:
            _check_head(head)
    except (FeatkitError, ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise HeadError(f"{type(head).__name__} is not a valid fitted head: {reason}") from error


def _check_balanced(head: BalancedHead) -> None:
    _check_names(head, {*_COMMON, "head_"})
    head._validate_params()
    _check_common(head)
    inner = head.head_
    if isinstance(inner, Head) and type(inner) in _SHAPES:
        _check_head(inner)
    if not np.array_equal(inner.classes_, head.classes_):
        raise _InvalidHeadError("classes_ differ from those of head_")
    if inner.n_features_in_ != head.n_features_in_:
        raise _InvalidHeadError("n_features_in_ differs from that of head_")


def _check_multilabel(head: MultiLabelHead) -> None:
    _check_names(head, {*_COMMON, "heads_", "label_sets_"})
    head._validate_params()
    _check_common(head)
    k, sets = len(head.classes_), head.label_sets_
    if not np.array_equal(head.classes_, np.arange(k)):
        raise _InvalidHeadError("classes_ must be the numbers of the labels")
    _check_label_sets(sets, k)
    name = Spec.parse(head.head).name
    single = {"linear": k, "mlp": k, "knn": len(sets)}
    expected = [single[name]] if name in single else [2] * k
    if not isinstance(head.heads_, list) or len(head.heads_) != len(expected):
        raise _InvalidHeadError(f"heads_ must be a list of {len(expected)} heads")
    for inner, classes in zip(head.heads_, expected, strict=True):
        if type(inner) is not HEADS.get(name):
            raise _InvalidHeadError(f"heads_ must be of type {name}")
        _check_inner(inner, classes, head.n_features_in_)


def _check_label_sets(sets: Any, k: int) -> None:
    if not (isinstance(sets, np.ndarray) and sets.dtype == np.uint8 and sets.ndim == 2):
        raise _InvalidHeadError("label_sets_ must be an array (s, k) of zeros and ones")
    if sets.shape[1] != k or not np.isin(sets, (0, 1)).all():
        raise _InvalidHeadError(f"label_sets_ must be zeros and ones for {k} labels")


def _check_inner(inner: Any, classes: int, features: int) -> None:
    """Check one of the heads of several labels, with classes 0..classes-1."""
    if type(inner) in _SHAPES:
        _check_head(inner)
    if not np.array_equal(inner.classes_, np.arange(classes)):
        raise _InvalidHeadError("classes_ differ from those of heads_")
    if inner.n_features_in_ != features:
        raise _InvalidHeadError("n_features_in_ differs from that of heads_")


def _check_head(head: Any) -> None:
    head._validate_params()
    _check_common(head)
    shapes = {**_scaling_shapes(head), **_SHAPES[type(head)](head)}
    integers = _INTEGERS.get(type(head), ())
    if isinstance(head, SVMHead) and "coef_" in vars(head):
        integers = ()
    _check_names(head, {*_COMMON, *shapes, *integers, *_SCALARS.get(type(head), ())})
    for name, shape in shapes.items():
        if name in vars(head):
            _check_array(name, getattr(head, name), shape)
    if not (head.spread_ > 0).all():
        raise _InvalidHeadError("spread_ must be positive")
    for name in _SCALARS.get(type(head), ()):
        _check_number(name, getattr(head, name))


def _check_names(head: Any, fitted: set[str]) -> None:
    """Check that all attributes are there, and that no other one hides a method."""
    expected = fitted | set(head.get_params(deep=False))
    for name in sorted(set(vars(head)) - expected):
        if hasattr(type(head), name):
            raise _InvalidHeadError(f"attribute {name!r} hides a method")
    if missing := sorted(expected - _OPTIONAL - set(vars(head))):
        raise _InvalidHeadError(f"attribute {missing[0]!r} is missing")


def _check_common(head: Any) -> None:
    classes, warnings = head.classes_, head.warnings_
    if not (
        isinstance(classes, np.ndarray) and classes.ndim == 1 and classes.dtype.kind in "biufUO"
    ):
        raise _InvalidHeadError("classes_ must be an array (k,) of labels")
    if classes.dtype.kind == "O" and not all(isinstance(label, str) for label in classes):
        raise _InvalidHeadError("classes_ must be numbers or texts")
    if len(classes) < 2 or not (classes[:-1] < classes[1:]).all():
        raise _InvalidHeadError("classes_ must be two or more sorted labels")
    d = head.n_features_in_
    if isinstance(d, bool) or not isinstance(d, int) or d < 1:
        raise _InvalidHeadError("n_features_in_ must be a positive number")
    if not isinstance(warnings, tuple | list) or not all(
        isinstance(each, str) for each in warnings
    ):
        raise _InvalidHeadError("warnings_ must be texts")


def _check_array(name: str, values: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(values, np.ndarray) or values.shape != shape:
        found = getattr(values, "shape", type(values).__name__)
        raise _InvalidHeadError(f"{name} is {found} instead of an array {shape}")
    if values.dtype not in (np.float32, np.float64) or not np.isfinite(values).all():
        raise _InvalidHeadError(f"{name} must hold finite floating-point numbers")


def _check_integers(name: str, values: Any, shape: tuple[int, ...], below: int) -> NDArray[Any]:
    """Return an integer array of the given shape with values in ``[0, below)``."""
    if not isinstance(values, np.ndarray) or values.shape != shape or values.dtype.kind != "i":
        raise _InvalidHeadError(f"{name} must be an array {shape} of integers")
    if len(values) and (values.min() < 0 or values.max() >= below):
        raise _InvalidHeadError(f"{name} must be in 0..{below - 1}")
    return values


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise _InvalidHeadError(f"{name} must be a number")
    if not np.isfinite(value) or value < 0:
        raise _InvalidHeadError(f"{name} must be a finite number of at least 0")


def _scaling_shapes(head: Any) -> Shapes:
    d = head.n_features_in_
    return {"centre_": (d,), "spread_": (d,)}


def _logit_count(head: Any) -> int:
    """Return the number of rows of a linear layer: a single one may stand for two classes."""
    k = len(head.classes_)
    return 1 if k == 2 and np.shape(head.intercept_) == (1,) else k


def _linear_shapes(head: LinearHead) -> Shapes:
    rows = _logit_count(head)
    return {"coef_": (rows, head.n_features_in_), "intercept_": (rows,)}


def _prototypical_shapes(head: PrototypicalHead) -> Shapes:
    shape = (len(head.classes_), head.n_features_in_)
    return {"prototypes_": shape, "coef_": shape, "intercept_": shape[:1]}


def _mlp_shapes(head: MLPHead) -> Shapes:
    d, width, k = head.n_features_in_, head.width, _logit_count(head)
    return {
        "hidden_coef_": (d, width),
        "hidden_intercept_": (width,),
        "coef_": (width, k),
        "intercept_": (k,),
    }


def _knn_shapes(head: KNNHead) -> Shapes:
    n, k = len(head.rows_), len(head.classes_)
    codes = _check_integers("codes_", head.codes_, (n,), k)
    if n < head.k or len(np.unique(codes)) < k:
        raise _InvalidHeadError(f"rows_ must hold {head.k} training images or more, of every class")
    return {"rows_": (n, head.n_features_in_)}


def _svm_shapes(head: SVMHead) -> Shapes:
    k, s = len(head.classes_), len(head.support_vectors_)
    vectors = {"support_vectors_": (s, head.n_features_in_), "calibration_": (1,)}
    if "coef_" in vars(head):  # approximate
        return {**vectors, "coef_": (k, s), "intercept_": (k,)}
    counts = _check_integers("n_support_", head.n_support_, (k,), s + 1)
    if counts.sum() != s:
        raise _InvalidHeadError("n_support_ must sum to the number of support_vectors_")
    return {
        **vectors,
        "dual_coef_": (k - 1, s),
        "intercept_": (k * (k - 1) // 2,),
    }


_SHAPES: dict[type, Any] = {
    KNNHead: _knn_shapes,
    LinearHead: _linear_shapes,
    MLPHead: _mlp_shapes,
    PrototypicalHead: _prototypical_shapes,
    SVMHead: _svm_shapes,
}
_INTEGERS: dict[type, tuple[str, ...]] = {KNNHead: ("codes_",), SVMHead: ("n_support_",)}
_SCALARS: dict[type, tuple[str, ...]] = {LinearHead: ("n_iter_",), SVMHead: ("gamma_",)}
