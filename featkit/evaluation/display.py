"""Tables of results for notebooks: HTML and pandas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from featkit.errors import FeatkitError
from featkit.storage import column_names


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as an HTML table; columns are the keys of all rows, in their first order."""
    columns = column_names(rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = []
    for row in rows:
        cells = "".join(f"<td>{escape(_text(row.get(name)))}</td>" for name in columns)
        body.append(f"<tr>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def data_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return rows as a ``pandas.DataFrame``.

    Raises:
        FeatkitError: if pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise FeatkitError("to_frame() needs pandas: pip install pandas") from error
    return pandas.DataFrame([dict(row) for row in rows], columns=column_names(rows))


class PredictionTable:
    """Base of runs, which have a row for each image."""

    def prediction_rows(self) -> list[dict[str, Any]]:
        """Return one row per image, by the name of the column."""
        raise NotImplementedError

    def to_frame(self) -> Any:
        """Return the predictions as a ``pandas.DataFrame``, one row per test image.

        Raises:
            FeatkitError: if pandas is not installed.
        """
        return data_frame(self.prediction_rows())


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple | list) and all(isinstance(part, float) for part in value):
        return " to ".join(f"{part:.4g}" for part in value)
    return str(value)
