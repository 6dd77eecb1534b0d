"""ImageSet, the common form of all image sources."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from featkit.errors import DataError
from featkit.registry import check_names

Pixels = NDArray[np.uint8]
T = TypeVar("T")

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class KeyedLoad:
    """Function from row number to pixels that can also return the key of the bytes it decodes.

    Features are cached under the key of their image, so pixels and key must come from the same
    bytes, whatever happens to the file meanwhile.

    Attributes:
        load: row number to uint8 RGB ``(h, w, 3)``.
        with_key: row number to the pixels and their key; the bytes are read once.
        scaled: shorter edge in pixels of the image that is needed to the function that decodes
            large JPEG files at a fraction of their size, see ``decode.reduction``; None if images
            are always decoded in full.
    """

    load: Callable[[int], Pixels]
    with_key: Callable[[int], tuple[Pixels, str]]
    scaled: Callable[[int], KeyedLoad] | None = None

    def __call__(self, row: int) -> Pixels:
        """Return the pixels alone."""
        return self.load(row)


class FileContent(NamedTuple):
    """What is known of an image file from its bytes.

    Attributes:
        key: the key of the image.
        jpeg_edge: shorter edge in pixels of a JPEG file as it is stored; 0 for other formats.
    """

    key: str
    jpeg_edge: int


@dataclass(frozen=True)
class SizedKey:
    """Function from row number to key that also knows which images are large JPEG files.

    Attributes:
        key: row number to the key.
        jpeg_edge: row number to ``FileContent.jpeg_edge``; 0 for an image that must be decoded in
            full, such as one that is augmented afterwards.
    """

    key: Callable[[int], str]
    jpeg_edge: Callable[[int], int]

    def __call__(self, row: int) -> str:
        """Return the key."""
        return self.key(row)

    def take(self, rows: NDArray[np.int64]) -> SizedKey:
        """Return the function for the images at ``rows``."""
        return SizedKey(
            lambda row: self.key(int(rows[row])), lambda row: self.jpeg_edge(int(rows[row]))
        )


@dataclass(frozen=True)
class FileKey:
    """Function from row number to the key of an image that is a file, or a member of one.

    ``embeddings.index`` remembers such keys as long as the files do not change.

    Attributes:
        files: path of each image's file; an empty text for one that cannot be read.
        read: row number to the content, which depends on the bytes of that file only.
        members: name of each image in its file; empty if the images are files by themselves.
    """

    files: tuple[str, ...]
    read: Callable[[int], FileContent]
    members: tuple[str, ...] = ()
    _edges: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, row: int) -> str:
        """Return the key; the file is read again at each call, unless ``read`` remembers it."""
        content = self.read(row)
        self._edges[row] = content.jpeg_edge
        return content.key

    def jpeg_edge(self, row: int) -> int:
        """Return ``FileContent.jpeg_edge`` when the key was last computed; computed if never."""
        if row not in self._edges:
            self(row)
        return self._edges[row]

    def take(self, rows: NDArray[np.int64]) -> FileKey:
        """Return the keys of the images at ``rows``."""
        return FileKey(
            tuple(self.files[row] for row in rows),
            lambda row: self.read(int(rows[row])),
            tuple(self.members[row] for row in rows) if self.members else (),
        )


@dataclass(frozen=True)
class ImageSet:
    """Labelled images that are loaded on demand.

    Attributes:
        name: short name for files and tables, such as ``digits`` or the name of the folder.
        ids: n unique names of the images: relative paths if the images are files.
        labels: ``(n,)`` int64, indices into ``classes``. A subset may lack some classes.
        classes: class names.
        splits: ``(n,)`` strings, ``train``, ``val`` or ``test``.
        split: origin of ``splits``: ``own`` if the source defines them, or else the rule that made
            them, such as ``70/15/15:seed=0``.
        load: function from row number to uint8 RGB ``(h, w, 3)``; thread-safe. Raises DecodeError.
            A ``KeyedLoad`` can also return the key of the bytes that it decodes.
        key: function from row number to the SHA-256 (hex) of the image's bytes; thread-safe. Equal
            keys mean equal pixels. A ``FileKey`` if each image is a file, a ``SizedKey`` if images
            are made from files.
        notes: what was noticed when the images were listed, such as files that were passed over,
            one line each.
        intensity: range of values that become black and white, see ``IntensityRange``; ``none`` for
            that of the files' format.
        files: path of each image's file, an empty text for a missing one; empty if the images are
            not files.
        groups: group of each image, such as a patient, an empty text for none; empty if the source
            defines no groups.
        multilabel: whether each image has any number of labels. Its class is then its set of
            labels, written as ``bus;car``, see ``featkit.images.multilabel``.
        urls: URL of each image, of which ``files`` has the path of the local copy, an empty text
            for a local file; empty if no image is at a URL.
    """

    name: str
    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    splits: NDArray[np.str_]
    split: str
    load: Callable[[int], Pixels]
    key: Callable[[int], str]
    notes: tuple[str, ...] = ()
    intensity: str = "none"
    files: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    multilabel: bool = False
    urls: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the row numbers of one split, ascending.

        Raises:
            SpecError: for another name than ``train``, ``val`` and ``test``.
        """
        check_names("split", [split], SPLITS)
        return np.flatnonzero(self.splits == split)

    def jpeg_edge(self, row: int) -> int:
        """Return the shorter edge in pixels of a JPEG file that may be decoded at a fraction.

        0 for all other images. Cheap after ``key`` was called.

        Raises:
            DecodeError: if the file cannot be read.
        """
        return self.key.jpeg_edge(row) if isinstance(self.key, FileKey | SizedKey) else 0

    def decoded_for(self, edge: int) -> ImageSet:
        """Return the images with large JPEG files decoded at a fraction of their size.

        Keys stay the same. Where the source cannot do that, the images themselves.

        Args:
            edge: shorter edge in pixels of the images that are made from them afterwards; they are
                decoded to at least twice of it, see ``decode.reduction``.
        """
        if not isinstance(self.load, KeyedLoad) or self.load.scaled is None:
            return self
        return replace(self, load=self.load.scaled(edge))

    def load_with_key(self, row: int) -> tuple[Pixels, str]:
        """Return the pixels of an image and the key of the bytes that they were decoded from.

        Where ``load`` is a plain function, the key is computed after the pixels were read: it
        differs from an earlier key if the image was replaced in between.

        Raises:
            DecodeError: if the image cannot be read.
        """
        if isinstance(self.load, KeyedLoad):
            return self.load.with_key(row)
        pixels = self.load(row)
        return pixels, self.key(row)

    def load_unchanged(self, row: int, key: str) -> Pixels:
        """Return the pixels of an image whose key was computed before.

        Raises:
            DataError: if its content has changed since.
            DecodeError: if it cannot be read.
        """
        pixels, found = self.load_with_key(row)
        if found != key:
            # Not a DecodeError: --on-error skip must not record a readable image as unreadable.
            raise DataError(
                f"{self.ids[row]} was changed while it was in use: start again when nothing writes "
                "to the images"
            )
        return pixels

    def take(self, rows: NDArray[np.int64]) -> ImageSet:
        """Return the images at ``rows``, with the same classes."""
        key = self.key
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            labels=self.labels[rows],
            splits=self.splits[rows],
            load=self._take_load(rows),
            key=(
                key.take(rows)
                if isinstance(key, FileKey | SizedKey)
                else lambda row: key(int(rows[row]))
            ),
            files=tuple(self.files[row] for row in rows) if self.files else (),
            groups=tuple(self.groups[row] for row in rows) if self.groups else (),
            urls=tuple(self.urls[row] for row in rows) if self.urls else (),
        )

    def _take_load(self, rows: NDArray[np.int64]) -> KeyedLoad:
        load = self.load
        can_scale = isinstance(load, KeyedLoad) and load.scaled is not None
        return KeyedLoad(
            lambda row: load(int(rows[row])),
            lambda row: self.load_with_key(int(rows[row])),
            (lambda edge: self.decoded_for(edge)._take_load(rows)) if can_scale else None,
        )


