"""What every search needs: when to give up, and which symbols a hypothesis may hold."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from transduce.core.seq import BOS, PAD, UNK, Batch

MaxLength = int | Callable[[Batch], int]
"""Most symbols of a hypothesis: a number, or a function of the batch."""


def ratio(factor: float, extra: int) -> Callable[[Batch], int]:
    """At most ``factor`` symbols for each source symbol, and ``extra`` more; the longest source of the batch counts."""

    def limit(batch: Batch) -> int:
        steps = batch.source.steps if batch.source is not None else 0
        return int(factor * steps) + extra

    return limit


def resolve(max_length: MaxLength, batch: Batch) -> int:
    limit = max_length(batch) if callable(max_length) else max_length
    if limit < 1:
        raise ValueError(f"a search needs room for at least one symbol, got max_length {limit}")
    return limit


def without_special(scores: Tensor, allow_unknown: bool) -> Tensor:
    """Scores (...,V) with padding, begin and (unless allowed) unknown made impossible."""
    banned = [PAD, BOS] if allow_unknown else [PAD, BOS, UNK]
    scores = scores.clone()
    scores[..., banned] = float("-inf")
    return scores


def row_names(batch: Batch) -> list[int]:
    """What identifies each row: its position in the data set, or in the batch where that is not known."""
    return list(batch.rows) if len(batch.rows) == batch.size else list(range(batch.size))


def device_of(batch: Batch) -> torch.device:
    some = batch.source if batch.source is not None else batch.target
    return some.data.device
