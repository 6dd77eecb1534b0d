"""ResNets in Keras: torchvision's networks with the same weights, and Keras's own networks.

Imports neither Keras nor TensorFlow: a cache hit needs neither.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.backbones.base import Backbone, Preprocess
from featkit.backbones.resnet import DEFAULT_LAYER, SIZES, Architecture, resnet_backbone
from featkit.backbones.weights import Weights, digest_file, file_weights, random_weights
from featkit.errors import SpecError, WeightsError
from featkit.extras import require
from featkit.registry import Spec, unknown
from featkit.storage import available_cores, default_folder, user_path

if TYPE_CHECKING:
    from torch import nn

FRAMEWORK = "keras"
EXTRA = "tensorflow"

_APPLICATIONS = "applications/"

_BACKENDS = {
    "tensorflow": ("tensorflow", "tensorflow-cpu"),
    "torch": ("torch", "torch"),
    "jax": ("jax", "jax"),
}
"""Module and package of each back end of Keras that ``KERAS_BACKEND`` can name."""


@dataclass(frozen=True)
class _Application:
    """One of Keras's own networks.

    Attributes:
        builder: name of the function in ``keras.applications``.
        file: beginning of the names of its files of weights.
        preprocess: as ``keras.applications`` preprocesses, apart from the order of channels.
        bgr: whether its weights expect blue, green, red.
    """

    builder: str
    file: str
    preprocess: Preprocess
    bgr: bool


_CAFFE_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)
_APPLICATION_NETWORKS = {
    "resnet50": _Application(
        "ResNet50",
        "resnet50_weights_tf_dim_ordering_tf_kernels",
        Preprocess(mean=_CAFFE_MEAN, std=(1 / 255, 1 / 255, 1 / 255)),
        bgr=True,
    ),
    "resnet50v2": _Application(
        "ResNet50V2",
        "resnet50v2_weights_tf_dim_ordering_tf_kernels",
        Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        bgr=False,
    ),
}
NETWORKS = (*SIZES, *(_APPLICATIONS + name for name in _APPLICATION_NETWORKS))
"""Arguments of ``keras:``."""


def keras_backbone(
    network: str,
    *,
    weights: str,
    layer: str | None,
    pool: str,
    residual: bool = True,
    norm: str = "batch",
    stem: str = "imagenet",
) -> Backbone:
    """Return one of torchvision's ResNets in Keras, or one of Keras's own.

    Args:
        network: ``resnet18``, ...: the layers of torchvision's network (ResNet v1.5), which takes
            the same weights and gives the same features; ``applications/resnet50`` or
            ``applications/resnet50v2``: those of ``keras.applications``, with Keras's weights.
        weights: as in ``load_backbone``; for Keras's own networks ``imagenet``, ``random[:seed]``
            or an HDF5 file of Keras.
        layer: as in ``load_backbone``; layers of torchvision's networks have torchvision's names.
        pool: as in ``load_backbone``.
        residual: as for ``resnet18``.
        norm: as for ``resnet18``.
        stem: as for ``resnet18``.

    Raises:
        SpecError: if the network or an option is unknown.
        WeightsError: if the weights cannot be found, read or downloaded.
    """
    if network not in NETWORKS:
        raise unknown("network of keras", network, list(NETWORKS))
    if network.startswith(_APPLICATIONS):
        if (residual, norm, stem) != (True, "batch", "imagenet"):
            raise SpecError(f"keras:{network} has no options: remove them, or use keras:resnet50")
        return _application(network, weights, layer, pool)
    options: dict[str, Any] = {"residual": residual, "norm": norm, "stem": stem}
    base = resnet_backbone(network, weights=weights, layer=layer, pool=pool, **options)
    # Built without its last layers being cut off: Keras cuts its own network.
    needed = "fc" if layer == "fc" else None
    whole = resnet_backbone(network, weights=weights, layer=needed, pool="avg", **options)
    return in_keras(base, whole.build, Architecture.from_spec(Spec.parse(base.name)))


def in_keras(
    backbone: Backbone, build_whole: Callable[[], nn.Module], architecture: Architecture
) -> Backbone:
    """Return a torchvision backbone that runs in Keras.

    Args:
        backbone: the network in torch.
        build_whole: builds the network in torch up to its pooled embedding, or to its classifier if
            that is the embedding.
        architecture: its layers.
    """
    return replace(
        backbone,
        name=keras_spec(backbone.name),
        framework=FRAMEWORK,
        build_keras=TorchvisionModel(build_whole, architecture, backbone.layer, backbone.pool),
    )


def keras_spec(spec: str) -> str:
    """Return the spec of the same network in Keras: ``keras:resnet18,stem=small``."""
    parsed = Spec.parse(spec)
    return str(Spec(FRAMEWORK, argument=parsed.name, options=parsed.options))


def import_keras() -> Any:
    """Import Keras and its back end, TensorFlow unless ``KERAS_BACKEND`` names another one.

    TensorFlow's log messages are suppressed unless ``TF_CPP_MIN_LOG_LEVEL`` is set, and its threads
    are limited as torch's are.

    Raises:
        SpecError: if ``KERAS_BACKEND`` names none.
        MissingExtraError: if a package is not installed.
    """
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend not in _BACKENDS:
        raise unknown("KERAS_BACKEND", backend, list(_BACKENDS))
    verbose = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") == "0"
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, str(available_cores()))
    module, package = _BACKENDS[backend]
    # Triton comes with torch on Linux. Both it and TensorFlow contain LLVM, and the process crashes
    # where it is imported (by torch.fx) after TensorFlow.
    with suppress(ImportError):
        import_module("triton")
    quiet = backend == "tensorflow" and not verbose
    with _without_start_messages() if quiet else nullcontext():
        require(module, EXTRA, package)
        keras = require("keras", EXTRA)
    if quiet:
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return keras


@contextmanager
def _without_start_messages() -> Iterator[None]:
    """Leave out what TensorFlow writes to stderr before its log level applies.

    On processors for which it uses oneDNN by default, it says so whenever it is imported. All other
    lines are written when the block ends.
    """
    try:
        saved = os.dup(2)
    except OSError:  # closed
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            for line in file:
                if not any(message in line for message in _START_MESSAGES):
                    os.write(2, line)


_START_MESSAGES = (
    b"All log messages before absl::InitializeLog() is called",
    b"oneDNN custom operations are on",
)


@dataclass(frozen=True)
class TorchvisionModel:
    """Build a network in Keras with the weights of one in torch: ``Backbone.build_keras``.

    Attributes:
        build_whole: builds the network in torch up to its pooled embedding, or to its classifier if
            that is the layer.
        architecture: its layers.
        layer, pool: output of the network in Keras.
    """

    build_whole: Callable[[], nn.Module]
    architecture: Architecture
    layer: str
    pool: str

    def __call__(self) -> Any:
        """Return the ``keras.Model``."""
        import_keras()
        from featkit.backbones import keras_modules

        state = {}
        for name, value in self.build_whole().state_dict().items():
            state[name.removeprefix("features.")] = value
        model = keras_modules.build_resnet(
            self.architecture,
            layer=self.layer,
            pool=self.pool,
            classes=len(state["fc.bias"]) if self.layer == "fc" else 0,
        )
        keras_modules.load_state(model, state, name=keras_spec(self.architecture.network))
        return model


# --- Networks of keras.applications ---


def _application(network: str, weights: str, layer: str | None, pool: str) -> Backbone:
    name = network.removeprefix(_APPLICATIONS)
    application = _APPLICATION_NETWORKS[name]
    found = _application_weights(application, network, weights)
    layer = DEFAULT_LAYER if layer is None else layer

    def build() -> nn.Module:
        raise SpecError(
            f"keras:{network} runs in Keras only: use keras:resnet50 or resnet50, "
            "or --precision fp32"
        )

    return Backbone(
        name=f"{FRAMEWORK}:{network}",
        weights=found.label,
        digest=found.digest,
        layer=layer,
        pool=pool,
        preprocess=application.preprocess,
        build=build,
        framework=FRAMEWORK,
        build_keras=partial(_build_application, application, network, found, layer, pool),
    )


def _application_weights(application: _Application, network: str, text: str) -> Weights:
    """Find weights of Keras: a file, random ones, or those of ImageNet."""
    if text != "imagenet":
        found = random_weights(text)
        if found:
            return found
        if Path(text).suffix in (".h5", ".keras", ".hdf5"):
            path = user_path(text).absolute()
            return Weights(path.name, digest_file(path), path)
        kind = f"weights of keras:{network} (an HDF5 file of Keras)"
        return file_weights(text, kind, ["imagenet"])
    names = [f"{application.file}_notop.h5", f"{application.file}.h5"]
    for folder in _weight_folders():
        for name in names:
            path = folder / name
            if path.is_file():
                return Weights(f"imagenet ({name})", digest_file(path.absolute()), path.absolute())
    path = _download(application, names[0])
    return Weights(f"imagenet ({names[0]})", digest_file(path), path)


def _weight_folders() -> list[Path]:
    folders = [user_path(folder) for folder in [os.environ.get("FEATKIT_WEIGHTS", "")] if folder]
    keras_home = default_folder(os.environ.get("KERAS_HOME", "~/.keras"))
    return folders if keras_home is None else [*folders, keras_home / "models"]


def _download(application: _Application, name: str) -> Path:
    """Let Keras download the weights into its own folder, and return the file."""
    keras = import_keras()
    try:
        getattr(keras.applications, application.builder)(include_top=False, weights="imagenet")
        for folder in _weight_folders():
            if (folder / name).is_file():
                return (folder / name).absolute()
        reason = "not found in Keras's folder"
    except Exception as error:  # Keras raises bare exceptions when a download fails
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise WeightsError(
        f"cannot download {name} ({reason})",
        fixes=[
            "copy it into the folder in FEATKIT_WEIGHTS",
            "give a file with --weights FILE",
            "use untrained weights with --weights random",
        ],
    )


def _build_application(
    application: _Application, network: str, found: Weights, layer: str, pool: str
) -> Any:
    import_keras()
    from featkit.backbones import keras_modules

    return keras_modules.build_application(
        application.builder,
        f"keras:{network}",
        path=found.path,
        seed=found.seed,
        bgr=application.bgr,
        layer=None if layer == DEFAULT_LAYER else layer,
        pool=pool,
    )
