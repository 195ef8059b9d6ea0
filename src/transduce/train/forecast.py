"""What a run will take, measured before its first step: memory, time and latency. Nothing is trained or written."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transduce.core.protocols import System
from transduce.core.seq import Batch
from transduce.core.state import nbytes
from transduce.data.batching import Prepared, batches

from .config import TrainConfig
from .distributed import World
from .engine import Engine

MIB = 1 << 20


@dataclass(frozen=True)
class Forecast:
    """Sizes in bytes, times in seconds.

    ``activations``: what the backward pass of the largest batch keeps. ``step``: forward, backward and optimiser
    on a middling batch, ``longest_step``: on the largest one. ``per_symbol``: one decoding step of one row,
    ``state``: the decoder state of one row behind ``decoded`` symbols.
    """

    parameters: int
    weights: int
    optimiser: int
    gradients: int
    activations: int
    largest_rows: int
    largest_symbols: int
    precision: str
    step: float
    longest_step: float
    symbols: int
    batches_per_epoch: int
    per_symbol: float
    state: int
    decoded: int

    @property
    def memory(self) -> int:
        """Peak of a training step beyond what the process holds already."""
        return self.weights + self.optimiser + self.gradients + self.activations

    def lines(self, config: TrainConfig) -> list[str]:
        """A readable table."""
        steps = config.max_time / self.step
        epochs = steps * config.accumulate / self.batches_per_epoch
        mib = lambda n: f"{n / MIB:,.1f} MiB"
        return [
            f"parameters        {self.parameters:,} ({mib(self.weights)}), arithmetic in {self.precision}",
            f"memory of a step  {mib(self.memory)}: weights {mib(self.weights)}, optimiser {mib(self.optimiser)}, "
            f"gradients {mib(self.gradients)}, activations {mib(self.activations)}",
            f"largest batch     {self.largest_rows:,} rows, {self.largest_symbols:,} padded symbols, "
            f"{1000 * self.longest_step:,.0f} ms",
            f"time of a step    {1000 * self.step:,.0f} ms, {self.symbols / self.step:,.0f} target symbols/s",
            f"an epoch          {self.batches_per_epoch:,} batches, {self.batches_per_epoch * self.step / 60:,.1f} minutes",
            f"in the budget     about {steps:,.0f} steps, {epochs:,.1f} epochs in {config.max_time / 60:,.1f} minutes "
            "(evaluations and saving not counted)",
            f"decoding          {1000 * self.per_symbol:,.2f} ms a symbol; state of a row {self.state / 1024:,.1f} KiB "
            f"behind {self.decoded} symbols",
        ]


def forecast(system: System, prepared: Prepared, config: TrainConfig, world: World = World()) -> Forecast:
    """Measure a few batches. The weights and all generators are as before."""
    engine = Engine(system.model, system.objective, config, world)
    engine.choose_precision(_middling(prepared, config))
    loader = config.loader(prepared.train)
    taken = [b for b, _ in zip(loader, range(min(64, loader.batches_per_epoch)))]
    largest = max(taken, key=_cells)
    middling = sorted(taken, key=_cells)[len(taken) // 2]
    with engine.random_kept():
        kept = _kept_for_backward(engine, largest)
        step, longest = (_seconds(lambda b=b: _work(engine, b)) for b in (middling, largest))
        per_symbol, state, decoded = _decoding(system, prepared, world)
    parameters = [p for p in system.model.parameters() if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in system.model.parameters())
    trained = sum(p.numel() * p.element_size() for p in parameters)
    averages = 1 if config.ema is not None else 0
    for p in parameters:
        p.grad = None
    return Forecast(
        parameters=sum(p.numel() for p in parameters),
        weights=weights * (1 + averages),
        optimiser=2 * trained,
        gradients=trained,
        activations=kept,
        largest_rows=largest.size,
        largest_symbols=_symbols(largest),
        precision=engine.precision,
        step=step * config.accumulate + _optimiser_seconds(parameters),
        longest_step=longest * config.accumulate,
        symbols=int(middling.target.valid().sum()) * config.accumulate,
        batches_per_epoch=loader.batches_per_epoch,
        per_symbol=per_symbol,
        state=state,
        decoded=decoded,
    )


def _middling(prepared: Prepared, config: TrainConfig) -> Batch:
    found = batches(prepared.valid, **config.batch_limits)
    return found[len(found) // 2]


def _symbols(batch: Batch) -> int:
    return sum(s.batch * s.steps for s in (batch.source, batch.target) if s is not None)


def _cells(batch: Batch) -> int:
    source = 0 if batch.source is None else batch.source.steps
    return batch.size * (source + 1) * batch.target.steps


def _work(engine: Engine, batch: Batch) -> None:
    engine.model.train()
    engine.backward(batch.to(engine.device), 0, alone=True)


def _kept_for_backward(engine: Engine, batch: Batch) -> int:
    """Bytes of the tensors that autograd saves, each storage once, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in engine.model.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        _work(engine, batch)
    return sum(seen.values())


def _seconds(work, tries: int = 3) -> float:  # noqa: ANN001
    taken = []
    for _ in range(tries):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _optimiser_seconds(parameters: list[Tensor]) -> float:
    """AdamW reads four numbers a parameter and writes three: timed on copies, since it must change nothing."""
    copies = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    optimiser = torch.optim.AdamW(copies, fused=all(c.device.type in ("cpu", "cuda") for c in copies))
    return _seconds(optimiser.step)


@torch.no_grad()
def _decoding(system: System, prepared: Prepared, world: World) -> tuple[float, int, int]:
    """Seconds of one decoding step of one row of middling length, its state's bytes, and behind how many steps."""
    model, (source, target) = system.model, prepared.valid.lengths()
    row = int(np.argsort(source + target)[len(target) // 2])
    batch = prepared.valid.batch(np.array([row])).to(world.device)
    model.eval()
    state, ids = model.start(batch, capacity=batch.target.steps + 1), batch.previous
    begun, timed = time.perf_counter(), 0
    for number, prev in enumerate(ids.split(1, 1)):
        if number == 1:
            begun = time.perf_counter()
        _, state = model(prev, state)
        timed = max(1, number)
    seconds = (time.perf_counter() - begun) / timed
    return seconds, nbytes(state), ids.shape[1]
