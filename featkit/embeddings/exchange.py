"""Export and import of features as CSV, NumPy npz and Parquet files."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings import store
from featkit.embeddings.base import Embeddings
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.request import Request
from featkit.embeddings.validation import images_digest, labels_digest
from featkit.errors import DataError, SpecError, StorageError
from featkit.extras import require
from featkit.images.base import SPLITS
from featkit.storage import digest, file_sha256, locked, safe_name, write_csv, write_file

FORMATS = (".csv", ".npz", ".parquet")
_COLUMNS = ("id", "label", "split")


@dataclass(frozen=True)
class FeatureTable:
    """Content of an imported file.

    Attributes:
        ids: names of the n images.
        labels: class name of each image.
        splits: split of each image.
        x: features ``(n, d)``.
    """

    ids: list[str]
    labels: list[str]
    splits: list[str]
    x: NDArray[Any]


def export_file(file: Path, out: Path) -> None:
    """Write the features of a cache file to ``out``, a ``.csv``, ``.npz`` or ``.parquet`` file.

    CSV and Parquet have the columns ``id``, ``label`` (name of the class), ``split`` and ``x0``,
    ``x1``, ...; npz the arrays ``embeddings`` ``(n, d)``, ``labels`` (positions in ``classes``),
    ``ids``, ``splits``, ``classes`` and ``recipe`` (JSON).

    Raises:
        SpecError: if the format is unknown.
        CacheError: if the file cannot be read.
        StorageError: if the disk is full or cannot be written.
        MissingExtraError: for Parquet, if pyarrow is not installed.
    """
    write = {".csv": _to_csv, ".npz": _to_npz, ".parquet": _to_parquet}[_format(out)]
    if not out.parent.is_dir():
        raise StorageError(f"cannot write {out}: folder {out.parent} not found; create it first")
    embeddings = store.read(file)
    write_file(out, lambda path: write(embeddings, path))


def import_file(file: Path, cache: Path) -> Path:
    """Make a cache file of features in one of the formats of ``export_file``; return its path.

    The recipe records that they were imported, and the digest of the file. Without a column
    ``split`` or an array ``splits``, every image is a train image.

    Raises:
        SpecError: if the format is unknown.
        DataError: if the file is missing, malformed or holds numbers that are not finite.
        StorageError: if the disk is full or cannot be written.
        MissingExtraError: for Parquet, if pyarrow is not installed.
    """
    read = {".csv": _from_csv, ".npz": _from_npz, ".parquet": _from_parquet}[_format(file)]
    if not file.is_file():
        raise DataError(f"{file} not found: give a file of features")
    try:
        table = read(file)
    except (OSError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} cannot be read as features ({error}): see `featkit cache export --help`"
        ) from error
    _check_table(file, table)
    return _publish(file, cache, table)


def _check_table(file: Path, table: FeatureTable) -> None:
    lengths = {len(table.ids), len(table.labels), len(table.splits), len(table.x)}
    if table.x.ndim != 2 or not table.x.size or len(lengths) > 1:
        raise DataError(
            f"{file} holds {len(table.ids)} ids, {len(table.labels)} labels and features of shape "
            f"{table.x.shape}: the numbers of images differ"
        )
    unique = len(set(table.ids)) == len(table.ids)
    if not np.isfinite(table.x).all() or not unique or not set(table.splits) <= set(SPLITS):
        raise DataError(
            f"{file}: numbers must be finite, ids unique, splits one of {', '.join(SPLITS)}"
        )


def _publish(file: Path, cache: Path, table: FeatureTable) -> Path:
    x = table.x.astype(np.float32)
    classes = tuple(sorted(set(table.labels)))
    labels = np.searchsorted(np.array(classes), np.array(table.labels)).astype(np.int64)
    # The images are not known: their content digests are those of the features.
    keys = tuple(hashlib.sha256(row.tobytes()).hexdigest() for row in x)
    recipe = Recipe(
        images=images_digest(table.ids, keys),
        labels=labels_digest(classes, labels),
        split=digest(table.splits),
        perturb="none",
        backbone=f"import:{file.name}",
        weights=file_sha256(file),
        layer="",
        pool="",
        preprocess={},
        precision="fp32",
    )
    name = safe_name(file.stem)
    provenance = {
        "data": name,
        "request": Request(data="", backbone=recipe.backbone).to_dict(),
        "weights": f"imported from {file.name}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    splits = np.array(table.splits, np.str_)
    header = store.Header(recipe, tuple(table.ids), keys, labels, splits, classes, provenance)
    path = cache / f"{name}-import-{recipe.fingerprint[:12]}.h5"
    with locked(cache / f".{path.stem}.lock", on_wait=lambda owner: None):
        store.write(path, header, iter([(np.arange(len(x)), x)]))
    return path


def _format(path: Path) -> str:
    if path.suffix not in FORMATS:
        raise SpecError(f"{path}: unknown format; use one of *{', *'.join(FORMATS)}")
    return path.suffix


def _class_names(embeddings: Embeddings) -> list[str]:
    return [embeddings.classes[label] for label in embeddings.y]


def _to_csv(embeddings: Embeddings, path: Path) -> None:
    def rows() -> Iterator[list[Any]]:
        names, splits = _class_names(embeddings), embeddings.splits
        for row, values in enumerate(embeddings.x):
            yield [embeddings.ids[row], names[row], splits[row], *map(str, values)]

    columns = [*_COLUMNS, *(f"x{column}" for column in range(embeddings.x.shape[1]))]
    with path.open("w", newline="", encoding="utf-8") as file:
        write_csv(file, columns, rows())


def _from_csv(path: Path) -> FeatureTable:
    header, rows = _read_csv_rows(path)

    def column(name: str) -> list[str]:
        return [row[header.index(name)] for row in rows]

    numbers = [position for position, name in enumerate(header) if name not in _COLUMNS]
    features = []
    for row in rows:
        features.append([float(row[position]) for position in numbers])
    splits = column("split") if "split" in header else ["train"] * len(rows)
    return FeatureTable(column("id"), column("label"), splits, np.array(features))


def _read_csv_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a CSV file with columns ``id`` and ``label``."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        rows = list(reader)
    if "id" not in header or "label" not in header:
        raise ValueError("it needs columns id and label")
    if any(len(row) != len(header) for row in rows):
        raise ValueError("its rows have different lengths")
    return header, rows


def _to_npz(embeddings: Embeddings, path: Path) -> None:
    # An open file: np.savez would add .npz to the name of a temporary file.
    with path.open("wb") as file:
        np.savez(
            file,
            embeddings=embeddings.x,
            labels=embeddings.y,
            ids=np.array(embeddings.ids),
            splits=np.array(embeddings.splits, np.str_),
            classes=np.array(embeddings.classes),
            recipe=np.array(embeddings.recipe.to_json()),
        )


def _from_npz(path: Path) -> FeatureTable:
    with np.load(path, allow_pickle=False) as file:
        ids = file["ids"].astype(str).tolist()
        labels = file["classes"].astype(str)[file["labels"]].tolist()
        splits = file["splits"].astype(str).tolist() if "splits" in file else ["train"] * len(ids)
        return FeatureTable(ids, labels, splits, file["embeddings"])


def _to_parquet(embeddings: Embeddings, path: Path) -> None:
    arrow, parquet = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    columns: dict[str, Any] = {
        "id": list(embeddings.ids),
        "label": _class_names(embeddings),
        "split": embeddings.splits.tolist(),
    }
    for column in range(embeddings.x.shape[1]):
        columns[f"x{column}"] = embeddings.x[:, column]
    table = arrow.table(columns)
    recipe = {"recipe": embeddings.recipe.to_json()}
    parquet.write_table(table.replace_schema_metadata(recipe), path)


def _from_parquet(path: Path) -> FeatureTable:
    table = require("pyarrow.parquet", "parquet").read_table(path)
    ids, labels = (list(map(str, table[name].to_pylist())) for name in ("id", "label"))
    splits = table["split"].to_pylist() if "split" in table.column_names else ["train"] * len(ids)
    numbers = [table[name].to_numpy() for name in table.column_names if name not in _COLUMNS]
    return FeatureTable(ids, labels, splits, np.stack(numbers, axis=1))
