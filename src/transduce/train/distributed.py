"""Several processes that train one model: who they are, how they share a batch, and how they agree.

What a run computes does not depend on the number of its processes: every process walks the same batches, takes
every n-th row of each, and gradients are averaged over the symbols of the whole batch. So one process, two
processes and two machines give the same losses up to the order of floating point sums (dropout, which draws
from a generator of each process, aside). Time, files and signals are the first process's business; the others
follow what it decides (:meth:`World.agree`).

The engine is torch's own: ``torchrun`` starts the processes, ``DistributedDataParallel`` averages gradients,
``fully_shard`` spreads weights, gradients and optimiser state over the processes.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ContextManager, Iterator, Sequence, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from transduce.core.errors import UserError
from transduce.core.protocols import Model, Objective
from transduce.core.seq import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a run as one of them sees them, and its device; by default it is alone on the CPU."""

    rank: int = 0
    size: int = 1
    shard: bool = False
    device: torch.device = torch.device("cpu")

    @classmethod
    def alone(cls, device: torch.device | str) -> World:
        """One process on this device."""
        return cls(device=torch.device(device))

    @property
    def main(self) -> bool:
        """This process keeps the time, writes the files and answers signals."""
        return self.rank == 0

    def agree(self, value: T) -> T:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes, in float64."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def gathered(self, value: T) -> list[T]:
        """Every process's value, in every process."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def share(self, batch: Batch) -> tuple[Batch, bool]:
        """This process's rows of a batch. False: there are fewer rows than processes and this one got none; it
        is given a row to compute with, whose loss must not count."""
        if self.size == 1:
            return batch, True
        own = torch.arange(self.rank, batch.size, self.size)
        if len(own):
            return batch.select(own), True
        return batch.select(torch.tensor([0])), False


def launched() -> bool:
    """``torchrun`` started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def restarted() -> bool:
    """``torchrun`` started the processes anew because one of them had died."""
    return launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joined(device: torch.device, *, shard: bool = False) -> Iterator[World]:
    """The :class:`World` that ``torchrun`` started this process into; alone where it did not.

    The processes talk over gloo on CPUs and NCCL on CUDA devices. Raises :class:`UserError` where sharding is
    asked of a single process. A script of your own had better end with ``os._exit(0)``, as the command line does:
    :func:`transduce.cli.launch.leave` tells why.
    """
    if not launched():
        if shard:
            raise UserError("--shard spreads a model over processes: give --devices 2 or more, or start with torchrun.")
        yield World.alone(device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # A restarted group meets in the store of the one that died; under the same names it would wait for the dead.
    store, rank, size = next(iter(dist.rendezvous("env://")))
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(backend, store=dist.PrefixStore(f"life-{life}", store), rank=rank, world_size=size)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), shard and dist.get_world_size() > 1, device)
    finally:
        dist.destroy_process_group()


class _LossOf(nn.Module):
    """The whole computation of a step as one forward, which DDP and ``fully_shard`` hook into."""

    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__()
        self.model, self._objective = model, objective

    def forward(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        loss = self._objective(self.model, batch, step=step, generator=generator)
        return loss.total, torch.tensor(loss.weight)


class Replicas:
    """A model trained by all processes of a ``world``: ``loss(batch)`` and when gradients meet."""

    def __init__(self, model: Model, objective: Objective, world: World) -> None:
        self.world, device = world, world.device
        self._alone = _LossOf(model, objective)
        self._all: nn.Module = self._alone
        if world.shard:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            # One group of parameters: layers of this library also work outside their forward (a decoder
            # prepares keys from memory), so weights are whole during a step and spread between steps.
            mesh = init_device_mesh(device.type, (world.size,))
            fully_shard(self._alone, mesh=mesh, reshard_after_forward=False)
        elif world.size > 1:
            # Which parameters a step leaves out depends on the system, so DDP is asked to look; where it finds
            # none it says so, which is no news.
            for said in (".*did not find any unused parameters.*", ".*`broadcast_buffers` is deprecated.*"):
                warnings.filterwarnings("ignore", message=said)
            ids = [device.index] if device.type == "cuda" else None
            self._all = nn.parallel.DistributedDataParallel(
                self._alone, device_ids=ids, broadcast_buffers=False, find_unused_parameters=True
            )

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """The mean loss of a batch and the symbols behind it."""
        total, weight = self._all(batch, step, generator)
        return total, int(weight)

    def meeting(self, last: bool) -> ContextManager[object]:
        """Around each batch of a step: gradients are exchanged behind the last one only."""
        if self.world.shard:
            self._alone.set_requires_gradient_sync(last)
            return nullcontext()
        return nullcontext() if last or self.world.size == 1 else self._all.no_sync()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside the block every process holds the whole weights (evaluation). All processes must enter it."""
        if not self.world.shard:
            yield
            return
        self._alone.unshard()
        try:
            yield
        finally:
            self._alone.reshard()


def is_spread(tensor: Tensor) -> bool:
    """A part of it lies in each process."""
    return type(tensor).__name__ == "DTensor"


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is spread over processes; all of them must call this."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def spread_like(whole: Tensor, like: Tensor) -> Tensor:
    """``whole``, spread over the processes as ``like`` is; all of them must call this."""
    if not is_spread(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    whole = whole.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(whole, like.device_mesh, like.placements)
