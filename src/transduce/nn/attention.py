"""Multi-head self-attention as a mixer: full, causal or windowed, with a cache that is appended in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.tap import listening, tap
from transduce.nn.arena import KVArena, Steps
from transduce.nn.masking import only_pads_right, valid_resets
from transduce.nn.position import make_position
from transduce.ops.attention import attention, attention_weights, weighted_sum

_SMALLEST_BLOCK = 32


class Attention(Mixer):
    """y_t = W_o concat_h( sum_s softmax_s(q_t^h . k_s^h / sqrt(K) + bias) v_s^h ), q, k, v linear in x.

    Vaswani et al. 2017 (arXiv 1706.03762, section 3.2.2); grouped queries after Ainslie et al. 2023 (arXiv
    2305.13245); the window after Beltagy et al. 2020 (arXiv 2004.05150, section 3.1).

    Args:
        dim: width of inputs and outputs, a multiple of ``heads``.
        heads: number of query heads, each of width K = dim / heads.
        kv_heads: number of key and value heads, a divisor of ``heads``; default as many.
        window: a step sees the last ``window`` valid steps, itself included (not causal: as many ahead);
            None for all.
        position: "rotary", "half-rotary", "sinusoidal", "relative", "alibi" or None, see :mod:`transduce.nn.position`.
        causal: whether a step sees only itself and earlier ones. If not, a state is refused.
        dropout: share of the weights that is dropped while training.
        logit_growth: (c, L), for texts longer than the L steps that were trained on. Outside of training the scores of
            the n-th step of a history are multiplied by max(1, 1 + c ln(n / L)), so that the softmax over ever more
            keys does not flatten (Puvvada et al. 2025, arXiv 2504.08719: in layers without positions; c is fitted on
            held-out long texts, c = 1 / ln L keeps the entropy). Not with a window, whose number of keys is constant.

    The state is a :class:`~transduce.nn.arena.KVArena`: constant with a window, otherwise growing by
    ``bytes_per_step``. The weights (B,H,T,S) are tapped as ``weights``.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        kv_heads: int | None = None,
        window: int | None = None,
        position: str | None = "rotary",
        causal: bool = True,
        dropout: float = 0.0,
        logit_growth: tuple[float, int] | None = None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads must divide heads, got {kv_heads} and {heads}")
        if window is not None and window < 1:
            raise ValueError(f"a window holds at least the step itself, got {window}")
        if logit_growth is not None:
            if window is not None or not causal:
                raise ValueError("logit_growth is for causal attention without a window: the keys of others do not grow")
            if not (logit_growth[0] >= 0 and logit_growth[1] >= 1):
                raise ValueError(f"logit_growth is (c >= 0, trained length >= 1), got {logit_growth}")
        self.logit_growth = logit_growth
        self.heads, self.kv_heads, self.width = heads, kv_heads, dim // heads
        self.window, self.causal, self.dropout = window, causal, dropout
        self.lookahead = 0 if causal else None if window is None else window - 1
        self.position = make_position(position, heads=heads, width=self.width)
        self.project = nn.Linear(dim, (heads + 2 * kv_heads) * self.width)
        self.output = nn.Linear(dim, dim)

    @property
    def bytes_per_step(self) -> int:
        if self.window is not None or not self.causal:
            return 0
        return 2 * self.kv_heads * self.width * self.project.weight.element_size()

    def init_state(self, batch: int, *, capacity: int | None = None) -> KVArena:
        if not self.causal:
            raise ValueError("attention that sees the future has no state; make it with causal=True")
        like = self.project.weight
        return KVArena.empty(
            batch, self.kv_heads, self.width, like=like, window=self.window, capacity=capacity
        )

    def forward(
        self,
        x: Tensor,
        state: KVArena | None = None,
        *,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, KVArena | None]:
        if state is not None and not self.causal:
            raise ValueError(
                "attention that sees the future cannot continue a state; call it with the whole sequence"
            )
        x = zero_masked(x, mask)
        resets = valid_resets(resets, mask)
        if state is None:
            return self._whole(x, mask, resets), None
        at = state.place(x.shape[1], mask, resets)
        q, k, v = self._project(x, at.position)
        keys, values, index, state = state.append(k, v, at)
        if state.aligned:
            if x.shape[1] == 1:  # nothing lies behind the step, so there is nothing to hide
                return self._mix(q, keys, values, None, self._bias(at.index, index, q), False), state
            return self._attend(q, keys, values, at.index, at.start, index), state
        # Indices restart when the arena moves its content.
        offset = state.count[:, None] - 1 - at.index[:, -1:]
        return self._attend(q, keys, values, at.index + offset, at.start + offset, index), state

    def _whole(self, x: Tensor, mask: Tensor | None, resets: Tensor | None) -> Tensor:
        """A fresh sequence: no cache, and the kernel's own causal path where nothing else is hidden."""
        # Nobody reads behind the last valid step, so padding on the right needs no mask. Looking for it would
        # stall an accelerator, and a graph cannot hold the question.
        cheap_to_ask = self.causal and x.device.type == "cpu" and not torch.compiler.is_compiling()
        if mask is not None and cheap_to_ask and only_pads_right(mask):
            mask = None
        rows = 1 if mask is None and resets is None else x.shape[0]
        none = torch.zeros(rows, dtype=torch.long, device=x.device)
        at = Steps.of_chunk(x.shape[1], none, none, mask, resets)
        q, k, v = self._project(x, at.position)
        if mask is None and resets is None and (self.window is None or self.window >= x.shape[1]):
            return self._mix(q, k, v, None, self._bias(at.index, at.index, q), self.causal)
        long = self.causal and self.window is not None and x.shape[1] > 2 * self.window
        if long and mask is None and not listening():
            return self._in_blocks(q, k, v, at)
        if self.causal:
            return self._attend(q, k, v, at.index, at.start, at.as_keys)
        same = at.start[:, :, None] == at.start[:, None, :]
        visible = same if mask is None else same & mask[:, None, :]
        if self.window is not None:
            visible = visible & ((at.index[:, :, None] - at.index[:, None, :]).abs() < self.window)
        return self._mix(q, k, v, visible[:, None], self._bias(at.index, at.index, q), False)

    def _project(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.project(self.position.add(x, position)).unflatten(-1, (-1, self.width))
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), 2)
        q, k = self.position.rotate(qk, position).split((self.heads, self.kv_heads), 2)
        if self.logit_growth is not None and not self.training:
            slope, trained = self.logit_growth
            growth = (1 + slope * torch.log((position + 1).to(q.dtype) / trained)).clamp_min(1.0)
            q = q * growth[..., None, None]
        return q, k, v

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, index: Tensor, start: Tensor, key_index: Tensor
    ) -> Tensor:
        """Causal attention by indices: query ``index`` and the ``start`` of its history (B,T), ``key_index``
        (B,S)."""
        distance = index[:, :, None] - key_index[:, None, :]
        visible = (distance >= 0) & (key_index[:, None, :] >= start[:, :, None])
        if self.window is not None:
            visible = visible & (distance < self.window)
        return self._mix(q, k, v, visible[:, None], self.position.bias(distance, q.dtype), False)

    def _in_blocks(self, q: Tensor, k: Tensor, v: Tensor, at: Steps) -> Tensor:
        """A window over a long sequence without masked steps: each block of queries needs its own keys and
        those of the block before, so O(T window) instead of O(T^2)."""
        batch, steps = q.shape[:2]
        size = max(self.window, _SMALLEST_BLOCK)
        spare = -steps % size

        def blocks(t: Tensor, fill: int = 0) -> Tensor:
            return nn.functional.pad(t, (*(0, 0) * (t.dim() - 2), 0, spare), value=fill).unflatten(
                1, (-1, size)
            )

        def with_previous(t: Tensor, fill: int = 0) -> Tensor:
            own = blocks(t, fill)
            previous = torch.cat((torch.full_like(own[:, :1], fill), own[:, :-1]), 1)
            return torch.cat((previous, own), 2).flatten(0, 1)

        index, start = at.index.expand(batch, steps), at.start.expand(batch, steps)
        queries, indices, starts = (blocks(t).flatten(0, 1) for t in (q, index, start))
        y = self._attend(
            queries, with_previous(k), with_previous(v), indices, starts, with_previous(index, -1)
        )
        return y.unflatten(0, (batch, -1)).flatten(1, 2)[:, :steps]

    def _bias(self, index: Tensor, key_index: Tensor, q: Tensor) -> Tensor | None:
        return self.position.bias(index[:, :, None] - key_index[:, None, :], q.dtype)

    def _mix(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, causal: bool
    ) -> Tensor:
        drops = self.training and self.dropout > 0
        if drops or listening():
            weights = attention_weights(q, k.to(q.dtype), mask=mask, bias=bias, causal=causal)
            weights = nn.functional.dropout(tap(self, "weights", weights), self.dropout, drops)
            y = weighted_sum(weights, v.to(weights.dtype))
        else:
            y = attention(q, k.to(q.dtype), v.to(q.dtype), mask=mask, bias=bias, causal=causal)
        return self.output(y.flatten(2))
