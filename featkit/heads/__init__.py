"""Classifiers on vectors, as scikit-learn estimators.

Importing this package costs no scikit-learn; that comes with the first head that is made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from featkit.errors import SpecError
from featkit.registry import Registry, Spec

__all__ = ["CORRECTIONS", "HEADS", "HeadRow", "describe_heads", "make_head"]

HEADS: Registry[Callable[..., Any]] = Registry(
    "head",
    "featkit.heads",
    own={
        "linear": "featkit.heads.linear:LinearHead",
        "svm": "featkit.heads.svm:SVMHead",
        "knn": "featkit.heads.knn:KNNHead",
        "mlp": "featkit.heads.mlp:MLPHead",
        "prototypical": "featkit.heads.prototypical:PrototypicalHead",
    },
)
"""Heads by name. A plug-in adds one with an entry point ``name = module:class`` in the group ``featkit.heads``."""

CORRECTIONS: Registry[Callable[..., Any]] = Registry(
    "correction",
    "featkit.corrections",
    own={
        "none": "featkit.heads.corrections:Correction",
        "reweight": "featkit.heads.corrections:Reweight",
        "effective": "featkit.heads.corrections:Effective",
        "oversample": "featkit.heads.corrections:Oversample",
        "undersample": "featkit.heads.corrections:Undersample",
        "class_aware": "featkit.heads.corrections:ClassAware",
        "smote": "featkit.heads.corrections:Smote",
        "logit_adjust": "featkit.heads.adjustments:LogitAdjust",
        "logit_adjust_loss": "featkit.heads.adjustments:LogitAdjustLoss",
        "balanced_softmax": "featkit.heads.adjustments:BalancedSoftmax",
        "tau_norm": "featkit.heads.adjustments:TauNorm",
        "crt": "featkit.heads.corrections:Retrain",
        "lws": "featkit.heads.adjustments:WeightScaling",
        "ncm": "featkit.heads.corrections:NearestMean",
    },
)
"""Corrections for imbalanced training data by name. A plug-in adds one, as a frozen dataclass that extends
``featkit.heads.corrections.Correction``, with an entry point in the group ``featkit.corrections``."""


@dataclass(frozen=True)
class HeadRow:
    """One head, as a table of heads shows it.

    Attributes:
        name: as in a spec.
        summary: first line of its documentation.
        options: what a spec can set, with the defaults.
    """

    name: str
    summary: str
    options: Mapping[str, Any]


def make_head(spec: str | Spec, seed: int | None = None) -> Any:
    """Return the unfitted head that a spec such as ``svm:C=9,kernel=rbf`` asks for.

    ``seed`` goes to a head that has such a parameter, unless the spec sets it.

    Raises:
        SpecError: if the name, an option or an option's value is unknown, listing the known ones.
    """
    spec = Spec.parse(spec) if isinstance(spec, str) else spec
    seeded = "seed" in inspect.signature(HEADS.get(spec.name)).parameters and "seed" not in spec.options
    head = HEADS.make(spec, **({"seed": seed} if seeded and seed is not None else {}))
    if hasattr(head, "_validate_params"):
        try:
            head._validate_params()
        except ValueError as error:
            raise SpecError(f"head {str(spec)!r}: {error}") from None
    return head


def describe_heads() -> list[HeadRow]:
    """Return every known head with its first line of documentation and its options, featkit's own first."""
    return [_row(name, HEADS.get(name)) for name in HEADS.names()]


def _row(name: str, factory: Callable[..., Any]) -> HeadRow:
    summary = (inspect.getdoc(factory) or "").partition("\n")[0]
    parameters = inspect.signature(factory).parameters.values()
    return HeadRow(name, summary, {parameter.name: parameter.default for parameter in parameters})
