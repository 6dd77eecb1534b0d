"""Feature extraction as a scikit-learn transformer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache as memoize
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.base import BaseEstimator, TransformerMixin

from featkit.backbones.devices import INT8
from featkit.backbones.engines import open_engine
from featkit.embeddings import store
from featkit.embeddings.extract import run_extractions
from featkit.embeddings.index import indexed
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys, plan_extraction
from featkit.embeddings.request import Request
from featkit.errors import DataError, SpecError
from featkit.images.base import ImageSet, Pixels
from featkit.images.decode import array_key, to_rgb
from featkit.images.files import images_from_files
from featkit.storage import user_path


class ImageEmbedder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Extract features of images; features in the cache are not computed again.

    Works in a ``Pipeline`` and in a ``GridSearchCV``: folds and candidates share the cache.

    Parameters
    ----------
    backbone, weights, layer, pool, resize, crop, precision
        As in ``featkit.extract``.
    cache : str or Path, optional
        Folder of the HDF5 files. None for a temporary folder, which all embedders of the process
        share and which is removed when it ends.
    device : str, default="auto"
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    batch_size : int, optional
        Images per forward pass; None for a default that depends on the device.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> model = make_pipeline(ImageEmbedder("resnet18"), LogisticRegression())
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        *,
        weights: str = "imagenet",
        layer: str | None = None,
        pool: str = "avg",
        resize: str | None = None,
        crop: str | None = None,
        precision: str = "auto",
        cache: str | Path | None = None,
        device: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.layer = layer
        self.pool = pool
        self.resize = resize
        self.crop = crop
        self.precision = precision
        self.cache = cache
        self.device = device
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any = None) -> Self:
        """Do nothing: the network is frozen.

        Parameters
        ----------
        X : object
            Ignored.
        y : object
            Ignored.
        """
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Return the features of each image.

        Parameters
        ----------
        X : sequence of paths, PIL images or arrays, or one array
            The images. A data frame or an array with a single column of paths is accepted too. The
            array of an image has shape (h, w), (h, w, 1) or (h, w, 3), and an array of several
            images one more dimension in front; its values are uint8, or floating-point numbers
            from 0 to 1.

        Returns
        -------
        ndarray of float32, shape (n, d)

        Raises
        ------
        DataError
            If X is empty, or holds anything else.
        """
        if self.precision in INT8:
            raise SpecError("int8 needs train images for calibration: use another precision")
        images = _image_set(X)
        request = self._request()
        compute = Compute(device=self.device, batch_size=self.batch_size)
        folder = _process_folder(os.getpid()) if self.cache is None else user_path(self.cache)
        with indexed(images, folder) as images:
            keys = content_keys(images, compute)
            plan = plan_extraction(request, images, keys, folder)
        cached = plan.locate_cached()
        missing = {key: row for row, key in enumerate(keys) if key not in cached}
        if missing:
            rows = np.array(sorted(missing.values()))
            run_extractions([plan.request], images.take(rows), folder, compute)
            cached = plan.locate_cached()
        for row, key in enumerate(keys):
            if key not in cached:
                raise DataError(
                    f"{images.ids[row]} was changed while it was in use: start again when nothing "
                    "writes to the images"
                )
        features = store.read_rows([cached[key] for key in keys])
        # Kept for get_feature_names_out, together with the parameters that it is valid for.
        self._width = (self.get_params(), features.shape[1])
        return features

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return the names of the features: ``imageembedder0``, ``imageembedder1``, ...

        Parameters
        ----------
        input_features : object
            Ignored.

        Returns
        -------
        ndarray of str objects, shape (d,)
        """
        params, width = getattr(self, "_width", (None, 0))
        if params != self.get_params():
            backbone = self._request().load_backbone()
            engine = open_engine(backbone, precision="fp32", device="cpu")
            black = np.zeros((1, *backbone.preprocess.crop, 3), np.uint8)
            width = engine(black).shape[1]
            self._width = (self.get_params(), width)
        prefix = type(self).__name__.lower()
        return np.array([f"{prefix}{column}" for column in range(width)], dtype=object)

    def _request(self) -> Request:
        return Request(
            data="",
            backbone=self.backbone,
            weights=self.weights,
            layer=self.layer,
            pool=self.pool,
            resize=self.resize,
            crop=self.crop,
            precision=self.precision,
        ).for_device(self.device)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.string = True
        tags.input_tags.three_d_array = True
        return tags


@memoize
def _process_folder(process: int) -> Path:
    """Return a new folder that is removed when the process ends.

    Args:
        process: its number. A process that was forked gets a folder of its own.
    """
    folder = TemporaryDirectory(prefix="featkit-")
    _FOLDERS.append(folder)  # garbage collection would remove it
    return Path(folder.name)


_FOLDERS: list[TemporaryDirectory[str]] = []


def _image_set(X: Any) -> ImageSet:
    """Return paths, PIL images or arrays as an unlabelled image set.

    Raises:
        DataError: if ``X`` is empty or anything else.
    """
    items = _items(X)
    if len(items) == 0:
        raise DataError("X is empty: give at least one image")
    if all(isinstance(item, str | Path) for item in items):
        return images_from_files(items)
    pixels = [_pixels(item, row) for row, item in enumerate(items)]
    return replace(
        images_from_files(map(str, range(len(pixels)))),
        load=pixels.__getitem__,
        key=lambda row: array_key(pixels[row]),
    )


def _items(X: Any) -> Sequence[Any]:
    """Return the images in ``X`` one by one; a column of paths is flattened."""
    if isinstance(X, str | Path | Image.Image) or not isinstance(X, Iterable):
        raise DataError("X must be a sequence of images, also for a single one: [image]")
    values = X.to_numpy() if hasattr(X, "to_numpy") else X
    if not isinstance(values, np.ndarray):
        return list(values)
    if values.dtype.kind in "OUS" and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.dtype.kind not in "OUS" and values.ndim not in (3, 4):
        raise DataError(f"X has shape {values.shape}: images have shape (n, h, w) or (n, h, w, 3)")
    return list(values)


def _pixels(item: Any, row: int) -> Pixels:
    """Return one image as uint8 RGB ``(h, w, 3)``; ``row`` is its position in ``X``."""
    if isinstance(item, Image.Image):
        try:
            return to_rgb(ImageOps.exif_transpose(item))
        except (ValueError, OSError) as error:
            raise DataError(f"image {row} of X cannot be read: {error}") from error
    if not isinstance(item, np.ndarray):
        raise DataError(
            f"image {row} of X is a {type(item).__name__}: X must be paths, PIL images or arrays"
        )
    return _as_rgb(_as_bytes(item, row), row)


def _as_bytes(values: NDArray[Any], row: int) -> NDArray[np.uint8]:
    """Return pixels as uint8; floating-point values are multiplied by 255 and rounded."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f":
        raise DataError(
            f"image {row} of X holds {values.dtype}: give uint8, or floating-point values in 0..1"
        )
    if not (values.size and values.min() >= 0 and values.max() <= 1):
        raise DataError(
            f"image {row} of X holds values outside of 0..1: divide by their maximum, "
            'or convert values in 0..255 with .astype("uint8")'
        )
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def _as_rgb(pixels: NDArray[np.uint8], row: int) -> Pixels:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size and pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if pixels.size and pixels.ndim == 3 and pixels.shape[2] == 3:
        return pixels
    raise DataError(
        f"image {row} of X has shape {pixels.shape}: images have shape (h, w) or (h, w, 3)"
    )
