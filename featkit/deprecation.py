"""Names that were changed: the old one goes on for two minor versions, with a warning."""

from __future__ import annotations

import warnings


class FeatkitDeprecationWarning(FutureWarning):
    """A name of the public Python interface that will be removed.

    It derives from FutureWarning, which Python shows to users of a program, not to its developers
    only, as scikit-learn does.
    """


def warn_deprecated(old: str, new: str, *, since: str, removed: str) -> None:
    """Warn the caller of a public function or property that it has a new name.

    Args:
        old: name that is still understood.
        new: what to use in its place.
        since: version that introduced the new name.
        removed: version without the old name.
    """
    warnings.warn(
        f"{old} is deprecated since version {since} and will be removed in {removed}: use {new}",
        FeatkitDeprecationWarning,
        stacklevel=3,
    )
