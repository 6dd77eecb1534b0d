"""Find the training images of a run that are most similar to given image files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featkit.embeddings.base import Embeddings
from featkit.embeddings.pipeline import Compute
from featkit.errors import DataError
from featkit.evaluation.display import data_frame, html_table
from featkit.evaluation.neighbours import nearest_rows
from featkit.images.base import ImageSet, KeyedLoad, Pixels
from featkit.images.thumbnails import shrink
from featkit.runs.directory import SavedRun
from featkit.runs.predict import embed_images, unlabelled_images
from featkit.runs.splits import without_views
from featkit.similarity import Neighbours
from featkit.storage import csv_text
from featkit.studies.inspect import run_features

_THUMBNAIL = 240
"""Longest side of a remembered query, in pixels."""


@dataclass(frozen=True)
class SimilarImages:
    """The training images that are most similar to each of q query images.

    Attributes:
        data: name of the training images.
        backbone: network whose features are compared.
        queries: names of the queries.
        pictures: small copies of the queries.
        found: ``(q, k)`` rows of ``train`` and their cosine similarities, most similar first.
        train: the training images that were searched.
    """

    data: str
    backbone: str
    queries: tuple[str, ...]
    pictures: tuple[Pixels, ...]
    found: Neighbours
    train: Embeddings

    def rows(self) -> list[dict[str, Any]]:
        """Return query, rank, similar image, its class and the cosine similarity, one row each."""
        rows = []
        for query, name in enumerate(self.queries):
            pairs = zip(self.found.rows[query], self.found.cosines[query], strict=True)
            for rank, (row, cosine) in enumerate(pairs, start=1):
                rows.append(
                    {
                        "image": name,
                        "rank": rank,
                        "similar": self.train.ids[row],
                        "class": self.train.classes[self.train.y[row]],
                        "cosine": float(cosine),
                    }
                )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON can hold them."""
        return {"data": self.data, "backbone": self.backbone, "similar": self.rows()}

    def to_csv(self) -> str:
        """Return one line per similar image."""
        return csv_text(self.rows(), ["image", "rank", "similar", "class", "cosine"])

    def to_frame(self) -> Any:
        """Return the similar images as a ``pandas.DataFrame``, one row each."""
        return data_frame(self.rows())

    def _repr_html_(self) -> str:
        return html_table(self.rows())


def neighbours(
    run: SavedRun, files: Sequence[str], k: int, *, cache: Path, compute: Compute
) -> SimilarImages:
    """Find the ``k`` training images whose features are most similar to those of image files.

    Similarity is the cosine. With fewer training images all of them are returned.

    Args:
        run: the run.
        files: paths of the images.
        k: number of similar images for each of them.
        cache: folder of the embeddings cache; the training images are needed only if their features
            are not there.
        compute: device and batch size, and whether files that cannot be read are skipped.

    Raises:
        DecodeError: if a file cannot be read, unless such files are skipped.
        DataError: if none can be read, or neither features nor training images are available.
        WeightsError: if the backbone's weights are not those that the head was fitted with.
    """
    features = run_features(run, cache, compute)
    pictures: dict[int, Pixels] = {}
    rows, queries = embed_images(run, _remember(unlabelled_images(run, files), pictures), compute)
    if not len(rows):
        raise DataError("none of the images could be read")
    train = without_views(features.embeddings.part("train"))
    return SimilarImages(
        data=features.data,
        backbone=run.network,
        queries=tuple(files[row] for row in rows),
        pictures=tuple(pictures[row] for row in rows.tolist()),
        found=nearest_rows(queries, train.x, k),
        train=train,
    )


def _remember(images: ImageSet, pictures: dict[int, Pixels]) -> ImageSet:
    """Return the same images; a small copy of each that is read is stored in ``pictures``."""
    return replace(images, load=_remembering_load(images, pictures))


def _remembering_load(images: ImageSet, pictures: dict[int, Pixels]) -> KeyedLoad:
    def remember(row: int, pixels: Pixels) -> Pixels:
        pictures[row] = shrink(pixels, _THUMBNAIL)
        return pixels

    def load_with_key(row: int) -> tuple[Pixels, str]:
        pixels, key = images.load_with_key(row)
        return remember(row, pixels), key

    return KeyedLoad(
        lambda row: remember(row, images.load(row)),
        load_with_key,
        lambda edge: _remembering_load(images.decoded_for(edge), pictures),
    )
