"""What one stream costs while it is decoded: bytes of state and seconds a symbol, behind targets of given
lengths."""

from __future__ import annotations

import statistics
import time
from typing import Any, Sequence

import torch

from transduce.core import state as states
from transduce.core.protocols import Model
from transduce.core.seq import BOS, EOS, UNK, Batch, Seq
from transduce.data import DataSpec

LENGTHS = (16, 64, 256, 1024)
_WARM, _TIMED = 3, 15


@torch.no_grad()
def decoding_costs(
    model: Model,
    spec: DataSpec,
    lengths: Sequence[int] = LENGTHS,
    *,
    seconds: float = 12.0,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """For each length L: a source of L random symbols (none for a language model) is read, L random target
    symbols are given in one chunk, and then single steps at batch 1 are timed.

    ``bytes``: live content of the state at that point, the memory it attends to included. ``seconds``: median
    of 15 steps, the choice of the best symbol included; ``chunk_seconds``: reading source and chunk. A length
    that the model refuses has ``refused`` with the reason instead; so has one that would not fit into what is
    left of ``seconds``, judged by the length before it: the chunk growing with the square of the length, the
    steps with the length.
    """
    was_training = model.training
    model.eval()
    found: list[dict[str, Any]] = []
    begun, before = time.perf_counter(), None
    try:
        _at(model, spec, 4, torch.device(device))  # kernels are compiled here
        for length in sorted(lengths):
            left = seconds - (time.perf_counter() - begun)
            if before is not None and _forecast(before, length) > left:
                reason = f"it would take longer than the {seconds:g} s that are set aside"
                found.append({"length": length, "refused": reason})
                continue
            cost = _at(model, spec, length, torch.device(device))
            before = cost if "bytes" in cost else before
            found.append(cost)
    finally:
        model.train(was_training)
    return found


def _forecast(before: dict[str, Any], length: int) -> float:
    """Seconds that another length would take, rather too many than too few."""
    times = length / before["length"]
    return times**2 * before["chunk_seconds"] + times * (_WARM + _TIMED) * before["seconds"]


def _at(model: Model, spec: DataSpec, length: int, device: torch.device) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(length)
    ids = lambda size: torch.randint(min(UNK + 1, size - 1), size, (1, length), generator=draw).to(device)
    try:
        source = None
        if spec.source is not None and spec.source.units == "points":
            source = Seq(torch.randn(1, length, spec.source.size, generator=draw).to(device))
        elif spec.source is not None:
            source = Seq(ids(spec.source.size))
        begun = time.perf_counter()
        batch = Batch(source, Seq(torch.tensor([[EOS]], device=device)))
        state = model.start(batch, capacity=length + _WARM + _TIMED + 1)
        start = torch.tensor([[BOS]], device=device)
        dist, state = model(torch.cat((start, ids(spec.target.size)[:, 1:]), 1), state)
        chunk = time.perf_counter() - begun
        size = states.nbytes(state)
        taken: list[float] = []
        for _ in range(_WARM + _TIMED):
            begun = time.perf_counter()
            dist, state = model(dist.mode()[:, -1:], state)
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - begun)
    except (ValueError, RuntimeError, IndexError) as problem:  # positions beyond a table, say
        said = " ".join(str(problem).split()) or type(problem).__name__
        return {"length": length, "refused": said[:200]}
    step = statistics.median(taken[_WARM:])
    return {"length": length, "bytes": size, "seconds": step, "chunk_seconds": chunk}
