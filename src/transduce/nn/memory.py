"""External memories that are read in hops (Sukhbaatar et al. 2015, arXiv 1503.08895).

A memory is a list of slots. A hop compares what is sought (B,D) with a key of each slot, and adds the mean of the
slots' values to it, weighted by the softmax of the fit; several hops in a row let one fact point to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.tap import tap
from transduce.ops.attention import masked_softmax

SPREAD = 0.3
"""Standard deviation of the first weights of a memory of sentences. The published 0.1 (section 4.2) makes all fits so
alike at the start that Adam did not get beyond what one hop can do, unless training starts linear."""
PUBLISHED_SPREAD = 0.1
"""That of the language model, and of a memory of sentences for a linear start."""


def position_weights(place: Tensor, count: Tensor, width: int) -> Tensor:
    """l_kj = (1 - j/J) - (k/d)(1 - 2j/J): (...), (...) -> (..., width). Section 4.1, "position encoding".

    ``place``: j of each word in its sentence, ``count``: J, its number of words; j and the channel k count from 1.
    """
    share = (place / count.clamp_min(1))[..., None]
    channel = torch.arange(1, width + 1, device=place.device, dtype=share.dtype) / width
    return (1 - share) - channel * (1 - 2 * share)


@dataclass(frozen=True)
class Parts:
    """Where the words of a story stand, all (B,T) but ``sentences`` (B,).

    ``age``: of the word's sentence, 1 for the newest one, 0 for the question, -1 for separators and padding.
    ``place``, ``count``: number of the word in its part from 1, and the part's number of words.
    """

    age: Tensor
    place: Tensor
    count: Tensor
    sentences: Tensor


def read_parts(ids: Tensor, mask: Tensor | None, separator: int) -> Parts:
    """Sentences between separators, the question behind the last one: ids (B,T) -> :class:`Parts`."""
    valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    cut = valid & (ids == separator)
    word = valid & ~cut
    part = cut.long().cumsum(1)
    running = word.long().cumsum(1)
    before = torch.where(cut, running, 0).cummax(1).values  # words of the parts before this one
    counts = torch.zeros_like(part).scatter_add_(1, part.clamp_max(ids.shape[1] - 1), word.long())
    total = part[:, -1]
    return Parts(
        torch.where(word, total[:, None] - part, -1),
        running - before,
        counts.gather(1, part.clamp_max(ids.shape[1] - 1)),
        total,
    )


class MemoryHops(nn.Module):
    """A story and its question -> what the question sought, (B,T) -> (B,D), after ``hops`` reads of its sentences.

    ::

        m_i = sum_j l_j * A x_ij + T_A(i)      c_i = sum_j l_j * C x_ij + T_C(i)      u = sum_j l_j * B q_j
        p = softmax_i(u . m_i),   o = sum_i p_i c_i,   u <- u + o   (layer-wise: u <- H u + o)

    The index i of the temporal vectors counts sentences backwards from the question, so what is newest has the same
    vector in stories of any length. "adjacent" tying: A of a hop is C of the hop before and B is the first A (section
    2.2, 1). "layer-wise": one A, one C and one B for all hops (section 2.2, 2). Only the ``capacity`` newest sentences
    are kept. While training each sentence gets, with probability ``noise``, an empty memory behind it, which shifts the
    older ones ("random noise", section 4.2).

    ``linear``: the softmax is left out while training ("linear start", section 4.2); in evaluation it never is.
    Tapped: the weights of each hop as ``weights``, (B,S), newest sentence first.
    """

    linear: bool = False

    def __init__(
        self,
        num_symbols: int,
        dim: int,
        separator: int,
        *,
        hops: int = 3,
        capacity: int = 50,
        tying: str = "adjacent",
        temporal: bool = True,
        noise: float = 0.1,
    ) -> None:
        super().__init__()
        if hops < 1 or capacity < 1 or not 0 <= noise < 1:
            raise ValueError(f"a memory needs hops >= 1, capacity >= 1, 0 <= noise < 1, got {hops}, {capacity}, {noise}")
        self.dim, self.separator, self.hops = dim, separator, hops
        self.capacity, self.adjacent, self.noise = capacity, tying == "adjacent", noise
        tables = hops + 1 if self.adjacent else 2
        self.embed = nn.Parameter(SPREAD * torch.randn(tables, num_symbols, dim))
        self.time = nn.Parameter(SPREAD * torch.randn(tables, capacity, dim)) if temporal else None
        self.ask = None if self.adjacent else nn.Parameter(SPREAD * torch.randn(num_symbols, dim))
        self.carry = None if self.adjacent else nn.Linear(dim, dim, bias=False)

    @torch.no_grad()
    def shrink(self) -> None:
        """Fresh weights from :data:`SPREAD` to :data:`PUBLISHED_SPREAD`, for a linear start: without the softmax each
        hop multiplies by a sum over all sentences, and three with the larger weights begin at a loss of 200 nats."""
        for weights in (self.embed, self.time, self.ask):
            if weights is not None:
                weights.mul_(PUBLISHED_SPREAD / SPREAD)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        parts = read_parts(ids, mask, self.separator)
        age, sentences = parts.age, parts.sentences
        if self.training and self.noise > 0:
            age, sentences = self._with_empty_memories(age, sentences)
        slots = min(self.capacity, max(1, int(sentences.max())))
        age = torch.where(age > slots, -1, age)
        weight = position_weights(parts.place, parts.count, self.dim).to(self.embed.dtype)
        known = (torch.arange(1, slots + 1, device=ids.device) <= sentences[:, None])[:, None]  # (B,1,S)
        filled = self._bags(self.embed, ids, weight, age, slots)  # (B,1+S,tables,D)
        u = filled[:, 0, 0] if self.ask is None else self._bags(self.ask[None], ids, weight, age, 0)[:, 0, 0]
        slot = filled[:, 1:]
        if self.time is not None:
            slot = slot + self.time[:, :slots].transpose(0, 1)
        tables = slot.unbind(2)
        for hop in range(self.hops):
            keys, values = (tables[hop], tables[hop + 1]) if self.adjacent else tables
            found = self._read(u, keys, values, known)
            u = found + (u if self.carry is None else self.carry(u))
        return u

    def _read(self, u: Tensor, keys: Tensor, values: Tensor, known: Tensor) -> Tensor:
        fit = u[:, None] @ keys.mT  # (B,1,S)
        if self.linear and self.training:
            weights = fit.masked_fill(~known, 0.0)
        else:
            weights = masked_softmax(fit, known)
        weights = tap(self, "weights", weights[:, 0])
        return (weights[:, None] @ values)[:, 0]

    def _bags(self, tables: Tensor, ids: Tensor, weight: Tensor, age: Tensor, slots: int) -> Tensor:
        """Weighted sums of the word vectors of each part, by all tables (N,V,D) at once: (B,1+slots,N,D), the question
        first."""
        count = len(tables)
        words = F.embedding(ids, tables.transpose(0, 1).flatten(1)).unflatten(-1, (count, -1))
        words = (words * weight[:, :, None]).flatten(2)
        place = torch.where((age >= 0) & (age <= slots), age, slots + 1)[..., None].expand_as(words)
        bags = words.new_zeros(len(ids), slots + 2, words.shape[-1]).scatter_add(1, place, words)
        return bags[:, :-1].unflatten(-1, (count, -1))

    def _with_empty_memories(self, age: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """Ages and number of sentences where empty ones were put in between."""
        most = max(1, int(sentences.max()))
        extra = (torch.rand(len(age), most, device=age.device) < self.noise).long()
        extra = extra.cumsum(1)
        shift = F.pad(extra, (1, 0))[:, :-1]  # before the sentence of age 1, 2, ...: those behind newer ones
        moved = age + shift.gather(1, (age - 1).clamp_min(0))
        grown = sentences + torch.where(
            sentences > 0, shift.gather(1, (sentences - 1).clamp_min(0)[:, None])[:, 0], 0
        )
        return torch.where(age > 0, moved, age), grown


class RecentHops(nn.Module):
    """The words so far as memory, read for every next word: ages and vectors of words -> (B,U,D).

    Every word before is one slot, with a temporal vector for how long ago it came; what is sought starts as the
    constant 0.1. All hops share keys and values ("layer-wise"), u <- H u + o, and half of the channels pass through a
    ReLU after each hop (Sukhbaatar et al. 2015, section 5). Tapped: ``weights`` (B,U,S), once a hop.
    """

    def __init__(self, num_symbols: int, dim: int, *, hops: int = 5, capacity: int = 100) -> None:
        super().__init__()
        if hops < 1 or capacity < 1:
            raise ValueError(f"a memory needs hops >= 1 and capacity >= 1, got {hops} and {capacity}")
        self.dim, self.hops, self.capacity = dim, hops, capacity
        draw = lambda count: nn.Parameter(PUBLISHED_SPREAD * torch.randn(count, dim))
        self.key, self.value = draw(num_symbols), draw(num_symbols)
        self.key_time, self.value_time = draw(capacity), draw(capacity)
        self.carry = nn.Linear(dim, dim, bias=False)

    def forward(self, ids: Tensor, age: Tensor) -> Tensor:
        """ids (B,S) of the slots; age (B,U,S), how many words before the one that is sought, 0 for the last one,
        and -1 for slots that it may not read."""
        keys, values = F.embedding(ids, self.key), F.embedding(ids, self.value)
        known, at = (age >= 0) & (age < self.capacity), age.clamp(0, self.capacity - 1)
        u = keys.new_full((*age.shape[:2], self.dim), 0.1)
        linear = self.dim - self.dim // 2
        for _ in range(self.hops):
            fit = u @ keys.mT + (u @ self.key_time.mT).gather(-1, at)
            weights = tap(self, "weights", masked_softmax(fit, known))
            by_age = torch.zeros_like(fit[..., :1]).expand(*age.shape[:2], self.capacity).scatter_add(-1, at, weights)
            u = self.carry(u) + weights @ values + by_age @ self.value_time
            u = torch.cat((u[..., :linear], torch.relu(u[..., linear:])), -1)
        return u
