"""Parts of the training images: labels to row numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError


def k_shot(
    labels: NDArray[np.int64],
    k: int,
    seed: int = 0,
    *,
    classes: Sequence[str] | None = None,
    take_fewer: bool = False,
) -> NDArray[np.int64]:
    """Return the rows of k images of each class, drawn at random, in order.

    With one seed the rows of a smaller k are among those of a larger one: a learning curve grows by adding images.

    Args:
        labels: ``(n,)``, any integers.
        k: images of each class.
        seed: of the draw.
        classes: names for the error, where labels are positions in them.
        take_fewer: whether a class with fewer than k images gives all that it has.

    Raises:
        DataError: if k is below 1, or a class has fewer than k images and ``take_fewer`` is not set.
    """
    if k < 1:
        raise DataError(f"{k} images of each class: give at least 1")
    found, sizes = np.unique(labels, return_counts=True)
    short = found[sizes < k]
    if len(short) and not take_fewer:
        name = classes[short[0]] if classes else short[0]
        raise DataError(
            f"class {name} has {sizes[sizes < k][0]} images, fewer than the {k} asked for ({len(short)} of "
            f"{len(found)} classes do): ask for fewer, or take what there is"
        )
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(np.flatnonzero(labels == label)) for label in found]
    return np.sort(np.concatenate([rows[:k] for rows in shuffled]))
