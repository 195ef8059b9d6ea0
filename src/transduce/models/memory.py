"""Models over an external memory: one-word answers to questions about a story, and text from its recent words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor, nn

from transduce.core.dist import Categorical, Dist
from transduce.core.protocols import Decoder, Model
from transduce.core.seq import EOS, UNK, Batch, Seq
from transduce.core.state import State
from transduce.nn.memory import SPREAD, MemoryHops, RecentHops


class TiedAnswers(nn.Module):
    """logits = W u, the rows of W taken from the last value embedding of the memory (Sukhbaatar et al. 2015, section
    2.2, "W^T = C^K").

    ``rows``: for each answer its id in the source's vocabulary, None for those that no source holds, which get rows
    of their own.
    """

    def __init__(self, hops: MemoryHops, rows: Sequence[int | None]) -> None:
        super().__init__()
        known = hops.embed.shape[1]
        own = [i for i, row in enumerate(rows) if row is None]
        at = {i: known + n for n, i in enumerate(own)}
        self.own = nn.Parameter(SPREAD * torch.randn(len(own), hops.dim))
        self.register_buffer("rows", torch.tensor([at.get(i, row) for i, row in enumerate(rows)]), persistent=False)

    def forward(self, u: Tensor, hops: MemoryHops) -> Tensor:
        return u @ torch.cat((hops.embed[-1], self.own))[self.rows].mT


class FreeAnswers(nn.Module):
    """logits = W u with a matrix of its own."""

    def __init__(self, dim: int, num_answers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(SPREAD * torch.randn(num_answers, dim))

    def forward(self, u: Tensor, hops: MemoryHops) -> Tensor:
        return u @ self.weight.mT


@dataclass(frozen=True)
class AnswerState:
    """``scores`` (B,V): of the answer. ``answered`` (B,) bool: it has been given, what follows is the end."""

    scores: Tensor
    answered: Tensor


class MemoryNetwork(Model):
    """p(answer | story, question) = softmax(W u) behind :class:`transduce.nn.memory.MemoryHops`; then the end.

    An answer is one symbol. Padding, begin and end are no answers.
    """

    def __init__(self, hops: MemoryHops, answers: nn.Module) -> None:
        super().__init__()
        self.hops, self.answers = hops, answers

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> AnswerState:
        if batch.source is None:
            raise ValueError("a memory network needs a batch with a source: the story and its question")
        scores = self.answers(self.hops(batch.source.data, batch.source.mask), self.hops)
        never = torch.zeros_like(scores[:, :UNK]).fill_(-math.inf)
        scores = torch.cat((never, scores[:, UNK:]), 1)
        return AnswerState(scores, torch.zeros(batch.size, dtype=torch.bool, device=scores.device))

    def forward(
        self, prev: Tensor, state: AnswerState, *, mask: Tensor | None = None
    ) -> tuple[Dist, AnswerState]:
        steps = torch.ones_like(prev) if mask is None else mask.long()
        through = steps.cumsum(1)
        first = ((through - steps == 0) & ~state.answered[:, None])[..., None]
        end = torch.full_like(state.scores, -math.inf)
        end[:, EOS] = 0.0
        logits = torch.where(first, state.scores[:, None], end[:, None])
        return Categorical(logits), AnswerState(state.scores, state.answered | (through[:, -1] > 0))


@dataclass(frozen=True)
class RecentState:
    """The last words (B,N), right-aligned, and how many of them there are (B,)."""

    ids: Tensor
    count: Tensor


class RecentDecoder(Decoder):
    """p(y_u | y_<u) = softmax(W u + b) with u read in hops from the ``capacity`` words before
    (:class:`transduce.nn.memory.RecentHops`). Its state is those words."""

    def __init__(self, hops: RecentHops, head: nn.Module) -> None:
        super().__init__()
        self.hops, self.head = hops, head

    def start(
        self, batch: int, memory: Seq | None = None, *, capacity: int | None = None, continues: bool = True
    ) -> RecentState:
        device = self.hops.key.device
        none = torch.zeros(batch, self.hops.capacity, dtype=torch.long, device=device)
        return RecentState(none, none[:, 0])

    def forward(self, prev: Tensor, state: RecentState, *, mask: Tensor | None = None) -> tuple[Dist, State]:
        size = self.hops.capacity
        ids = torch.cat((state.ids, prev), 1)
        back = torch.arange(size, 0, -1, device=prev.device)
        here = torch.ones_like(prev, dtype=torch.bool) if mask is None else mask
        valid = torch.cat((back <= state.count[:, None], here), 1)
        number = valid.long().cumsum(1)
        age = number[:, size:, None] - number[:, None]  # (B,U,N+U)
        hidden = self.hops(ids, torch.where(valid[:, None], age, -1))
        order = valid.long().sort(dim=1, stable=True).indices[:, -size:]  # the last N valid words, in order
        kept = valid.gather(1, order)
        recent = torch.where(kept, ids.gather(1, order), 0)
        return self.head(hidden), RecentState(recent, kept.sum(1))
