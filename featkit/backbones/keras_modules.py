"""Build ResNets in Keras, and convert their weights from and to torch.

The networks have the layers of torchvision's under the same names, so that a state dict of one
framework is one of the other, apart from the order of axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
from keras import layers, ops
from numpy.typing import NDArray
from torch import Tensor

from featkit.backbones.resnet import Architecture
from featkit.backbones.resnet_modules import BLOCKS, BasicBlock
from featkit.errors import SpecError, WeightsError
from featkit.registry import unknown

_EPSILON = 1e-5
_MOMENTUM = 0.9
"""torch's defaults; what torch calls momentum is one minus this."""

_STAGES = ("layer1", "layer2", "layer3", "layer4")
_CHANNELS = (64, 128, 256, 512)
_TO_TORCH = (3, 2, 0, 1)
_TO_KERAS = (2, 3, 1, 0)
"""Orders of axes of convolution kernels: ``(out, in, h, w)`` in torch, ``(h, w, in, out)`` here."""


@keras.saving.register_keras_serializable("featkit")
class BatchNorm(layers.BatchNormalization):  # type: ignore[misc]
    """BatchNormalization with the running statistics of torch.

    torch updates the running variance with the unbiased estimate, n / (n - 1) times the variance
    that it normalises by, and counts the batches; Keras does neither.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(epsilon=_EPSILON, momentum=_MOMENTUM, **options)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the weights."""
        super().build(input_shape)
        self.batches = self.add_weight(
            name="num_batches_tracked",
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
        )

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise by the batch in training, else by the running statistics."""
        if not training or not self.trainable:
            return super().call(inputs, training=False, mask=mask)
        mean, variance = ops.moments(inputs, axes=(0, 1, 2))
        shape = ops.shape(inputs)
        n = ops.cast(shape[0] * shape[1] * shape[2], variance.dtype)
        unbiased = variance * n / ops.maximum(n - 1, 1)
        for running, value in ((self.moving_mean, mean), (self.moving_variance, unbiased)):
            running.assign(running * self.momentum + value * (1 - self.momentum))
        self.batches.assign_add(1)
        return ops.batch_normalization(
            inputs, mean, variance, -1, self.beta, self.gamma, epsilon=self.epsilon
        )

    def get_config(self) -> dict[str, Any]:
        """Return the options of the constructor."""
        return {"name": self.name, "trainable": self.trainable}


def _keras_name(name: str) -> str:
    """Return the name of a layer in Keras, whose torch back end refuses full stops in names."""
    return name.replace(".", "-")


def _torch_name(name: str) -> str:
    """Return torchvision's name of a layer, the inverse of ``_keras_name``."""
    return name.replace("-", ".")


