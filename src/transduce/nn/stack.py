"""Stacks of layers that several systems use."""

from __future__ import annotations

from functools import partial

from torch import nn

from transduce.core.protocols import Mixer

from .attention import Attention
from .combine import Pointwise, Residual, Serial
from .feedforward import FeedForward
from .norm import LayerNorm


def transformer_encoder(
    layers: int, dim: int, heads: int, feedforward: int, *, position: str | None = "rotary", dropout: float = 0.0
) -> Mixer:
    """x <- x + MHSA(LN x), x <- x + FFN(LN x), ``layers`` times, LN at the end: (B,T,dim) -> (B,T,dim), not causal.

    ``feedforward``: hidden width of FFN. ``position``: as :class:`Attention` takes it. Source: Vaswani et al. 2017
    (arXiv 1706.03762), section 3, with the norms in front (Xiong et al. 2020, arXiv 2002.04745).
    """
    norm, parts = partial(LayerNorm, dim), [Pointwise(nn.Dropout(dropout))]
    for _ in range(layers):
        attention = Attention(dim, heads, position=position, causal=False)
        parts.append(Residual(attention, norm=norm(), dropout=dropout))
        widened = Pointwise(FeedForward(dim, feedforward, dropout=dropout))
        parts.append(Residual(widened, norm=norm(), dropout=dropout))
    return Serial(*parts, Pointwise(norm()))
