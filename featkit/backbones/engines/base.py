"""The interface of engines: everything else in featkit that needs features calls one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.base import Backbone

ForwardPass = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""An engine or a function, from resized uint8 ``(b, h, w, 3)`` to float32 ``(b, d)``."""


@dataclass(frozen=True)
class Workload:
    """What an engine is opened for.

    Attributes:
        images: number of images that will go through the network.
        workers: threads that call the engine at the same time.
        threads: threads that each call may use.
    """

    images: int = 1
    workers: int = 1
    threads: int = 1


class Engine(ABC):
    """Run the forward pass of one network, in one framework, at one precision.

    An engine may be called from several threads at once.

    Attributes:
        name: what runs the network: ``torch``, ``onnxruntime``, ``openvino`` or ``keras``.
        properties: metadata of the network's file, if it is an ONNX file.
    """

    name: str
    properties: Mapping[str, str] = MappingProxyType({})

    @classmethod
    @abstractmethod
    def open(
        cls, backbone: Backbone, *, precision: str, device: str, compiled: bool = False
    ) -> Self:
        """Build or load the network.

        Args:
            backbone: the network, its weights and its preprocessing.
            precision: one that the engine supports, see ``open_engine``.
            device: ``cpu``, ``cuda`` or ``mps``.
            compiled: whether the framework compiles the network first, if it can.

        Raises:
            SpecError: if the engine cannot run this network on this device.
            WeightsError: if the weights are damaged or belong to another network.
            MissingExtraError: if the framework is not installed.
        """

    @abstractmethod
    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 ``(b, d)`` for uint8 ``(b, h, w, 3)``, already resized and cropped."""
