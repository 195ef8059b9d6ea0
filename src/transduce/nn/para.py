"""Gated recurrences whose state-to-state weights are vectors: no channel reads another one's state, so Newton's method
solves all steps at once, and a step costs no product of matrices. On the CPU the compiled loop is the faster solver and
the default; ``solver="newton"`` takes the parallel one."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from transduce.core.protocols import Cell, Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.para import para_gru, para_gru_step, para_lstm, para_lstm_step

from .convolution import CausalConv
from .norm import RMSNorm
from .recurrent import LSTMState, Recurrence, recurrence


class HeadInput(nn.Module):
    """W x + b for every gate, W block-diagonal: head h of each gate reads head h of x. (...,dim) -> (...,gates*hidden)."""

    def __init__(self, dim: int, hidden: int, gates: int, heads: int = 1) -> None:
        super().__init__()
        if dim % heads or hidden % heads:
            raise ValueError(f"widths {dim} and {hidden} cannot be cut into {heads} heads of one size")
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(gates, heads, hidden // heads, dim // heads))
        self.bias = nn.Parameter(torch.zeros(gates * hidden))
        bound = (6 / (dim // heads + hidden // heads)) ** 0.5  # Glorot, of each block
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        if self.heads == 1:
            return nn.functional.linear(x, self.weight.flatten(0, 2), self.bias)
        product = torch.einsum("...hk,ghdk->...ghd", x.unflatten(-1, (self.heads, -1)), self.weight)
        return product.flatten(-3) + self.bias


def _vectors(count: int, hidden: int) -> nn.Parameter:
    """(count,H) state-to-state weights, N(0, 4 / (5 H)) as in the paper's code."""
    return nn.Parameter(torch.randn(count, hidden) * 2 / (5 * hidden) ** 0.5)


