"""Several processes that train one network, as ``torchrun`` starts them: each takes its part of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from featkit.errors import SpecError


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together.

    Attributes:
        rank: number of this one; the one with 0 writes files and speaks.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Return the model, its gradients averaged over the processes in each step."""
        return DistributedDataParallel(model) if self.size > 1 else model

    def total(self, sums: Tensor) -> Tensor:
        """Return sums over all processes."""
        if self.size > 1:
            distributed.all_reduce(sums)
        return sums

    def average(self, module: nn.Module) -> None:
        """Give the gradients of a module that is not wrapped their mean over the processes."""
        for parameter in module.parameters() if self.size > 1 else ():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.size

    def share(self, module: nn.Module) -> None:
        """Give every process the statistics of norms that the first one has, so that all judge one network."""
        for buffer in module.buffers() if self.size > 1 else ():
            distributed.broadcast(buffer, 0)

    def check(self, batch_size: int) -> None:
        """Make sure that every process has as many images as any other, or their gradients would not be the batch's.

        Raises:
            SpecError: if it has not.
        """
        if batch_size % self.size:
            raise SpecError(
                f"--batch-size {batch_size} is no multiple of the number of processes, {self.size}: change it"
            )


@contextmanager
def joined(device: str) -> Iterator[ProcessGroup]:
    """Join the processes that ``torchrun`` started; a process that was started alone is its own group.

    Args:
        device: ``cuda`` or ``cpu``: what they talk through.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ProcessGroup()
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    try:
        yield ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
