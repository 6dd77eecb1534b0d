"""Checks for authors of plug-ins: call them in the tests of a head, a backbone or a data source.

Each check raises ``AssertionError`` with a message that names the requirement that is not met.
"""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.base import Backbone
from featkit.errors import FeatkitError
from featkit.images.base import SPLITS, ImageSet

__all__ = ["check_backbone", "check_head", "check_source"]


def check_head(head: Any, *, persist: bool = True) -> None:
    """Check that a head is a classifier as featkit uses it.

    The head is fitted on features of three classes whose labels are not 0, 1, 2, in float32 and
    float64. Scores must have one column per entry of ``classes_`` and be finite, predictions must
    agree with them, the same seed must give the same scores, the features must stay as they are,
    and the head must separate classes that are far apart.

    Args:
        head: the unfitted estimator, or its class or factory, which is called without arguments.
        persist: also check that the fitted head can be saved without pickle and loaded again.

    Raises:
        AssertionError: naming the requirement.
    """
    if inspect.isclass(head) or inspect.isfunction(head):
        head = head()
    name = type(head).__name__
    for method in ("fit", "predict", "predict_proba", "get_params", "set_params"):
        assert callable(getattr(head, method, None)), f"{name} has no method {method}()"
    labels = np.array([3, 5, 9])
    x, y = _clusters(labels)
    for dtype in (np.float32, np.float64):
        features = x.astype(dtype)
        fitted = _clone(head).fit(features, y)
        assert fitted is not None, f"{name}.fit() must return the head"
        scores = _check_scores(name, fitted, features, labels)
        same = (features == x.astype(dtype)).all()
        assert same, f"{name} changes the features that it is given: other heads use them too"
        accuracy = float(np.mean(fitted.predict(features) == y))
        assert accuracy > 0.9, (
            f"{name} predicts only {100 * accuracy:.0f}% of its training data correctly, "
            "three classes that are far apart"
        )
    again = _clone(head).fit(features, y)
    same = np.allclose(scores, again.predict_proba(features))
    assert same, f"{name} gives other scores when it is fitted again: give it a seed"
    if persist:
        _check_persistence(name, fitted, features, scores)


