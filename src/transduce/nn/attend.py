"""Attention of a decoder to a memory: scores of the memory steps, softmax, weighted mean of the memory.

::

    attend = AdditiveAttend(query_width=256, memory_width=512, width=256)
    state = attend.start(memory)                        # memory: Seq (B,S,M); keys are computed once
    context, state = attend(query, state)               # (B,U,D) -> (B,U,M), U the whole target or one step
    context, state = attend.attend_step(query_t, state) # (B,D) -> (B,M), for loops

The keys and values lie in a :class:`transduce.core.state.Shared`, so beams do not copy them. Masked memory
steps get weight exactly 0 whatever they hold. A row without any valid memory step gets a zero context.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.seq import Seq, zero_masked
from transduce.core.state import Shared
from transduce.core.tap import listening, tap
from transduce.ops.attention import attention, attention_weights, masked_softmax, weighted_sum


@dataclass(frozen=True)
class Memory:
    """What is attended to: keys (G,S,...), values (G,S,...), mask (G,S) or None, one row for each source."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class AttendState:
    """``memory`` wraps a :class:`Memory`. ``past``: what is remembered of earlier weights (B,S), or None."""

    memory: Shared
    past: Tensor | None = None


class Attend(nn.Module, ABC):
    """Base of the layers of this module. ``context_width``: channels of what :meth:`forward` returns.

    ``remembers``: the scores depend on earlier weights, so the steps of a target are taken one by one.
    Weights are tapped as ``weights``, (B,U,S) or (B,H,U,S) with heads, once a call where nothing is
    remembered, else once a step.
    """

    context_width: int
    remembers: bool = False

    @abstractmethod
    def start(self, memory: Seq) -> AttendState:
        """Keys, values and the empty past for ``memory`` (B,S,M)."""

    @abstractmethod
    def read(
        self, query: Tensor, memory: Memory, past: Tensor | None, fanout: int
    ) -> tuple[Tensor, Tensor | None]:
        """query (G,Q,D), past (G,Q,S) -> context (G,Q,context_width), weights (G,Q,S) if they are remembered.

        Row g of the memory serves ``fanout`` rows, whose queries follow each other in dimension 1.
        """

    def remember(self, past: Tensor, weights: Tensor) -> Tensor:
        """The past (B,S) after a step with these weights (B,S), in the dtype of the past."""
        return weights.to(past.dtype)

    def forward(
        self, query: Tensor, state: AttendState, *, mask: Tensor | None = None
    ) -> tuple[Tensor, AttendState]:
        """query (B,U,D) -> context (B,U,context_width). mask (B,U): masked steps are not remembered."""
        if not self.remembers:
            shared = state.memory
            context, _ = self.read(shared.fold(query), shared.value, None, shared.fanout)
            return shared.unfold(context), state
        contexts: list[Tensor] = []
        valid = [None] * query.shape[1] if mask is None else mask.unbind(1)
        for query_t, valid_t in zip(zero_masked(query, mask).unbind(1), valid):
            context, state = self.attend_step(query_t, state, mask=valid_t)
            contexts.append(context)
        return torch.stack(contexts, 1), state

    def attend_step(
        self, query: Tensor, state: AttendState, *, mask: Tensor | None = None
    ) -> tuple[Tensor, AttendState]:
        """One step, for loops over the target: query (B,D) -> context (B,context_width). mask (B,)."""
        shared, past = state.memory, state.past
        seen = None if past is None else shared.fold(past[:, None])
        context, weights = self.read(shared.fold(query[:, None]), shared.value, seen, shared.fanout)
        if past is not None:
            after = self.remember(past, shared.unfold(weights)[:, 0])
            past = after if mask is None else torch.where(mask[:, None], after, past)
            state = AttendState(shared, past)
        return shared.unfold(context)[:, 0], state

    def start_with(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> AttendState:
        """The state of these keys and values, with an empty past where the layer remembers."""
        # Sums over many steps: never in half precision.
        dtype = torch.promote_types(keys.dtype, torch.float32)
        past = keys.new_zeros(keys.shape[:2], dtype=dtype) if self.remembers else None
        return AttendState(Shared(Memory(keys, values, mask)), past)

    def average(self, scores: Tensor, memory: Memory, fanout: int) -> tuple[Tensor, Tensor]:
        """Softmax of scores (G,Q,S), tapped, and the mean of the values: (G,Q,M), (G,Q,S)"""
        weights = masked_softmax(scores, None if memory.mask is None else memory.mask[:, None])
        if listening():
            weights = _tap_unfolded(self, weights, fanout)
        return torch.bmm(weights, memory.values), weights


def _tap_unfolded(module: nn.Module, weights: Tensor, fanout: int) -> Tensor:
    """Tap weights (G,...,fanout*U,S) in the shape (G*fanout,...,U,S) that a reader expects."""
    grouped = weights.unflatten(-2, (fanout, -1)).movedim(-3, 1)
    return (
        tap(module, "weights", grouped.flatten(0, 1))
        .unflatten(0, (-1, fanout))
        .movedim(1, -3)
        .flatten(-3, -2)
    )


class DotAttend(Attend):
    """score_s = scale q . m_s; queries and memory have one width.

    Luong et al. 2015 (arXiv 1508.04025, section 3.1, "dot"), where scale is 1; 1/sqrt(width) is another
    choice.
    """

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.context_width = width
        self.scale = scale

    def start(self, memory: Seq) -> AttendState:
        if memory.data.shape[-1] != self.context_width:
            raise ValueError(
                f"dot attention of width {self.context_width} needs a memory of that width, got "
                f"{memory.data.shape[-1]}; GeneralAttend joins different widths"
            )
        values = zero_masked(memory.data, memory.mask)
        return self.start_with(values, values, memory.mask)

    def read(
        self, query: Tensor, memory: Memory, past: Tensor | None, fanout: int
    ) -> tuple[Tensor, Tensor | None]:
        return self.average(self.scale * torch.bmm(query, memory.keys.mT), memory, fanout)


class GeneralAttend(Attend):
    """score_s = q^T W m_s; the keys W m_s are computed once. Luong et al. 2015 (section 3.1, "general")."""

    def __init__(self, query_width: int, memory_width: int) -> None:
        super().__init__()
        self.context_width = memory_width
        self.key = nn.Linear(memory_width, query_width, bias=False)

    def start(self, memory: Seq) -> AttendState:
        values = zero_masked(memory.data, memory.mask)
        return self.start_with(self.key(values), values, memory.mask)

    def read(
        self, query: Tensor, memory: Memory, past: Tensor | None, fanout: int
    ) -> tuple[Tensor, Tensor | None]:
        return self.average(torch.bmm(query, memory.keys.mT), memory, fanout)


class AdditiveAttend(Attend):
    """score_s = v . tanh(W q + U m_s + b), with coverage also + w_c c_s inside, c_s the sum of earlier
    weights on s.

    Bahdanau et al. 2015 (arXiv 1409.0473, appendix A.1.2); coverage: See et al. 2017 (arXiv 1704.04368,
    section 2.3) and Tu et al. 2016 (arXiv 1601.04811). ``width``: channels inside the tanh.
    """

    def __init__(self, query_width: int, memory_width: int, width: int, coverage: bool = False) -> None:
        super().__init__()
        self.context_width = memory_width
        self.remembers = coverage
        self.query = nn.Linear(query_width, width, bias=False)
        self.key = nn.Linear(memory_width, width)
        self.score = _score_vector(width)
        self.covered = nn.Parameter(torch.zeros(width)) if coverage else None

    def start(self, memory: Seq) -> AttendState:
        values = zero_masked(memory.data, memory.mask)
        return self.start_with(self.key(values), values, memory.mask)

    def remember(self, past: Tensor, weights: Tensor) -> Tensor:
        return past + weights

    def read(
        self, query: Tensor, memory: Memory, past: Tensor | None, fanout: int
    ) -> tuple[Tensor, Tensor | None]:
        fit = self.query(query)[:, :, None] + memory.keys[:, None]  # (G,Q,S,A)
        if past is not None:
            fit = fit + past[..., None].to(fit.dtype) * self.covered.to(fit.dtype)
        # In place: the sum is needed by nothing else, and this runs once a decoder step.
        return self.average(fit.tanh_() @ self.score, memory, fanout)


class LocationAttend(Attend):
    """score_s = v . tanh(W q + U m_s + Z f_s + b), f = F * previous weights, a convolution over the memory.

    Chorowski et al. 2015 (arXiv 1506.07503, section 2.1, equations 8 and 9). Before the first step the
    previous weights are zero. ``filters``: channels of f. ``kernel``: its taps, odd so that it is centred.
    """

    remembers = True

    def __init__(
        self, query_width: int, memory_width: int, width: int, filters: int = 10, kernel: int = 15
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"the kernel of location attention is centred, so it must be odd, got {kernel}")
        self.context_width = memory_width
        self.query = nn.Linear(query_width, width, bias=False)
        self.key = nn.Linear(memory_width, width)
        self.filters = nn.Conv1d(1, filters, kernel, padding=kernel // 2, bias=False)
        self.location = nn.Linear(filters, width, bias=False)
        self.score = _score_vector(width)

    def start(self, memory: Seq) -> AttendState:
        values = zero_masked(memory.data, memory.mask)
        return self.start_with(self.key(values), values, memory.mask)

    def read(
        self, query: Tensor, memory: Memory, past: Tensor | None, fanout: int
    ) -> tuple[Tensor, Tensor | None]:
        assert past is not None
        features = self.filters(past.flatten(0, 1)[:, None]).mT  # (G*Q,S,filters)
        features = features.unflatten(0, past.shape[:2])
        fit = self.query(query)[:, :, None] + memory.keys[:, None] + self.location(features)
        return self.average(fit.tanh_() @ self.score, memory, fanout)


class MultiHeadAttend(Attend):
    """W_o concat_h( sum_s softmax_s(q^h . k_s^h / sqrt(K) - g_h c_s) v_s^h ), k and v linear in the memory.

    Vaswani et al. 2017 (arXiv 1706.03762, section 3.2.3). With ``coverage``, c_s is the sum of earlier
    weights on s, averaged over the heads, and g_h a learned number that starts at zero (the additive feature
    of See et al. 2017 carried over to dot products).

    Args:
        dim: width of queries and contexts, a multiple of ``heads``.
        memory_width: width of the memory, default ``dim``.
        heads: number of query heads, each of width K = dim / heads.
        kv_heads: number of key and value heads, a divisor of ``heads``; default as many.
        dropout: share of the weights that is dropped while training.
        coverage: whether earlier weights enter the scores.
    """

    def __init__(
        self,
        dim: int,
        memory_width: int | None = None,
        heads: int = 4,
        kv_heads: int | None = None,
        dropout: float = 0.0,
        coverage: bool = False,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        memory_width = dim if memory_width is None else memory_width
        if heads < 1 or dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads must divide heads, got {kv_heads} and {heads}")
        self.context_width, self.remembers, self.dropout = dim, coverage, dropout
        self.heads, self.width = heads, dim // heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(memory_width, 2 * kv_heads * self.width)
        self.output = nn.Linear(dim, dim)
        self.covered = nn.Parameter(torch.zeros(heads)) if coverage else None

    def start(self, memory: Seq) -> AttendState:
        both = self.key_value(zero_masked(memory.data, memory.mask)).unflatten(-1, (-1, self.width))
        keys, values = both.chunk(2, 2)
        return self.start_with(keys, values, memory.mask)

    def remember(self, past: Tensor, weights: Tensor) -> Tensor:
        return past + weights

    def read(
        self, query: Tensor, memory: Memory, past: Tensor | None, fanout: int
    ) -> tuple[Tensor, Tensor | None]:
        q = self.query(query).unflatten(-1, (-1, self.width))
        mask = None if memory.mask is None else memory.mask[:, None, None]
        drops = self.training and self.dropout > 0
        if not (drops or self.remembers or listening()):
            return self.output(attention(q, memory.keys, memory.values, mask=mask).flatten(2)), None
        bias = None if past is None else -self.covered[:, None, None] * past[:, None]
        weights = attention_weights(q, memory.keys, mask=mask, bias=bias)
        if listening():
            weights = _tap_unfolded(self, weights, fanout)
        context = weighted_sum(F.dropout(weights, self.dropout, drops), memory.values)
        return self.output(context.flatten(2)), weights.mean(1)


def _score_vector(width: int) -> nn.Parameter:
    bound = 1 / math.sqrt(width)
    return nn.Parameter(torch.empty(width).uniform_(-bound, bound))
