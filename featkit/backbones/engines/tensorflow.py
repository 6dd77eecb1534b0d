"""Run networks in Keras: in TensorFlow, or in the back end that ``KERAS_BACKEND`` names."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.base import Backbone, Preprocess
from featkit.backbones.engines.base import Engine
from featkit.backbones.keras import import_keras
from featkit.errors import SpecError


class KerasEngine(Engine):
    """Run a Keras model in float32.

    Args:
        forward: from normalised float32 ``(b, h, w, 3)`` to ``(b, d)``.
        preprocess: its normalisation.
    """

    name = "keras"

    def __init__(
        self, forward: Callable[[NDArray[np.float32]], Any], preprocess: Preprocess
    ) -> None:
        self._forward = forward
        self._preprocess = preprocess

    @classmethod
    def open(
        cls, backbone: Backbone, *, precision: str, device: str, compiled: bool = False
    ) -> Self:
        """Build the network in Keras: see ``Engine.open``."""
        if precision != "fp32":
            raise SpecError(
                f"{backbone.name} runs in float32 only, not in {precision}: use --precision fp32"
            )
        if backbone.build_keras is None:
            raise SpecError(f"{backbone.name} is no network of Keras: use keras:resnet50")
        keras = import_keras()
        if keras.backend.backend() != "tensorflow":
            return cls(_one_at_a_time(backbone.build_keras()), backbone.preprocess)
        place = tensorflow_device(device)
        import tensorflow as tf

        with tf.device(place):
            model = backbone.build_keras()
        signature = [tf.TensorSpec((None, *backbone.preprocess.crop, 3), tf.float32)]

        @tf.function(input_signature=signature, jit_compile=compiled)  # type: ignore[untyped-decorator]
        def run(batch: Any) -> Any:
            return model(batch, training=False)

        def forward(batch: NDArray[np.float32]) -> Any:
            with tf.device(place):
                return run(tf.constant(batch))

        return cls(forward, backbone.preprocess)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 ``(b, d)`` for uint8 ``(b, h, w, 3)``."""
        from keras import ops

        # Normalised as for torch, by the same code, which takes the channels first.
        channels_first = pixels.transpose(0, 3, 1, 2).astype(np.float32)
        batch = self._preprocess.normalise(channels_first).transpose(0, 2, 3, 1)
        features = ops.convert_to_numpy(self._forward(np.ascontiguousarray(batch)))
        return np.asarray(features, np.float32)


def _one_at_a_time(model: Any) -> Callable[[NDArray[np.float32]], Any]:
    """Return the prediction of a model in any back end, which may not be called by two threads."""
    lock = Lock()

    def forward(batch: NDArray[np.float32]) -> Any:
        with lock:
            return model.predict_on_batch(batch)

    return forward


def tensorflow_device(device: str) -> str:
    """Return TensorFlow's name of a device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        SpecError: if TensorFlow has no such device.
    """
    import_keras()
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if device == "mps" or (device == "cuda" and not gpus):
        raise SpecError(
            f"TensorFlow finds no device {device} (the package tensorflow-cpu has none, and "
            "tensorflow needs NVIDIA's libraries: tensorflow[and-cuda]): use --device cpu"
        )
    return "/GPU:0" if gpus and device != "cpu" else "/CPU:0"