def partly_changed(
    images: ImageSet,
    unchanged: Callable[[int], int | None],
    load_with_key: Callable[[int], tuple[Pixels, str]],
    key: Callable[[int], str],
) -> tuple[KeyedLoad, SizedKey]:
    """Return load and key of images of which some were changed, and the others are those of a set.

    Large JPEG files among the unchanged ones may be decoded at a fraction of their size. The others
    are changed at full size: a crop of a smaller image lacks detail, and noise of single pixels is
    stronger in it.

    Args:
        images: the unchanged images.
        unchanged: row of the unchanged image in ``images``; None for a changed one.
        load_with_key: pixels and key of each image, all decoded in full.
        key: key of each image.
    """

    def load_for(edge: int) -> KeyedLoad:
        scaled = images.decoded_for(edge)

        def load_scaled(row: int) -> tuple[Pixels, str]:
            original = unchanged(row)
            return load_with_key(row) if original is None else scaled.load_with_key(original)

        return KeyedLoad(lambda row: load_scaled(row)[0], load_scaled, load_for)

    def jpeg_edge(row: int) -> int:
        original = unchanged(row)
        return 0 if original is None else images.jpeg_edge(original)

    load = KeyedLoad(lambda row: load_with_key(row)[0], load_with_key, load_for)
    return load, SizedKey(key, jpeg_edge)


def check_image_set(images: ImageSet) -> None:
    """Check the values of an image set that a program has made.

    Raises:
        DataError: if lengths differ, a name occurs twice, or a label or split is unknown.
    """
    n = len(images.ids)
    labels, splits = np.asarray(images.labels), np.asarray(images.splits)
    if labels.shape != (n,) or splits.shape != (n,):
        raise DataError(
            f"an ImageSet of {n} ids has labels {labels.shape} and splits {splits.shape}: "
            f"give arrays of shape ({n},)"
        )
    for name in ("files", "groups", "urls"):
        if len(getattr(images, name)) not in (0, n):
            raise DataError(
                f"an ImageSet of {n} ids has {len(getattr(images, name))} {name}: give {n} or none"
            )
    if len(set(images.ids)) != n:
        raise DataError("an ImageSet has an id twice: give each image another one")
    k = len(images.classes)
    if n and (labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= k):
        raise DataError(f"the labels of an ImageSet of {k} classes must be integers in 0..{k - 1}")
    for split in np.unique(splits).tolist():
        if split not in SPLITS:
            raise DataError(f"an ImageSet has split {split!r}: give {', '.join(SPLITS)}")
    if not callable(images.load) or not callable(images.key):
        raise DataError("load and key of an ImageSet must be functions of the row number")


def cache_last_row(read: Callable[[int], T]) -> Callable[[int], T]:
    """Return ``read`` with a cache of the last row in each thread.

    An image and its augmented or corrupted copies follow each other, so the image is decoded once
    for all of them.
    """
    last = threading.local()

    def read_cached(row: int) -> T:
        if getattr(last, "row", None) != row:
            last.value, last.row = read(row), row
        value: T = last.value
        return value

    return read_cached
