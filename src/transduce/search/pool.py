"""The bookkeeping of a beam search: what has ended, and how hypotheses are read back from their steps."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Sequence

import torch
from torch import Tensor

from .limits import NEVER


@dataclass
class Pool:
    """The best hypotheses of every source that are complete: ended, or as long as they may be.

    ``score`` (B,N) best first, those that ended before those cut off; -inf where there is none yet.
    ``step`` and ``slot`` (B,N): the last step of the hypothesis and its place in the beam then. ``parts``
    (B,N,P).
    """

    score: Tensor
    ended: Tensor
    step: Tensor
    slot: Tensor
    parts: Tensor

    @classmethod
    def empty(cls, like: Tensor, num_best: int, num_parts: int) -> Pool:
        """``like``: (B,...), for its number of sources, dtype and device."""
        shape = (like.shape[0], num_best)
        place = torch.zeros(shape, dtype=torch.long, device=like.device)
        return cls(
            like.new_full(shape, NEVER), place.bool(), place, place.clone(), like.new_zeros(*shape, num_parts)
        )

    def offer(self, sources: Tensor, score: Tensor, ended: Tensor, step: int, parts: Tensor) -> None:
        """Candidates (G,W) of some sources, -inf where there is none; the best N of old and new stay.

        Among equals the older one stays first, then the one in the lower slot.
        """
        num_best = self.score.shape[1]
        slot = torch.arange(score.shape[1], device=score.device).expand(score.shape)
        new = Pool(score, ended, torch.full_like(slot, step), slot, parts)
        join = lambda name: torch.cat((getattr(self, name)[sources], getattr(new, name)), 1)
        both = {field.name: join(field.name) for field in fields(self)}
        by_score = both["score"].sort(dim=1, descending=True, stable=True).indices
        ended = both["ended"].gather(1, by_score).int()
        ended_first = ended.sort(dim=1, descending=True, stable=True).indices
        order = by_score.gather(1, ended_first)[:, :num_best]
        group = torch.arange(len(sources), device=score.device)[:, None]
        for name, values in both.items():
            getattr(self, name)[sources] = values[group, order]


@dataclass(frozen=True)
class Step:
    """One step of the search: for these ``sources`` (G,), the symbols (G,W) and the slots they continue
    (G,W)."""

    sources: Tensor
    symbols: Tensor
    parents: Tensor


def read_back(steps: Sequence[Step], pool: Pool) -> Tensor:
    """The symbols (B,N,T) of every pooled hypothesis, found by following its parents from its last step."""
    size, width = pool.score.shape[0], steps[0].symbols.shape[1]
    symbols = pool.slot.new_zeros(len(steps), size, width)
    parents = torch.zeros_like(symbols)
    for t, step in enumerate(steps):
        symbols[t, step.sources] = step.symbols
        parents[t, step.sources] = step.parents
    symbols, parents, last, slot = symbols.cpu(), parents.cpu(), pool.step.cpu(), pool.slot.cpu()
    found = torch.zeros(*slot.shape, len(steps), dtype=torch.long, device="cpu")
    for t in range(len(steps) - 1, -1, -1):
        inside = last >= t
        found[:, :, t] = torch.where(inside, symbols[t].gather(1, slot), 0)
        slot = torch.where(inside, parents[t].gather(1, slot), slot)
    return found


BLOCK = 64
"""Candidates that are looked at by their maximum first."""


def best_candidates(total: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of (G,N) per row, in descending order: values and positions (G,count).

    Among equals the lowest position comes first, which ``topk`` does not promise.
    """
    size = total.shape[1]
    if size < 4 * count * BLOCK:
        return _best_of_few(total, count)
    # The best candidates lie in the blocks of the best maxima: anything elsewhere has `count` better there.
    whole = size - size % BLOCK
    maxima = total[:, :whole].unflatten(1, (-1, BLOCK)).amax(-1)
    if whole < size:
        maxima = torch.cat((maxima, total[:, whole:].amax(1, keepdim=True)), 1)
    blocks = best_candidates(maxima, count)[1].sort(dim=1).values
    within = torch.arange(BLOCK, device=total.device)
    index = (blocks[..., None] * BLOCK + within).flatten(1)
    inside = total.gather(1, index.clamp_max(size - 1)).masked_fill(index >= size, NEVER)
    values, place = _best_of_few(inside, count)
    return values, index.gather(1, place).clamp_max(size - 1)


def _best_of_few(total: Tensor, count: int) -> tuple[Tensor, Tensor]:
    values, index = total.topk(count, 1)
    worst = values[:, -1:]
    # More values reach the worst one taken than were taken: which of them topk took is undefined.
    tied = ((total >= worst).sum(1) > count) & (worst[:, 0] > NEVER)
    if bool(tied.any()):
        rows, level = total[tied], worst[tied]
        above, equal = rows > level, rows == level
        room = count - above.sum(1, keepdim=True)
        index[tied] = (above | (equal & (equal.cumsum(1) <= room))).nonzero()[:, 1].view(-1, count)
    index = index.sort(dim=1).values
    values, order = total.gather(1, index).sort(dim=1, descending=True, stable=True)
    return values, index.gather(1, order)
