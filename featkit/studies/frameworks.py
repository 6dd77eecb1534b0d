"""Compare torch and TensorFlow on the same network, weights and images."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featkit.backbones.engines import ForwardPass, open_engine
from featkit.backbones.keras import import_keras, keras_spec
from featkit.backbones.resnet import SIZES
from featkit.backbones.saved import is_path
from featkit.compression.profile import BATCH, measure_peak_memory
from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.errors import SpecError
from featkit.evaluation import Predictions, compare
from featkit.evaluation.compare import PairedComparison
from featkit.evaluation.effects import SEED, Effect, adjusted, effects, score_cells
from featkit.registry import Spec, check_names, unknown
from featkit.runs.results import read_run
from featkit.runs.train import TrainedRun
from featkit.storage import available_cores
from featkit.training.config import TrainingConfig

FRAMEWORKS = ("torch", "tensorflow")
MODES = ("shallow", "deep", "full", "scratch")
STAGES = ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool")
"""Layers whose outputs are compared, in the order of computation."""

_AXIS = "framework"


@dataclass(frozen=True)
class FrameworksConfig:
    """What is compared.

    Attributes:
        options: options of the trainings by the names of ``TrainingConfig.option_names``; the
            backbone is that of torch.
        modes: modes of training that are compared.
        deep_limit: ``limit`` of all modes but ``shallow``; None for that in ``options``.
        seeds: number of seeds of each training; the images stay the same.
        images: number of test images on which the outputs are compared.
        repeats: timed repeats of a batch of 32.
        cache: folder of the cache files.
    """

    options: Mapping[str, Any]
    modes: Sequence[str] = ("shallow", "deep")
    deep_limit: str | None = None
    seeds: int = 3
    images: int = 64
    repeats: int = 10
    cache: Path = field(default=Path("cache"))

    def __post_init__(self) -> None:
        check_names("mode", self.modes, MODES)
        backbone = self.backbone
        if is_path(backbone) or Spec.parse(backbone).name not in SIZES:
            raise unknown("backbone of both frameworks", backbone, list(SIZES))

    @property
    def backbone(self) -> str:
        """Spec of the network in torch."""
        return str(self.options.get("backbone") or "resnet18")


@dataclass(frozen=True)
class StageParity:
    """Difference of the outputs of a layer between the frameworks.

    Attributes:
        stage: name of the layer.
        relative: largest absolute difference, divided by the largest absolute value of torch.
        worst_cosine: smallest cosine similarity of the outputs of an image.
        n: number of images.
    """

    stage: str
    relative: float
    worst_cosine: float
    n: int


@dataclass(frozen=True)
class FrameworkCost:
    """Cost of the forward pass in one framework, for batches of 32.

    Attributes:
        framework: ``torch`` or ``tensorflow``.
        images_per_s: from the median wall time.
        quartiles: 25 % and 75 % quantile of the images per second.
        cpu_ms: median CPU time for an image in milliseconds, all threads together.
        peak_memory_mb: of a fresh process that runs one batch, in 10^6 bytes.
        repeats: number of timed batches.
    """

    framework: str
    images_per_s: float
    quartiles: tuple[float, float]
    cpu_ms: float
    peak_memory_mb: float
    repeats: int


@dataclass(frozen=True)
class FrameworkTraining:
    """Trainings of one mode in both frameworks.

    Attributes:
        mode: mode of the training.
        limit: subset of the images, or None.
        runs: by framework and seed.
        pairs: TensorFlow compared with torch, for each seed.
        effect: TensorFlow compared with torch over all seeds.
        loss_difference: largest relative difference of the training loss in an epoch, over epochs
            and seeds.
        agreement: fraction of test images to which both frameworks give the same class, mean over
            seeds.
    """

    mode: str
    limit: str | None
    runs: Mapping[tuple[str, int], TrainedRun]
    pairs: Sequence[PairedComparison]
    effect: Effect
    loss_difference: float
    agreement: float

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON can hold them."""
        runs = []
        for (framework, seed), run in self.runs.items():
            report = run.report
            row: dict[str, Any] = {"framework": framework, "seed": seed, "n": report.n}
            row |= {"top1": report.top1, "interval95": list(report.interval95)}
            runs.append({**row, "run": run.path.name, "epochs": len(run.history)})
        return {
            "mode": self.mode,
            "limit": self.limit,
            "runs": runs,
            "pairs": [pair.to_dict() for pair in self.pairs],
            "effect": self.effect.to_dict(),
            "loss_difference": self.loss_difference,
            "agreement": self.agreement,
        }


