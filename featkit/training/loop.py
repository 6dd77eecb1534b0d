"""The training loop: epochs, validation, early stopping, checkpoints.

Everything random is drawn from seed, epoch and step, so that a resumed training ends with the same
weights as one that was not interrupted.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from featkit.backbones.devices import pick_device
from featkit.backbones.state_dict import seeded
from featkit.embeddings.pipeline import Compute
from featkit.errors import DataError, TrainingError
from featkit.storage import available_cores
from featkit.training.checkpoint import load_checkpoint, save_checkpoint
from featkit.training.config import TrainingConfig
from featkit.training.data import BatchLoader, TrainingBatch
from featkit.training.distributed import ProcessGroup
from featkit.training.history import (
    EpochRecord,
    EpochScore,
    batch_sums,
    best_epoch,
    score_from_sums,
)
from featkit.training.losses import CrossEntropy
from featkit.training.network import TrainableClassifier, set_train_mode, trainable_state
from featkit.training.optim import learning_rate_factor, make_optimiser, set_learning_rate

Loss = Callable[[Tensor, Tensor, Tensor, TrainingBatch], Tensor]
"""Embeddings ``(b, d)``, logits ``(b, k)``, labels ``(b,)`` or ``(b, k)``, batch to a scalar."""


@dataclass(frozen=True)
class LabelLoss:
    """The cross-entropy with labels, as a ``Loss`` that every framework can compute."""

    criterion: CrossEntropy

    def __call__(
        self, embeddings: Tensor, logits: Tensor, labels: Tensor, batch: TrainingBatch
    ) -> Tensor:
        """Return the mean loss of a batch."""
        return self.criterion(logits, labels)


_CHECKPOINT_SECONDS = 120.0
"""Time between two checkpoints within an epoch."""

# Purposes of random draws: part of the seed, so that they are independent of each other.
_MIXING, _DROPOUT = 2, 3


@dataclass(frozen=True)
class TrainingCallbacks:
    """Functions that are called during a training.

    Attributes:
        on_step: after each step: epoch, step, mean loss and top-1 of the epoch so far.
        on_epoch: after each epoch.
        on_message: with progress messages, such as the size of the cached activations.
    """

    on_step: Callable[[int, int, float, float], None] = lambda *_: None
    on_epoch: Callable[[EpochRecord], None] = lambda _: None
    on_message: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class ExecutionConfig:
    """Execution of a training; nothing here decides the weights.

    Attributes:
        compute: the device, and how frozen layers are run.
        folder: of the checkpoints, or None for no checkpoints.
        resume: whether to continue from the checkpoint in the folder, if there is one.
        callbacks: called during the training.
        group: the processes that train together.
    """

    compute: Compute
    folder: Path | None = None
    resume: bool = False
    callbacks: TrainingCallbacks = field(default_factory=TrainingCallbacks)
    group: ProcessGroup = field(default_factory=ProcessGroup)


@dataclass(frozen=True)
class TrainingTask:
    """A network and the data it is trained on.

    Attributes:
        model: trained in place.
        train: training batches.
        val: validation batches, which choose the epoch; None: keep the last epoch.
        loss: minimised.
        config: learning rate, number of epochs, ...
        fingerprint: digest of everything that decides the weights; other checkpoints are refused.
        execution: device, checkpoints, callbacks, processes.
        projection: trained together with the model and discarded afterwards, or None.
    """

    model: TrainableClassifier
    train: BatchLoader
    val: BatchLoader | None
    loss: Loss
    config: TrainingConfig
    fingerprint: str
    execution: ExecutionConfig
    projection: nn.Module | None = None


def train(task: TrainingTask, make_loop: Callable[[TrainingTask], EpochLoop]) -> list[EpochRecord]:
    """Train a network; it ends with the weights of the best or else the last epoch.

    Args:
        task: the network and its data.
        make_loop: the loop of the framework that trains it.

    Raises:
        TrainingError: if the loss is not finite, or the checkpoint is of another training.
        DataError: if BatchNorm would have to compute statistics of a single image.
        StorageError: if a checkpoint cannot be written.
    """
    _check_batch_size(task)
    with _available_threads():
        loop = make_loop(task)
        if task.execution.resume and task.execution.folder:
            loop.restore(load_checkpoint(task.execution.folder, task.fingerprint))
        while not loop.is_finished:
            loop.run_epoch()
        loop.load_best_weights()
    return loop.history


@contextmanager
def _available_threads() -> Iterator[None]:
    """Let torch use no more threads than a container's CPU quota allows, which it does not see."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, available_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_batch_size(task: TrainingTask) -> None:
    if task.config.frozen_norms:
        return
    smallest = min(task.config.batch_size, len(task.train.labels)) // task.execution.group.size
    modules: list[nn.Module] = []
    for _, part in task.model.body.trainable_parts():
        modules.extend(part.modules())
    has_batchnorm = any(isinstance(module, nn.BatchNorm2d) for module in modules)
    if smallest < 2 and has_batchnorm:
        raise DataError(
            "BatchNorm cannot compute statistics of a batch of one image: raise --batch-size, or "
            "use --norm frozen"
        )


