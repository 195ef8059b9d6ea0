"""Retention: linear attention whose memory fades at a fixed rate in each head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.retention import retention

from .masking import positions, valid_resets
from .position import rotary


@dataclass(frozen=True)
class RetentionState:
    """``memory`` (B,H,K,V) in float32 or better; ``count`` (B,): steps since the row's history began."""

    memory: Tensor
    count: Tensor


class Retention(Mixer):
    """S_t = gamma_h S_{t-1} + k_t v_t^T, y_t = S_t^T q_t in each head, out = W_o (SiLU(W_g x) * rms_norm(y)).

    Sun et al. 2023 (arXiv 2307.08621, section 2).
    q and k are rotated by the row's own position, which is part of the state; gamma_h = 1 - 2^(-5-h). Each
    head's output is normalised outside of the recurrence, so the scalings that the authors' code puts into it to keep
    numbers small, and that the normalisation takes out again, are not needed. The angles are those of rotary
    positions, 10000^(-2i/K); the authors' run evenly from 1 to 1/10000.

    Args:
        dim: width of inputs and outputs; keys have K = dim / heads channels a head.
        heads: number of heads.
        expansion: value heads are so many times as wide as key heads.
        decays: gamma of every head, above 0 and at most 1, where another than 1 - 2^(-5-h) is wanted.
    """

    def __init__(
        self, dim: int, heads: int = 4, *, expansion: int = 2, decays: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if dim % (2 * heads):
            raise ValueError(f"retention needs a width that is a multiple of 2 * heads = {2 * heads}, got {dim}")
        self.heads, self.width = heads, dim // heads
        self.values = expansion * self.width
        self.input = nn.Linear(dim, 2 * dim + 2 * heads * self.values, bias=False)
        self.output = nn.Linear(heads * self.values, dim, bias=False)
        for part in self.input.weight.split((dim, dim, *[heads * self.values] * 2)):  # each as a matrix of its own
            nn.init.xavier_uniform_(part, gain=2**-2.5)
        nn.init.xavier_uniform_(self.output.weight)
        if decays is None:
            decays = [1.0 - 2.0 ** (-5 - h) for h in range(heads)]  # exact in float64
        if len(decays) != heads or not all(0 < gamma <= 1 for gamma in decays):
            raise ValueError(f"retention needs one decay above 0 and at most 1 for each of {heads} heads, got {decays}")
        decay = [math.log(gamma) for gamma in decays]
        self.register_buffer("log_decay", torch.tensor(decay, dtype=torch.float64), persistent=False)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        like = self.input.weight
        accumulate = torch.float64 if like.dtype == torch.float64 else torch.float32
        memory = torch.zeros(batch, self.heads, self.width, self.values, dtype=accumulate, device=like.device)
        return RetentionState(memory, torch.zeros(batch, dtype=torch.long, device=like.device))

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x, resets = zero_masked(x, mask), valid_resets(resets, mask)
        qk, v, gate = self.input(x).split((2 * self.heads * self.width, *[self.heads * self.values] * 2), -1)
        at, count = positions(x, None if state is None else state.count, mask, resets)
        q, k = rotary(qk.unflatten(-1, (2 * self.heads, self.width)), at).chunk(2, 2)
        v = v.unflatten(-1, (self.heads, self.values))
        memory = None if state is None else state.memory
        decay = self.log_decay.to(q.dtype)
        y, memory = retention(q * self.width**-0.5, k, v, decay, memory, mask=mask, resets=resets)
        y = F.silu(gate) * F.rms_norm(y, (self.values,), eps=1e-6).flatten(2)
        return self.output(y), None if state is None else RetentionState(memory, count)
