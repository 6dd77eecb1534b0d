"""A head with a correction for imbalanced training data."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields
from itertools import product
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval

from featkit.errors import HeadError
from featkit.heads import CORRECTIONS, make_head
from featkit.heads.base import Floats, Head, Trial
from featkit.heads.corrections import Correction
from featkit.registry import Spec


class InapplicableError(HeadError):
    """A correction that needs what the head has not."""


class BalancedHead(Head):
    """A head with a correction for classes of unequal size.

    Parameters
    ----------
    head : str, default="linear"
        The head that is corrected, as a spec such as ``svm:C=9``.
    correction : str, default="none"
        The correction, as a spec such as ``logit_adjust:tau=1.5``; one of ``CORRECTIONS``. ``logit-adjust`` is read
        as ``logit_adjust``.
    seed : int, default=0
        Decides which rows are drawn, and whatever the head decides by chance.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Labels seen in ``fit``, sorted; the columns of the scores.
    head_ : estimator
        The fitted head, corrected.
    warnings_ : tuple of str
        Those of the fitted head.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "head": [str],
        "correction": [str],
        "seed": [Interval(Integral, 0, 2**32 - 1, closed="both")],
    }

    def __init__(self, *, head: str = "linear", correction: str = "none", seed: int = 0) -> None:
        self.head = head
        self.correction = correction
        self.seed = seed

    def fit(self, X: Any, y: Any) -> BalancedHead:
        """Fit on rows ``(n, d)`` with labels ``(n,)``.

        Raises:
            SpecError: if the head, the correction or an option of them is unknown.
            InapplicableError: if the correction does not apply to the head.
        """
        rows, codes = self._begin(X, y)
        correction = _correction(_spec(self.correction))
        self.head_ = correction.fit(make_head(self.head, seed=self.seed), rows, self.classes_[codes], self.seed)
        self.warnings_ = tuple(getattr(self.head_, "warnings_", ()))
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the scores ``(n, k)``: columns as in ``classes_``, rows that sum to 1."""
        rows = self._rows(X)
        return np.asarray(self.head_.predict_proba(rows), np.float64)

    def trials(self, x: Floats, y: NDArray[Any], x_val: Floats) -> Iterator[Trial]:
        """Yield the scores on ``x_val (m, d)`` for every value tried of the correction's options.

        Options that ``correction`` sets stay as they are. A head that is only adjusted is fitted once, on ``x (n, d)``
        with labels ``y (n,)``.
        """
        self._validate_params()
        trained = None
        for spec in _variants(_spec(self.correction)):
            correction = _correction(spec)
            if trained is None or type(correction).train is not Correction.train:
                trained = correction.train(make_head(self.head, seed=self.seed), x, y, self.seed)
            fitted = correction.adjust(deepcopy(trained), x, y)
            yield Trial({"head": self.head, "correction": str(spec)}, fitted.predict_proba(x_val))

    def _validate_params(self) -> None:
        super()._validate_params()
        head, correction = make_head(self.head), _correction(_spec(self.correction))
        if not correction.applies(head):
            raise InapplicableError(
                f"correction {self.correction} does not apply to head {self.head}: it takes {correction.takes}"
            )


def _spec(text: str) -> Spec:
    """Read a correction; on a command line, a hyphen is what people write."""
    name, colon, options = text.partition(":")
    return Spec.parse(name.replace("-", "_") + colon + options)


def _correction(spec: Spec) -> Correction:
    made: Correction = CORRECTIONS.make(spec)
    return made


def _variants(spec: Spec) -> Iterator[Spec]:
    """Yield the spec with every combination of values tried for the options that it leaves open."""
    open_fields = [field for field in fields(_correction(spec)) if field.name not in spec.options]
    names = [field.name for field in open_fields if "tried" in field.metadata]
    tried = [field.metadata["tried"] for field in open_fields if "tried" in field.metadata]
    for values in product(*tried):
        yield Spec(spec.name, None, {**spec.options, **dict(zip(names, values, strict=True))})
