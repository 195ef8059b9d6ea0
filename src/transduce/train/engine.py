"""One optimiser step: forward, loss, backward, clipping, AdamW, average. Knows nothing of time or files."""

from __future__ import annotations

import math
import platform
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, ContextManager, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from transduce.core.errors import UserError
from transduce.core.protocols import Model, Objective
from transduce.core.seq import Batch

from . import weights
from .checkpoint import random_group, random_state, restore_random, split_spread
from .config import TrainConfig
from .distributed import Replicas, World, gathered
from .ema import Ema
from .optim import adamw, restore_state, set_rate, state_tensors

_WORTH = 0.87
"""bf16 is taken when a batch takes less than this share of its time in float32."""


@dataclass(frozen=True)
class Update:
    """What one step did. ``loss`` is the mean over the symbols of all its batches."""

    loss: float
    symbols: int
    rows: int
    gradient_norm: float


class NotFinite(UserError):
    """Training diverged: the loss or the gradient of a batch is not a finite number."""

    def __init__(self, what: str, value: float, step: int, batch: Batch) -> None:
        self.what, self.value, self.step, self.batch = what, value, step, batch
        self.layer: str | None = None
        self.dump: str | None = None
        super().__init__(what)

    def __str__(self) -> str:
        rows = ", ".join(map(str, self.batch.rows[:5])) or "unknown"
        if len(self.batch.rows) > 5:
            rows += f" and {len(self.batch.rows) - 5} more"
        where = f", first in {self.layer}" if self.layer else ""
        again = f"; `transduce replay {self.dump}` shows it again" if self.dump else ""
        return (
            f"The {self.what} became {self.value} at step {self.step} (training rows {rows}{where}): try a smaller "
            f"learning_rate, a longer warmup or precision float32; the last checkpoint is untouched{again}."
        )


def in_parts(batch: Batch, parts: int) -> list[Batch]:
    """A batch cut into at most so many pieces of neighbouring rows."""
    if parts == 1 or batch.size == 1:
        return [batch]
    return [batch.select(rows) for rows in torch.arange(batch.size).tensor_split(min(parts, batch.size))]


def is_out_of_memory(problem: BaseException) -> bool:
    """torch has no class of its own for a CPU allocator that gives up."""
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(problem)
    return isinstance(problem, RuntimeError) and ("can't allocate memory" in said or "out of memory" in said)


