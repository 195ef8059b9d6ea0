"""The recurrent half of xLSTM: an LSTM with exponential gates and heads."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from transduce.core.protocols import Cell
from transduce.ops.slstm import slstm, slstm_step

from .recurrent import Recurrence, _init_gates, _recurrent_weight, recurrence


class SLSTMState(NamedTuple):
    """Output ``h``, memory ``c``, its normaliser ``n`` and the running maximum ``m`` of the gates, all (B,H)."""

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor


class SLSTMCell(Cell):
    """The LSTM whose input gate is an exponential, normalised by what it wrote (xLSTM, arXiv 2405.04517, section 2.2)::

        i, f, z, o = W x + b + U h            l = log(sigmoid(f)) + m        m' = max(i, l)
        c' = exp(l - m') c + exp(i - m') tanh(z)
        n' = exp(l - m') n + exp(i - m')      h' = sigmoid(o) c' / n'

    x: (B,D), states (B,H); the rows of ``weight`` (4H,H/heads) are U_i, U_f, U_z, U_o. At the first step m' = i. The
    forget gate's bias runs from 3 to 6 over the channels of a head, so that memories of many lengths are there at the
    start (the paper's appendix).
    """

    def __init__(self, dim: int, hidden: int, *, heads: int = 4) -> None:
        super().__init__()
        self.dim, self.hidden = dim, hidden
        self.input = nn.Linear(dim, 4 * hidden)
        self.weight = _recurrent_weight(4, hidden, heads)
        _init_gates(self.input, hidden)
        with torch.no_grad():
            self.input.bias[hidden : 2 * hidden] = torch.linspace(3.0, 6.0, hidden // heads).repeat(heads)

    def init_state(self, batch: int) -> SLSTMState:
        return SLSTMState(*self.weight.new_zeros(4, batch, self.hidden).unbind(0))

    def inputs(self, x: Tensor) -> Tensor:
        return self.input(x)

    def step(self, pre: Tensor, state: SLSTMState) -> SLSTMState:
        return SLSTMState(*slstm_step(pre, self.weight, *state))

    def output(self, state: SLSTMState) -> Tensor:
        return state.h

    def solve(
        self, pre: Tensor, state: SLSTMState, *, mask: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, SLSTMState]:
        h, c, n, m = slstm(pre, self.weight, *state, mask=mask, resets=resets)
        return h, SLSTMState(h[:, -1].clone(), c, n, m)


def SLSTM(dim: int, hidden: int | None = None, *, heads: int = 4, solver: str = "auto") -> Recurrence:
    """An sLSTM as a mixer (B,T,dim) -> (B,T,dim); see :class:`SLSTMCell`.

    ``hidden`` is ``dim`` by default and a multiple of ``heads``; another width gets a linear projection back.
    """
    return recurrence(partial(SLSTMCell, heads=heads), dim, hidden, solver)
