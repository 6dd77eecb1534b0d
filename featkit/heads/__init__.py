"""Classifiers on feature vectors, as scikit-learn estimators.

Importing this package does not import scikit-learn; creating the first head does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from featkit.arguments import SEED, checked, one_of, text
from featkit.errors import SpecError
from featkit.registry import Registry, Spec, signature_of

__all__ = [
    "BUILTIN_HEADS",
    "CORRECTIONS",
    "CORRECTION_ALIASES",
    "HEADS",
    "CorrectionInfo",
    "HeadInfo",
    "list_corrections",
    "list_heads",
    "make_head",
    "parse_correction",
]

BUILTIN_HEADS = {
    "linear": "featkit.heads.linear:LinearHead",
    "svm": "featkit.heads.svm:SVMHead",
    "knn": "featkit.heads.knn:KNNHead",
    "mlp": "featkit.heads.mlp:MLPHead",
    "prototypical": "featkit.heads.prototypical:PrototypicalHead",
}

HEADS: Registry[Callable[..., Any]] = Registry("head", "featkit.heads", own=BUILTIN_HEADS)
"""Heads by name. A plug-in adds one with an entry point ``name = module:class`` in the group
``featkit.heads``."""

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
        "logit_adjust": "featkit.heads.corrections:LogitAdjust",
        "logit_adjust_loss": "featkit.heads.corrections:LogitAdjustLoss",
        "balanced_softmax": "featkit.heads.corrections:BalancedSoftmax",
        "tau_norm": "featkit.heads.corrections:TauNorm",
        "lws": "featkit.heads.corrections:WeightScaling",
        "ncm": "featkit.heads.corrections:NearestMean",
    },
)
"""Corrections of class imbalance by name. A plug-in adds one, a frozen dataclass that extends
``featkit.heads.corrections.Correction``, with an entry point in the group
``featkit.corrections``."""

CORRECTION_ALIASES = {"crt": "class_aware", "resample": "oversample"}
"""Other names of corrections. "Re-sampling" is what papers call oversampling. Classifier
re-training (cRT) fixes the features and trains the classifier again on class-balanced samples; the
features of a head are always fixed, and so it is class-aware sampling."""


@dataclass(frozen=True)
class HeadInfo:
    """Name and documentation of a head.

    Attributes:
        name: as in a spec.
        summary: first line of the docstring.
        options: parameters that a spec can set, with their defaults.
        builtin: whether the head is part of featkit, and not of a plug-in.
    """

    name: str
    summary: str
    options: Mapping[str, Any]
    builtin: bool


@dataclass(frozen=True)
class CorrectionInfo:
    """Name and documentation of a correction of class imbalance.

    Attributes:
        name: as in a spec.
        summary: first line of the docstring.
        options: options that a spec can set, with their defaults.
        aliases: other names.
    """

    name: str
    summary: str
    options: Mapping[str, Any]
    aliases: tuple[str, ...]


@checked(spec=one_of(text("svm:C=9"), Spec), seed=SEED)
def make_head(spec: str | Spec, seed: int | None = None) -> Any:
    """Create the unfitted head that a spec such as ``svm:C=9,kernel=rbf`` describes.

    Args:
        spec: name and options.
        seed: passed to heads that have a ``seed`` parameter, unless the spec sets it.

    Raises:
        SpecError: if the name, an option or the value of an option is invalid, with the valid ones.
    """
    spec = Spec.parse(spec) if isinstance(spec, str) else spec
    given: dict[str, Any] = {}
    has_seed = "seed" in signature_of(HEADS.get(spec.name)).parameters
    if has_seed and seed is not None and "seed" not in spec.options:
        given["seed"] = seed
    head = HEADS.make(spec, **given)
    # Estimators without constraints, which scikit-learn does not ask for, cannot be validated.
    if hasattr(head, "_validate_params") and hasattr(head, "_parameter_constraints"):
        try:
            head._validate_params()
        except ValueError as error:
            raise SpecError(f"head {str(spec)!r}: {error}") from None
    return head


def parse_correction(text: str) -> Spec:
    """Parse the spec of a correction such as ``logit_adjust:tau=1.5``.

    Hyphens and underscores in the name are equivalent, and aliases such as ``crt`` are replaced by
    their names.

    Raises:
        SpecError: if the text is not a spec. Unknown names are not checked here.
    """
    spec = Spec.parse(text)
    name = spec.name.replace("-", "_")
    name = CORRECTION_ALIASES.get(name, name)
    known = {each.replace("-", "_"): each for each in CORRECTIONS.names()}
    return replace(spec, name=known.get(name, spec.name))


def list_heads() -> list[HeadInfo]:
    """List all heads, built-in ones first, then those of installed plug-ins.

    Raises:
        SpecError: if a plug-in cannot be imported.
    """
    heads = []
    for name in HEADS.names():
        summary, options = _describe(HEADS.get(name))
        heads.append(HeadInfo(name, summary, options, builtin=name in BUILTIN_HEADS))
    return heads


def list_corrections() -> list[CorrectionInfo]:
    """List all corrections of class imbalance, built-in ones first.

    Raises:
        SpecError: if a plug-in cannot be imported.
    """
    corrections = []
    for name in CORRECTIONS.names():
        summary, options = _describe(CORRECTIONS.get(name))
        aliases = tuple(alias for alias, target in CORRECTION_ALIASES.items() if target == name)
        corrections.append(CorrectionInfo(name, summary, options, aliases))
    return corrections


def _describe(factory: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """Return the first line of the docstring, and the parameters with their defaults."""
    summary = (inspect.getdoc(factory) or "").partition("\n")[0]
    parameters = inspect.signature(factory).parameters.values()
    return summary, {parameter.name: parameter.default for parameter in parameters}
