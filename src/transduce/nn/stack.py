"""Stacks of layers that several systems use."""

from __future__ import annotations

from functools import partial
from typing import Callable, Sequence

from torch import nn

from transduce.core.protocols import Mixer

from .attention import Attention
from .combine import Pointwise, Residual, Serial
from .norm import LayerNorm


def transformer_encoder(
    layers: int,
    dim: int,
    attention: Callable[..., Mixer],
    feedforward: Callable[[], nn.Module],
    dropout: float = 0.0,
) -> Mixer:
    """x <- x + MHSA(LN x), x <- x + FFN(LN x), ``layers`` times, LN at the end: (B,T,dim) -> (B,T,dim), not causal.

    ``attention(causal=False)`` makes MHSA, ``feedforward()`` FFN. Source: Vaswani et al. 2017 (arXiv 1706.03762),
    section 3, with the norms in front (Xiong et al. 2020, arXiv 2002.04745).
    """
    norm, parts = partial(LayerNorm, dim), [Pointwise(nn.Dropout(dropout))]
    for _ in range(layers):
        parts.append(Residual(attention(causal=False), norm=norm(), dropout=dropout))
        parts.append(Residual(Pointwise(feedforward()), norm=norm(), dropout=dropout))
    return Serial(*parts, Pointwise(norm()))


def mixer_stack(
    mixers: Sequence[Mixer],
    dim: int,
    feedforward: Callable[[], nn.Module] | None = None,
    *,
    norm: Callable[[int], nn.Module] = LayerNorm,
    dropout: float = 0.0,
) -> Mixer:
    """x <- x + mixer(norm(x)), x <- x + feedforward(norm(x)) for each mixer, and a norm at the end.

    (B,T,dim) -> (B,T,dim), causal where all mixers are. ``feedforward()`` makes the part over channels; None leaves
    those branches out.
    """
    parts: list[Mixer] = []
    for mixer in mixers:
        parts.append(Residual(mixer, norm=norm(dim), dropout=dropout))
        if feedforward is not None:
            parts.append(Residual(Pointwise(feedforward()), norm=norm(dim), dropout=dropout))
    return Serial(*parts, Pointwise(norm(dim)))


def swan_mixers(
    layers: int,
    dim: int,
    heads: int = 4,
    *,
    window: int,
    every: int = 4,
    logit_growth: tuple[float, int] | None = None,
) -> list[Mixer]:
    """Attention layers for texts longer than those of training: one of ``every`` sees the whole past without positions,
    the others the last ``window`` steps with rotary ones, the first layer being of the first kind.

    No layer ever meets a distance that it was not trained on, and only one of ``every`` keeps more than a window.
    ``logit_growth`` acts in the layers without a window, see :class:`~transduce.nn.attention.Attention`. Source: Puvvada
    et al. 2025, SWAN-GPT (arXiv 2504.08719, section 3), whose ratio is one of four.
    """
    return [
        Attention(dim, heads, window=window)
        if i % every
        else Attention(dim, heads, position=None, logit_growth=logit_growth)
        for i in range(layers)
    ]
