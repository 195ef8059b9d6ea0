"""How many steps the positions of a model with halting take."""

from __future__ import annotations

import torch
from torch import Tensor

from transduce.core.errors import UserError
from transduce.core.protocols import Model
from transduce.core.seq import Batch
from transduce.core.tap import record


@torch.no_grad()
def ponder_times(model: Model, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
    """Depth steps of every source position (B,S) and every target position (B,U) under teacher forcing, 0 in
    padding.

    None for a side without halting. Raises :class:`UserError` where neither side has any.
    """
    with record(model, "*.depth") as seen:
        model(batch.previous, model.start(batch, continues=False), mask=batch.target.mask)
    sides = {"encoder": batch.source, "decoder": batch.target}
    found: list[Tensor | None] = []
    for name, seq in sides.items():
        depths = [calls[0] for path, calls in seen.items() if path.split(".")[0] == name]
        if depths and seq is not None:
            depths[0] = torch.where(seq.valid(), depths[0], torch.zeros_like(depths[0]))
        found.append(depths[0] if depths else None)
    if found == [None, None]:
        raise UserError("No part of this model halts by itself; build it with --halting act.")
    return found[0], found[1]
