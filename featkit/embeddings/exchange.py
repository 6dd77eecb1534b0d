"""Export and import of features as CSV, NumPy npz and Parquet files."""

from __future__ import annotations

import csv
import hashlib
import zipfile
from collections.abc import Iterator, Sequence
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
from featkit.errors import DataError, FeatkitError, SpecError
from featkit.extras import require
from featkit.images.base import SPLITS
from featkit.images.multilabel import SEPARATOR, join_labels, parse_labels
from featkit.storage import (
    digest,
    file_sha256,
    locked,
    safe_name,
    with_apostrophe,
    without_apostrophe,
    write_csv,
    write_file,
)

FORMATS = (".csv", ".npz", ".parquet")
_COLUMNS = ("id", "label", "split")
_FREE_BYTES, _MOST_RATIO = 2**30, 64
"""Features may take this many bytes in memory, or this many times the size of the file."""


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

    Its folder is created if needed.

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
        _check_table(table)
    except (FeatkitError, MemoryError):
        raise
    except Exception as error:  # NumPy, csv, zipfile and pyarrow raise almost any exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{file} cannot be read as features ({reason[:300]}): "
            "see `featkit cache export --help` for the format"
        ) from error
    return _publish(file, cache, table)


def _check_table(table: FeatureTable) -> None:
    """Check types, shapes and ranges of imported features.

    Raises:
        ValueError: with the reason.
    """
    if table.x.dtype.kind not in "fiu":
        raise ValueError(f"features have type {table.x.dtype}, not real numbers")
    lengths = {len(table.ids), len(table.labels), len(table.splits), len(table.x)}
    if table.x.ndim != 2 or not table.x.size or len(lengths) > 1:
        raise ValueError(
            f"the numbers of images differ: {len(table.ids)} ids, {len(table.labels)} labels, "
            f"{len(table.splits)} splits and features of shape {table.x.shape}"
        )
    _check_names("id", table.ids)
    if any(table.labels):  # images without labels have an empty one each
        _check_names("label", table.labels)
    if len(set(table.ids)) < len(table.ids):
        raise ValueError("ids must be unique")
    if not set(table.splits) <= set(SPLITS):
        raise ValueError(f"splits one of {', '.join(SPLITS)} are needed")
    with np.errstate(over="ignore"):
        finite = np.isfinite(table.x.astype(np.float32))
    if not finite.all():
        row = int(np.flatnonzero(~finite.all(axis=1))[0])
        raise ValueError(
            f"the features of {table.ids[row]} are not finite or too large for float32"
        )


def _check_names(kind: str, names: Sequence[object]) -> None:
    """Raise ValueError unless ids or labels are texts that a cache file can hold."""
    for row, name in enumerate(names):
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise ValueError(f"{kind} {name!r:.40} of row {row} is missing or not text")
        name.encode()  # raises UnicodeEncodeError for lone surrogates


