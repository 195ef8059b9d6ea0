"""Feedforward layers: the same function of every position, over channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
_GATES = {"swiglu": F.silu, "geglu": F.gelu}


class FeedForward(nn.Module):
    """y = W_2 f(W_1 x), or the gated form y = W_2 (f(W_g x) * W_1 x).

    x: (..., dim) -> (..., dim). ``activation``: "relu" (Vaswani et al. 2017, section 3.3), "gelu", "silu", or
    gated "swiglu" (f = SiLU) and "geglu" (f = GELU; Shazeer 2020, section 2). ``hidden`` is 4 dim by default; gated
    8/3 dim, rounded up to a multiple of 8, so that both have about the same number of parameters. ``dropout`` acts on
    the hidden layer. Raises ValueError for another activation.
    """

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        *,
        activation: str = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS | _GATES:
            raise ValueError(
                f"activation must be one of {', '.join(_ACTIVATIONS | _GATES)}, not {activation!r}"
            )
        self.activation = activation
        gated = activation in _GATES
        if hidden is None:
            hidden = -(-8 * dim // 3 // 8) * 8 if gated else 4 * dim
        self.widen = nn.Linear(dim, 2 * hidden if gated else hidden, bias=bias)
        self.narrow = nn.Linear(hidden, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation in _GATES:
            gate, value = self.widen(x).chunk(2, -1)
            hidden = _GATES[self.activation](gate) * value
        else:
            hidden = _ACTIVATIONS[self.activation](self.widen(x))
        return self.narrow(self.dropout(hidden))
