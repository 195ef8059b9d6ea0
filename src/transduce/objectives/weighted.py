"""Sums of objectives with fixed or scheduled weights."""

from __future__ import annotations

from typing import Callable, Mapping

import torch
from torch import Tensor

from transduce.core.protocols import Loss, Model, Objective
from transduce.core.seq import Batch

Weight = float | Callable[[int], float]
"""A number, or a schedule: training step -> number."""


class Weighted:
    """L = sum_i w_i(step) L_i. Parts are reported as ``<name>`` for each total and ``<name>/<part>`` below
    it.

    A term of weight 0 is not computed. ``Weighted({"likelihood": (Likelihood(), 1.0), "aux": (other,
    ramp)})``.
    """

    def __init__(self, terms: Mapping[str, tuple[Objective, Weight]]) -> None:
        if not terms:
            raise ValueError("Weighted needs at least one objective")
        self.terms = dict(terms)

    def __call__(
        self, model: Model, batch: Batch, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        total: Tensor | None = None
        parts: dict[str, Tensor] = {}
        symbols = 0
        for name, (objective, weight) in self.terms.items():
            factor = weight(step) if callable(weight) else weight
            if factor == 0.0:
                continue
            loss = objective(model, batch, step=step, generator=generator)
            total = factor * loss.total if total is None else total + factor * loss.total
            parts[name] = loss.total.detach()
            parts.update({f"{name}/{part}": value for part, value in loss.parts.items()})
            symbols = max(symbols, loss.weight)
        if total is None:
            raise ValueError(f"at step {step} every objective has weight 0: nothing to train")
        return Loss(total, parts, symbols)


def ramp(start: int, end: int, low: float = 0.0, high: float = 1.0) -> Callable[[int], float]:
    """A weight that is ``low`` until step ``start`` and grows linearly to ``high`` at step ``end``."""
    if end <= start:
        raise ValueError(f"a ramp must end after it starts, got {start} to {end}")
    return lambda step: low + (high - low) * min(1.0, max(0.0, (step - start) / (end - start)))
