"""The hierarchically gated recurrence: a forget gate whose lower bound rises from layer to layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.ops.gated import hgru

from .norm import LayerNorm
from .position import angles

ORDERS = ("norm-gate", "gate-norm")


class LowerBounds(nn.Module):
    """gamma^k = P_1 + ... + P_(k-1) with P = softmax over the layers of a learned (layers, dim) matrix.

    So gamma^1 = 0, gamma rises with depth in every channel and stays below 1: low layers may forget at once, high
    ones cannot. One such module belongs to a whole stack; :meth:`layer` gives each layer its own row. Shared
    parameters are stored and optimised once. Qin et al. 2023 (arXiv 2311.04823, section 3.3).
    """

    def __init__(self, layers: int, dim: int) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"lower bounds need at least one layer, got {layers}")
        self.weight = nn.Parameter(torch.zeros(layers, dim))

    def forward(self) -> Tensor:
        """(layers, dim), the bound of every layer, lowest layer first."""
        share = self.weight.softmax(0)
        return torch.cat((torch.zeros_like(share[:1]), share[:-1].cumsum(0)))

    def layer(self, index: int) -> LowerBound:
        """What layer ``index`` (from 0) is given as its ``bound``."""
        if not 0 <= index < len(self.weight):
            raise ValueError(f"there are bounds of layers 0 to {len(self.weight) - 1}, not of layer {index}")
        return LowerBound(self, index)


class LowerBound(nn.Module):
    """One row of :class:`LowerBounds`: called without arguments it gives (dim,)."""

    def __init__(self, bounds: LowerBounds, index: int) -> None:
        super().__init__()
        self.bounds, self.index = bounds, index

    def forward(self) -> Tensor:
        return self.bounds()[self.index]


class HGRU(Mixer):
    """The token mixer of HGRN::

        lambda_t = gamma + (1 - gamma) * sigmoid(W_f x_t)                  c_t = SiLU(W_c x_t), complex
        h_t = lambda_t e^(i theta) * h_{t-1} + (1 - lambda_t) * c_t
        y_t = W_o (LN([Re h_t, Im h_t]) * SiLU(W_g x_t))

    Qin et al. 2023 (arXiv 2311.04823, section 3.2). theta does not depend on the input and starts as rotary angles.
    State: h as (B, 2 hidden), real and imaginary parts side by side.

    Args:
        dim: width of inputs and outputs.
        hidden: width of the state, default ``dim``.
        bound: a module that gives gamma (hidden,) when called, from :meth:`LowerBounds.layer`; None for gamma = 0.
        rotating: False leaves theta and all imaginary parts out; the state is then (B, hidden).
        order: "norm-gate" as in the released layer, or "gate-norm", y = W_o LN(h * SiLU(W_g x)), as in the
            description that came with it.
    """

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        *,
        bound: nn.Module | None = None,
        rotating: bool = True,
        order: str = "norm-gate",
    ) -> None:
        super().__init__()
        if order not in ORDERS:
            raise ValueError(f'order must be "norm-gate" or "gate-norm", not {order!r}')
        self.hidden = hidden = dim if hidden is None else hidden
        self.width, self.order, self.bound = hidden * (2 if rotating else 1), order, bound
        self.input = nn.Linear(dim, hidden + self.width)
        self.gate = nn.Linear(dim, self.width)
        self.norm = LayerNorm(self.width)
        self.output = nn.Linear(self.width, dim)
        turns = angles(torch.ones(()), 2 * hidden) if rotating else None
        self.angle = None if turns is None else nn.Parameter(turns)

    def init_state(self, batch: int, *, capacity: int | None = None) -> State:
        return self.input.weight.new_zeros(batch, self.width)

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x = zero_masked(x, mask)
        floor = None if self.bound is None else self.bound()
        h = hgru(self.input(x), floor, self.angle, state, mask=mask, resets=resets)
        gate = F.silu(self.gate(x))
        y = self.norm(h) * gate if self.order == "norm-gate" else self.norm(h * gate)
        return self.output(y), None if state is None else h[:, -1].clone()
