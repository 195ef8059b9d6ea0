"""An objective plus the side losses that the layers of a model offer (:mod:`transduce.core.side`)."""

from __future__ import annotations

from typing import Callable, Mapping

import torch

from transduce.core.protocols import Loss, Model, Objective
from transduce.core.seq import Batch
from transduce.core.side import collect

Weight = float | Callable[[int], float]


class WithSide:
    """L = L_main + sum_i w_i(step) L_i, L_i the sum of what all layers offered under the name i.

    ``weights``: name -> number or schedule (training step -> number). Each L_i is reported under its name,
    the parts of ``objective`` keep theirs. One forward pass serves both. A name that nobody offers adds
    nothing.
    """

    def __init__(self, objective: Objective, weights: Mapping[str, Weight]) -> None:
        self.objective, self.weights = objective, dict(weights)

    @property
    def label_smoothing(self) -> float:
        """That of the main objective: it bounds the likelihood from below, whatever is added."""
        return getattr(self.objective, "label_smoothing", 0.0)

    def __call__(
        self, model: Model, batch: Batch, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        with collect() as found:
            loss = self.objective(model, batch, step=step, generator=generator)
        total, parts = loss.total, dict(loss.parts)
        for name, weight in self.weights.items():
            if name in found:
                offered = torch.stack([v.to(total.dtype) for v in found[name]]).sum()
                total = total + (weight(step) if callable(weight) else weight) * offered
                parts[name] = offered.detach()
        return Loss(total, parts, loss.weight)
