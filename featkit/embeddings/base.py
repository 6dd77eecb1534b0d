"""The value that everything after the network works on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.recipe import Recipe


@dataclass(frozen=True)
class Embeddings:
    """One vector for each image, with everything that was known of the image.

    Attributes:
        x: ``(n, d)`` float32.
        y: ``(n,)`` int64, positions in ``classes``.
        ids: names of the images, length n.
        classes: class names; a subset need not contain every class.
        splits: ``(n,)`` text, ``train``, ``val`` or ``test``.
        recipe: what decided ``x``.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    splits: NDArray[np.str_]
    recipe: Recipe

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.int64]) -> Embeddings:
        """Return the part at ``rows``; classes and recipe stay as they are."""
        return replace(
            self,
            x=self.x[rows],
            y=self.y[rows],
            ids=tuple(self.ids[row] for row in rows),
            splits=self.splits[rows],
        )

    def part(self, split: str) -> Embeddings:
        """Return the rows of one split: ``train``, ``val`` or ``test``."""
        return self.take(np.flatnonzero(self.splits == split))
