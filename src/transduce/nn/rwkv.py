"""The two layers of RWKV-4: mixing over time with averages that fade, and over channels with a look at the step before."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.state import State
from transduce.ops.wkv import wkv

from .token_shift import TokenShift


class RWKV4State(NamedTuple):
    """``last`` (B,D): the input of the last valid step. ``average`` (B,D,3): m, u, w of :func:`transduce.ops.wkv.wkv`, in
    float32 or better."""

    last: Tensor
    average: Tensor


def _ramp(dim: int, depth: float, factor: float = 1.0) -> Tensor:
    """Shares of the present in channel i at first: (i / dim)^(factor (1 - 0.8 depth)). The published exponent, 1 - l / L
    in layer l of L, does not reach 0 either, where a layer would see no step but its own."""
    return (torch.arange(dim) / dim) ** (factor * (1 - 0.8 * depth))


def _check_depth(depth: float) -> None:
    if not 0.0 <= depth <= 1.0:
        raise ValueError(f"depth says where the layer stands, 0 for the first and 1 for the last one, got {depth:g}")


class RWKV4(Mixer):
    """out = W_o (sigmoid(r) * wkv(k, v)), r, k, v = W_r x^r, W_k x^k, W_v x^v, each x^j mixed of x_t and x_{t-1}.

    wkv is a softmax average over the past in each channel, its scores sinking by exp(``decay``) a step, with ``bonus``
    for the present (:func:`transduce.ops.wkv.wkv`). Peng et al. 2023 (arXiv 2305.13048, sections 3.1.1 to 3.1.3; first
    values: appendix E, with Glorot's instead of zeros for W_o).

    x: (B,T,dim) -> (B,T,dim). ``depth``: where the layer stands in its stack, 0 for the first and 1 for the last one;
    first values of mixes and decays depend on it.
    """

    def __init__(self, dim: int, *, depth: float = 0.5) -> None:
        super().__init__()
        _check_depth(depth)
        self.shift = TokenShift(dim, 3)
        self.receptance, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        for linear in (self.receptance, self.key):
            nn.init.zeros_(linear.weight)
        nn.init.orthogonal_(self.value.weight)
        nn.init.xavier_uniform_(self.output.weight)
        place = torch.arange(dim) / max(1, dim - 1)
        zigzag = (torch.arange(dim) + 1) % 3 - 1
        self.decay = nn.Parameter(-5 + 8 * place ** (0.7 + 1.3 * depth))
        self.bonus = nn.Parameter(math.log(0.3) + 0.5 * zigzag)
        with torch.no_grad():
            ramp = _ramp(dim, depth)
            self.shift.mix.copy_(torch.stack((_ramp(dim, depth, 0.5), ramp, ramp + 0.3 * depth))[None])

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        like = self.decay
        accumulate = torch.float64 if like.dtype == torch.float64 else torch.float32
        average = torch.zeros(batch, len(like), 3, dtype=accumulate, device=like.device)
        average[..., 0] = -math.inf
        return RWKV4State(self.shift.init_state(batch), average)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        last, average = (None, None) if state is None else state
        (x_r, x_k, x_v), last = self.shift(x, last, mask=mask, resets=resets)
        k, v, rate = self.key(x_k), self.value(x_v), torch.exp(self.decay)
        y, average = wkv(k, v, rate, self.bonus, average, mask=mask, resets=resets)
        y = self.output(torch.sigmoid(self.receptance(x_r)) * y.to(v.dtype))
        return y, None if state is None else RWKV4State(last, average)


class RWKV4ChannelMix(Mixer):
    """out = sigmoid(W_r x^r) * W_v relu(W_k x^k)^2, each x^j mixed of x_t and x_{t-1}: RWKV-4's feedforward layer.

    It looks one step back, so it is a mixer; its state is the input of the last valid step (B,dim). Peng et al. 2023
    (arXiv 2305.13048, section 3.1.1, equations 17 and 18). ``hidden``: 4 dim by default. ``depth`` as for
    :class:`RWKV4`.
    """

    def __init__(self, dim: int, hidden: int | None = None, *, depth: float = 0.5) -> None:
        super().__init__()
        _check_depth(depth)
        hidden = 4 * dim if hidden is None else hidden
        self.shift = TokenShift(dim, 2)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, hidden, bias=False)
        self.value = nn.Linear(hidden, dim, bias=False)
        nn.init.zeros_(self.receptance.weight)
        nn.init.orthogonal_(self.key.weight)
        nn.init.xavier_uniform_(self.value.weight)
        with torch.no_grad():
            self.shift.mix.copy_(_ramp(dim, depth))

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return self.shift.init_state(batch)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        (x_r, x_k), last = self.shift(x, state, mask=mask, resets=resets)
        return torch.sigmoid(self.receptance(x_r)) * self.value(torch.relu(self.key(x_k)) ** 2), last


def rwkv4_layers(dim: int, layers: int) -> list[Mixer]:
    """The mixers of an RWKV-4 of so many layers, each to stand behind a norm in a residual branch of its own: over
    time, over channels, over time, ..."""
    depths = [i / max(1, layers - 1) for i in range(layers)]
    return [mixer for d in depths for mixer in (RWKV4(dim, depth=d), RWKV4ChannelMix(dim, depth=d))]
