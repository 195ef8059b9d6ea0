"""A plain training loop for labelled streams, for the checks of systems and the benchmark of mixers."""

from __future__ import annotations

from typing import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.data.synthetic.formal import last_only
from transduce.data.synthetic.streams import IGNORE, Task


def train_stream(
    model: Callable[[Tensor], Tensor],
    task: Task,
    steps: int,
    *,
    batch: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
    label: str = "",
) -> list[float]:
    """Adam on the cross-entropy of the labelled steps: short warm-up, constant rate, gradients clipped to norm 1.

    ``model``: a module from inputs to logits (B,T,V). Returns the loss of every step in nats. The data depend on
    ``seed`` only, so two models see the same batches.
    """
    assert isinstance(model, nn.Module)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / 20))
    generator = torch.Generator().manual_seed(1_000_003 * seed + 1)
    model.train()
    losses: list[float] = []
    for step in range(steps):
        inputs, labels = task(batch, generator)
        loss = F.cross_entropy(model(inputs).flatten(0, -2), labels.flatten(), ignore_index=IGNORE)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if say is not None and (step + 1) % max(1, steps // 5) == 0:
            say(f"  {label} step {step + 1}/{steps}  loss {sum(losses[-50:]) / len(losses[-50:]):.4f}")
    model.eval()
    return losses


@torch.no_grad()
def stream_accuracy(
    model: Callable[[Tensor], Tensor], task: Task, *, batches: int = 8, batch: int = 64, seed: int = 0
) -> float:
    """Share of the labelled steps whose label is the most likely one, on fresh data (another seed than
    training's)."""
    generator = torch.Generator().manual_seed(2_000_003 * (seed + 1))
    right = asked = 0
    for _ in range(batches):
        inputs, labels = task(batch, generator)
        scored = labels != IGNORE
        right += int((model(inputs).argmax(-1) == labels)[scored].sum())
        asked += int(scored.sum())
    return right / asked


def accuracy_by_length(
    model: Callable[[Tensor], Tensor],
    task: Callable[[int], Task],
    lengths: Iterable[int],
    *,
    batches: int = 4,
    batch: int = 64,
    seed: int = 0,
) -> dict[int, float]:
    """How a model goes on beyond the lengths it was trained on: length -> accuracy at the last step of such words.

    ``task``: length -> task, as of :class:`transduce.data.synthetic.formal.Language`.
    """
    ends = ((length, last_only(task(length))) for length in lengths)
    return {n: stream_accuracy(model, end, batches=batches, batch=batch, seed=seed) for n, end in ends}


def smoothed(runs: Sequence[Sequence[float]], pieces: int = 50) -> tuple[list[int], list[tuple[float, ...]]]:
    """Losses of several runs for a picture: means over about ``pieces`` stretches, as the updates at which these end
    and one value a run for each."""
    size = max(1, len(runs[0]) // pieces)
    ends = list(range(size, len(runs[0]) + 1, size))
    return ends, [tuple(sum(run[end - size : end]) / size for run in runs) for end in ends]
