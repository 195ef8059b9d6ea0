"""What every search needs: when to give up, and which symbols a hypothesis may hold."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from transduce.core.errors import UserError
from transduce.core.seq import BOS, PAD, UNK, Batch

MaxLength = int | Callable[[Batch], int | Tensor]
"""Most symbols of a hypothesis, EOS counted: a number, or a function of the batch that gives one number or
one for each row (B,)."""

NEVER = float("-inf")


def ratio(factor: float, extra: int) -> Callable[[Batch], Tensor]:
    """At most ``factor`` symbols for each symbol of the row's own source, and ``extra`` more."""

    def limit(batch: Batch) -> Tensor:
        if batch.source is None:
            raise UserError("A max_length by ratio needs sources; give a number for a model without them.")
        return (factor * batch.source.lengths.double()).long() + extra

    return limit


def resolve(max_length: MaxLength, batch: Batch) -> tuple[Tensor, int]:
    """The limit of each row (B,), on the batch's device, and the largest of them."""
    found = max_length(batch) if callable(max_length) else max_length
    limits = torch.as_tensor(found, dtype=torch.long, device=device_of(batch)).expand(batch.size)
    smallest, largest = int(limits.min()), int(limits.max())
    if smallest < 1:
        raise UserError(f"A search needs a max_length of at least 1, got {smallest}.")
    return limits, largest


def forbid_special(scores: Tensor, allow_unknown: bool) -> Tensor:
    """Make padding, begin and (unless allowed) unknown impossible in scores (...,V), in place."""
    for symbol in (PAD, BOS) if allow_unknown else (PAD, BOS, UNK):
        scores[..., symbol] = NEVER
    return scores


def refuse_nan(scores: Tensor) -> None:
    """Raise :class:`UserError` where a search ended with scores that are no numbers."""
    if bool(scores.isnan().any()):
        raise UserError(
            "The model's scores are NaN, so nothing can be decoded: its training diverged or its weights are "
            "damaged; use an earlier checkpoint or a lower learning rate."
        )


def row_names(batch: Batch) -> list[int]:
    """What identifies each row: its position in the data set, or in the batch where that is not known."""
    return list(batch.rows) if len(batch.rows) == batch.size else list(range(batch.size))


def device_of(batch: Batch) -> torch.device:
    some = batch.source if batch.source is not None else batch.target
    if some is None:
        raise UserError("A search needs a batch with a source, or a target that tells the number of rows.")
    return some.data.device


WORTH_DROPPING = 0.75
"""Rows that are done leave the computation when at most this share is left: dropping them copies the
state."""
