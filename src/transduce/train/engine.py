"""One optimiser step: forward, loss, backward, clipping, AdamW, average. Knows nothing of time or files."""

from __future__ import annotations

import math
import platform
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ContextManager, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from transduce.core.errors import UserError
from transduce.core.protocols import Model, Objective
from transduce.core.seq import Batch

from . import weights
from .checkpoint import random_state, restore_random
from .config import TrainConfig
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
    """Training diverged: the loss or the gradient is not a finite number."""


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

    def __init__(self, model: Model, objective: Objective, config: TrainConfig, device: torch.device) -> None:
        self.model = model.to(device)
        self.objective = objective
        self.config = config
        self.device = device
        self.precision = "float32"
        self.generator = torch.Generator(device).manual_seed(config.seed)
        torch.manual_seed(config.seed)  # dropout draws from torch's own generator
        self.optimiser = adamw(self.model, config)
        self.ema = None if config.ema is None else Ema(self.model, config.ema)
        self._trained = [p for p in self.model.parameters() if p.requires_grad]

    def update(self, batches: Sequence[Batch], step: int, rate: float) -> Update:
        """Take one step. Raises :class:`NotFinite` before the weights change when the loss or gradient is not
        finite."""
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        weighted, symbols, rows = 0.0, 0, 0
        for batch in batches:
            loss, weight = self._backward(batch.to(self.device), step, alone=len(batches) == 1)
            if not math.isfinite(loss):
                raise _not_finite("loss", loss, step, batch)
            weighted, symbols, rows = weighted + loss * weight, symbols + weight, rows + batch.size
        if len(batches) > 1:
            torch._foreach_mul_([p.grad for p in self._trained if p.grad is not None], 1.0 / max(1, symbols))
        norm = float(torch.nn.utils.clip_grad_norm_(self._trained, self.config.clip or math.inf))
        if not math.isfinite(norm):
            raise _not_finite("gradient", norm, step, batches[0])
        set_rate(self.optimiser, rate)
        self.optimiser.step()
        if self.ema is not None:
            self.ema.update()
        return Update(weighted / max(1, symbols), symbols, rows, norm)

    def _backward(self, batch: Batch, step: int, alone: bool) -> tuple[float, int]:
        with autocast(self.device, self.precision):
            loss = self.objective(self.model, batch, step=step, generator=self.generator)
        # several batches: sum of the symbols' losses, divided once by the number of all symbols
        (loss.total if alone else loss.total * loss.weight).backward()
        return float(loss.total.detach()), loss.weight

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
                self._backward(batch, 0, alone=True)  # reads the loss, so a GPU has finished the forward pass
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

    def restore(self, groups: Mapping[str, Mapping[str, Tensor]], ema_steps: int) -> None:
        weights.restore(self.model, groups["model"], what="The checkpoint")
        restore_state(self.optimiser, groups["optimiser"])
        restore_random(groups["random"], self.generator)
        if self.ema is not None:
            self.ema.restore(groups["ema"], ema_steps)


def _not_finite(what: str, value: float, step: int, batch: Batch) -> NotFinite:
    rows = ", ".join(map(str, batch.rows[:5])) + (
        f" and {len(batch.rows) - 5} more" if len(batch.rows) > 5 else ""
    )
    return NotFinite(
        f"The {what} became {value} at step {step} (training rows {rows or 'unknown'}): try a smaller "
        "learning_rate, a longer warmup or precision float32; the last checkpoint is untouched."
    )