@dataclass(frozen=True)
class FrameworksResult:
    """Comparison of the frameworks.

    Attributes:
        config: what was compared.
        data: name of the images.
        weights: which weights both networks have.
        stages: differences by layer.
        costs: of both frameworks.
        trainings: one for each mode.
        about: processor, number of threads and versions.
    """

    config: FrameworksConfig
    data: str
    weights: str
    stages: Sequence[StageParity]
    costs: Sequence[FrameworkCost]
    trainings: Sequence[FrameworkTraining]
    about: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON can hold it."""
        return {
            "data": self.data,
            "backbone": self.config.backbone,
            "weights": self.weights,
            "options": dict(self.config.options),
            "seeds": self.config.seeds,
            "stages": [asdict(each) for each in self.stages],
            "costs": [asdict(each) for each in self.costs],
            "trainings": [each.to_dict() for each in self.trainings],
            "about": dict(self.about),
        }


def compare_frameworks(
    config: FrameworksConfig,
    compute: Compute,
    train: Callable[[TrainingConfig], TrainedRun],
    on_message: Callable[[str], None] = lambda _: None,
) -> FrameworksResult:
    """Compare torch and TensorFlow: outputs by layer, speed, memory, and fine-tuning.

    Args:
        config: what is compared.
        compute: how images are read.
        train: trains a network, or returns the finished run of the same training.
        on_message: called with what is done next.

    Raises:
        SpecError: if an option is unknown or does not fit.
        DataError: if there are no test images.
        MissingExtraError: if TensorFlow is not installed.
    """
    import_keras()
    # All trainings are described before the first is run: a wrong option is an error at once.
    plans = [_plan(config, mode) for mode in config.modes]
    request = replace(_training(config, "shallow", 0).request, precision="fp32")
    images = request.load_images()
    backbone = request.load_backbone()
    rows = images.rows("test")[:: max(1, len(images.rows("test")) // config.images)]
    rows = rows[: config.images]
    if not len(rows):
        raise SpecError(f"{images.name} has no test images: give --split, such as 70/15/15")
    pixels = np.stack([backbone.preprocess(images.load(int(row))) for row in rows])
    # The trainings come first: an interrupted comparison is resumed behind those that are finished.
    trainings = []
    for plan in plans:
        runs = {}
        for (framework, seed), training in plan.items():
            on_message(f"{training.mode} fine-tuning in {framework}, seed {seed}")
            runs[framework, seed] = train(training)
        first = next(iter(plan.values()))
        trainings.append(summarise(first.mode, first.request.limit, runs))
    on_message(f"comparing the outputs of {len(STAGES)} layers on {len(rows)} images")
    stages = compare_stages(request, pixels)
    on_message(f"timing {config.repeats} batches of {BATCH} in turn")
    costs = measure_costs(request, pixels, config.repeats)
    family = adjusted([each.effect for each in trainings])
    trainings = [
        replace(each, effect=effect) for each, effect in zip(trainings, family, strict=True)
    ]
    return FrameworksResult(
        config, images.name, backbone.weights, stages, costs, trainings, _about()
    )


def _plan(config: FrameworksConfig, mode: str) -> dict[tuple[str, int], TrainingConfig]:
    """Return the trainings of a mode by framework and seed."""
    plan = {}
    for seed in range(config.seeds):
        training = _training(config, mode, seed)
        for framework in FRAMEWORKS:
            request = training.request
            if framework == "tensorflow":
                request = replace(request, backbone=keras_spec(request.backbone))
            plan[framework, seed] = replace(training, request=request)
    return plan


def _training(config: FrameworksConfig, mode: str, seed: int) -> TrainingConfig:
    """Return a training in torch: float32, and the same images for every seed."""
    options = {"precision": "fp32", "frozen_precision": "fp32", **config.options, "mode": mode}
    if mode != "shallow" and config.deep_limit is not None:
        options["limit"] = config.deep_limit
    training = TrainingConfig.from_options(options, config.cache)
    return replace(training, seed=training.seed + seed)


def compare_stages(request: Request, pixels: NDArray[np.uint8]) -> list[StageParity]:
    """Compare the outputs of layers in both frameworks.

    Args:
        request: the network in torch.
        pixels: preprocessed images, uint8 ``(n, h, w, 3)``.
    """
    stages = []
    for stage in STAGES:
        layer = replace(request, layer=stage, pool="avg" if stage == "avgpool" else "none")
        outputs = [open_framework(layer, framework)(pixels) for framework in FRAMEWORKS]
        stages.append(_parity(stage, *outputs))
    return stages


def _parity(stage: str, expected: NDArray[np.float32], found: NDArray[np.float32]) -> StageParity:
    scale = float(np.abs(expected).max())
    relative = float(np.abs(expected - found).max()) / scale if scale else 0.0
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    cosines = np.einsum("nd,nd->n", expected, found) / np.maximum(norms, np.finfo(np.float32).tiny)
    return StageParity(stage, relative, float(cosines.min()), len(expected))


def open_framework(request: Request, framework: str) -> ForwardPass:
    """Open the network of a request for torch in one of the frameworks, in float32 on the CPU."""
    return open_engine(_in_framework(request, framework).load_backbone(), device="cpu")


def _in_framework(request: Request, framework: str) -> Request:
    if framework == "torch":
        return request
    return replace(request, backbone=keras_spec(request.backbone))


def measure_costs(request: Request, pixels: NDArray[np.uint8], repeats: int) -> list[FrameworkCost]:
    """Time the forward pass of both frameworks in turn, on all cores, and measure their memory.

    Args:
        request: the network in torch.
        pixels: preprocessed images; repeated to batches of 32.
        repeats: timed batches of each framework, after one that is not timed.
    """
    batch = pixels[np.arange(BATCH) % len(pixels)]
    engines = [open_framework(request, framework) for framework in FRAMEWORKS]
    walls: list[list[float]] = [[] for _ in FRAMEWORKS]
    processor: list[list[float]] = [[] for _ in FRAMEWORKS]
    for repeat in range(repeats + 1):
        for engine, wall, used in zip(engines, walls, processor, strict=True):
            start, start_used = time.perf_counter(), time.process_time()
            engine(batch)
            if repeat:
                wall.append(time.perf_counter() - start)
                used.append(time.process_time() - start_used)
    costs = []
    for framework, wall, used in zip(FRAMEWORKS, walls, processor, strict=True):
        low, median, high = BATCH / np.quantile(wall, [0.75, 0.5, 0.25])
        costs.append(
            FrameworkCost(
                framework=framework,
                images_per_s=float(median),
                quartiles=(float(low), float(high)),
                cpu_ms=1000 * float(np.median(used)) / BATCH,
                peak_memory_mb=measure_peak_memory(_in_framework(request, framework), None, "fp32"),
                repeats=repeats,
            )
        )
    return costs


def summarise(
    mode: str, limit: str | None, runs: Mapping[tuple[str, int], TrainedRun]
) -> FrameworkTraining:
    """Compare the trainings of a mode.

    Args:
        mode: mode of the training.
        limit: subset of the images, or None.
        runs: by framework and seed, the same seeds for both frameworks.
    """
    predictions = {key: read_run(run.path)[2] for key, run in runs.items()}
    seeds = sorted({seed for _, seed in runs})
    cells = [
        ({_AXIS: framework, SEED: seed}, each) for (framework, seed), each in predictions.items()
    ]
    (effect,) = effects(score_cells(cells), _AXIS, [("tensorflow", "torch")])
    pairs: list[PairedComparison] = []
    agreements: list[float] = []
    differences: list[float] = []
    for seed in seeds:
        both = {name: predictions[name, seed] for name in ("tensorflow", "torch")}
        pairs.extend(compare(both))
        agreements.append(_agreement(both["tensorflow"], both["torch"]))
        differences.append(_loss_difference(runs["torch", seed], runs["tensorflow", seed]))
    return FrameworkTraining(
        mode, limit, runs, pairs, effect, max(differences), float(np.mean(agreements))
    )


def _agreement(one: Predictions, other: Predictions) -> float:
    """Return the fraction of images to which two runs give the same class."""
    classes = dict(zip(other.ids, np.asarray(other.predicted).tolist(), strict=True))
    same = [
        classes[name] == label
        for name, label in zip(one.ids, np.asarray(one.predicted).tolist(), strict=True)
    ]
    return float(np.mean(same))


def _loss_difference(expected: TrainedRun, found: TrainedRun) -> float:
    """Return the largest relative difference of the training loss over the common epochs."""
    differences = []
    for one, other in zip(expected.history, found.history, strict=False):
        differences.append(abs(one["train_loss"] - other["train_loss"]) / abs(one["train_loss"]))
    return max(differences, default=0.0)


def _about() -> dict[str, str]:
    """Return the processor, the threads and the versions that the times belong to."""
    about = {"processor": platform.processor() or platform.machine()}
    about["threads"] = str(available_cores())
    for package in ("torch", "keras", "tensorflow-cpu", "tensorflow", "numpy"):
        try:
            about[package] = version(package)
        except PackageNotFoundError:  # one of the two packages of TensorFlow is installed
            continue
    return about
