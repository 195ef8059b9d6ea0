"""Attention of a target to its own past and to a source at once, and to the source once more by itself.

The source's keys and values stand first, those of the target's past behind them. One softmax over both is
what a decoder-only model on [source; target] computes; the longer the target, the less of it is left for the
source. A second softmax over the source alone (:class:`PartialAttention`, Fu et al. 2023, arXiv 2304.04052,
section 4) does not decay.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from transduce.core.seq import zero_masked
from transduce.core.state import Shared
from transduce.core.tap import listening, tap
from transduce.nn.arena import KVArena, Steps
from transduce.nn.attend import Memory
from transduce.ops.attention import attention, masked_softmax


class PartialAttention(nn.Module):
    """y_i = W_o concat_h( attend(q_i, [K_src; K_past]) [+ attend(q_i, K_src)] ), heads of width dim / heads.

    Args:
        dim: width, a multiple of ``heads``.
        heads: number of heads.
        partial: whether the second term, with a softmax of its own over the source and the same projections,
            is added.

    ``memory(x)`` makes keys and values of a source, :meth:`among` lets the source attend to itself,
    :meth:`forward` serves the target. The weights of the one softmax are tapped as ``weights``, (B,H,U,S+L).
    """

    def __init__(self, dim: int, heads: int = 4, *, partial: bool = False) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        self.heads, self.width, self.partial = heads, dim // heads, partial
        self.query, self.key_value, self.output = (
            nn.Linear(dim, dim),
            nn.Linear(dim, 2 * dim),
            nn.Linear(dim, dim),
        )

    def init_state(self, batch: int, capacity: int | None) -> KVArena:
        """The empty past of a target."""
        return KVArena.empty(batch, self.heads, self.width, like=self.query.weight, capacity=capacity)

    def memory(self, x: Tensor, mask: Tensor | None) -> Memory:
        """Keys and values of x (B,S,D)."""
        keys, values = self.key_value(zero_masked(x, mask)).unflatten(-1, (-1, self.width)).chunk(2, 2)
        return Memory(keys, values, mask)

    def among(self, x: Tensor, memory: Memory, causal: bool) -> Tensor:
        """Self-attention of a source x (B,S,D) with its own ``memory``."""
        q = self.query(zero_masked(x, memory.mask)).unflatten(-1, (-1, self.width))
        mask = None if memory.mask is None else memory.mask[:, None, None]
        return self.output(attention(q, memory.keys, memory.values, mask=mask, causal=causal).flatten(2))

    def forward(
        self, x: Tensor, past: KVArena | None, source: Shared | None, mask: Tensor | None = None
    ) -> tuple[Tensor, KVArena | None]:
        """x (B,U,D) behind ``past`` (None: nothing precedes and nothing follows); ``source`` holds a Memory,
        or None."""
        x = zero_masked(x, mask)
        q = self.query(x).unflatten(-1, (-1, self.width)) / math.sqrt(self.width)
        k, v = self.key_value(x).unflatten(-1, (-1, self.width)).chunk(2, 2)
        if past is None:
            none = torch.zeros(1 if mask is None else x.shape[0], dtype=torch.long, device=x.device)
            at = Steps.of_chunk(x.shape[1], none, none, mask)
            index, start, key_index = at.index, at.start, at.as_keys
        else:
            at = past.place(x.shape[1], mask)
            k, v, key_index, past = past.append(k, v, at)
            offset = past.count[:, None] - 1 - at.index[:, -1:]  # indices restart when the arena moves
            index, start = at.index + offset, at.start + offset
        seen = (key_index[:, None] <= index[..., None]) & (key_index[:, None] >= start[..., None])  # (B,U,L)
        k, v = k.to(q.dtype), v.to(q.dtype)
        # Beams of one source fold their queries, and who listens wants to see the weights; a kernel does neither.
        plain = not listening() and (source is None or source.fanout == 1)
        y = (self._read_at_once if plain else self._read)(q, k, v, seen, source)
        return self.output(y.flatten(2)), past

    def _read_at_once(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, source: Shared | None) -> Tensor:
        """Queries (B,U,H,K), the past (B,L,H,K), seen (B or 1,U,L) -> (B,U,H,K), by the fused kernel."""
        if source is None:
            return attention(q, k, v, mask=seen[:, None], scale=1.0)
        memory: Memory = source.value
        visible = _beside(memory.mask, memory.keys.shape[1], seen)[:, None]
        keys, values = torch.cat((memory.keys, k), 1), torch.cat((memory.values, v), 1)
        y = attention(q, keys, values, mask=visible, scale=1.0)
        if self.partial:
            valid = None if memory.mask is None else memory.mask[:, None, None]
            y = y + attention(q, memory.keys, memory.values, mask=valid, scale=1.0)
        return y

    def _read(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, source: Shared | None) -> Tensor:
        """The same in single steps, with rows that share a source and with the weights in view."""
        own = torch.einsum("buhk,blhk->buhl", q, k)
        if source is None:
            return torch.einsum("buhl,blhk->buhk", self._tapped(masked_softmax(own, seen[:, :, None])), v)
        memory: Memory = source.value
        scores = source.unfold(torch.einsum("guhk,gshk->guhs", source.fold(q), memory.keys))
        valid = None if memory.mask is None else memory.mask.repeat_interleave(source.fanout, 0)
        visible = _beside(valid, scores.shape[-1], seen)[:, :, None]
        weights = self._tapped(masked_softmax(torch.cat((scores, own), -1), visible))
        for_source, for_past = weights.split((scores.shape[-1], own.shape[-1]), -1)
        if self.partial:
            # Both readings of the source go through one product with its values.
            alone = None if valid is None else valid[:, None, None]
            for_source = for_source + masked_softmax(scores, alone)
        read = source.unfold(torch.einsum("guhs,gshk->guhk", source.fold(for_source), memory.values))
        return read + torch.einsum("buhl,blhk->buhk", for_past, v)

    def _tapped(self, weights: Tensor) -> Tensor:
        return tap(self, "weights", weights.transpose(1, 2)).transpose(1, 2) if listening() else weights


def _beside(valid: Tensor | None, size: int, seen: Tensor) -> Tensor:
    """What a query may see of the source, (B,S) or None for all of its ``size`` steps, before what it may see of
    the past (B or 1,U,L): (B or 1,U,S+L)"""
    if valid is None:
        valid = torch.ones(1, size, dtype=torch.bool, device=seen.device)
    rows = max(valid.shape[0], seen.shape[0])
    there, seen = valid[:, None].expand(rows, seen.shape[1], -1), seen.expand(rows, -1, -1)
    return torch.cat((there, seen), -1)
