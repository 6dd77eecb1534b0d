"""Features of a data set with everything known about its images."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from featkit.blocks import select_rows
from featkit.embeddings.recipe import Recipe
from featkit.images.augment import has_augmented_views, original_id
from featkit.images.base import SPLITS
from featkit.images.multilabel import label_names, label_sets
from featkit.registry import check_names
from featkit.storage import digest


def pack_splits(splits: NDArray[np.str_]) -> bytes:
    """Return the splits of images as a few bytes, to send them to another process."""
    codes = np.array([SPLITS.index(split) for split in splits.tolist()], np.uint8)
    return zlib.compress(codes.tobytes())


def unpack_splits(packed: bytes) -> NDArray[np.str_]:
    """Return the splits ``(n,)`` from ``pack_splits``."""
    found: NDArray[np.str_] = np.array(SPLITS)[np.frombuffer(zlib.decompress(packed), np.uint8)]
    return found


def pack_groups(groups: Sequence[str]) -> bytes:
    """Return the groups of images as a few bytes; none for no groups."""
    return zlib.compress(json.dumps(list(groups)).encode()) if groups else b""


def unpack_groups(packed: bytes) -> NDArray[np.str_]:
    """Return the groups ``(n,)`` from ``pack_groups``."""
    return np.array(json.loads(zlib.decompress(packed)), np.str_)


@dataclass(frozen=True)
class Embeddings:
    """Features of n images, one row each, with their labels and splits.

    Attributes:
        x: ``(n, d)`` float32. Features of a large cache file (more than 2^26 numbers, 256 MiB)
            are a ``blocks.RowView``, which reads the rows that are asked for.
        y: ``(n,)`` int64, positions in ``classes``.
        ids: names of the images, length n.
        classes: class names; a subset need not contain every class.
        splits: ``(n,)`` text, ``train``, ``val`` or ``test``.
        recipe: what decided ``x``.
        groups: ``(n,)`` text, group of each image, such as its patient; None if the images count as
            independent. Groups are those of the source and not kept in the cache.
        multilabel: whether a class is a set of labels, see ``images.multilabel``.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    splits: NDArray[np.str_]
    recipe: Recipe
    groups: NDArray[np.str_] | None = None
    multilabel: bool = False

    @property
    def label_names(self) -> tuple[str, ...]:
        """Sorted labels of images with several labels: the k columns of ``targets``."""
        return label_names(self.classes)

    @property
    def targets(self) -> NDArray[np.uint8]:
        """Which labels each image has, ``(n, k)`` zeros and ones."""
        targets: NDArray[np.uint8] = label_sets(self.classes)[self.y]
        return targets

    @property
    def inner_groups(self) -> NDArray[np.str_] | None:
        """Group of each image, ``(n,)``, that no split of these images may separate.

        Without groups of the source, the augmented views of an image are a group; None if there are
        no views either.
        """
        if self.groups is not None or not has_augmented_views(self.ids):
            return self.groups
        return np.array([original_id(name) for name in self.ids], np.str_)

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.int64]) -> Embeddings:
        """Return the images at ``rows``; classes and recipe stay the same.

        Many features of a large cache file stay there.
        """
        return replace(
            self,
            x=select_rows(self.x, rows),
            y=self.y[rows],
            ids=tuple(map(self.ids.__getitem__, rows.tolist())),
            splits=self.splits[rows],
            groups=None if self.groups is None else self.groups[rows],
        )

    def part(self, split: str) -> Embeddings:
        """Return the images of one split: ``train``, ``val`` or ``test``.

        Raises:
            SpecError: for another name.
        """
        check_names("split", [split], SPLITS)
        return self.take(np.flatnonzero(self.splits == split))

    def replace_test(self, test: Embeddings) -> Embeddings:
        """Return the train and val images of these embeddings with the test images of others."""
        kept = self.take(np.flatnonzero(self.splits != "test"))
        if self.groups is not None and test.groups is None:
            test = replace(test, groups=self._groups_of(test))
        return kept.append(test)

    def append(self, other: Embeddings) -> Embeddings:
        """Return these images followed by perturbed images of the same data.

        The recipe is that of the unperturbed images, with the digests of both and the perturbation.
        """
        images = digest([self.recipe.fingerprint, other.recipe.fingerprint])
        groups = None
        if self.groups is not None:
            groups = np.concatenate([self.groups, self._groups_of(other)])
        return Embeddings(
            x=np.concatenate([self.x, other.x]),
            y=np.concatenate([self.y, other.y]),
            ids=self.ids + other.ids,
            classes=self.classes,
            splits=np.concatenate([self.splits, other.splits]),
            recipe=replace(self.recipe, images=images, perturb=other.recipe.perturb),
            groups=groups,
            multilabel=self.multilabel,
        )

    def _groups_of(self, other: Embeddings) -> NDArray[np.str_]:
        """Return the groups of perturbed images, which are those of their originals."""
        if other.groups is not None:
            return other.groups
        group_of = {}
        for name, group in zip(self.ids, np.asarray(self.groups).tolist(), strict=True):
            group_of[original_id(name)] = group
        return np.array([group_of[original_id(name)] for name in other.ids], np.str_)
