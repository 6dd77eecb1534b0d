"""Read a cost matrix from a CSV file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featkit.errors import DataError, first_names
from featkit.evaluation.costs import CostMatrix
from featkit.images.names import normal_form
from featkit.storage import read_csv, without_apostrophe


@dataclass(frozen=True)
class CostTable:
    """The content of a file of costs.

    Attributes:
        path: the file.
        classes: names of the predicted classes, in the order of the columns.
        lines: line number and costs of each true class.
    """

    path: Path
    classes: tuple[str, ...]
    lines: Mapping[str, tuple[int, tuple[float, ...]]]

    def matrix(self, classes: Sequence[str]) -> CostMatrix:
        """Return the costs in the order of ``classes``.

        Raises:
            DataError: if the file has another class, or lacks one of them.
        """
        for name, (line, _) in self.lines.items():
            if name not in classes:
                raise DataError(
                    f"line {line} of {self.path}: {name!r} is not a class of the data "
                    f"({first_names(classes)}): remove its row and column, or correct the name"
                )
        missing = [name for name in classes if name not in self.lines]
        if missing:
            raise DataError(
                f"{self.path} has no row and column for {len(missing)} of the {len(classes)} "
                f"classes of the data ({first_names(missing)}): add them"
            )
        place = {name: column for column, name in enumerate(self.classes)}
        rows = []
        for name in classes:
            _, costs = self.lines[name]
            rows.append(tuple(costs[place[column]] for column in classes))
        return CostMatrix(tuple(rows), str(self.path.resolve()))


def read_costs(path: Path) -> CostTable:
    """Read the cost of each predicted class (columns) for each true class (rows).

    The header and the first column hold the same class names, in any order; the first cell of the
    header is ignored. Costs are numbers of 0 or more in any unit.

    Args:
        path: a CSV file in UTF-8.

    Raises:
        DataError: naming file and line, if the file cannot be read, a class occurs twice or in rows
            or columns only, or a cost is not a number of 0 or more, or all costs are equal.
    """
    header: list[str] = []

    def columns(names: Sequence[str]) -> list[str]:
        header.extend(normal_form(without_apostrophe(name)) for name in names)
        return [f"{place}" for place in range(len(names))]

    rows = read_csv(path, columns)
    classes = tuple(header[1:])
    if len(classes) < 2:
        raise DataError(
            f"line 1 of {path} names {len(classes)} classes: a cost matrix has a header with the "
            "predicted classes, and a row for each true class that begins with its name"
        )
    _check_names(path, classes)
    lines = _rows(path, classes, rows)
    missing = [name for name in classes if name not in lines]
    if missing:
        raise DataError(
            f"{path} has {len(classes)} columns and {len(lines)} rows: add a row for "
            f"{first_names(missing)}"
        )
    if len({cost for _, costs in lines.values() for cost in costs}) == 1:
        raise DataError(
            f"all costs in {path} are equal, so that no answer is better than another: make those "
            "of the right classes, on the diagonal, smaller"
        )
    return CostTable(path, classes, lines)


def _rows(
    path: Path, classes: Sequence[str], rows: Sequence[tuple[int, Mapping[str, str]]]
) -> dict[str, tuple[int, tuple[float, ...]]]:
    """Return line number and costs of each true class; raises DataError."""
    lines: dict[str, tuple[int, tuple[float, ...]]] = {}
    for line, row in rows:
        name = normal_form(without_apostrophe(row["0"]))
        if name in lines:
            raise DataError(f"line {line} of {path}: {name!r} has a row already: keep one")
        if name not in classes:
            raise DataError(
                f"line {line} of {path}: {name!r} is not a class of the header "
                f"({first_names(classes)}): rows and columns must have the same classes"
            )
        cells = [row[f"{place}"] for place in range(1, len(classes) + 1)]
        lines[name] = line, _costs(f"line {line} of {path}", classes, cells)
    return lines


def _check_names(path: Path, classes: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in classes:
        if not name or name in seen:
            problem = f"names {name!r} twice" if name else "has a column without a name"
            raise DataError(f"line 1 of {path} {problem}: give each class one column")
        seen.add(name)


def _costs(where: str, classes: Sequence[str], cells: Sequence[str]) -> tuple[float, ...]:
    costs = []
    for name, cell in zip(classes, cells, strict=True):
        try:
            cost = float(cell)
        except ValueError:
            cost = math.nan
        if not 0 <= cost < math.inf:
            raise DataError(
                f"{where}: the cost {cell!r} in column {name!r} is not a number of 0 or more"
            )
        costs.append(cost)
    return tuple(costs)