class EpochLoop(ABC):
    """The state of a training in any framework: epochs, validation, early stopping, checkpoints.

    Attributes:
        epoch, step: number of the next epoch, and of the next step in it.
        history: finished epochs.
        device: torch's device of the batches.
        dtype: of the weights: float32, or float64 in tests.
    """

    def __init__(self, task: TrainingTask, device: str) -> None:
        self.task = task
        self.config, self.execution = task.config, task.execution
        self.device = device
        self.dtype = task.model.fc.weight.dtype
        self.best_state: dict[str, Tensor] | None = None
        self.history: list[EpochRecord] = []
        self.epoch, self.step = 0, 0
        self.sums = torch.zeros(4, dtype=torch.float64)  # of this epoch so far, see ``batch_sums``
        self.seconds = 0.0  # spent on this epoch before it was interrupted

    @abstractmethod
    def start_epoch(self) -> None:
        """Prepare the network for training steps."""

    @abstractmethod
    def train_step(
        self, inputs: Tensor, labels: Tensor, mixed_labels: Tensor, batch: TrainingBatch
    ) -> tuple[Tensor, Tensor]:
        """Update the weights, unless the loss is not finite; return the loss and the logits.

        Args:
            inputs: of the trainable layers, float32.
            labels: ``(b,)``.
            mixed_labels: ``(b,)``, or ``(b, k)`` after mixup or CutMix.
            batch: what the inputs were made from.
        """

    @abstractmethod
    def end_epoch(self) -> None:
        """Synchronise the processes after the last step."""

    @abstractmethod
    def logits(self, inputs: Tensor) -> Tensor:
        """Return the logits ``(b, k)`` of the evaluated network in evaluation mode."""

    @abstractmethod
    def state(self, *, evaluated: bool = False) -> dict[str, Tensor]:
        """Return the trainable tensors by torch's names.

        Args:
            evaluated: of the moving average of the weights, if there is one.
        """

    @abstractmethod
    def save_state(self) -> dict[str, Any]:
        """Return what a checkpoint needs besides the tensors of ``state``."""

    @abstractmethod
    def restore_state(self, content: dict[str, Any]) -> None:
        """Restore the network and the optimiser from a checkpoint."""

    @abstractmethod
    def step_rate(self, factor: float) -> None:
        """Set the learning rates to this fraction of their peaks."""

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or the early-stopping patience is exhausted."""
        if self.epoch >= self.config.epochs:
            return True
        best = best_epoch(self.history)
        if best is None or self.config.patience is None:
            return False
        return self.epoch - 1 - best >= self.config.patience

    def run_epoch(self) -> None:
        """Train on the remaining batches of an epoch, then validate and save a checkpoint."""
        start = saved = time.perf_counter()
        self.start_epoch()
        for batch in self.task.train.batches(self.epoch, self.step):
            self._run_step(batch)
            self.step += 1
            loss, top1 = (self.sums[:2] / self.sums[3]).tolist()
            self.execution.callbacks.on_step(self.epoch, self.step, loss, top1)
            # With several processes the sums of the others are unknown within an epoch.
            single_process = self.execution.group.size == 1
            if single_process and time.perf_counter() - saved > _CHECKPOINT_SECONDS:
                saved = time.perf_counter()
                self.save(self.seconds + saved - start)
        self._check_finite_weights()
        self.end_epoch()

        record = EpochRecord(
            number=self.epoch,
            rate=self._learning_rate_factor(self.step - 1),
            val=self._validate(),
            train=score_from_sums(self.execution.group.sum(self.sums)),
            seconds=self.seconds + time.perf_counter() - start,
        )
        self.history.append(record)
        if best_epoch(self.history) == self.epoch:
            self.best_state = self.state(evaluated=True)
        self.epoch, self.step = self.epoch + 1, 0
        self.sums, self.seconds = torch.zeros_like(self.sums), 0.0
        self.save(0.0)
        self.execution.callbacks.on_epoch(record)

    def _run_step(self, batch: TrainingBatch) -> None:
        self.step_rate(self._learning_rate_factor(self.step))
        labels = batch.labels.to(self.device)
        inputs, mixed_labels = self._mix(batch.inputs.to(self.device, self.dtype), labels)
        loss, logits = self.train_step(inputs, labels, mixed_labels, batch)
        if not torch.isfinite(loss):
            raise TrainingError(self._divergence_message(float(loss)))
        self.sums += batch_sums(loss, logits, labels)

    def _mix(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Apply mixup or CutMix; return inputs, and labels ``(b,)`` or mixed ones ``(b, k)``."""
        classes = int(self.task.model.fc.out_features)
        kinds: list[nn.Module] = []
        if self.config.mixup:
            kinds.append(v2.MixUp(alpha=self.config.mixup, num_classes=classes))
        if self.config.cutmix:
            kinds.append(v2.CutMix(alpha=self.config.cutmix, num_classes=classes))
        if not kinds:
            return inputs, labels
        # Cached activations are flat; CutMix needs feature maps.
        maps = inputs
        if inputs.ndim != 4:
            maps = inputs.reshape(len(inputs), *self.task.model.body.shape)
        with seeded(self._step_seed(_MIXING)):
            mix = kinds[int(torch.randint(len(kinds), ()))]
            mixed, mixed_labels = mix(maps, labels)
        return mixed.reshape(inputs.shape), mixed_labels.to(self.dtype)

    @property
    def average_decay(self) -> float:
        """Decay of the moving average of the weights in this step."""
        steps = self.epoch * self.task.train.steps + self.step
        # A lower decay in the first steps keeps the initial weights from dominating the average.
        return min(self.config.ema, (1 + steps) / (10 + steps))

    def _learning_rate_factor(self, step: int) -> float:
        steps = self.task.train.steps
        warmup = round(self.config.warmup * steps)
        return learning_rate_factor(self.epoch * steps + step, self.config.epochs * steps, warmup)

    def _step_seed(self, purpose: int) -> int:
        entropy = [self.config.seed, self.epoch, self.step, purpose]
        return int(np.random.default_rng(entropy).integers(2**63))

    def _check_finite_weights(self) -> None:
        """Raise if the last step, whose loss was still finite, made a weight infinite or NaN."""
        for value in self.state().values():
            if value.is_floating_point() and not value.isfinite().all():
                raise TrainingError(self._divergence_message(float("nan")))

    def _divergence_message(self, loss: float) -> str:
        text = (
            f"the loss is {loss} in epoch {self.epoch + 1}, step {self.step + 1}: "
            f"lower --lr ({self.config.lr:g}), or use --clip 1"
        )
        if self.epoch and self.execution.folder:
            text += f"; the last finite weights are in {self.execution.folder}"
        return text

    def _validate(self) -> EpochScore | None:
        """Evaluate the network on the validation images, without augmentation."""
        if self.task.val is None:
            return None
        total = torch.zeros(4, dtype=torch.float64)
        for batch in self.task.val.batches(0, keep_last=True):
            logits = self.logits(batch.inputs.to(self.device, self.dtype))
            labels = batch.labels.to(self.device)
            loss = nn.functional.cross_entropy(logits, labels)
            total += batch_sums(loss, logits, labels)
        return score_from_sums(total)

    def load_best_weights(self) -> None:
        """Load the weights of the best epoch, or else the last ones, into the torch network."""
        state = self.best_state or self.state(evaluated=True)
        self.task.model.load_state_dict(state, strict=False)
        self.task.model.eval()

    def save(self, seconds: float) -> None:
        """Write a checkpoint, in the main process only.

        Args:
            seconds: time spent on the current epoch.
        """
        if self.execution.folder is None or not self.execution.group.is_main:
            return
        content = {
            "fingerprint": self.task.fingerprint,
            "number": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "seconds": seconds,
            "model": self.state(),
            "average": self.state(evaluated=True) if self.config.ema else None,
            "best": self.best_state,
            "history": [each.to_list() for each in self.history],
            **self.save_state(),
        }
        save_checkpoint(self.execution.folder, content)

    def restore(self, content: dict[str, Any] | None) -> None:
        """Restore the state that ``save`` wrote; nothing if there is no checkpoint."""
        if content is None:
            return
        self.restore_state(content)
        self.epoch, self.step = content["number"], content["step"]
        self.sums, self.seconds = content["sums"], content["seconds"]
        self.best_state = content["best"]
        self.history = [EpochRecord.from_list(each) for each in content["history"]]


