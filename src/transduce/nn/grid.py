"""Layers over a grid of cells (target position u, source position s), causal in u: (B,U,S,C).

``valid`` (B,S) says which source positions are no padding; ``mask`` (B,U) which target rows advance. A state
is the last rows that a layer still needs, so the grid can be computed row by row: (x, state) -> (y, state),
None in, None out, any chunking of the rows gives the same result.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.errors import UserError
from transduce.core.seq import zero_masked
from transduce.core.state import State
from transduce.core.tap import listening, tap
from transduce.ops.conv2d import causal_conv2d

from .masking import only_pads_right
from .norm import LayerNorm


def _cells(x: Tensor, valid: Tensor | None) -> Tensor:
    """(B,U,S,C) with the cells of source padding set to zero, whatever they held."""
    if valid is None:
        return x
    return torch.where(valid[:, None, :, None], x, torch.zeros((), dtype=x.dtype, device=x.device))


class GridConv(nn.Module):
    """A k x k convolution whose kernel is zero behind its centre row: (B,U,S,C) -> (B,U,S,E).

    Row u sees rows u - k//2 .. u and columns s - k//2 .. s + k//2. Only the k//2 + 1 rows of the kernel that
    are not zero are parameters: weight (E,C,k//2+1,k). The state is the last k//2 rows (B,k//2,S,C). Elbayad
    et al. 2018 (arXiv 1808.03867), section 3.2. Raises :class:`UserError` for an even kernel.
    """

    def __init__(self, dim: int, out: int, kernel: int = 3) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(
                f"kernel must be odd so that it has a centre, got {kernel}; try {abs(kernel) + 1}."
            )
        self.dim, self.reach = dim, kernel // 2
        shape = (out, dim, kernel // 2 + 1, kernel)
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(out))

    def init_state(self, batch: int, source_steps: int) -> Tensor:
        return self.weight.new_zeros(batch, self.reach, source_steps, self.dim)

    def forward(
        self, x: Tensor, state: State = None, *, valid: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, State]:
        x = _cells(x, valid)
        if state is None and mask is not None and only_pads_right(mask):
            # Rows of padding at the end are read by nothing but padding, so the dense kernel serves.
            x, mask = zero_masked(x, mask), None
        y, tail = causal_conv2d(x, self.weight, self.bias, state, mask=mask)
        return y, None if state is None else tail


class DenseGridLayer(nn.Module):
    """[x, dropout(conv(ReLU(LN(W ReLU(LN(x))))))]: the input and ``growth`` new channels behind it.

    W maps a cell's channels to 4 growth, ``conv`` is a :class:`GridConv` (Huang et al. 2017, section 3, with
    the convolution of Elbayad et al. 2018). The norms are over the channels of one cell, where the papers
    normalise over the batch: statistics over cells would mix rows of a batch, see later target rows and count
    the cells of padding.
    """

    def __init__(self, dim: int, growth: int, kernel: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        inner = 4 * growth
        self.narrow = nn.Sequential(
            LayerNorm(dim), nn.ReLU(), nn.Linear(dim, inner), LayerNorm(inner), nn.ReLU()
        )
        self.conv = GridConv(inner, growth, kernel)
        self.dropout = nn.Dropout(dropout)

    def init_state(self, batch: int, source_steps: int) -> Tensor:
        return self.conv.init_state(batch, source_steps)

    def forward(
        self, x: Tensor, state: State = None, *, valid: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, State]:
        y, state = self.conv(self.narrow(x), state, valid=valid, mask=mask)
        return torch.cat((x, self.dropout(y).to(x.dtype)), -1), state


class DenseGrid(nn.Module):
    """``layers`` dense layers and a norm: (B,U,S,dim) -> (B,U,S,dim + layers * growth).

    Cells of padding are zero wherever a neighbour could read them. ``width``: channels of the output. The
    state is the tuple of the layers' states. Raises :class:`UserError` for no layer or no growth.
    """

    def __init__(self, dim: int, *, growth: int, layers: int, kernel: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        if layers < 1 or growth < 1:
            raise UserError(f"layers and growth must be at least 1, got {layers} and {growth}.")
        self.layers = nn.ModuleList(
            DenseGridLayer(dim + i * growth, growth, kernel, dropout) for i in range(layers)
        )
        self.width = dim + layers * growth
        self.norm = LayerNorm(self.width)

    def init_state(self, batch: int, source_steps: int) -> tuple[Tensor, ...]:
        return tuple(layer.init_state(batch, source_steps) for layer in self.layers)

    def forward(
        self, x: Tensor, state: State = None, *, valid: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, State]:
        after: list[State] = []
        for layer, before in zip(self.layers, (None,) * len(self.layers) if state is None else state):
            x, now = layer(x, before, valid=valid, mask=mask)
            after.append(now)
        return self.norm(x), None if state is None else tuple(after)


class Aggregate(nn.Module, ABC):
    """Collapses the source axis: (B,U,S,C) -> (B,U,width). Elbayad et al. 2018, section 3.3.

    Source positions where ``valid`` (B,S) is False take no part. What share of a target row's vector comes
    from which source position is tapped as ``weights`` (B,U,S), the implicit alignment of section 4.5.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    @abstractmethod
    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor: ...

    def _biggest(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Maximum over s, channel by channel; weights: the share of channels that come from s."""
        if valid is not None:
            x = x.masked_fill(~valid[:, None, :, None], float("-inf"))
        best, where = x.max(2)
        if listening():
            shares = F.one_hot(where, x.shape[2]).to(best.dtype).mean(2)
            tap(self, "weights", shares)
        return best


class MaxOver(Aggregate):
    """max_s x_{u,s}, each channel for itself."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return self._biggest(x, valid)


class MeanOver(Aggregate):
    """mean_s x_{u,s} over the valid positions. Its weights are uniform."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        if valid is None:
            weights = x.new_full((x.shape[0], x.shape[2]), 1.0 / x.shape[2])
        else:
            weights = valid.to(x.dtype) / valid.sum(1, keepdim=True).clamp_min(1).to(x.dtype)
        if listening():
            tap(self, "weights", weights[:, None].expand(-1, x.shape[1], -1))
        return torch.einsum("bs,busc->buc", weights, _cells(x, valid))


class GatedMax(Aggregate):
    """max_s (a_{u,s} * sigmoid(b_{u,s})), [a, b] = W x + c: a gated linear unit and then the maximum.

    ``out``: channels of a and of b, as many as x has where left out. Raises :class:`UserError` for none.
    """

    def __init__(self, width: int, out: int | None = None) -> None:
        if out is not None and out < 1:
            raise UserError(f"gate must be at least 1, got {out}; leave it out for as many channels as the grid has.")
        super().__init__(out or width)
        self.gate = nn.Linear(width, 2 * self.width)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return self._biggest(F.glu(self.gate(x), -1), valid)


class AttentivePool(Aggregate):
    """sum_s a_{u,s} x_{u,s}, a_u = softmax_s(w . ReLU(W x_{u,s} + b)): one hop of self-attention."""

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__(width)
        hidden = hidden or width // 2
        self.score = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1, bias=False))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        x = _cells(x, valid)
        scores = self.score(x)[..., 0]
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None], float("-inf"))
        weights = tap(self, "weights", scores.softmax(-1))
        return torch.einsum("bus,busc->buc", weights.to(x.dtype), x)


AGGREGATES = {"max": MaxOver, "average": MeanOver, "gated-max": GatedMax, "attention": AttentivePool}
"""Aggregators by the name that a config uses."""