def _publish(file: Path, cache: Path, table: FeatureTable) -> Path:
    x = table.x.astype(np.float32)
    names = table.labels
    multilabel = any(SEPARATOR in name for name in names)  # as in a CSV file of images
    if multilabel:
        parsed = [parse_labels(name, f"row {row} of {file}") for row, name in enumerate(names)]
        names = [join_labels(labels) for labels in parsed]
    classes = tuple(sorted(set(names)))
    labels = np.searchsorted(np.array(classes), np.array(names)).astype(np.int64)
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
    provenance: dict[str, Any] = {
        "data": name,
        "request": Request(data="", backbone=recipe.backbone).to_dict(),
        "weights": f"imported from {file.name}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if multilabel:
        provenance[store.MULTILABEL] = True
    splits = np.array(table.splits, np.str_)
    header = store.Header(recipe, tuple(table.ids), keys, labels, splits, classes, provenance)
    path = cache / f"{name}-import-{recipe.fingerprint[:12]}.h5"
    with locked(cache / f".{path.stem}.lock", on_wait=lambda owner: None):
        store.write(path, header, iter([(np.arange(len(x)), x)]))
    return path


def _format(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise SpecError(f"{path}: unknown format; use one of *{', *'.join(FORMATS)}")
    return suffix


def _class_names(embeddings: Embeddings) -> list[str]:
    return [embeddings.classes[label] for label in embeddings.y]


def _to_csv(embeddings: Embeddings, path: Path) -> None:
    """Write a CSV file.

    Invisible characters are not escaped, as ``import_file`` must find the same names. Names that a
    spreadsheet would take for a formula start with an apostrophe, which it removes.
    """
    ids = [with_apostrophe(name) for name in embeddings.ids]
    names = [with_apostrophe(name) for name in _class_names(embeddings)]

    def rows() -> Iterator[list[Any]]:
        splits = embeddings.splits
        for row, values in enumerate(embeddings.x):
            yield [ids[row], names[row], splits[row], *map(str, values)]

    columns = [*_COLUMNS, *(f"x{column}" for column in range(embeddings.x.shape[1]))]
    with path.open("w", newline="", encoding="utf-8") as file:
        # Without quotes, csv takes a carriage return for the end of a line.
        quote_all = any("\r" in name for name in (*ids, *embeddings.classes))
        write_csv(file, columns, rows(), quote_all=quote_all)


def _from_csv(path: Path) -> FeatureTable:
    header, rows = _read_csv_rows(path)

    def column(name: str) -> list[str]:
        return [row[header.index(name)] for row in rows]

    numbers = [position for position, name in enumerate(header) if name not in _COLUMNS]
    features = []
    for row in rows:
        features.append([_number(row[position]) for position in numbers])
    splits = column("split") if "split" in header else [SPLITS[0]] * len(rows)
    ids, labels = ([without_apostrophe(cell) for cell in column(name)] for name in ("id", "label"))
    return FeatureTable(ids, labels, splits, np.array(features))


def _number(text: str) -> float:
    if "_" in text:  # float("1_0") is 10
        raise ValueError(f"{text!r:.40} is not a number")
    return float(text)


def _read_csv_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a CSV file with columns ``id`` and ``label``."""
    # utf-8-sig: spreadsheet programs write a byte order mark.
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        rows = list(reader)
    if "id" not in header or "label" not in header:
        raise ValueError("it needs columns id and label")
    if len(set(header)) < len(header):
        raise ValueError("two columns have the same name")
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
    with zipfile.ZipFile(path) as archive:
        _check_size(path, sum(member.file_size for member in archive.infolist()))
    with np.load(path, allow_pickle=False) as file:
        ids, classes = _texts(file["ids"]), _texts(file["classes"])
        splits = _texts(file["splits"]) if "splits" in file else [SPLITS[0]] * len(ids)
        positions, x = file["labels"], file["embeddings"]
    if positions.dtype.kind not in "iu" or positions.ndim != 1:
        raise ValueError(f"labels are {positions.dtype} of shape {positions.shape}")
    if len(set(classes)) < len(classes):
        raise ValueError("two classes have the same name")
    if positions.size and not 0 <= positions.min() <= positions.max() < len(classes):
        raise ValueError(f"labels are not positions in its {len(classes)} classes")
    return FeatureTable(ids, [classes[position] for position in positions], splits, x)


def _texts(array: NDArray[Any]) -> list[str]:
    """Return a one-dimensional array of texts, bytes or whole numbers as texts."""
    if array.ndim != 1 or array.dtype.kind not in "USiu":
        raise ValueError(f"names are {array.dtype} of shape {array.shape}")
    texts: list[str] = (
        (np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array).astype(str).tolist()
    )
    return texts


def _check_size(path: Path, unpacked: int) -> None:
    """Refuse a file that would fill the memory: a few kB can unpack to many GB."""
    packed = path.stat().st_size
    if unpacked > max(_FREE_BYTES, _MOST_RATIO * packed):
        raise ValueError(f"{packed:,} bytes unpack to {unpacked:,}")


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
    parquet = require("pyarrow.parquet", "parquet")
    with parquet.ParquetFile(path) as file:
        _check_size(path, file.metadata.num_rows * file.metadata.num_columns * 4)
        table = file.read()
    if len(set(table.column_names)) < len(table.column_names):
        raise ValueError("two columns have the same name")
    ids, labels = table["id"].to_pylist(), table["label"].to_pylist()
    numbers = [table[name].to_numpy() for name in table.column_names if name not in _COLUMNS]
    splits = [SPLITS[0]] * len(ids)
    if "split" in table.column_names:
        splits = table["split"].to_pylist()
    return FeatureTable(_as_names(ids), _as_names(labels), splits, np.stack(numbers, axis=1))


def _as_names(values: list[Any]) -> list[Any]:
    """Return whole numbers as texts and other values unchanged."""
    return [str(value) if type(value) is int else value for value in values]
