"""Training in several processes started by ``torchrun``, each with its part of every batch."""

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
        rank: number of this process; rank 0 writes files and prints.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model, with gradients averaged over the processes in each step."""
        return DistributedDataParallel(model) if self.size > 1 else model

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place, and return it."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def average_gradients(self, module: nn.Module) -> None:
        """Average the gradients of a module that is not wrapped over the processes."""
        if self.size == 1:
            return
        for parameter in module.parameters():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.size

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Copy the BatchNorm statistics of rank 0 to all processes."""
        if self.size == 1:
            return
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)

    def check_batch_size(self, batch_size: int) -> None:
        """Check that a batch can be divided equally among the processes.

        Raises:
            SpecError: if it cannot.
        """
        if batch_size % self.size:
            raise SpecError(
                f"--batch-size {batch_size} is not a multiple of the {self.size} processes: "
                "change it"
            )


@contextmanager
def join_process_group(device: str) -> Iterator[ProcessGroup]:
    """Join the processes that ``torchrun`` started; without it, the group is this process.

    Args:
        device: ``cuda`` (NCCL) or ``cpu`` (Gloo).
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
