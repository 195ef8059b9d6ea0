"""An exponential moving average of the weights, kept in float32."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, Mapping

import torch
from torch import Tensor, nn

from .distributed import is_spread


class Ema:
    """a <- d a + (1 - d) w after every step, with d = min(decay, (1 + t) / (10 + t)) so that it forgets the
    start.

    Buffers are not averaged; the model's present ones are used. Source: Polyak and Juditsky 1992; the ramp of
    d as in the reference implementation of Szegedy et al. 2016.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._names = [name for name, _ in model.named_parameters()]
        self._weights = [p for _, p in model.named_parameters()]
        self._average = [p.detach().float().clone() for p in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        present = [w.detach().float() for w in self._weights]
        if any(map(is_spread, present)):
            for average, now in zip(self._average, present):
                average.lerp_(now, 1.0 - decay)
        else:
            torch._foreach_lerp_(self._average, present, 1.0 - decay)
        self.steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the average inside the block and its own weights again behind it."""
        kept = [w.detach().clone() for w in self._weights]
        self._load(self._average)
        try:
            yield
        finally:
            self._load(kept)

    @torch.no_grad()
    def _load(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights, values):
            weight.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        return dict(zip(self._names, self._average))

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        for name, average in zip(self._names, self._average):
            average.copy_(tensors[name])
        self.steps = steps
