"""The real-gated linear recurrent unit and the block around it, as in Griffin and Hawk."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.gated import rg_lru

from .convolution import CausalConv
from .masking import valid_resets

_SHARPNESS = 8.0
"""The constant c of a_t = a^(c r_t)."""
_SLOWEST, _FASTEST = 0.999, 0.9
"""Decays at the start: squares uniform between the squares of these."""


class BlockDiagonal(nn.Module):
    """y = W x + b with W of ``blocks`` square blocks along the diagonal, ``outputs`` such maps side by side.

    x: (..., dim) -> (..., outputs * dim). Weights start normal with standard deviation block^-1/2, biases at zero.
    """

    def __init__(self, dim: int, blocks: int, *, outputs: int = 1) -> None:
        super().__init__()
        if blocks < 1 or dim % blocks:
            raise ValueError(f"a width of {dim} does not divide into {blocks} blocks")
        self.blocks, self.outputs, self.width = blocks, outputs, dim // blocks
        self.weight = nn.Parameter(torch.randn(blocks, self.width, outputs * self.width) / math.sqrt(self.width))
        self.bias = nn.Parameter(torch.zeros(blocks, outputs * self.width))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.reshape(-1, self.blocks, self.width).transpose(0, 1)  # (blocks, rows, width)
        y = torch.baddbmm(self.bias[:, None], parts, self.weight)
        return y.unflatten(2, (self.outputs, self.width)).permute(1, 2, 0, 3).reshape(*x.shape[:-1], -1)


class RGLRUState(NamedTuple):
    """``h`` (B,D) in float32 or better; ``begun`` (B,) bool: whether the row has had a valid step."""

    h: Tensor
    begun: Tensor


class RGLRU(Mixer):
    """The real-gated linear recurrent unit::

        r_t = sigmoid(W_r x_t + b_r)        i_t = sigmoid(W_i x_t + b_i)        a_t = a^(8 r_t), a = sigmoid(-Lambda)
        h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * (i_t * x_t)

    De et al. 2024 (arXiv 2402.19427, section 2.4). W_r and W_i are block-diagonal, one block a head. At a row's first
    step and at resets a_t = 0 and the square root is 1, so a history begins with i_t * x_t in full; the square root's
    gradient is bounded (:func:`transduce.ops.gated.rg_lru`). At the start a^2 is uniform in [0.9^2, 0.999^2].
    x: (B,T,dim) -> (B,T,dim); ``dim`` is a multiple of ``heads``.
    """

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.gates = BlockDiagonal(dim, heads, outputs=2)
        square = torch.empty(dim).uniform_(_FASTEST**2, _SLOWEST**2)
        # a = exp(-softplus(rate)), so softplus(rate) = -log(square) / 2
        self.rate = nn.Parameter(torch.log(torch.expm1(-0.5 * square.log())))

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        dtype = torch.float64 if self.rate.dtype == torch.float64 else torch.float32
        h = torch.zeros(batch, len(self.rate), dtype=dtype, device=self.rate.device)
        return RGLRUState(h, torch.zeros(batch, dtype=torch.bool, device=h.device))

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x = zero_masked(x, mask)
        begun = None if state is None else state.begun
        starts = _starts(x, begun, mask, valid_resets(resets, mask))
        log_decay = -_SHARPNESS * F.softplus(self.rate)
        before = None if state is None else state.h
        h = rg_lru(x, self.gates(x), log_decay, before, mask=mask, resets=starts)
        if state is None:
            return h, None
        if mask is None:
            begun = torch.ones_like(begun)
        else:
            begun = begun | mask.any(1)
        return h.to(x.dtype), RGLRUState(h[:, -1].clone(), begun)


def _starts(x: Tensor, begun: Tensor | None, mask: Tensor | None, resets: Tensor | None) -> Tensor:
    """(B,T) bool: the resets and every row's first valid step."""
    if mask is None:
        first = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        first[:, 0] = True
    else:
        first = mask & (mask.cumsum(1) == 1)
    if begun is not None:
        first = first & ~begun[:, None]
    return first if resets is None else first | resets


class GriffinState(NamedTuple):
    """States of the convolution and of the recurrence."""

    conv: Tensor
    recurrence: RGLRUState


class GriffinRecurrent(Mixer):
    """Griffin's recurrent block: y = W_o (GELU(W_y x) * RGLRU(conv(W_x x))) (De et al. 2024, section 2.3).

    x: (B,T,dim) -> (B,T,dim). ``hidden`` is the width inside, by default 4/3 dim rounded to a multiple of 4 heads;
    ``conv`` the taps of the depthwise causal convolution. Both parts of the state are constant in size.
    """

    def __init__(self, dim: int, hidden: int | None = None, heads: int = 4, *, conv: int = 4) -> None:
        super().__init__()
        if hidden is None:
            hidden = 4 * heads * max(1, round(dim / (3 * heads)))
        self.branch = nn.Linear(dim, hidden)
        self.input = nn.Linear(dim, hidden)
        self.conv = CausalConv(hidden, conv)
        self.recurrence = RGLRU(hidden, heads)
        self.output = nn.Linear(hidden, dim)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return GriffinState(self.conv.init_state(batch), self.recurrence.init_state(batch))

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x = zero_masked(x, mask)
        before = (None, None) if state is None else state
        z, tail = self.conv(self.input(x), before[0], mask=mask, resets=resets)
        h, after = self.recurrence(z, before[1], mask=mask, resets=resets)
        y = self.output(F.gelu(self.branch(x), approximate="tanh") * h)
        return y, None if state is None else GriffinState(tail, after)
