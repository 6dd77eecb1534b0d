"""Results of studies as tables and figures: grids, long tails, robustness, compression."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featkit.errors import DataError
from featkit.plots.files import png_bytes
from featkit.plots.heatmap import plot_heatmap
from featkit.reports.pictures import pareto_plot
from featkit.storage import read_file, read_text
from featkit.studies.profile import read_profile

MAX_ROWS = 20_000
_MAX_BYTES = 2**26
_MAX_STUDIES = 200
_INTERVAL_ENDS = (("_low", "_high"), ("_interval95_low", "_interval95_high"))
_PLAIN_ENDS = {
    "top1": (("low", "high"), ("interval95_low", "interval95_high")),
    "balanced_accuracy": (("balanced_low", "balanced_high"),),
}
_FRACTIONS = {"top5", "macro_f1", "many", "medium", "few", "val_score", "val_balanced_accuracy"}
"""Values without intervals that are shown in percent too."""
_NOT_FRACTIONS = {"mce", "cosine"}
"""Values with intervals that are not shown in percent."""


@dataclass(frozen=True)
class Study:
    """A folder with results.

    Attributes:
        name: of the folder, below the one that was named.
        folder: the folder.
        tables: CSV files.
        figures: PNG files.
        report: the HTML report; None without one.
    """

    name: str
    folder: Path
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    report: Path | None


def find_studies(folders: Sequence[Path]) -> list[Study]:
    """Return the folders with results, of those that were named and the folders in them."""
    found: dict[Path, Study] = {}
    for root in folders:
        for folder in [root, *sorted(path for path in root.glob("*") if path.is_dir())]:
            tables = tuple(sorted(folder.glob("*.csv")))
            report = folder / "report.html"
            is_run = (folder / "card.json").exists()
            if folder in found or is_run or not (tables or report.exists()):
                continue
            found[folder] = Study(
                name=folder.name,
                folder=folder,
                tables=tables,
                figures=tuple(sorted(folder.glob("*.png"))),
                report=report if report.exists() else None,
            )
    return list(found.values())[:_MAX_STUDIES]


@dataclass(frozen=True)
class ResultTable:
    """A table of results.

    Attributes:
        rows: values by column; numbers are floats, missing ones None.
        constant: columns that have the same value in all rows, with that value.
        intervals: for each column with a confidence interval the columns of its ends.
    """

    rows: tuple[dict[str, Any], ...]
    constant: Mapping[str, Any]
    intervals: Mapping[str, tuple[str, str]]

    @property
    def columns(self) -> list[str]:
        """Columns that differ between rows, without the ends of intervals."""
        ends = {end for pair in self.intervals.values() for end in pair}
        return [name for name in self.rows[0] if name not in ends and name not in self.constant]


def read_table(path: Path) -> ResultTable:
    """Read a CSV file of results.

    Raises:
        DataError: if it cannot be read, is not a table, or has too many rows.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, _MAX_BYTES)), strict=True)
        rows = [{str(k): _value(v) for k, v in row.items()} for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as a table ({error}): run the study again"
        ) from error
    if not rows:
        raise DataError(f"{path} has no rows: run the study again")
    if len(rows) > MAX_ROWS:
        raise DataError(f"{path} has more than {MAX_ROWS:,} rows: open it with another program")
    constant = {}
    for name in rows[0]:
        values = {str(row.get(name)) for row in rows}
        if len(values) == 1 and len(rows) > 1:
            constant[name] = rows[0][name]
    return ResultTable(tuple(rows), constant, _intervals(list(rows[0])))


def _value(text: object) -> Any:
    """Return a number where the text is one, None where it is empty."""
    if text is None or text == "" or not isinstance(text, str):
        return None
    try:
        number = float(text)
    except ValueError:
        return text.removeprefix("'")
    return number if np.isfinite(number) else None


def _intervals(columns: Sequence[str]) -> dict[str, tuple[str, str]]:
    found = {}
    for name in columns:
        pairs = [(name + low, name + high) for low, high in _INTERVAL_ENDS]
        for pair in [*pairs, *_PLAIN_ENDS.get(name, ())]:
            if set(pair) <= set(columns):
                found[name] = pair
                break
    return found


def display_rows(table: ResultTable) -> tuple[list[dict[str, Any]], list[str]]:
    """Return rows to show, and the names of the columns in percent.

    Each value with an interval is followed by its interval as text.
    """
    fractions = _FRACTIONS | (table.intervals.keys() - _NOT_FRACTIONS)
    in_percent = [name for name in table.columns if name in fractions]
    shown = []
    for row in table.rows:
        cells: dict[str, Any] = {}
        for name in table.columns:
            scale = 100 if name in in_percent else 1
            value = row[name]
            is_number = isinstance(value, float)
            cells[name] = scale * value if is_number else value
            if name in table.intervals:
                cells[f"{name} 95% CI"] = _interval_text(row, table.intervals[name], scale)
        shown.append(cells)
    return shown, in_percent


def _interval_text(row: Mapping[str, Any], ends: tuple[str, str], scale: int) -> str:
    low, high = row[ends[0]], row[ends[1]]
    if not isinstance(low, float) or not isinstance(high, float):
        return ""
    digits = 1 if scale == 100 else 3
    return f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"


def pareto_png(path: Path) -> bytes | None:
    """Draw accuracy over latency of a CSV file of ``featkit profile``; None for other files."""
    try:
        networks = read_profile(path)
    except DataError:
        return None
    return png_bytes(pareto_plot(networks).figure)


def heat_map_png(table: ResultTable, title: str) -> bytes | None:
    """Draw top-1 accuracy by head and by data and network; None where a cell has several rows."""
    axes = [name for name in ("data", "backbone", "layer", "subset") if name in table.columns]
    if "head" not in table.columns or "top1" not in table.intervals or not axes:
        return None
    low, high = table.intervals["top1"]
    cells: dict[tuple[str, str], tuple[float, float, float]] = {}
    for row in table.rows:
        names = [Path(str(row[axis])).name for axis in axes]
        key = (" ".join(names), str(row["head"]))
        values = (row["top1"], row[low], row[high])
        if key in cells or not all(isinstance(value, float) for value in values):
            return None
        cells[key] = values
    across = list(dict.fromkeys(head for _, head in cells))
    down = list(dict.fromkeys(name for name, _ in cells))
    means = np.full((len(down), len(across)), np.nan)
    ends = np.full((*means.shape, 2), np.nan)
    for (name, head), (value, bottom, top) in cells.items():
        place = down.index(name), across.index(head)
        means[place], ends[place] = value, (bottom, top)
    figure = plot_heatmap(means, down, across, title=title, label="top-1 accuracy", intervals=ends)
    return png_bytes(figure)


def read_figure(path: Path) -> bytes:
    """Return the bytes of a figure of a study.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        return read_file(path, _MAX_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
