"""Several processes under `torchrun`: the rank of this one, and values that all share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError

LONGEST_WAIT = timedelta(hours=24)
"""Most time that processes wait for one another.

One of them scores the val split and writes the files while the others wait; by default NCCL ends
the run after 10 minutes, gloo after 30. A process that dies is noticed by `torchrun` at once.
"""


RANKS = 1009
"""More than there are processes."""


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for a step of a training: each process differs, and each step by itself."""
    torch.manual_seed((seed * 1_000_003 + step) * RANKS + rank)


def step_seed() -> int:
    """Return a seed that belongs to the step, the same in all processes."""
    return torch.initial_seed() // RANKS


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that train one network together; alone, a group of one."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def all_agree(self, mine: bool) -> bool:
        """Return whether `mine` is true in every process."""
        if self.world == 1:
            return mine
        flag = torch.tensor(float(mine), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag)

    def leaders(self, value: int) -> int:
        """Return the value of the leading process, rank 0."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, device=self.device)
        dist.broadcast(shared, 0)
        return int(shared)

    def mean(self, value: torch.Tensor) -> float:
        """Return the mean of a number over the processes."""
        value = value.detach().to(self.device, torch.float64)
        if self.world > 1:
            dist.all_reduce(value, dist.ReduceOp.SUM)
        return float(value) / self.world

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of values over the processes, on the CPU."""
        if self.world == 1:
            return values
        shared = values.to(self.device)
        dist.all_reduce(shared, dist.ReduceOp.SUM)
        return shared.cpu()

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            dist.barrier()

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network to run forward: with averaged gradients where there are several.

        A straight-through position runs one operator in each process, so some weights get no
        gradient in a pass.
        """
        if self.world == 1:
            return network
        return DistributedDataParallel(network, find_unused_parameters=True)


def per_process(count: torch.Tensor) -> torch.Tensor:
    """Return the mean of a count over the processes, at least 1: what a loss is divided by.

    Gradients are averaged over the processes, so that the sum of all losses is divided by the
    count of the whole batch, as in one process.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        count = count.detach().clone()
        dist.all_reduce(count, dist.ReduceOp.SUM)
        count = count / dist.get_world_size()
    return count.clamp_min(1.0)


def first_process() -> bool:
    """Return whether `torchrun` started this process first, or not at all."""
    return os.environ.get("RANK", "0") == "0"


def own_device() -> torch.device:
    """Return the GPU of this process where there are any, else the CPU.

    Raises `UserError` where torchrun started more processes on a machine than it has GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= gpus:
        raise UserError(
            f"torchrun started {os.environ.get('LOCAL_WORLD_SIZE', index + 1)} processes here, "
            f"each needs a GPU and there are {gpus}: --nproc-per-node {gpus}"
        )
    return torch.device("cuda", index)


@contextmanager
def joined() -> Iterator[Group]:
    """Join the group that `torchrun` started: nccl where each process has a GPU, else gloo."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = own_device()
    cuda = device.type == "cuda"
    if world == 1:
        yield Group(device=device)
        return
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=LONGEST_WAIT)
    try:
        yield Group(dist.get_rank(), world, device)
    finally:
        dist.destroy_process_group()
