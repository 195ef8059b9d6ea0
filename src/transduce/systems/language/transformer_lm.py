"""A causal Transformer language model (Vaswani et al. 2017; Radford et al. 2018), pre-norm, rotary positions.

``window`` bounds attention to the last W symbols: the state then has a fixed size and text of any length is
continued at constant cost; without it the key-value cache grows with the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import DecoderLayer, LanguageModel, MixerDecoder
from transduce.nn.attention import Attention
from transduce.nn.embed import Embed, Head
from transduce.nn.feedforward import FeedForward
from transduce.nn.norm import LayerNorm
from transduce.objectives import Likelihood
from transduce.search import Sample
from transduce.train import TrainConfig


@dataclass(frozen=True)
class Config:
    dim: int = 192
    """Model width."""
    heads: int = 4
    """Attention heads."""
    layers: int = 4
    """Decoder layers."""
    feedforward: int = 768
    """Hidden width of the feedforward layers."""
    window: int | None = None
    """Attend to this many last symbols only; None for all of them."""
    dropout: float = 0.1
    """Dropout on embeddings, residual branches and feedforward layers."""


@system(
    name="transformer-lm",
    kind="text",
    title="Transformer language model",
    paper="Vaswani et al. 2017, arXiv 1706.03762",
)
def transformer_lm(data: DataSpec, c: Config = Config()) -> System:
    norm = partial(LayerNorm, c.dim)
    embed = Embed(data.target.size, c.dim, scale=True)
    layers = [
        DecoderLayer(
            Attention(c.dim, c.heads, window=c.window),
            norm,
            feedforward=FeedForward(c.dim, c.feedforward, dropout=c.dropout),
            dropout=c.dropout,
        )
        for _ in range(c.layers)
    ]
    return System(
        name="transformer-lm",
        model=LanguageModel(
            MixerDecoder(
                nn.Sequential(embed, nn.Dropout(c.dropout)), layers, norm(), Head(c.dim, data.target.size)
            )
        ),
        objective=Likelihood(),
        search=Sample(temperature=0.8, max_length=300),
        train=TrainConfig(learning_rate=1e-3, ema=0.998),
        config=c,
    )
