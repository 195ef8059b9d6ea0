"""A decoder position reads several memories: four ways to combine them (Libovický et al. 2018, arXiv
1811.04716).

::

    read = ParallelAttend(2, partial(MultiHeadAttend, 64), partial(LayerNorm, 64), dropout=0.1)
    state = read.start([memory_a, memory_b])             # Seqs (B,S_k,M); keys and values of each are
    computed once x, state = read(x, state)                            # (B,U,D) -> (B,U,D), residual and norm
    included

A row may lack a memory (all of its steps masked). What is missing adds exactly nothing, whatever the biases
are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Callable, Sequence

import torch
from torch import Tensor, nn

from transduce.core.joined import Joined
from transduce.core.seq import Seq
from transduce.nn.attend import Attend, AttendState
from transduce.ops.attention import attention

States = tuple[AttendState, ...]


def _read(
    attend: Attend, query: Tensor, state: AttendState, mask: Tensor | None
) -> tuple[Tensor, AttendState]:
    """The context (B,U,D), exactly 0 in rows whose memory is empty, where the output's bias would speak
    otherwise."""
    context, after = attend(query, state, mask=mask)
    there = _present(state)
    if there is not None:
        context = torch.where(there[:, None, None], context, torch.zeros_like(context))
    return context, after


def _present(state: AttendState) -> Tensor | None:
    """(B,): rows that have any memory; None where all do for certain."""
    shared = state.memory
    if shared.value.mask is None:
        return None
    there = shared.value.mask.any(1)
    return there if shared.fanout == 1 else there.repeat_interleave(shared.fanout, 0)


class MultiAttend(nn.Module, ABC):
    """Base: the whole sub-layer, norms and residual connections included.

    Args:
        sources: K, number of memories.
        attend: makes one attention of width D to a memory.
        norm: makes one norm of width D.
        dropout: on every context.
    """

    def __init__(
        self, sources: int, attend: Callable[[], Attend], norm: Callable[[], nn.Module], dropout: float = 0.0
    ) -> None:
        super().__init__()
        if sources < 1:
            raise ValueError(f"there is at least one source, got {sources}")
        self.sources = sources
        self.dropout = nn.Dropout(dropout)

    def start(self, memories: Sequence[Seq]) -> States:
        """The states of the attentions; raises ValueError for another number of memories."""
        if len(memories) != self.sources:
            raise ValueError(f"this layer reads {self.sources} memories, got {len(memories)}")
        return self.begin(memories)

    @abstractmethod
    def begin(self, memories: Sequence[Seq]) -> States: ...

    @abstractmethod
    def forward(self, x: Tensor, states: States, *, mask: Tensor | None = None) -> tuple[Tensor, States]:
        """x (B,U,D) -> x with what the memories add to it, and the states behind the chunk."""


class SerialAttend(MultiAttend):
    """x <- x + drop(attend_k(norm_k(x), E_k)) for k = 1..K, one after the other (section 3, "serial")."""

    def __init__(
        self, sources: int, attend: Callable[[], Attend], norm: Callable[[], nn.Module], dropout: float = 0.0
    ) -> None:
        super().__init__(sources, attend, norm, dropout)
        self.attends = nn.ModuleList(attend() for _ in range(sources))
        self.norms = nn.ModuleList(norm() for _ in range(sources))

    def begin(self, memories: Sequence[Seq]) -> States:
        return tuple(a.start(m) for a, m in zip(self.attends, memories))

    def forward(self, x: Tensor, states: States, *, mask: Tensor | None = None) -> tuple[Tensor, States]:
        after: list[AttendState] = []
        for attend, norm, state in zip(self.attends, self.norms, states):
            context, state = _read(attend, norm(x), state, mask)
            x = x + self.dropout(context)
            after.append(state)
        return x, tuple(after)


class ParallelAttend(MultiAttend):
    """x <- x + sum_k drop(attend_k(norm(x), E_k)): all read the same query (section 3, "parallel")."""

    def __init__(
        self, sources: int, attend: Callable[[], Attend], norm: Callable[[], nn.Module], dropout: float = 0.0
    ) -> None:
        super().__init__(sources, attend, norm, dropout)
        self.attends = nn.ModuleList(attend() for _ in range(sources))
        self.norm = norm()

    def begin(self, memories: Sequence[Seq]) -> States:
        return tuple(a.start(m) for a, m in zip(self.attends, memories))

    def forward(self, x: Tensor, states: States, *, mask: Tensor | None = None) -> tuple[Tensor, States]:
        query = self.norm(x)
        found = [_read(a, query, s, mask) for a, s in zip(self.attends, states)]
        contexts = [self.dropout(context) for context, _ in found]
        return x + sum(contexts[1:], contexts[0]), tuple(state for _, state in found)


class FlatAttend(MultiAttend):
    """x <- x + drop(attend(norm(x), [E_1; ..; E_K])): one softmax over the steps of all (section 3, "flat").

    The memories need one width. They compete for one unit of weight; nothing but their content tells them
    apart.
    """

    def __init__(
        self, sources: int, attend: Callable[[], Attend], norm: Callable[[], nn.Module], dropout: float = 0.0
    ) -> None:
        super().__init__(sources, attend, norm, dropout)
        self.joint, self.norm = attend(), norm()

    def begin(self, memories: Sequence[Seq]) -> States:
        return (self.joint.start(Joined.of(memories)),)

    def forward(self, x: Tensor, states: States, *, mask: Tensor | None = None) -> tuple[Tensor, States]:
        context, state = _read(self.joint, self.norm(x), states[0], mask)
        return x + self.dropout(context), (state,)


class HierarchicalAttend(MultiAttend):
    """c_k = drop(attend_k(norm(x), E_k)); x <- x + drop(choose(norm(x), [c_1..c_K])) (section 3,
    "hierarchical").

    ``choose``, a :class:`Choice`, attends to the K contexts of the same position; a missing source is no
    candidate.
    """

    def __init__(
        self, sources: int, attend: Callable[[], Attend], norm: Callable[[], nn.Module], dropout: float = 0.0
    ) -> None:
        super().__init__(sources, attend, norm, dropout)
        self.attends = nn.ModuleList(attend() for _ in range(sources))
        self.norm = norm()
        first = self.attends[0]
        self.choose = Choice(first.context_width, getattr(first, "heads", 1))

    def begin(self, memories: Sequence[Seq]) -> States:
        return tuple(a.start(m) for a, m in zip(self.attends, memories))

    def forward(self, x: Tensor, states: States, *, mask: Tensor | None = None) -> tuple[Tensor, States]:
        query = self.norm(x)
        found = [_read(a, query, s, mask) for a, s in zip(self.attends, states)]
        contexts = torch.stack([self.dropout(context) for context, _ in found], 2)
        there = [_present(s) for s in states]
        all_there = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
        present = None
        if any(t is not None for t in there):
            present = torch.stack([all_there if t is None else t for t in there], 1)
        return x + self.dropout(self.choose(query, contexts, present)), tuple(state for _, state in found)


class Choice(nn.Module):
    """Multi-head attention whose keys and values are K candidates at the query's own position.

    query (B,U,D), candidates (B,U,K,D), present (B,K) bool or None -> (B,U,D), 0 for a row without any
    candidate.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.width = dim // heads
        self.query, self.key_value, self.output = (
            nn.Linear(dim, dim),
            nn.Linear(dim, 2 * dim),
            nn.Linear(dim, dim),
        )

    def forward(self, query: Tensor, candidates: Tensor, present: Tensor | None) -> Tensor:
        batch, steps, count, _ = candidates.shape
        q = self.query(query).reshape(batch * steps, 1, -1, self.width)
        kv = self.key_value(candidates).reshape(batch * steps, count, -1, self.width)
        mask = None
        if present is not None:
            mask = present.repeat_interleave(steps, 0)[:, None, None]
        y = self.output(attention(q, *kv.chunk(2, 2), mask=mask).reshape(batch, steps, -1))
        if present is not None:
            y = torch.where(present.any(1)[:, None, None], y, torch.zeros_like(y))
        return y


STRATEGIES: dict[str, type[MultiAttend]] = {
    "serial": SerialAttend,
    "parallel": ParallelAttend,
    "flat": FlatAttend,
    "hierarchical": HierarchicalAttend,
}