class _Graph:
    """A network under construction: adds layers and remembers the output of each.

    Args:
        architecture: decides the layers.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.outputs: dict[str, Any] = {}

    def apply(self, name: str, layer: Callable[[Any], Any], x: Any) -> Any:
        self.outputs[name] = layer(x)
        return self.outputs[name]

    def conv(self, name: str, x: Any, width: int, kernel: int, stride: int) -> Any:
        """Add a convolution without bias, padded on all sides as in torch.

        Keras's ``same`` padding adds pixels at the bottom and on the right only, where the stride
        is 2.
        """
        if kernel > 1:
            x = layers.ZeroPadding2D(kernel // 2, name=f"{name}.pad")(x)
        width = self.architecture.widths.get(name, width)
        convolution = layers.Conv2D(width, kernel, stride, use_bias=False, name=_keras_name(name))
        return self.apply(name, convolution, x)

    def norm(self, name: str, x: Any) -> Any:
        return (
            self.apply(name, BatchNorm(name=_keras_name(name)), x) if self.architecture.norm else x
        )

    def relu(self, name: str, x: Any) -> Any:
        return self.apply(name, layers.ReLU(name=name), x)

    def stem(self, x: Any) -> Any:
        kernel, stride = (3, 1) if self.architecture.small else (7, 2)
        x = self.norm("bn1", self.conv("conv1", x, 64, kernel, stride))
        x = self.relu("relu", x)
        if not self.architecture.small:
            # Zeros are as good as the minus infinity of torch's padding: x is not negative.
            x = layers.ZeroPadding2D(1, name="maxpool.pad")(x)
            x = layers.MaxPooling2D(3, 2, name="maxpool")(x)
        self.outputs["maxpool"] = x
        return x

    def block(self, name: str, x: Any, channels: int, stride: int) -> Any:
        """Add a residual block; the stride is in its first 3 x 3 convolution."""
        kind, _ = BLOCKS[self.architecture.network]
        if kind is BasicBlock:
            convolutions = [(channels, 3, stride), (channels, 3, 1)]
        else:
            convolutions = [(channels, 1, 1), (channels, 3, stride), (4 * channels, 1, 1)]
        added = x
        for number, (width, kernel, step) in enumerate(convolutions, start=1):
            if number > 1:
                x = self.relu(f"{name}.relu" + (f"_{number - 2}" if number > 2 else ""), x)
            x = self.conv(f"{name}.conv{number}", x, width, kernel, step)
            x = self.norm(f"{name}.bn{number}", x)
        if self.architecture.residual:
            width = convolutions[-1][0]
            if stride != 1 or added.shape[-1] != width:
                added = self.conv(f"{name}.downsample.0", added, width, 1, stride)
                added = self.outputs[f"{name}.downsample"] = self.norm(
                    f"{name}.downsample.1", added
                )
            x = self.apply(f"{name}.add", layers.Add(name=f"{name}.add"), [x, added])
        x = self.relu(f"{name}.relu_{len(convolutions) - 1}", x)
        self.outputs[name] = x
        return x

    def stages(self, x: Any, start: int) -> Any:
        """Add the residual blocks from number ``start`` on; the first one has number 1."""
        _, depths = BLOCKS[self.architecture.network]
        number = 0
        for stage, channels, depth in zip(_STAGES, _CHANNELS, depths, strict=True):
            for index in range(depth):
                number += 1
                stride = 2 if index == 0 and stage != "layer1" else 1
                if number >= start:
                    x = self.block(f"{stage}.{index}", x, channels, stride)
            self.outputs[stage] = x
        return x


def build_resnet(
    architecture: Architecture,
    *,
    layer: str = "avgpool",
    pool: str = "avg",
    classes: int = 0,
    start: int = 0,
    shape: tuple[int | None, ...] = (None, None, 3),
) -> keras.Model:
    """Build a ResNet with undefined weights, up to a layer whose output is pooled.

    Args:
        architecture: decides the layers.
        layer: name of a layer as in torchvision; ``avgpool`` for the embedding.
        pool: as in ``load_backbone``; ``none`` gives the channels first, as in torch.
        classes: number of outputs of the layer ``fc``.
        start: number of the first residual block, of which the input is that of the network: 1 for
            the first one; 0 for the whole network.
        shape: ``(h, w, c)`` of the input; None for any size.

    Returns:
        A network from float32 ``(b, h, w, c)`` to ``(b, d)``.

    Raises:
        SpecError: if the layer is unknown.
    """
    graph = _Graph(architecture)
    inputs = keras.Input(shape)
    x = graph.stem(inputs) if start == 0 else inputs
    x = graph.stages(x, start)
    if layer == "fc":
        pooled = layers.GlobalAveragePooling2D(name="avgpool")(x)
        output = layers.Dense(classes, name="fc")(pooled)
    elif layer == "avgpool":
        output = _pool(x, pool)
    elif layer in graph.outputs:
        output = _pool(graph.outputs[layer], pool)
    else:
        name = f"keras:{architecture.network}"
        raise unknown(f"layer of {name}", layer, [*graph.outputs, "avgpool", "fc"])
    return keras.Model(inputs, output)


def _pool(x: Any, pool: str) -> Any:
    """Pool feature maps ``(b, h, w, c)`` as ``layers.pool_map`` does; others are not changed."""
    if len(x.shape) == 2:
        return x
    average = layers.GlobalAveragePooling2D(name="avgpool")
    maximum = layers.GlobalMaxPooling2D(name="maximum")
    if pool == "none":
        return layers.Flatten()(layers.Permute((3, 1, 2))(x))
    if pool == "catavgmax":
        return layers.Concatenate()([average(x), maximum(x)])
    return average(x) if pool == "avg" else maximum(x)


# --- Conversion ---


def tensors(model: keras.Model) -> Iterator[tuple[str, Any, Any]]:
    """Yield each weight of a network: its name in torch, its variable, and its layer."""
    for layer in model.layers:
        name = _torch_name(layer.name)
        if isinstance(layer, layers.Conv2D):
            yield f"{name}.weight", layer.kernel, layer
        elif isinstance(layer, layers.Dense):
            yield f"{name}.weight", layer.kernel, layer
            yield f"{name}.bias", layer.bias, layer
        elif isinstance(layer, BatchNorm):
            yield f"{name}.weight", layer.gamma, layer
            yield f"{name}.bias", layer.beta, layer
            yield f"{name}.running_mean", layer.moving_mean, layer
            yield f"{name}.running_var", layer.moving_variance, layer
            yield f"{name}.num_batches_tracked", layer.batches, layer


def load_state(model: keras.Model, state: Mapping[str, Tensor], *, name: str) -> None:
    """Load a state dict of torch into a network of ``build_resnet``.

    Tensors of layers that the network does not compute are left out.

    Args:
        model: the network.
        state: torchvision's names and shapes.
        name: of the network, for the error message.

    Raises:
        WeightsError: if a tensor is missing or has another shape.
    """
    for key, variable, _ in tensors(model):
        if key not in state and key.endswith(".num_batches_tracked"):
            continue  # weights of torch before 0.4.1 lack it
        if key not in state:
            raise WeightsError(f"weights of {name} have no {key}: use those of this network")
        value = to_keras(state[key].detach().cpu().numpy())
        if value.shape != tuple(variable.shape):
            raise WeightsError(
                f"{key} of {name} has shape {value.shape} instead of {tuple(variable.shape)}: "
                "use weights of this network"
            )
        variable.assign(value)


def to_state(model: keras.Model) -> dict[str, Tensor]:
    """Return the weights of a network as a state dict with torchvision's names and shapes."""
    state = {}
    for key, variable, _ in tensors(model):
        value = to_torch(_to_numpy(variable))
        if key.endswith(".num_batches_tracked"):
            value = value.astype(np.int64)
        state[key] = torch.tensor(value)
    return state


