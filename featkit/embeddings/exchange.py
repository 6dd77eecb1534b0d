"""Vectors to and from other programs: CSV, NumPy's npz and Parquet."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from featkit.embeddings import store
from featkit.embeddings.base import Embeddings
from featkit.embeddings.plan import images_digest, labels_digest
from featkit.embeddings.recipe import Recipe
from featkit.embeddings.request import Request
from featkit.errors import DataError, MissingExtraError, SpecError
from featkit.images.base import SPLITS
from featkit.storage import digest, safe_name, storage_errors

FORMATS = (".csv", ".npz", ".parquet")
_COLUMNS = ("id", "label", "split")


def export_file(file: Path, out: Path) -> None:
    """Write the vectors of a cache file as ``out`` says: ``.csv``, ``.npz`` or ``.parquet``.

    CSV and Parquet have the columns ``id``, ``label`` (name of the class), ``split`` and ``x0``, ``x1``, ...; npz the
    arrays ``embeddings`` ``(n, d)``, ``labels`` (positions in ``classes``), ``ids``, ``splits``, ``classes`` and
    ``recipe`` (JSON).

    Raises:
        SpecError: if the format is another one.
        CacheError: if the file cannot be read.
        StorageError: if the disk is full or cannot be written.
        MissingExtraError: for Parquet, if pyarrow is not installed.
    """
    write = {".csv": _to_csv, ".npz": _to_npz, ".parquet": _to_parquet}[_format(out)]
    embeddings = store.read(file)
    partial = out.with_name(f".{out.name}.partial")
    with storage_errors(out):
        try:
            write(embeddings, partial)
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)


def import_file(file: Path, cache: Path) -> Path:
    """Make a cache file of vectors in one of the forms that ``export_file`` writes, and return it.

    The recipe says that they were imported, and holds the digest of the file; without a column ``split`` or an array
    ``splits``, every image is a train image.

    Raises:
        SpecError: if the format is another one.
        DataError: if the file is missing, malformed or holds numbers that are not finite.
        StorageError: if the disk is full or cannot be written.
        MissingExtraError: for Parquet, if pyarrow is not installed.
    """
    read = {".csv": _from_csv, ".npz": _from_npz, ".parquet": _from_parquet}[_format(file)]
    if not file.is_file():
        raise DataError(f"{file} is not there: give a file that holds vectors")
    try:
        ids, names, splits, x = read(file)
    except (OSError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as vectors ({error}): see `featkit cache export --help`") from error
    if x.ndim != 2 or not x.size or not len(ids) == len(names) == len(splits) == len(x):
        raise DataError(f"{file} holds {len(ids)} ids, {len(names)} labels and vectors {x.shape}: they do not fit")
    if not np.isfinite(x).all() or len(set(ids)) < len(ids) or not set(splits) <= set(SPLITS):
        raise DataError(f"{file}: numbers must be finite, ids unique, splits one of {', '.join(SPLITS)}")
    return _publish(file, cache, (tuple(ids), names, splits, x.astype(np.float32)))


Table = tuple[list[str], list[str], list[str], Any]
"""Ids, class names, splits, and vectors ``(n, d)``."""


def _publish(file: Path, cache: Path, table: tuple[tuple[str, ...], list[str], list[str], Any]) -> Path:
    ids, names, splits, x = table
    classes = tuple(sorted(set(names)))
    labels = np.searchsorted(np.array(classes), np.array(names)).astype(np.int64)
    keys = tuple(hashlib.sha256(row.tobytes()).hexdigest() for row in x)
    recipe = Recipe(
        images=images_digest(ids, keys),
        labels=labels_digest(classes, labels),
        split=digest(splits),
        perturb="none",
        backbone=f"import:{file.name}",
        weights=hashlib.sha256(file.read_bytes()).hexdigest(),
        layer="",
        pool="",
        preprocess={},
        precision="fp32",
    )
    provenance = {
        "data": safe_name(file.stem),
        "request": Request(data="", backbone=recipe.backbone).to_dict(),
        "weights": f"imported from {file.name}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    header = store.Header(recipe, ids, keys, labels, np.array(splits, np.str_), classes, provenance)
    path = cache / f"{safe_name(file.stem)}-import-{recipe.fingerprint[:12]}.h5"
    store.write(path, header, iter([(np.arange(len(ids)), x)]))
    return path


def _format(path: Path) -> str:
    if path.suffix not in FORMATS:
        raise SpecError(f"{path} is in none of the known formats: name it *{', *'.join(FORMATS)}")
    return path.suffix


def _columns(embeddings: Embeddings) -> Iterator[tuple[str, Any]]:
    yield "id", list(embeddings.ids)
    yield "label", [embeddings.classes[label] for label in embeddings.y]
    yield "split", embeddings.splits.tolist()
    yield from ((f"x{column}", embeddings.x[:, column]) for column in range(embeddings.x.shape[1]))


def _to_csv(embeddings: Embeddings, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([name for name, _ in _columns(embeddings)])
        names = (embeddings.classes[label] for label in embeddings.y)
        for start, row in zip(zip(embeddings.ids, names, embeddings.splits, strict=True), embeddings.x, strict=True):
            writer.writerow([*start, *map(str, row)])


def _from_csv(path: Path) -> Table:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        places = [header.index(name) if name in header else None for name in _COLUMNS]
        numbers = [place for place in range(len(header)) if place not in places]
        rows = list(reader)
    if None in places[:2]:
        raise ValueError("it needs columns id and label")
    if any(len(row) != len(header) for row in rows):
        raise ValueError("its rows are not equally long")
    ids, names, splits = (["train"] * len(rows) if at is None else [row[at] for row in rows] for at in places)
    return ids, names, splits, np.array([[float(row[at]) for at in numbers] for row in rows])


def _to_npz(embeddings: Embeddings, path: Path) -> None:
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


def _from_npz(path: Path) -> Table:
    with np.load(path, allow_pickle=False) as file:
        x, ids = file["embeddings"], file["ids"].astype(str).tolist()
        names = file["classes"].astype(str)[file["labels"]].tolist()
        splits = file["splits"].astype(str).tolist() if "splits" in file else ["train"] * len(ids)
    return ids, names, splits, x


def _to_parquet(embeddings: Embeddings, path: Path) -> None:
    arrow, parquet = _arrow()
    table = arrow.table(dict(_columns(embeddings)))
    parquet.write_table(table.replace_schema_metadata({"recipe": embeddings.recipe.to_json()}), path)


def _from_parquet(path: Path) -> Table:
    _, parquet = _arrow()
    table = parquet.read_table(path)
    ids, names = table["id"].to_pylist(), table["label"].to_pylist()
    splits = table["split"].to_pylist() if "split" in table.column_names else ["train"] * len(ids)
    numbers = [table[name].to_numpy() for name in table.column_names if name not in _COLUMNS]
    return list(map(str, ids)), list(map(str, names)), splits, np.stack(numbers, axis=1)


def _arrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error
