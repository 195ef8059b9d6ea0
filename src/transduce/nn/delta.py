"""Mixers whose memory is corrected by the delta rule: DeltaNet, and gated with a decay."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.delta import delta_rule

from .convolution import CausalConv
from .masking import only_pads_right, valid_resets


class MemoryState(NamedTuple):
    """``tail`` (B,kernel-1,*): inputs that the short convolution needs; ``memory`` (B,H,...), float32 at least."""

    tail: Tensor
    memory: Tensor


class HeadOutput(nn.Module):
    """y (B,T,H,V), x (B,T,dim) -> W_o (rms_norm_V(y) * gain * SiLU(W_g x)), or without the gate: (B,T,dim)."""

    def __init__(self, dim: int, heads: int, width: int, *, gated: bool = True) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.gate = nn.Linear(dim, heads * width, bias=False) if gated else None
        self.output = nn.Linear(heads * width, dim, bias=False)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        y = F.rms_norm(y, self.gain.shape, self.gain, 1e-6).flatten(2)
        return self.output(y if self.gate is None else y * F.silu(self.gate(x)))


def short_conv(dim: int, kernel: int) -> CausalConv:
    """A depthwise convolution over the last ``kernel`` steps, followed by SiLU (B,T,dim) -> (B,T,dim)."""
    return CausalConv(dim, kernel, activation=F.silu)


def memory_like(weight: Tensor, *shape: int) -> Tensor:
    """Zeros for a memory: on the device of ``weight``, float64 where it is, else float32."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return torch.zeros(shape, dtype=dtype, device=weight.device)


class DeltaNet(Mixer):
    """S_t = (I - b_t k_t k_t^T) S_(t-1) + b_t k_t v_t^T, y_t = S_t^T q_t in each head (Yang et al. 2024,
    arXiv 2406.06484, section 2.2 and 3.3).

    q, k, v are projections behind a short causal convolution and SiLU; q and k then have norm 1, b =
    sigmoid(W_b x), or twice that with ``reflect``: eigenvalues down to -1, with which a memory can count modulo
    two (Grazzi et al. 2024, arXiv 2411.12537). Outputs are normalised in each head.

    x: (B,T,dim) -> (B,T,dim). State: :class:`MemoryState`, the memory (B,H,K,V) with K = dim / heads and V =
    expansion * K.
    """

    def __init__(
        self, dim: int, heads: int = 4, *, expansion: int = 1, kernel: int = 4, reflect: bool = False
    ) -> None:
        super().__init__()
        self.rule = _Rule(dim, heads, expansion, kernel)
        self.reflect = reflect
        self.strength = nn.Linear(dim, heads, bias=False)
        self.output = HeadOutput(dim, heads, self.rule.values, gated=False)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return self.rule.init_state(batch)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x, mask, resets = advancing(x, state, mask, resets)
        beta = (2 if self.reflect else 1) * torch.sigmoid(self.strength(x))
        y, after = self.rule(x, beta, None, state, (mask, resets))
        return self.output(y, x), after


class GatedDeltaNet(Mixer):
    """S_t = a_t (I - b_t k_t k_t^T) S_(t-1) + b_t k_t v_t^T, y_t = S_t^T q_t (Yang et al. 2025, arXiv 2412.06464,
    section 3): the delta rule for what one key holds, the decay to forget everything at once.

    As :class:`DeltaNet`, with log a = -A softplus(W_a x + d) for each head (A in [1, 16] and d such that the
    softplus lies in [0.001, 0.1] at first, as in Mamba-2), and the normalised outputs are gated by SiLU(W_g x).
    """

    def __init__(
        self, dim: int, heads: int = 4, *, expansion: int = 2, kernel: int = 4, reflect: bool = False
    ) -> None:
        super().__init__()
        self.rule = _Rule(dim, heads, expansion, kernel)
        self.reflect = reflect
        self.strength = nn.Linear(dim, heads, bias=False)
        self.decay = nn.Linear(dim, heads)
        self.rate = nn.Parameter(torch.log(torch.empty(heads).uniform_(1, 16)))
        self.output = HeadOutput(dim, heads, self.rule.values)
        step = torch.exp(torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)))
        with torch.no_grad():
            self.decay.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of this is the step

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return self.rule.init_state(batch)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x, mask, resets = advancing(x, state, mask, resets)
        beta = (2 if self.reflect else 1) * torch.sigmoid(self.strength(x))
        log_decay = -torch.exp(self.rate) * F.softplus(self.decay(x))
        y, after = self.rule(x, beta, log_decay, state, (mask, resets))
        return self.output(y, x), after


def advancing(
    x: Tensor, state: State, mask: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Inputs clean of masked steps, and the mask and resets that still matter: padding on the right is read by nobody
    where no state is handed on."""
    resets = valid_resets(resets, mask)
    x = zero_masked(x, mask)
    return x, None if state is None and only_pads_right(mask) else mask, resets


class _Rule(nn.Module):
    """Projections, short convolution and the delta rule: what both networks share."""

    def __init__(self, dim: int, heads: int, expansion: int, kernel: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"the delta rule needs a width that is a multiple of its {heads} heads, got {dim}")
        self.heads, self.width, self.values = heads, dim // heads, expansion * (dim // heads)
        size = heads * (2 * self.width + self.values)
        self.input = nn.Linear(dim, size, bias=False)
        self.conv = short_conv(size, kernel)

    def init_state(self, batch: int) -> MemoryState:
        memory = memory_like(self.input.weight, batch, self.heads, self.width, self.values)
        return MemoryState(self.conv.init_state(batch), memory)

    def forward(
        self,
        x: Tensor,
        beta: Tensor,
        log_decay: Tensor | None,
        state: MemoryState | None,
        flags: tuple[Tensor | None, Tensor | None],
    ) -> tuple[Tensor, MemoryState | None]:
        mask, resets = flags
        tail, memory = (None, None) if state is None else state
        z, tail = self.conv(self.input(x), tail, mask=mask, resets=resets)
        qk, v = z.split((2 * self.heads * self.width, self.heads * self.values), -1)
        qk = qk.unflatten(-1, (2 * self.heads, self.width))
        q, k = (qk * torch.rsqrt(qk.square().sum(-1, keepdim=True) + 1e-6)).chunk(2, 2)
        v = v.unflatten(-1, (self.heads, self.values))
        y, memory = delta_rule(q * self.width**-0.5, k, v, beta, log_decay, memory, mask=mask, resets=resets)
        return y, None if state is None else MemoryState(tail, memory)