class ParaGRUCell(Cell):
    """The GRU with vectors between states (ParaRNN, arXiv 2510.21450, section 3)::

        z = sigmoid(a_z * h + W_z x + b_z)      r = sigmoid(a_r * h + W_r x + b_r)
        n = tanh(a_n * (r * h) + W_n x + b_n)   h' = z * n + (1 - z) * h

    x: (B,D), h: (B,H). ``weight`` (3,H) holds a_z, a_r, a_n; the bias of z starts at -linspace(0, 1). ``heads``: W is
    block-diagonal with so many blocks.
    """

    def __init__(self, dim: int, hidden: int, *, heads: int = 1) -> None:
        super().__init__()
        self.dim, self.hidden = dim, hidden
        self.input = HeadInput(dim, hidden, 3, heads)
        self.weight = _vectors(3, hidden)
        with torch.no_grad():
            self.input.bias[:hidden] = -torch.linspace(0, 1, hidden)

    def init_state(self, batch: int) -> Tensor:
        return self.weight.new_zeros(batch, self.hidden)

    def inputs(self, x: Tensor) -> Tensor:
        return self.input(x)

    def step(self, pre: Tensor, state: Tensor) -> Tensor:
        return para_gru_step(pre, self.weight, state)

    def solve(
        self, pre: Tensor, state: Tensor, *, mask: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        h = para_gru(pre, self.weight, state, mask=mask, resets=resets)
        return h, h[:, -1].clone()

    def jacobian(self, pre: Tensor, state: Tensor) -> Tensor:
        """(B,1,1,H)"""
        pre_z, pre_r, pre_n = pre.chunk(3, -1)
        a_z, a_r, a_n = self.weight
        z, r = torch.sigmoid(pre_z + a_z * state), torch.sigmoid(pre_r + a_r * state)
        n = torch.tanh(pre_n + a_n * (r * state))
        through_n = z * a_n * (1 - n * n) * (r + state * a_r * r * (1 - r))
        return ((1 - z) + (n - state) * a_z * z * (1 - z) + through_n)[:, None, None]

    def output(self, state: Tensor) -> Tensor:
        return state


class ParaLSTMCell(Cell):
    """The LSTM with vectors between states, coupled gates and peepholes (ParaRNN, arXiv 2510.21450, section 3)::

        f = sigmoid(a_f * h + W_f x + p_f * c + b_f)       g = tanh(a_g * h + W_g x + b_g)
        c' = f * c + (1 - f) * g
        o = sigmoid(a_o * h + W_o x + p_o * c' + b_o)      h' = o * tanh(c')

    x: (B,D), h and c: (B,H). ``weight`` (5,H) holds a_f, a_g, a_o, p_f, p_o; the bias of f starts at linspace(0, 1).
    """

    def __init__(self, dim: int, hidden: int, *, heads: int = 1) -> None:
        super().__init__()
        self.dim, self.hidden = dim, hidden
        self.input = HeadInput(dim, hidden, 3, heads)
        self.weight = _vectors(5, hidden)
        with torch.no_grad():
            self.input.bias[:hidden] = torch.linspace(0, 1, hidden)

    def init_state(self, batch: int) -> LSTMState:
        zero = self.weight.new_zeros(batch, self.hidden)
        return LSTMState(zero, zero.clone())

    def inputs(self, x: Tensor) -> Tensor:
        return self.input(x)

    def step(self, pre: Tensor, state: LSTMState) -> LSTMState:
        return LSTMState(*para_lstm_step(pre, self.weight, *state))

    def solve(
        self, pre: Tensor, state: LSTMState, *, mask: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, LSTMState]:
        h, c = para_lstm(pre, self.weight, *state, mask=mask, resets=resets)
        return h, LSTMState(h[:, -1].clone(), c[:, -1].clone())

    def jacobian(self, pre: Tensor, state: LSTMState) -> Tensor:
        """(B,2,2,H), h before c in rows and columns."""
        pre_f, pre_g, pre_o = pre.chunk(3, -1)
        a_f, a_g, a_o, p_f, p_o = self.weight
        f = torch.sigmoid(pre_f + a_f * state.h + p_f * state.c)
        g = torch.tanh(pre_g + a_g * state.h)
        c = torch.lerp(g, state.c, f)
        o = torch.sigmoid(pre_o + a_o * state.h + p_o * c)
        squashed = torch.tanh(c)
        of_f = (state.c - g) * f * (1 - f)
        c_h, c_c = of_f * a_f + (1 - f) * (1 - g * g) * a_g, f + of_f * p_f
        of_o = squashed * o * (1 - o)
        h_new = o * (1 - squashed * squashed) + of_o * p_o  # of the new c
        rows = (h_new * c_h + of_o * a_o, h_new * c_c, c_h, c_c)
        return torch.stack(rows, 1).unflatten(1, (2, 2))

    def output(self, state: LSTMState) -> Tensor:
        return state.h


def ParaGRU(dim: int, hidden: int | None = None, *, heads: int = 1, solver: str = "auto") -> Recurrence:
    """A GRU that is solved in parallel over time, as a mixer (B,T,dim) -> (B,T,dim); see :class:`ParaGRUCell`.

    ``hidden`` is ``dim`` by default; another width gets a linear projection back to ``dim``.
    """
    return recurrence(partial(ParaGRUCell, heads=heads), dim, hidden, solver)


def ParaLSTM(dim: int, hidden: int | None = None, *, heads: int = 1, solver: str = "auto") -> Recurrence:
    """An LSTM that is solved in parallel over time; see :class:`ParaLSTMCell`. Arguments as for :func:`ParaGRU`."""
    return recurrence(partial(ParaLSTMCell, heads=heads), dim, hidden, solver)


class ConvGated(Mixer):
    """u, g = W x;  y = W_o (rms_norm(mixer(silu(conv(u)))) * silu(g)): a recurrence between a short convolution and a
    gate, the block of ParaRNN's language models (arXiv 2510.21450, appendix; the form is Mamba's).

    ``mixer``: works on (B,T,width); ``kernel``: steps that the depth-wise causal convolution sees. The state is the pair
    of the convolution's and the mixer's. Raises ValueError for a mixer that is not causal.
    """

    def __init__(self, dim: int, width: int, mixer: Mixer, *, kernel: int = 4) -> None:
        super().__init__()
        if not mixer.causal:
            raise ValueError("ConvGated needs a causal mixer")
        self.input = nn.Linear(dim, 2 * width, bias=False)
        self.conv, self.mixer = CausalConv(width, kernel=kernel), mixer
        self.norm, self.output = RMSNorm(width), nn.Linear(width, dim, bias=False)
        self.lookahead = mixer.lookahead

    @property
    def bytes_per_step(self) -> int:
        return self.mixer.bytes_per_step

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return self.conv.init_state(batch), self.mixer.init_state(batch, capacity=capacity)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        u, gate = self.input(zero_masked(x, mask)).chunk(2, -1)
        of_conv, of_mixer = (None, None) if state is None else state
        u, of_conv = self.conv(u, of_conv, mask=mask, resets=resets)
        y, of_mixer = self.mixer(nn.functional.silu(u), of_mixer, mask=mask, resets=resets)
        y = self.output(self.norm(y) * nn.functional.silu(gate))
        return y, None if state is None else (of_conv, of_mixer)
