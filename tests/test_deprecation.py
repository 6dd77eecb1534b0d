"""Old names are understood, with a warning that says what to use."""

from __future__ import annotations

import pytest

from featkit.deprecation import FeatkitDeprecationWarning
from featkit.runs.predict import Prediction


@pytest.mark.parametrize(
    ("old", "new"), [("file", "path"), ("unknown", "rejected")], ids=["file", "unknown"]
)
def test_old_attributes_of_predictions_are_understood(old, new):
    prediction = Prediction("new.jpg", (("cat", 0.4),), rejected=True)
    with pytest.warns(
        FeatkitDeprecationWarning, match=rf"Prediction\.{old} is .*Prediction\.{new}"
    ) as found:
        value = getattr(prediction, old)
    assert value == getattr(prediction, new)
    assert found[0].filename == __file__  # the line of the caller is shown
