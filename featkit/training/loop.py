"""The only optimiser loop."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from featkit.backbones.state_dict import seeded
from featkit.errors import DataError, TrainingError
from featkit.training.checkpoint import load_checkpoint, save_checkpoint
from featkit.training.config import TrainingConfig
from featkit.training.distributed import ProcessGroup
from featkit.training.feeds import BatchLoader, TrainingBatch
from featkit.training.history import EpochRecord, EpochScore, batch_sums, best_epoch, score_from_sums
from featkit.training.network import TrainableClassifier, learning_state, set_training
from featkit.training.optim import make_optimiser, rate, set_rate

Loss = Callable[[Tensor, Tensor, Tensor, TrainingBatch], Tensor]
"""Embeddings ``(b, d)``, logits ``(b, k)``, labels ``(b,)`` or mixed ``(b, k)``, and the batch, to a number."""

_BETWEEN_CHECKPOINTS = 120.0
"""Seconds after which an epoch is interrupted for a checkpoint."""


@dataclass(frozen=True)
class TrainingTask:
    """A training that is wanted.

    Attributes:
        model: trained in place.
        train: what it learns from.
        val: what the epoch is chosen on, or None: then the last one is kept.
        loss: what is made small.
        config: how.
        fingerprint: of all that decides the weights; a checkpoint of another is refused.
        folder: where checkpoints go, or None for none.
        extra: what else learns and is thrown away afterwards, such as a projection.
        device: ``cpu``, ``cuda`` or ``mps``.
        group: the processes that take part.
        progress: told of each step: epoch, step, mean loss and top-1 so far.
        finished: told of each epoch.
    """

    model: TrainableClassifier
    train: BatchLoader
    val: BatchLoader | None
    loss: Loss
    config: TrainingConfig
    fingerprint: str
    folder: Path | None = None
    extra: nn.Module | None = None
    device: str = "cpu"
    group: ProcessGroup = field(default_factory=ProcessGroup)
    progress: Callable[[int, int, float, float], None] = lambda *_: None
    finished: Callable[[EpochRecord], None] = lambda _: None


def train(task: TrainingTask, *, resume: bool = False) -> list[EpochRecord]:
    """Train a network, and leave it with the weights of the best epoch on val, or of the last one.

    All that is drawn is drawn from seed, epoch and step: a training that is resumed ends with the same weights.

    Raises:
        TrainingError: if the loss is no longer finite, or the checkpoint is of another training.
        DataError: if a batch of one image meets a BatchNorm that needs statistics.
        StorageError: if a checkpoint cannot be written.
    """
    _check_batch(task)
    run = _Run(task)
    if resume and task.folder:
        run.restore(load_checkpoint(task.folder, task.fingerprint))
    while not run.over:
        run.epoch()
    run.keep_best()
    return run.history


def _check_batch(task: TrainingTask) -> None:
    smallest = min(task.config.batch_size, len(task.train.labels)) // task.group.size
    norms = any(isinstance(part, nn.BatchNorm2d) for _, each in task.model.body.learning() for part in each.modules())
    if smallest < 2 and norms and not task.config.frozen_norms:
        raise DataError(
            "a batch of one image has no statistics for BatchNorm: raise --batch-size, or give --norm frozen"
        )


class _Run:
    """What changes while a network is trained."""

    def __init__(self, task: TrainingTask) -> None:
        self.task = task
        self.model = task.model.to(task.device).to(memory_format=torch.channels_last)
        self.extra = task.extra.to(task.device) if task.extra is not None else None
        self.optimiser = make_optimiser(self.model, self.extra, task.config)
        self.average = copy.deepcopy(self.model) if task.config.ema else None
        self.wrapped = task.group.wrap(self.model)
        self.history: list[EpochRecord] = []
        self.best: dict[str, Tensor] | None = None
        self.number, self.step = 0, 0
        self.sums = torch.zeros(4, dtype=torch.float64)
        self.seconds = 0.0

    @property
    def judged(self) -> TrainableClassifier:
        """The network whose weights are kept."""
        return self.model if self.average is None else self.average

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or val has not been better for too many."""
        patience = self.task.config.patience
        best = best_epoch(self.history)
        waited = 0 if best is None else self.number - 1 - best
        return self.number >= self.task.config.epochs or (patience is not None and waited >= patience)

    def epoch(self) -> None:
        """Go through the train images once, or through what is left of them; then judge on val."""
        task, began = self.task, time.perf_counter()
        set_training(self.model, task.config)
        saved = began
        for batch in task.train.batches(self.number, self.step):
            self._learn(batch)
            self.step += 1
            loss, right = (self.sums[:2] / self.sums[3]).tolist()
            task.progress(self.number, self.step, loss, right)
            # Of several processes, only the first would know what it has summed up.
            if task.group.size == 1 and time.perf_counter() - saved > _BETWEEN_CHECKPOINTS:
                saved = time.perf_counter()
                self.save(self.seconds + saved - began)
        self._check_weights()
        for network in (self.model, self.average):
            if network is not None:
                task.group.broadcast_buffers(network)
        val = self._judge()
        seconds = self.seconds + time.perf_counter() - began
        total = self.task.group.sum(self.sums)
        self.history.append(EpochRecord(self.number, self._rate(self.step - 1), score_from_sums(total), val, seconds))
        if best_epoch(self.history) == self.number:
            self.best = {name: value.detach().cpu().clone() for name, value in learning_state(self.judged).items()}
        self.number, self.step, self.sums, self.seconds = self.number + 1, 0, torch.zeros_like(self.sums), 0.0
        self.save(0.0)
        task.finished(self.history[-1])

    def _learn(self, batch: TrainingBatch) -> None:
        task = self.task
        set_rate(self.optimiser, self._rate(self.step))
        inputs, labels = batch.inputs.to(task.device).float(), batch.labels.to(task.device)
        inputs, mixed = self._mixed(inputs, labels)
        with _arithmetic(task), seeded(self._drawn(3)):  # of a network with dropout
            features, logits = self.wrapped(inputs)
        loss = task.loss(features.float(), logits.float(), mixed, batch)
        if not torch.isfinite(loss):
            raise TrainingError(self._diverged(float(loss.detach())))
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.extra is not None:
            task.group.average_gradients(self.extra)
        if task.config.clip:
            nn.utils.clip_grad_norm_([p for g in self.optimiser.param_groups for p in g["params"]], task.config.clip)
        self.optimiser.step()
        self._follow()
        self.sums += batch_sums(loss, logits.detach(), labels)

    def _diverged(self, loss: float) -> str:
        kept = f"; the last good weights are in {self.task.folder}" if self.number and self.task.folder else ""
        return (
            f"the loss is {loss} in epoch {self.number + 1}, step {self.step + 1}: "
            f"lower --lr ({self.task.config.lr:g}), or use --clip 1{kept}"
        )

    def _check_weights(self) -> None:
        """Refuse weights that the last step made infinite, before they are kept."""
        if not all(
            value.isfinite().all() for value in learning_state(self.model).values() if value.is_floating_point()
        ):
            raise TrainingError(self._diverged(float("nan")))

    def _rate(self, step: int) -> float:
        steps = self.task.train.steps
        warmup = round(self.task.config.warmup * steps)
        return rate(self.number * steps + step, self.task.config.epochs * steps, warmup)

    def _mixed(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the images of a batch with each other, if asked to."""
        config = self.task.config
        kinds = [v2.MixUp(alpha=config.mixup, num_classes=self._classes)] if config.mixup else []
        kinds += [v2.CutMix(alpha=config.cutmix, num_classes=self._classes)] if config.cutmix else []
        if not kinds:
            return inputs, labels
        with seeded(self._drawn(2)):
            mix = kinds[int(torch.randint(len(kinds), ()))]
            maps = inputs if inputs.ndim == 4 else inputs.reshape(len(inputs), *self.model.body.shape)
            mixed, shares = mix(maps, labels)
        return mixed.reshape(inputs.shape), shares

    def _drawn(self, what: int) -> int:
        """Return the seed of what a step draws."""
        return int(np.random.default_rng([self.task.config.seed, self.number, self.step, what]).integers(2**63))

    @property
    def _classes(self) -> int:
        return int(self.model.fc.out_features)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averaged weights towards those of the network; statistics of norms are copied."""
        if self.average is None:
            return
        decay = min(self.task.config.ema, (1 + self._steps_done) / (10 + self._steps_done))
        for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        for kept, now in zip(self.average.buffers(), self.model.buffers(), strict=True):
            kept.copy_(now)

    @property
    def _steps_done(self) -> int:
        return self.number * self.task.train.steps + self.step

    def _judge(self) -> EpochScore | None:
        return evaluate(self.judged, self.task.val, self.task) if self.task.val else None

    def keep_best(self) -> None:
        """Give the network the weights that are kept."""
        kept = self.best or learning_state(self.judged)
        self.model.load_state_dict(kept, strict=False)
        self.model.eval()

    def save(self, seconds: float) -> None:
        """Write a checkpoint, in the process that writes."""
        if self.task.folder is None or self.task.group.rank:
            return
        content = {
            "fingerprint": self.task.fingerprint,
            "number": self.number,
            "step": self.step,
            "sums": self.sums,
            "seconds": seconds,
            "model": learning_state(self.model),
            "average": learning_state(self.average) if self.average is not None else None,
            "extra": self.extra.state_dict() if self.extra is not None else None,
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "history": [each.to_list() for each in self.history],
        }
        save_checkpoint(self.task.folder, content)

    def restore(self, content: dict[str, Any] | None) -> None:
        """Go back to a checkpoint."""
        if content is None:
            return
        self.model.load_state_dict(content["model"], strict=False)
        if self.average is not None and content["average"]:
            self.average.load_state_dict(content["average"], strict=False)
        if self.extra is not None and content["extra"]:
            self.extra.load_state_dict(content["extra"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.number, self.step = content["number"], content["step"]
        self.sums, self.seconds, self.best = content["sums"], content["seconds"], content["best"]
        self.history = [EpochRecord.from_list(each) for each in content["history"]]


def evaluate(model: TrainableClassifier, feed: BatchLoader, task: TrainingTask) -> EpochScore:
    """Return the score of a network on all images of a feed, as they are."""
    model.eval()
    total = torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        for batch in feed.batches(0, whole=True):
            with _arithmetic(task):
                _, logits = model(batch.inputs.to(task.device).float())
            labels = batch.labels.to(task.device)
            loss = nn.functional.cross_entropy(logits.float(), labels)
            total += batch_sums(loss, logits, labels)
    return score_from_sums(total)


def _arithmetic(task: TrainingTask) -> torch.autocast:
    return torch.autocast(task.device, dtype=torch.bfloat16, enabled=task.config.precision == "bf16")
