"""Feature extraction as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from featkit.backbones.devices import INT8
from featkit.embeddings import store
from featkit.embeddings.extract import run_extractions
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.plan import content_keys, plan_extraction
from featkit.embeddings.request import Request
from featkit.errors import DataError, SpecError
from featkit.images.base import ImageSet
from featkit.images.decode import array_key
from featkit.images.files import images_from_files


class ImageEmbedder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Extract features of images; features in the cache are not computed again.

    Works in a ``Pipeline`` and in a ``GridSearchCV``: folds and candidates share the cache.

    Parameters
    ----------
    backbone, weights, layer, pool, resize, crop, precision
        As in ``featkit.extract``.
    cache : str or Path, default="cache"
        Folder of the HDF5 files.
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
        cache: str | Path = "cache",
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
        X : sequence of paths, or uint8 array of shape (n, h, w) or (n, h, w, 3)
            Ignored.
        y : object
            Ignored.
        """
        return self

    def transform(self, X: Sequence[str | Path] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the features of each image.

        Parameters
        ----------
        X : sequence of paths, or uint8 array of shape (n, h, w) or (n, h, w, 3)
            The images.

        Returns
        -------
        ndarray of float32, shape (n, d)
        """
        if self.precision in INT8:
            raise SpecError("int8 needs train images for calibration: use another precision")
        images = _image_set(X)
        request = Request(
            data="",
            backbone=self.backbone,
            weights=self.weights,
            layer=self.layer,
            pool=self.pool,
            resize=self.resize,
            crop=self.crop,
            precision=self.precision,
        ).for_device(self.device)
        compute = Compute(device=self.device, batch_size=self.batch_size)
        cache = Path(self.cache)
        keys = content_keys(images, compute)
        recipe = plan_extraction(request, images, keys, cache).recipe
        cached = store.locate(cache, recipe, keys)
        missing = {key: row for row, key in enumerate(keys) if key not in cached}
        if missing:
            rows = np.array(sorted(missing.values()))
            run_extractions([request], images.take(rows), cache, compute)
            cached = store.locate(cache, recipe, keys)
        for row, key in enumerate(keys):
            if key not in cached:
                raise DataError(
                    f"{images.ids[row]} was changed while it was in use: start again when nothing "
                    "writes to the images"
                )
        return store.read_rows([cached[key] for key in keys])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.string = True
        tags.input_tags.three_d_array = True
        return tags


def _image_set(X: Sequence[str | Path] | NDArray[np.uint8]) -> ImageSet:
    """Return paths or arrays as an unlabelled image set.

    Raises:
        DataError: if ``X`` is empty or neither paths nor uint8 arrays.
    """
    if len(X) == 0:
        raise DataError("X is empty: give at least one image")
    if all(isinstance(item, str | Path) for item in X):
        return images_from_files(X)
    if not isinstance(X, np.ndarray) or X.dtype != np.uint8:
        raise DataError("X must be paths or a uint8 array of shape (n, h, w) or (n, h, w, 3)")
    pixels = _as_rgb(X)
    return replace(
        images_from_files(map(str, range(len(pixels)))),
        load=pixels.__getitem__,
        key=lambda row: array_key(pixels[row]),
    )


def _as_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pixels.ndim == 3:
        return np.repeat(pixels[..., None], 3, axis=3)
    if pixels.ndim == 4 and pixels.shape[3] == 3:
        return pixels
    raise DataError(f"X has shape {pixels.shape}: images have shape (n, h, w) or (n, h, w, 3)")