class TrainingLoop(EpochLoop):
    """The state of a training in torch."""

    def __init__(self, task: TrainingTask) -> None:
        super().__init__(task, pick_device(task.execution.compute.device))
        self.model = task.model.to(self.device).to(memory_format=torch.channels_last)
        self.projection = task.projection.to(self.device) if task.projection is not None else None
        self.optimiser = make_optimiser(self.model, self.projection, task.config)
        self.averaged_model = copy.deepcopy(self.model) if task.config.ema else None
        self.parallel_model = task.execution.group.wrap(self.model)

    @property
    def evaluated_model(self) -> TrainableClassifier:
        """The model whose weights are evaluated and kept: the moving average, if there is one."""
        return self.model if self.averaged_model is None else self.averaged_model

    def start_epoch(self) -> None:
        """Put the trainable layers into training mode."""
        set_train_mode(self.model, self.config)

    def step_rate(self, factor: float) -> None:
        """Set the learning rates of the optimiser."""
        set_learning_rate(self.optimiser, factor)

    def train_step(
        self, inputs: Tensor, labels: Tensor, mixed_labels: Tensor, batch: TrainingBatch
    ) -> tuple[Tensor, Tensor]:
        """Run the forward and the backward pass, and one step of the optimiser."""
        # Networks with dropout draw from the global generator.
        with self._autocast(), seeded(self._step_seed(_DROPOUT)):
            embeddings, logits = self.parallel_model(inputs)
        # Autocast gives bfloat16.
        embeddings, logits = embeddings.to(self.dtype), logits.to(self.dtype)
        loss = self.task.loss(embeddings, logits, mixed_labels, batch)
        if not torch.isfinite(loss):
            return loss.detach(), logits.detach()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.projection is not None:
            self.execution.group.average_gradients(self.projection)
        if self.config.clip:
            parameters: list[nn.Parameter] = []
            for group in self.optimiser.param_groups:
                parameters.extend(group["params"])
            nn.utils.clip_grad_norm_(parameters, self.config.clip)
        self.optimiser.step()
        self._update_average()
        return loss.detach(), logits.detach()

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the averaged weights towards the current ones; BatchNorm statistics are copied."""
        if self.averaged_model is None:
            return
        averaged, decay = self.averaged_model, self.average_decay
        for mean, value in zip(averaged.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        for copied, current in zip(averaged.buffers(), self.model.buffers(), strict=True):
            copied.copy_(current)

    def end_epoch(self) -> None:
        """Copy the BatchNorm statistics of the first process to the others."""
        self.execution.group.broadcast_buffers(self.model)
        if self.averaged_model is not None:
            self.execution.group.broadcast_buffers(self.averaged_model)

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """Run the evaluated model."""
        model = self.evaluated_model.eval()
        with self._autocast():
            _, logits = model(inputs)
        converted: Tensor = logits.to(self.dtype)
        return converted

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"
        )

    def state(self, *, evaluated: bool = False) -> dict[str, Tensor]:
        """Return copies of the trainable tensors on the CPU."""
        state = trainable_state(self.evaluated_model if evaluated else self.model)
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def save_state(self) -> dict[str, Any]:
        """Return the states of the optimiser and of the projection."""
        return {
            "extra": self.projection.state_dict() if self.projection is not None else None,
            "optimiser": self.optimiser.state_dict(),
        }

    def restore_state(self, content: dict[str, Any]) -> None:
        """Restore the models, the projection and the optimiser."""
        self.model.load_state_dict(content["model"], strict=False)
        if self.averaged_model is not None and content["average"]:
            self.averaged_model.load_state_dict(content["average"], strict=False)
        if self.projection is not None and content["extra"]:
            self.projection.load_state_dict(content["extra"])
        self.optimiser.load_state_dict(content["optimiser"])
