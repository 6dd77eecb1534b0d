"""Suggest which unlabelled images to label next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.embeddings.base import Embeddings
from featkit.embeddings.extract import extract_embeddings
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys
from featkit.errors import DataError
from featkit.evaluation.display import data_frame, html_table
from featkit.evaluation.selection import margins, select_batch
from featkit.images.base import SPLITS, ImageSet
from featkit.runs.directory import SavedRun
from featkit.runs.features import cached_keys
from featkit.runs.predict import embed_images, head_probabilities, unlabelled_images
from featkit.storage import csv_text, safe_name
from featkit.studies.inspect import run_features


@dataclass(frozen=True)
class SuggestedImage:
    """An unlabelled image that is worth a label.

    Attributes:
        rank: 1 for the first to label.
        path: path of the file.
        predicted, confidence: most probable class and its calibrated probability.
        top2, confidence2: the same of the second class.
        margin: difference of the two probabilities; the smaller, the less certain.
        margin_rank: rank of the image by margin alone, 1 for the smallest; ranks between those of
            suggested images are of images that resemble them.
    """

    rank: int
    path: str
    predicted: str
    confidence: float
    top2: str
    confidence2: float
    margin: float
    margin_rank: int


@dataclass(frozen=True)
class Suggestions:
    """Unlabelled images to label next.

    Attributes:
        images: the suggestions, the most uncertain first.
        pool: number of unlabelled images that they were chosen from.
        known: number of images that were left out because they are in the run's data, by split.
        copies: number of images that were left out because they equal another one, byte for byte.
        unreadable: names of images that could not be read.
        requested: number of suggestions that were asked for.
    """

    images: tuple[SuggestedImage, ...]
    pool: int
    known: dict[str, int]
    copies: int
    unreadable: tuple[str, ...]
    requested: int

    @property
    def notes(self) -> list[str]:
        """What was left out, one sentence each."""
        notes = []
        if self.known:
            counts = ", ".join(f"{count} in {split}" for split, count in self.known.items())
            notes.append(f"images of the run's own data are left out: {counts}")
        if self.copies:
            notes.append(
                f"{self.copies} images are left out: they are copies of others, byte for byte"
            )
        if self.unreadable:
            notes.append(
                f"{len(self.unreadable)} images are left out: they cannot be read, such as "
                f"{self.unreadable[0]}"
            )
        if len(self.images) < self.requested:
            notes.append(
                f"there are only {self.pool} unlabelled images, fewer than the {self.requested} "
                "asked for: all are listed"
            )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON can hold them."""
        return {
            "pool": self.pool,
            "known": self.known,
            "copies": self.copies,
            "unreadable": list(self.unreadable),
            "suggestions": self.rows(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per suggestion."""
        return [asdict(image) for image in self.images]

    def to_csv(self) -> str:
        """Return one line per suggestion."""
        return csv_text(self.rows(), [field.name for field in fields(SuggestedImage)])

    def to_frame(self) -> Any:
        """Return the suggestions as a ``pandas.DataFrame``, one row each."""
        return data_frame(self.rows())

    def _repr_html_(self) -> str:
        return html_table(self.rows())


def suggest(
    run: SavedRun,
    files: Sequence[str],
    n: int,
    *,
    cache: Path,
    compute: Compute,
    name: str = "unlabelled",
    seed: int = 0,
) -> Suggestions:
    """Suggest ``n`` images to label next: uncertain ones that differ from each other.

    See ``evaluation.selection.select_batch`` for the method and its source. Images of the run's own
    data, training, validation and test images, are recognized by their bytes and left out; of
    identical images one is considered.

    Args:
        run: the run.
        files: paths of unlabelled images.
        n: number of images; all of them are suggested if there are fewer.
        cache: folder of the embeddings cache, for the features of both the unlabelled images and
            the run's data.
        compute: device and batch size, and whether files that cannot be read are skipped.
        name: of the unlabelled images in the cache.
        seed: of the selection.

    Raises:
        DecodeError: if a file cannot be read, unless such files are skipped.
        DataError: if no image is left, or neither the features nor the images that the run was
            fitted on are available.
        WeightsError: if the backbone's weights are not those that the head was fitted with.
        RunError: if network and head do not fit together.
    """
    images = replace(unlabelled_images(run, files), name=safe_name(name))
    split_of = _known_splits(run, cache, compute)
    keys = content_keys(images, compute)
    known = Counter(split_of[key] for key in keys if key in split_of)
    unreadable = [name for name, key in zip(images.ids, keys, strict=True) if not key]
    row_of: dict[str, int] = {}
    for row, key in enumerate(keys):
        if key and key not in split_of:
            row_of.setdefault(key, row)
    copies = len(keys) - len(unreadable) - sum(known.values()) - len(row_of)
    if not row_of:
        raise DataError(
            f"none of the {len(files)} images can be suggested: {sum(known.values())} are in the "
            f"run's own data, {len(unreadable)} cannot be read; give a folder of other images"
        )
    pool = images.take(np.array(sorted(row_of.values()), np.int64))
    names, x = _features(run, pool, cache, compute)
    unreadable += [name for name in pool.ids if name not in set(names)]
    if not names:
        raise DataError("none of the unlabelled images can be read: give a folder of other images")
    return Suggestions(
        images=_choose(run, names, x, min(n, len(names)), seed),
        pool=len(names),
        known={split: known[split] for split in SPLITS if known[split]},
        copies=copies,
        unreadable=tuple(unreadable),
        requested=n,
    )


def _known_splits(run: SavedRun, cache: Path, compute: Compute) -> dict[str, str]:
    """Return the split of each image of a run's data by its content key."""
    features = run_features(run, cache, compute)
    splits = features.embeddings.splits.tolist()
    return dict(zip(cached_keys(features), splits, strict=True))


def _features(
    run: SavedRun, images: ImageSet, cache: Path, compute: Compute
) -> tuple[list[str], NDArray[np.float32]]:
    """Return names and features of the images that can be read, cached where that is possible."""
    if run.recipe.calibration != "none":
        # The cache would calibrate an int8 network anew; the head belongs to that of the run.
        rows, x = embed_images(run, images, compute)
        return [images.ids[row] for row in rows], x
    run.load_backbone()  # verifies the weights
    request = replace(
        run.request, data="", split=None, limit=None, augment=None, perturb=None, part=None
    )
    found: Embeddings = extract_embeddings(request, cache, compute, images=images)
    return list(found.ids), found.x


def _choose(
    run: SavedRun, names: Sequence[str], x: NDArray[np.float32], n: int, seed: int
) -> tuple[SuggestedImage, ...]:
    scores = head_probabilities(run, x)
    classes = [run.classes[label] for label in run.head.classes_]
    margin = margins(scores)
    place = np.empty(len(margin), np.int64)
    place[np.argsort(margin, kind="stable")] = np.arange(1, len(margin) + 1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :2]
    chosen = []
    for rank, row in enumerate(select_batch(scores, x, n, seed=seed).tolist(), start=1):
        first, second = best[row]
        chosen.append(
            SuggestedImage(
                rank=rank,
                path=names[row],
                predicted=classes[first],
                confidence=float(scores[row, first]),
                top2=classes[second],
                confidence2=float(scores[row, second]),
                margin=float(margin[row]),
                margin_rank=int(place[row]),
            )
        )
    return tuple(chosen)