def fast_bf16(device: torch.device) -> bool:
    """True where matrix products in bf16 run faster than in float32: AVX512-BF16 or AMX on a CPU, Ampere and
    later GPUs."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu" or platform.system() != "Linux":
        return False
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def autocast(device: torch.device, precision: str) -> ContextManager[object]:
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


class Engine:
    """A model on its device with optimiser, average and generators."""

    def __init__(
        self,
        model: Model,
        objective: Objective,
        config: TrainConfig,
        world: World = World(),
    ) -> None:
        device = world.device
        self.model = model.to(device)
        self.world = world
        self.replicas = Replicas(self.model, objective, world)
        self.config = config
        self.device = device
        self.precision = "float32"
        seed = config.seed + 1_000_003 * world.rank  # processes must not repeat each other's dropout
        self.generator = torch.Generator(device).manual_seed(seed)
        torch.manual_seed(seed)  # dropout draws from torch's own generator
        self.optimiser = adamw(self.model, config)
        self.ema = None if config.ema is None else Ema(self.model, config.ema)
        self.parts = 1
        """In how many pieces a batch is computed; 2 after a step ran out of memory."""
        self.random_before = random_state(self.generator)
        """The generators as they were before the last step."""
        self._trained = [p for p in self.model.parameters() if p.requires_grad]

    def update(self, batches: Sequence[Batch], step: int, rate: float) -> Update:
        """Take one step. Raises :class:`NotFinite` before the weights change when the loss or gradient is not
        finite."""
        self.model.train()
        self.random_before = random_state(self.generator)
        self.optimiser.zero_grad(set_to_none=True)
        batches = [part for batch in batches for part in in_parts(batch, self.parts)]
        alone = len(batches) == 1 and self.world.size == 1
        weighted, symbols, rows = 0.0, 0, 0
        for number, batch in enumerate(batches):
            own, counts = self.world.share(batch.to(self.device))
            with self.replicas.meeting(last=number == len(batches) - 1):
                loss, weight = self.backward(own, step, alone, counts)
            if not math.isfinite(loss) and self.world.size == 1:
                raise NotFinite("loss", loss, step, batch)
            weighted, symbols, rows = weighted + loss * weight, symbols + weight, rows + counts * own.size
        weighted, symbols, rows = self._everywhere(weighted, symbols, rows)
        if not math.isfinite(weighted):
            raise NotFinite("loss", weighted, step, batches[0])
        if not alone:
            grads = [p.grad for p in self._trained if p.grad is not None]
            torch._foreach_mul_(grads, self.world.size / max(1, symbols))
        norm = float(gathered(torch.nn.utils.clip_grad_norm_(self._trained, self.config.clip or math.inf)))
        if not math.isfinite(norm):
            raise NotFinite("gradient", norm, step, batches[0])
        set_rate(self.optimiser, rate)
        self.optimiser.step()
        if self.ema is not None:
            self.ema.update()
        return Update(weighted / max(1, symbols), symbols, rows, norm)

    def _everywhere(self, weighted: float, symbols: int, rows: int) -> tuple[float, int, int]:
        weighted, symbols, rows = self.world.total((weighted, symbols, rows))
        return weighted, int(symbols), int(rows)

    def backward(self, batch: Batch, step: int, alone: bool, counts: bool = True) -> tuple[float, int]:
        """Add the gradients of a batch to those that are there; its mean loss and the symbols behind it. ``alone``:
        of the mean loss, otherwise of the sum. ``counts`` False: of nothing, so that processes stay in step."""
        with autocast(self.device, self.precision):
            total, weight = self.replicas.loss(batch, step, self.generator)
        # several batches or processes: sum of the symbols' losses, divided once by the number of all symbols
        (total if alone else total * (weight * counts)).backward()
        return float(total.detach()), weight * counts

    def choose_precision(self, batch: Batch) -> str | None:
        """Settle ``precision``; "auto" times both on a batch that training does not need. Returns what is
        worth telling.

        Fast instructions alone decide nothing: small models lose to the casts, and compiled recurrences want
        float32.
        """
        wanted = self.config.precision
        if wanted != "auto" or not fast_bf16(self.device):
            self.precision = "bf16" if wanted == "bf16" else "float32"
            return None
        batch = batch.to(self.device)
        try:
            with self.random_kept():
                self.model.train()
                full, half = self._race(batch)
        except (RuntimeError, TypeError, ValueError) as problem:
            self.precision = "float32"
            reason = str(problem).splitlines()[0][:160]
            return f"precision: float32, because the model does not run in bf16 ({reason})"
        finally:
            self.optimiser.zero_grad(set_to_none=True)
        self.precision = "bf16" if half < _WORTH * full else "float32"
        times = f"{1000 * half:.0f} ms in bf16, {1000 * full:.0f} ms in float32"
        return f"precision: {self.precision} (a batch takes {times})"

    def _race(self, batch: Batch) -> tuple[float, float]:
        """Least seconds of forward and backward in float32 and in bf16, taken in turns."""
        least = {"float32": math.inf, "bf16": math.inf}
        for turn in range(5):
            for self.precision in least:
                begun = time.perf_counter()
                self.backward(batch, 0, alone=True)  # reads the loss, so a GPU has finished the forward pass
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                if turn > 0:  # kernels are compiled in the first turn
                    least[self.precision] = min(least[self.precision], time.perf_counter() - begun)
        return least["float32"], least["bf16"]

    @contextmanager
    def random_kept(self) -> Iterator[None]:
        """Whatever draws random numbers inside the block, training draws the same ones behind it."""
        kept = random_state(self.generator)
        try:
            yield
        finally:
            restore_random(kept, self.generator)

    @contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """The weights that are evaluated and stored: the average where there is one."""
        with self.ema.applied() if self.ema is not None else nullcontext():
            yield

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything a checkpoint needs of the engine."""
        groups = {
            "model": weights.collect(self.model),
            "optimiser": state_tensors(self.optimiser),
            "random": random_state(self.generator),
        }
        if self.ema is not None:
            groups["ema"] = self.ema.tensors()
        return groups

    def restore(
        self,
        groups: Mapping[str, Mapping[str, Tensor]],
        ema_steps: int,
        read_spread: Callable[[dict[str, Tensor]], None] = lambda tensors: None,
    ) -> None:
        """Put back what :meth:`tensors` gave. ``read_spread`` fills tensors that lie spread over processes."""
        random = groups.get(random_group(self.world.rank))
        if random is not None:
            restore_random(random, self.generator)
        if self.world.shard:
            self._restore_spread(groups, ema_steps, read_spread)
            return
        weights.restore(self.model, groups["model"], what="The checkpoint")
        restore_state(self.optimiser, groups["optimiser"])
        if self.ema is not None:
            self.ema.restore(groups["ema"], ema_steps)

    def _restore_spread(self, groups, ema_steps, read_spread) -> None:  # noqa: ANN001 (as restore)
        for p in self._trained:  # as AdamW's first step makes them
            moments = {n: torch.zeros_like(p, memory_format=torch.preserve_format) for n in ("exp_avg", "exp_avg_sq")}
            self.optimiser.state[p] = {"step": torch.zeros((), dtype=torch.float32, device=self.device), **moments}
        mine = {group: named for group, named in self.tensors().items() if group != "random"}
        plain, spread = split_spread(mine)
        read_spread(spread)
        for group, named in plain.items():
            for name, tensor in named.items():
                tensor.copy_(groups[group][name])
        if self.ema is not None:
            self.ema.steps = ema_steps