def _to_numpy(variable: Any) -> NDArray[Any]:
    """Return the value of a variable; NumPy warns where ``ops.convert_to_numpy`` converts one."""
    value: NDArray[Any] = variable.numpy()
    return value


def to_keras(value: Any) -> Any:
    """Return a weight of torch with the axes of Keras; ``to_torch`` is the inverse."""
    if value.ndim == 4:
        return value.transpose(_TO_KERAS)
    return value.T if value.ndim == 2 else value


def to_torch(value: Any) -> Any:
    """Return a weight of Keras with the axes of torch."""
    if value.ndim == 4:
        return np.ascontiguousarray(value.transpose(_TO_TORCH))
    return np.ascontiguousarray(value.T) if value.ndim == 2 else value


# --- keras.applications ---


def build_application(
    builder: str,
    name: str,
    *,
    path: Path | None,
    seed: int,
    bgr: bool,
    layer: str | None,
    pool: str,
) -> keras.Model:
    """Build one of Keras's own networks, up to a layer whose output is pooled.

    Args:
        builder: name of its function in ``keras.applications``.
        name: of the network, for error messages.
        path: file of weights, with or without the classifier; None for random weights.
        seed: of random weights.
        bgr: whether the weights expect blue, green, red; the network takes red, green, blue.
        layer: Keras's name of a layer, or None for the embedding.
        pool: as in ``load_backbone``.

    Raises:
        SpecError: if the layer is unknown.
        WeightsError: if the file is damaged or of another network.
    """
    make = getattr(keras.applications, builder)
    if path is None:
        network = make(include_top=False, weights=None)
        _randomise(network, seed)
    else:
        network = _with_file(make, name, path)
    if bgr:
        # The order of channels is part of the first kernel, so that no layer has to change it.
        kernel = network.get_layer("conv1_conv").kernel
        kernel.assign(_to_numpy(kernel)[:, :, ::-1])
    body = [each.name for each in network.layers if each.name not in _TOP]
    if layer is not None and layer not in body:
        raise unknown(f"layer of {name}", layer, body)
    output = network.get_layer(layer or body[-1]).output
    if len(output.shape) not in (2, 4):
        raise SpecError(f"output of layer {layer} is neither (b, d) nor (b, h, w, c): use another")
    return keras.Model(network.inputs, _pool(output, pool))


_TOP = ("avg_pool", "predictions")
"""Layers of ``keras.applications`` after the last feature map."""


def _with_file(make: Callable[..., Any], name: str, path: Path) -> Any:
    """Return a network with the weights of a file, which may contain the classifier."""
    error: Exception | None = None
    for include_top in (False, True):
        network = make(include_top=include_top, weights=None)
        try:
            network.load_weights(str(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as reason:
            error = error or reason
            continue
        return network
    reason_text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise WeightsError(
        f"{path} contains no weights of {name} ({reason_text}): "
        "give the HDF5 file that Keras publishes for it"
    ) from error


def _randomise(network: Any, seed: int) -> None:
    """Draw convolution kernels as He et al. (2015), without Keras's global random state."""
    rng = np.random.default_rng(seed)
    for variable in network.weights:
        if len(variable.shape) == 4:
            height, width, channels, _ = variable.shape
            scale = (2 / (height * width * channels)) ** 0.5
            variable.assign(scale * rng.standard_normal(variable.shape, dtype=np.float32))
