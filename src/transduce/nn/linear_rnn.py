"""Gated linear recurrences: gates that read the input only make the state a scan, parallel over time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.gated import min_gru, min_lstm
from transduce.ops.scan import linear_scan

from .combine import Serial
from .convolution import CausalConv
from .masking import valid_resets

FORMS = ("scan", "log")


class MinGRU(Mixer):
    """h_t = (1 - z_t) * h_{t-1} + z_t * (W_h x_t), z_t = sigmoid(W_z x_t) (Feng et al. 2024, section 3.1).

    x: (B,T,dim) -> (B,T,dim). State: h (B,H) with H = expansion * dim; another width than ``dim`` gets a
    linear projection back. ``form="log"`` is the paper's form in logarithms (appendix B): candidates g(W_h x), always
    positive, and :func:`log_scan`. It is another model, not another way to compute this one, and in float32 it loses
    three digits over a thousand steps; it is here for weights that were trained in it.
    """

    def __init__(self, dim: int, *, expansion: float = 1.0, form: str = "scan") -> None:
        super().__init__()
        self.hidden, self.form = _hidden(dim, expansion), _known(form)
        self.input = nn.Linear(dim, 2 * self.hidden)
        self.project = nn.Linear(self.hidden, dim) if self.hidden != dim else nn.Identity()

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return self.input.weight.new_zeros(batch, self.hidden)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        pre = self.input(zero_masked(x, mask))
        if self.form == "scan":
            h = min_gru(pre, state, mask=mask, resets=resets)
        else:
            gate, candidate = pre.chunk(2, -1)
            logs = F.logsigmoid(-gate), F.logsigmoid(gate) + _log_positive(candidate)
            h = log_scan(*logs, state, mask=mask, resets=resets)
        return self.project(h), None if state is None else h[:, -1].clone()


class MinLSTM(Mixer):
    """h_t = f'_t * h_{t-1} + i'_t * (W_h x_t), f' = f / (f + i), i' = i / (f + i), f, i = sigmoid(W_f x, W_i x).

    The shares f' and i' sum to one, so the state's scale does not depend on the length (Feng et al. 2024, section
    3.2). Arguments, state and ``form`` as for :class:`MinGRU`. The forget gate's bias starts at one.
    """

    def __init__(self, dim: int, *, expansion: float = 1.0, form: str = "scan") -> None:
        super().__init__()
        self.hidden, self.form = _hidden(dim, expansion), _known(form)
        self.input = nn.Linear(dim, 3 * self.hidden)
        self.project = nn.Linear(self.hidden, dim) if self.hidden != dim else nn.Identity()
        with torch.no_grad():
            self.input.bias[: self.hidden] = 1.0

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return self.input.weight.new_zeros(batch, self.hidden)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        pre = self.input(zero_masked(x, mask))
        if self.form == "scan":
            h = min_lstm(pre, state, mask=mask, resets=resets)
        else:
            forget, write, candidate = pre.chunk(3, -1)
            log_ratio = F.logsigmoid(forget) - F.logsigmoid(write)
            logs = F.logsigmoid(log_ratio), F.logsigmoid(-log_ratio) + _log_positive(candidate)
            h = log_scan(*logs, state, mask=mask, resets=resets)
        return self.project(h), None if state is None else h[:, -1].clone()


def min_rnn(
    cell: str, dim: int, *, conv: int | None = None, expansion: float = 1.0, form: str = "scan"
) -> Mixer:
    """The mixer of the paper's blocks: a short causal convolution in front of a minGRU or a minLSTM.

    ``cell``: "gru" or "lstm". ``conv``: taps of the depthwise convolution (the paper's 4), None for none; its state
    is the last conv - 1 inputs. ``expansion`` and ``form`` as for :class:`MinGRU`. Source: arXiv 2410.01201, section
    4 and appendix C.
    """
    if cell not in ("gru", "lstm"):
        raise ValueError(f'cell must be "gru" or "lstm", not {cell!r}')
    layer = (MinGRU if cell == "gru" else MinLSTM)(dim, expansion=expansion, form=form)
    return layer if conv is None else Serial(CausalConv(dim, conv), layer)


def log_scan(
    log_decay: Tensor,
    log_value: Tensor,
    h0: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    """h_t = e^(d_t) h_{t-1} + e^(v_t) as exp(A_t + logcumsumexp_t(v - A)) + e^(A_t) h_0, A the cumulated d: (B,T,D).

    Parallel over time in plain torch, but differences of A cost digits: 1.5e-4 of the result in float32 after 1000
    steps, where :func:`transduce.ops.linear_scan` keeps 5e-7. A restart has no finite logarithm, so with ``resets``
    the plain scan runs on the exponentials. ``log_decay``, ``log_value``: (B,T,D), ``h0``: (B,D); ``mask`` and
    ``resets`` (B,T) as for every mixer. Source: arXiv 2410.01201, appendix B (after F. Heinsen, arXiv 2311.06281).
    """
    if mask is not None:
        log_decay = torch.where(mask[..., None], log_decay, torch.zeros_like(log_decay))
        # far below anything that is added to it; -inf would make NaN of a first step's gradient
        log_value = torch.where(mask[..., None], log_value, torch.full_like(log_value, -1e30))
    if resets is not None:
        return linear_scan(log_decay.exp(), log_value.exp(), h0, resets=valid_resets(resets, mask))
    total = log_decay.cumsum(1)
    h = torch.exp(total + torch.logcumsumexp(log_value - total, 1))
    return h if h0 is None else torch.exp(total) * h0[:, None] + h


def _log_positive(x: Tensor) -> Tensor:
    """log g(x) of the paper's g: x + 1/2 from zero on, sigmoid(x) below."""
    return torch.where(x >= 0, torch.log(x.clamp_min(0) + 0.5), F.logsigmoid(x))


def _hidden(dim: int, expansion: float) -> int:
    hidden = round(dim * expansion)
    if hidden < 1:
        raise ValueError(f"an expansion of {expansion} leaves no channel of {dim}; make it larger")
    return hidden


def _known(form: str) -> str:
    if form not in FORMS:
        raise ValueError(f'form must be "scan" or "log", not {form!r}')
    return form
