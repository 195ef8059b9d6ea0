"""Classical recurrent networks: the mathematics of a step is a cell, and :class:`Recurrence` runs any cell.

:func:`Elman`, :func:`GRU` and :func:`LSTM` build a recurrence of the usual cells. Gate order and equations
are those of torch, so weights can be taken over (:func:`from_torch`). Each takes ``heads``: the recurrent weights are
then block-diagonal, a head of the state does not see the others, and a step costs ``heads`` times less (FlashRNN,
arXiv 2412.07752, section 2); the layers around it mix them.
"""

from __future__ import annotations

from functools import partial
from typing import Callable, NamedTuple

import torch
from torch import Tensor, nn

from transduce.core import state as states
from transduce.core.protocols import Cell, Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.core.tap import tap
from transduce.ops.rnn import elman, gru, lstm, recurrent_product
from transduce.ops.rnn_fused import lstm_layer
from transduce.ops.tracing import why_traced

from .masking import only_pads_right, valid_resets
from .newton import Channels

_LARGE = 100_000
"""Weights of an LSTM from which on torch's kernel is ahead of ours."""


class Recurrence(Mixer):
    """Runs a :class:`Cell` over time: s_t = step(inputs(x)_t, s_{t-1}), y_t = project(output(s_t)).

    ``solver``: "loop" calls ``cell.step`` once a step; "fused" calls the cell's own
    ``solve(pre, state, *, mask, resets) -> (outputs, state)`` for the whole chunk, or, where nothing is masked or reset,
    ``layer(x, state)`` with the input products in it, if the cell has that and it does not answer None; "newton" solves all steps at once
    (:mod:`transduce.ops.newton`) and serves cells whose channels do not read each other's state. A cell says its
    Jacobian with ``jacobian(pre, state)`` (:class:`transduce.nn.newton.Channels`); any other cell is differentiated and
    looked at on its first use, and UserError says why where it does not fit. "auto" takes "fused" where the cell has
    it and "loop" elsewhere. ``project`` maps the cell's output (B,T,H) to the width of the layer; None leaves it.
    The tap ``residuals`` shows how Newton's method went.
    """

    def __init__(self, cell: Cell, *, solver: str = "auto", project: nn.Module | None = None) -> None:
        super().__init__()
        if solver not in ("auto", "loop", "fused", "newton"):
            raise ValueError(f'solver must be "auto", "loop", "fused" or "newton", not {solver!r}')
        fusable = hasattr(cell, "solve")
        if solver == "fused" and not fusable:
            raise ValueError(f'{type(cell).__name__} has no method "solve"; use solver="loop"')
        if solver == "auto":
            solver = "fused" if fusable else "loop"
        self.cell, self.project, self.solver = cell, project, solver
        self._fits = hasattr(cell, "jacobian")  # else the channels are looked at on first use

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return self.cell.init_state(batch)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        resets = valid_resets(resets, mask)
        x = zero_masked(x, mask)
        if state is None and only_pads_right(mask):
            mask = None  # nobody reads behind the last valid step, so no kernel need hold the rows there
        before = self.cell.init_state(x.shape[0]) if state is None else state
        found = None
        if self.solver == "fused" and mask is None and resets is None and hasattr(self.cell, "layer"):
            found = self.cell.layer(x, before)
        if found is None:
            run = {"fused": getattr(self.cell, "solve", None), "newton": self._newton}.get(self.solver, self._loop)
            found = run(self.cell.inputs(x), before, mask=mask, resets=resets)
        y, after = found
        if self.project is not None:
            y = self.project(y)
        return y, None if state is None else after

    def _newton(
        self, pre: Tensor, state: State, *, mask: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, State]:
        if pre.shape[1] == 1 or why_traced(pre) is not None:  # one step is the step; an iteration cannot be traced
            return self._loop(pre, state, mask=mask, resets=resets)
        channels = Channels(self.cell)
        if not self._fits:
            channels.check(pre.shape[2])
            self._fits = True
        y, after, solution = channels.solve(pre, state, mask=mask, resets=resets)
        tap(self, "residuals", torch.tensor(solution.residuals))
        return y, after

    def _loop(
        self, pre: Tensor, state: State, *, mask: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, State]:
        steps = pre.shape[1]
        masks = mask.unbind(1) if mask is not None else (None,) * steps
        restarts = resets.unbind(1) if resets is not None else (None,) * steps
        fresh = self.cell.init_state(pre.shape[0]) if resets is not None else None
        outputs: list[Tensor] = []
        for p, valid, restart in zip(pre.unbind(1), masks, restarts):
            if restart is not None:
                state = states.where(restart, fresh, state)
            after = self.cell.step(p, state)
            state = after if valid is None else states.where(valid, after, state)
            outputs.append(self.cell.output(state))
        return torch.stack(outputs, 1), state


