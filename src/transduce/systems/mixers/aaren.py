"""Attention as a recurrent network (Feng et al. 2024, arXiv 2405.13956): softmax attention with a state of constant size.

Each head has one query, a parameter, that is the same for every position and input. So a new token changes what is
remembered of the past by one merge, and the past itself need not be kept::

    s_i = q . k_i / sqrt(K),   y_t = sum_{i<=t} e^{s_i} v_i / sum_{i<=t} e^{s_i}
    state (m, u, w): m <- max(m, s_t), u and w <- each times e^{m_old - m_new}, plus e^{s_t - m_new} (1, v_t)

All prefixes together cost one pass over the data, a step costs the same at every position. Each layer is a weighted
mean of an unordered past: order has to come from the positions that are added in front, or from the layers below.

Simplified: a character model instead of the paper's decision sequences, event and time series. Claims: whole, stepped
and masked-softmax forms agree to 1e-12 for scores of any size; bytes and time of a step do not grow with the text,
where a cache of keys and values does; and a query made from the token, which would break this, is refused.
``transduce reproduce aaren`` measures all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import mixer_language_model
from transduce.nn.aaren import Aaren
from transduce.nn.combine import Serial
from transduce.nn.convolution import CausalConv
from transduce.nn.feedforward import FeedForward
from transduce.objectives import Likelihood
from transduce.search import Sample
from transduce.train import TrainConfig

from ._aaren_check import check


@dataclass(frozen=True)
class Config:
    dim: int = 192
    """Model width."""
    heads: int = 6
    """Learned queries of each layer."""
    layers: int = 4
    """Layers of attention and feedforward."""
    kernel: int = 4
    """Symbols that a causal convolution in front of each attention sees, so that it knows their order; 1 leaves it out."""
    dropout: float = 0.1
    """Dropout on embeddings and residual branches."""


def time_mixer(c: Config) -> nn.Module:
    """The part over time of one layer."""
    attention = Aaren(c.dim, c.heads)
    return attention if c.kernel == 1 else Serial(CausalConv(c.dim, c.kernel), attention)


@system(
    name="aaren",
    kind="text",
    title="Aaren: attention with a learned query, a state of constant size",
    paper="Feng et al. 2024, arXiv 2405.13956",
    reproduce=check,
)
def aaren(data: DataSpec, c: Config = Config()) -> System:
    model = mixer_language_model(
        [time_mixer(c) for _ in range(c.layers)],
        data.target.size,
        c.dim,
        lambda: FeedForward(c.dim, dropout=c.dropout),
        dropout=c.dropout,
    )
    return System(
        name="aaren",
        model=model,
        objective=Likelihood(),
        search=Sample(temperature=0.8, max_length=300),
        train=TrainConfig(learning_rate=2e-3, ema=0.998),
        config=c,
    )