def _clusters(labels: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return 20 features ``(8,)`` around each of three distant centres, and their labels."""
    rng = np.random.default_rng(0)
    centres = 4 * np.eye(len(labels), 8)
    rows = np.repeat(np.arange(len(labels)), 20)
    x = 1.0 + centres[rows] + 0.3 * rng.normal(size=(len(rows), 8))
    return x, labels[rows]


def _clone(head: Any) -> Any:
    from sklearn.base import clone

    try:
        return clone(head)
    except (TypeError, RuntimeError) as error:
        name = type(head).__name__
        raise AssertionError(
            f"{name} cannot be cloned: __init__ must only store its parameters ({error})"
        ) from error


def _check_scores(
    name: str, head: Any, x: NDArray[Any], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    classes = np.asarray(getattr(head, "classes_", None))
    assert classes.shape == labels.shape, f"{name}.classes_ must hold the labels seen in fit()"
    assert (classes == labels).all(), f"{name}.classes_ must hold the labels seen in fit(), sorted"
    scores = np.asarray(head.predict_proba(x))
    expected = (len(x), len(labels))
    assert scores.shape == expected, (
        f"{name}.predict_proba() returns shape {scores.shape}, not {expected}"
    )
    assert np.isfinite(scores).all(), f"{name}.predict_proba() returns values that are not finite"
    predicted = np.asarray(head.predict(x))
    best = classes[scores.argmax(axis=1)]
    assert (predicted == best).all(), f"{name}.predict() differs from the class of the best score"
    return scores


def _check_persistence(name: str, head: Any, x: NDArray[Any], scores: NDArray[np.float64]) -> None:
    from featkit.heads.persist import load_head, save_head

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "head.skops")
        try:
            save_head(head, path, trusted=_type_names(head))
            loaded = load_head(path, trusted=_type_names(head))
        except FeatkitError as error:
            raise AssertionError(f"{name} cannot be saved without pickle: {error}") from error
    same = np.allclose(scores, loaded.predict_proba(x))
    assert same, f"{name} gives other scores after it was saved and loaded"


def _type_names(head: Any) -> list[str]:
    """Return the full name of the head's class, which is trusted once the plug-in is installed."""
    return [f"{type(head).__module__}.{type(head).__qualname__}"]


def check_backbone(backbone: Backbone) -> None:
    """Check that a backbone can be built and gives one finite feature vector per image.

    Args:
        backbone: what the factory of a plug-in returns.

    Raises:
        AssertionError: naming the requirement.
    """
    assert isinstance(backbone, Backbone), (
        f"a factory must return a featkit Backbone, not {type(backbone).__name__}"
    )
    for attribute in ("name", "weights", "digest", "layer", "pool"):
        value = getattr(backbone, attribute)
        filled = isinstance(value, str) and bool(value)
        assert filled, f"{attribute} must be a non-empty string, not {value!r}"
    height, width = backbone.preprocess.crop
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    image = backbone.preprocess(pixels)
    expected = (height, width, 3)
    assert image.shape == expected, f"preprocess returns shape {image.shape}, not {expected}"
    assert image.dtype == np.uint8, f"preprocess returns {image.dtype}, not uint8"
    _check_features(backbone, image)


def _check_features(backbone: Backbone, image: NDArray[np.uint8]) -> None:
    """Check the features of a preprocessed image ``(h, w, 3)``, alone and in a batch."""
    from featkit.backbones.engines import open_engine

    assert not backbone.build().training, "build() must return a network in eval mode"
    engine = open_engine(backbone, device="cpu")
    features = engine(np.stack([image, image[:, ::-1]]))
    one = engine(image[None])
    assert features.ndim == 2, (
        f"the network returns shape {features.shape}, not one vector per image"
    )
    assert len(features) == 2, f"the network returns {len(features)} vectors for 2 images"
    assert features.dtype == np.float32, f"the network returns {features.dtype}, not float32"
    assert np.isfinite(features).all(), "the network returns values that are not finite"
    close = np.allclose(features[:1], one, rtol=1e-3, atol=1e-4)
    assert close, "the features of an image depend on the other images of the batch"


def check_source(images: ImageSet) -> None:
    """Check that a set of images is consistent, and that its first images can be read.

    Args:
        images: what the factory of a plug-in returns.

    Raises:
        AssertionError: naming the requirement.
    """
    assert isinstance(images, ImageSet), (
        f"a factory must return a featkit ImageSet, not {type(images).__name__}"
    )
    n = len(images.ids)
    assert n, "there are no images"
    assert len(set(images.ids)) == n, "ids must be unique"
    _check_labels_and_splits(images)
    for row in range(min(n, 3)):
        _check_pixels(images, row)
        _check_key(images, row)


def _check_labels_and_splits(images: ImageSet) -> None:
    n, k = len(images.ids), len(images.classes)
    for attribute in ("labels", "splits"):
        shape = np.shape(getattr(images, attribute))
        assert shape == (n,), f"{attribute} has shape {shape}, not ({n},)"
    labels = np.asarray(images.labels)
    assert np.issubdtype(labels.dtype, np.integer), f"labels are {labels.dtype}, not integers"
    assert len(set(images.classes)) == k, "class names must be unique"
    in_range = labels.min() >= 0 and labels.max() < k
    assert in_range, f"labels must be positions in classes: 0 to {k - 1}"
    unknown = sorted(set(np.asarray(images.splits).tolist()) - set(SPLITS))
    assert not unknown, f"splits must be {', '.join(SPLITS)}, not {', '.join(unknown)}"


def _check_pixels(images: ImageSet, row: int) -> None:
    pixels = images.load(row)
    assert isinstance(pixels, np.ndarray), f"load({row}) must return a NumPy array"
    assert pixels.dtype == np.uint8, f"load({row}) returns {pixels.dtype}, not uint8"
    rgb = pixels.ndim == 3 and pixels.shape[2] == 3
    assert rgb, f"load({row}) returns shape {pixels.shape}, not (height, width, 3)"
    assert (images.load(row) == pixels).all(), f"load({row}) returns other pixels when repeated"


def _check_key(images: ImageSet, row: int) -> None:
    key = images.key(row)
    hexadecimal = len(key) == 64 and set(key) <= set("0123456789abcdef")
    assert hexadecimal, f"key({row}) must be a SHA-256 in hexadecimal, not {key!r}"
    assert key == images.key(row), f"key({row}) changes when it is repeated"