class ElmanCell(Cell):
    """h_t = tanh(W x_t + b + U h_{t-1}) (Elman 1990). x: (B,D), h: (B,H); ``weight`` (H,H/heads)."""

    def __init__(self, dim: int, hidden: int, *, heads: int = 1) -> None:
        super().__init__()
        self.dim, self.hidden = dim, hidden
        self.input = nn.Linear(dim, hidden)
        self.weight = _recurrent_weight(1, hidden, heads)
        nn.init.xavier_uniform_(self.input.weight)
        nn.init.zeros_(self.input.bias)

    def init_state(self, batch: int) -> Tensor:
        return self.weight.new_zeros(batch, self.hidden)

    def inputs(self, x: Tensor) -> Tensor:
        return self.input(x)

    def step(self, pre: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(pre + recurrent_product(state, self.weight))

    def output(self, state: Tensor) -> Tensor:
        return state

    def solve(
        self, pre: Tensor, state: Tensor, *, mask: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        h = elman(pre, self.weight, state, mask=mask, resets=resets)
        return h, h[:, -1].clone()


class GRUCell(Cell):
    """The gated recurrent unit (Cho et al. 2014, section 2.3), its reset gate placed as in torch::

        r = sigmoid(W_r x + b_r + U_r h)
        z = sigmoid(W_z x + b_z + U_z h)
        n = tanh(W_n x + b_n + r * (U_n h + c))
        h = (1 - z) * n + z * h

    x: (B,D), h: (B,H); the rows of ``weight`` (3H,H/heads) are U_r, U_z, U_n, ``bias`` (H) is c.
    """

    def __init__(self, dim: int, hidden: int, *, heads: int = 1) -> None:
        super().__init__()
        self.dim, self.hidden = dim, hidden
        self.input = nn.Linear(dim, 3 * hidden)
        self.weight = _recurrent_weight(3, hidden, heads)
        self.bias = nn.Parameter(torch.zeros(hidden))
        _init_gates(self.input, hidden)

    def init_state(self, batch: int) -> Tensor:
        return self.weight.new_zeros(batch, self.hidden)

    def inputs(self, x: Tensor) -> Tensor:
        return self.input(x)

    def step(self, pre: Tensor, state: Tensor) -> Tensor:
        pre_r, pre_z, pre_n = pre.chunk(3, -1)
        u_r, u_z, u_n = recurrent_product(state, self.weight).chunk(3, -1)
        r, z = torch.sigmoid(pre_r + u_r), torch.sigmoid(pre_z + u_z)
        n = torch.tanh(pre_n + r * (u_n + self.bias))
        return torch.lerp(n, state, z)

    def output(self, state: Tensor) -> Tensor:
        return state

    def solve(
        self, pre: Tensor, state: Tensor, *, mask: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        h = gru(pre, self.weight, self.bias, state, mask=mask, resets=resets)
        return h, h[:, -1].clone()


class LSTMState(NamedTuple):
    """Output ``h`` and memory ``c`` of an LSTM, both (B,H)."""

    h: Tensor
    c: Tensor


class LSTMCell(Cell):
    """Long short-term memory with a forget gate (Gers et al. 2000, equations 3 to 6)::

        i, f, o = sigmoid(W x + b + U h)        g = tanh(W_g x + b_g + U_g h)
        c = f * c + i * g                       h = o * tanh(c)

    x: (B,D), h and c: (B,H); the rows of ``weight`` (4H,H/heads) are U_i, U_f, U_g, U_o as in torch. The forget
    gate's bias starts at one (Jozefowicz et al. 2015, section 5).
    """

    def __init__(self, dim: int, hidden: int, *, heads: int = 1) -> None:
        super().__init__()
        self.dim, self.hidden = dim, hidden
        self.input = nn.Linear(dim, 4 * hidden)
        self.weight = _recurrent_weight(4, hidden, heads)
        _init_gates(self.input, hidden)
        with torch.no_grad():
            self.input.bias[hidden : 2 * hidden] = 1.0

    def init_state(self, batch: int) -> LSTMState:
        zero = self.weight.new_zeros(batch, self.hidden)
        return LSTMState(zero, zero.clone())

    def inputs(self, x: Tensor) -> Tensor:
        return self.input(x)

    def step(self, pre: Tensor, state: LSTMState) -> LSTMState:
        i, f, g, o = (pre + recurrent_product(state.h, self.weight)).chunk(4, -1)
        c = torch.sigmoid(f) * state.c + torch.sigmoid(i) * torch.tanh(g)
        return LSTMState(torch.sigmoid(o) * torch.tanh(c), c)

    def output(self, state: LSTMState) -> Tensor:
        return state.h

    def solve(
        self, pre: Tensor, state: LSTMState, *, mask: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, LSTMState]:
        h, c = lstm(pre, self.weight, state.h, state.c, mask=mask, resets=resets)
        return h, LSTMState(h[:, -1].clone(), c[:, -1].clone())

    def layer(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState] | None:
        """By torch's own kernel, where that is the faster one: a large dense matrix in float32 on the CPU, some steps,
        and more rows than threads (with fewer ours divides the units)."""
        tensors = (x, self.weight, *state)
        large = self.weight.shape[1] == self.hidden and self.weight.numel() >= _LARGE
        if not large or x.shape[1] < 4 or x.shape[0] <= torch.get_num_threads():
            return None
        if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
            return None
        if torch.is_autocast_enabled("cpu") or why_traced(*tensors) is not None:
            return None
        y, h, c = lstm_layer(x, self.input.weight, self.input.bias, self.weight, state.h, state.c)
        return y, LSTMState(h, c)


def Elman(dim: int, hidden: int | None = None, *, heads: int = 1, solver: str = "auto") -> Recurrence:
    """The simple recurrent network as a mixer (B,T,dim) -> (B,T,dim); see :class:`ElmanCell`."""
    return recurrence(partial(ElmanCell, heads=heads), dim, hidden, solver)


def GRU(dim: int, hidden: int | None = None, *, heads: int = 1, solver: str = "auto") -> Recurrence:
    """A GRU as a mixer (B,T,dim) -> (B,T,dim); see :class:`GRUCell`.

    ``hidden`` is ``dim`` by default; another width gets a linear projection back to ``dim``. ``heads``: blocks of
    the recurrent weights.
    """
    return recurrence(partial(GRUCell, heads=heads), dim, hidden, solver)


def LSTM(dim: int, hidden: int | None = None, *, heads: int = 1, solver: str = "auto") -> Recurrence:
    """An LSTM as a mixer (B,T,dim) -> (B,T,dim); see :class:`LSTMCell`. Arguments as for :func:`GRU`."""
    return recurrence(partial(LSTMCell, heads=heads), dim, hidden, solver)


def from_torch(module: nn.RNNBase) -> Recurrence:
    """The same network as a trained one-layer, one-directional ``torch.nn.RNN`` (tanh), ``GRU`` or ``LSTM``.

    The weights are copied. Layers deeper than one, both directions, ReLU and LSTM projections raise
    ValueError.
    """
    kinds = {"RNN_TANH": ElmanCell, "GRU": GRUCell, "LSTM": LSTMCell}
    if module.mode not in kinds or module.num_layers != 1 or module.bidirectional or module.proj_size:
        raise ValueError(
            f"from_torch takes one layer of RNN (tanh), GRU or LSTM in one direction, not {module!r}; "
            "stack layers with Serial and directions with Bidirectional"
        )
    hidden = module.hidden_size
    cell = kinds[module.mode](module.input_size, hidden).to(module.weight_hh_l0)
    with torch.no_grad():
        cell.input.weight.copy_(module.weight_ih_l0)
        cell.weight.copy_(module.weight_hh_l0)
        bias = torch.zeros_like(cell.input.bias)
        if module.bias:
            bias += module.bias_ih_l0
            if module.mode == "GRU":
                # torch's second bias of the candidate stands inside the reset gate's product: it stays apart.
                bias[: 2 * hidden] += module.bias_hh_l0[: 2 * hidden]
                cell.bias.copy_(module.bias_hh_l0[2 * hidden :])
            else:
                bias += module.bias_hh_l0
        cell.input.bias.copy_(bias)
    return Recurrence(cell)


def recurrence(
    cell: Callable[[int, int], Cell], dim: int, hidden: int | None = None, solver: str = "auto"
) -> Recurrence:
    """A mixer (B,T,dim) -> (B,T,dim) of the cell ``cell(dim, hidden)``, projected back where the widths differ."""
    hidden = dim if hidden is None else hidden
    project = nn.Linear(hidden, dim) if hidden != dim else None
    return Recurrence(cell(dim, hidden), solver=solver, project=project)


def _recurrent_weight(gates: int, hidden: int, heads: int = 1) -> nn.Parameter:
    """(gates*H, H/heads), each block orthogonal: no direction of the state dies or explodes at the start."""
    if heads < 1 or hidden % heads:
        raise ValueError(f"a state of width {hidden} cannot be cut into {heads} heads of one size")
    size = hidden // heads
    return nn.Parameter(
        torch.cat([nn.init.orthogonal_(torch.empty(size, size)) for _ in range(gates * heads)])
    )


def _init_gates(linear: nn.Linear, hidden: int) -> None:
    """Glorot for each gate apart, as if it were its own matrix; biases zero."""
    with torch.no_grad():
        for block in linear.weight.split(hidden):
            nn.init.xavier_uniform_(block)
        linear.bias.zero_()
