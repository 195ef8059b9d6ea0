"""State space layers that select: how fast they forget and what they write and read depends on the input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.retention import retention
from transduce.ops.selective_scan import selective_scan

from .convolution import CausalConv


@dataclass(frozen=True)
class SelectiveState:
    """``tail`` (B,kernel-1,C): the inputs that the convolution still needs; ``memory`` in float32 or better:
    (B,D,N) of :class:`Mamba`, (B,H,N,P) of :class:`Mamba2`."""

    tail: Tensor
    memory: Tensor


class Mamba(Mixer):
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,  y_t = C_t h_t + D u_t,  out = W_o (SiLU(z) * y).

    Gu and Dao 2023 (arXiv 2312.00752, section 3.4 and figure 3). (u', z) = W_i x; u = SiLU(conv(u')), a causal
    convolution over ``kernel`` steps; B_t, C_t and a dt of few dimensions are linear in u_t;
    dt_t = softplus(W_dt dt' + bias). A is diagonal and negative, one row of ``states`` a channel; it starts as
    -1, -2, ..., -``states`` (section 3.6), and dt between 0.001 and 0.1.

    x: (B,T,dim) -> (B,T,dim), dim * expansion channels inside. Its state does not grow.

    Args:
        dim: width of inputs and outputs.
        states: N, numbers remembered by each channel.
        expansion: channels inside, as a multiple of ``dim``.
        kernel: taps of the convolution.
        rank: dimensions of dt', by default dim / 16 rounded up.
    """

    def __init__(
        self, dim: int, *, states: int = 16, expansion: float = 2, kernel: int = 4, rank: int | None = None
    ) -> None:
        super().__init__()
        self.inner, self.states = round(dim * expansion), states
        self.rank = math.ceil(dim / 16) if rank is None else rank
        if min(self.inner, self.states, self.rank) < 1:
            raise ValueError(
                f"Mamba needs at least one channel, state and dimension of dt, got {self.inner}, {states}, {self.rank}"
            )
        self.input = nn.Linear(dim, 2 * self.inner, bias=False)
        self.conv = CausalConv(self.inner, kernel, activation=F.silu)
        self.select = nn.Linear(self.inner, self.rank + 2 * states, bias=False)
        self.step = nn.Linear(self.rank, self.inner)
        self.log_rates = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(self.inner, 1))
        self.skip = nn.Parameter(torch.ones(self.inner))
        self.output = nn.Linear(self.inner, dim, bias=False)
        nn.init.uniform_(self.step.weight, -(self.rank**-0.5), self.rank**-0.5)
        with torch.no_grad():
            self.step.bias.copy_(_step_bias(self.inner))

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return SelectiveState(self.conv.init_state(batch), _memory(self.skip, batch, self.inner, self.states))

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        before = SelectiveState(None, None) if state is None else state
        u, z = self.input(zero_masked(x, mask)).chunk(2, -1)
        u, tail = self.conv(u, before.tail, mask=mask, resets=resets)
        low, b, c = self.select(u).split((self.rank, self.states, self.states), -1)
        dt = F.softplus(self.step(low))
        a = -torch.exp(self.log_rates)
        y, memory = selective_scan(u, dt, a, b, c, before.memory, mask=mask, resets=resets)
        y = torch.addcmul(y, u, self.skip) * F.silu(z)
        return self.output(y), None if state is None else SelectiveState(tail, memory)


class Mamba2(Mixer):
    """S_t = exp(dt_t A) S_{t-1} + dt_t B_t u_t^T,  y_t = S_t^T C_t + D u_t in each head, out = W_o norm(SiLU(z) * y).

    Dao and Gu 2024 (arXiv 2405.21060, section 7.1 and figure 6). (z, u', B', C', dt') = W_i x; u, B and C come out of
    one causal convolution over ``kernel`` steps and a SiLU; dt = softplus(dt' + bias). A head has one rate A < 0 and
    one dt for all its channels, so its state is a matrix (``states``, dim * expansion / heads) and whole chunks are
    products of matrices. B and C are shared by the heads of a group. norm is the root mean square norm over the
    channels of a group. A starts between -1 and -16, dt between 0.001 and 0.1.

    x: (B,T,dim) -> (B,T,dim). Its state does not grow.

    Args:
        dim: width of inputs and outputs.
        heads: H; each works on dim * expansion / heads channels.
        states: N, rows of a head's state.
        groups: pairs of B and C; divides ``heads``.
        expansion: channels inside, as a multiple of ``dim``.
        kernel: taps of the convolution.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
        states: int = 64,
        groups: int = 1,
        expansion: float = 2,
        kernel: int = 4,
    ) -> None:
        super().__init__()
        self.inner, self.heads, self.states, self.groups = round(dim * expansion), heads, states, groups
        if self.inner % heads or heads % groups:
            raise ValueError(
                f"the heads of Mamba2 must divide its {self.inner} channels and be a multiple of its groups, "
                f"got {heads} heads and {groups} groups"
            )
        mixed = self.inner + 2 * groups * states
        self.input = nn.Linear(dim, self.inner + mixed + heads, bias=False)
        self.conv = CausalConv(mixed, kernel, activation=F.silu)
        self.step_bias = nn.Parameter(_step_bias(heads))
        self.log_rates = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.skip = nn.Parameter(torch.ones(heads))
        self.gain = nn.Parameter(torch.ones(self.inner))
        self.output = nn.Linear(self.inner, dim, bias=False)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        memory = _memory(self.skip, batch, self.heads, self.states, self.inner // self.heads)
        return SelectiveState(self.conv.init_state(batch), memory)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        before = SelectiveState(None, None) if state is None else state
        shared = self.groups * self.states
        z, mixed, dt = self.input(zero_masked(x, mask)).split((self.inner, self.inner + 2 * shared, self.heads), -1)
        mixed, tail = self.conv(mixed, before.tail, mask=mask, resets=resets)
        u, b, c = mixed.split((self.inner, shared, shared), -1)
        dt = F.softplus(dt + self.step_bias)
        u = u.unflatten(-1, (self.heads, -1))
        b, c = (self._to_heads(t.unflatten(-1, (self.groups, self.states))) for t in (b, c))
        decay = -dt * torch.exp(self.log_rates)
        y, memory = retention(c, b, u * dt[..., None], decay, before.memory, mask=mask, resets=resets)
        y = torch.addcmul(y, u, self.skip[:, None]).flatten(2) * F.silu(z)
        width = self.inner // self.groups
        y = F.rms_norm(y.unflatten(-1, (self.groups, width)), (width,), eps=1e-5).flatten(2) * self.gain
        return self.output(y), None if state is None else SelectiveState(tail, memory)

    def _to_heads(self, x: Tensor) -> Tensor:
        """(B,T,G,N) -> (B,T,H,N), the vectors of a group for each of its heads."""
        return x[:, :, :, None].expand(-1, -1, -1, self.heads // self.groups, -1).flatten(2, 3)


def _step_bias(count: int, shortest: float = 1e-3, longest: float = 0.1) -> Tensor:
    """Biases whose softplus is spread evenly over the logarithms of these step widths."""
    low, high = math.log(shortest), math.log(longest)
    dt = torch.empty(count).uniform_(low, high).exp()
    return dt + torch.log(-torch.expm1(-dt))


def _memory(like: Tensor, batch: int, *shape: int) -> Tensor:
    """Zeros in float32, or float64 for a layer in float64."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.zeros(batch, *shape, dtype=dtype, device=like.device)
