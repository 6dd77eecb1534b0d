"""Where vectors that are wanted lie already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.recipe import Recipe
from featkit.embeddings.store import entries, float32, open_file

Place = tuple[Path, int]
"""A file and a row in it."""


def find(cache: Path, recipe: Recipe) -> Path | None:
    """Return the file that was made by this recipe, whatever its data set was called then, or None."""
    matches = sorted(cache.glob(f"*-{recipe.fingerprint[:12]}.h5"))
    return matches[0] if matches else None


def locate(cache: Path, recipe: Recipe, keys: Iterable[str]) -> dict[str, Place]:
    """Return where vectors of these contents, made by the same network in the same way, lie in other files."""
    wanted = set(keys)
    found: dict[str, Place] = {}
    for entry in entries(cache)[0]:
        if recipe.same_network(entry.recipe) and not wanted <= found.keys():
            with open_file(entry.path) as file:
                valid = file["valid"][:]
                here = [key.decode() for key in file["keys"][:]]
            for row in np.flatnonzero(valid).tolist():
                if here[row] in wanted:
                    found.setdefault(here[row], (entry.path, row))
    return found


def read_places(places: Sequence[Place]) -> NDArray[np.float32]:
    """Return the vectors ``(len(places), d)`` that lie there."""
    vectors: dict[Place, NDArray[np.float32]] = {}
    for path in {path for path, _ in places}:
        rows = sorted({row for other, row in places if other == path})
        with open_file(path) as file:
            vectors.update(zip(((path, row) for row in rows), float32(file["embeddings"][rows]), strict=True))
    return np.stack([vectors[place] for place in places])


@contextmanager
def open_rows(path: Path) -> Iterator[Callable[[NDArray[np.int64]], NDArray[np.floating[Any]]]]:
    """Open a file to read rows of it one by one, in the type in which they are stored.

    Gives a function from rows ``(b,)``, in any order, to vectors ``(b, d)``. For files larger than memory; it is to be
    called from one thread at a time.

    Raises:
        CacheError: as ``open_file`` does.
    """
    with open_file(path) as file:
        stored = file["embeddings"]

        def read_rows(rows: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
            wanted, places = np.unique(rows, return_inverse=True)
            vectors: NDArray[np.floating[Any]] = stored[wanted]
            return vectors[places]

        yield read_rows
