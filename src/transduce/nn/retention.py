"""Retention: attention with an exponential decay in place of softmax, so that a matrix of fixed size replaces the cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.retention import retention

from .masking import valid_positions, valid_resets
from .position import rotary


class RetentionState(NamedTuple):
    """``memory`` (B,H,K,K), which keys have written and queries read, and ``position`` (B), steps since the start."""

    memory: Tensor
    position: Tensor


class Retention(Mixer):
    """y = W_o (SiLU(W_g x) * norm(S^T q)),  S_t = gamma_h S_{t-1} + k_t v_t^T, in each head.

    q, k, v are linear in x (B,T,dim), q and k turned by their position (rotary), k scaled by K^-1/2, K = dim / heads;
    gamma_h = 1 - 2^(-5-h); the norm divides each head by its root mean square and stands outside the recurrence.
    Sun et al. 2023 (arXiv 2307.08621, sections 2.1 and 2.3), values as wide as keys.
    """

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        if heads < 1 or dim % (2 * heads):
            raise ValueError(f"dim {dim} must be a multiple of twice the number of heads, {2 * heads}")
        self.heads, self.width = heads, dim // heads
        self.input = nn.Linear(dim, 4 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.register_buffer("log_decay", torch.log1p(-(2.0 ** -(5 + torch.arange(heads).double()))), persistent=False)

    def init_state(self, batch: int, *, capacity: int | None = None) -> RetentionState:
        like = self.input.weight
        memory = like.new_zeros(batch, self.heads, self.width, self.width, dtype=torch.promote_types(like.dtype, torch.float32))
        return RetentionState(memory, torch.zeros(batch, dtype=torch.long, device=like.device))

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        resets = valid_resets(resets, mask)
        before = self.init_state(x.shape[0]) if state is None else state
        position, after = valid_positions(before.position, x.shape[1], mask, resets)
        q, k, v, gate = self.input(zero_masked(x, mask)).chunk(4, -1)
        q, k, v = (t.unflatten(-1, (self.heads, self.width)) for t in (q, k, v))
        q, k = rotary(q, position), rotary(k, position) * self.width**-0.5
        y, memory = retention(q, k, v, self.log_decay, before.memory, mask=mask, resets=resets)
        y = F.rms_norm(y, (self.width,), eps=1e-6).flatten(-2)
        return self.output(F.silu(gate) * y), None if state is None else RetentionState(memory, after)
