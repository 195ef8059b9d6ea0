"""A recurrent language model (Mikolov et al. 2010; gated as in Cho et al. 2014): p(y) = prod_u p(y_u |
h_{u-1}, y_{u-1}).

Embedding, a stack of residual GRU layers and a head. Its state has a fixed size, so text of any length is
continued at constant cost a symbol. Any other mixer fits in its place: ``examples`` in docs/mixers.md swap
one in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import DecoderLayer, LanguageModel, MixerDecoder
from transduce.nn.embed import Embed, Head
from transduce.nn.norm import LayerNorm
from transduce.nn.recurrent import GRU
from transduce.objectives import Likelihood
from transduce.search import Sample
from transduce.train import TrainConfig


@dataclass(frozen=True)
class Config:
    dim: int = 256
    """Width of the embeddings and of each layer."""
    layers: int = 2
    """GRU layers, each residual behind a norm."""
    dropout: float = 0.1
    """Dropout on embeddings and residual branches."""


@system(name="gru-lm", kind="text", title="GRU language model", paper="Cho et al. 2014, arXiv 1406.1078")
def gru_lm(data: DataSpec, c: Config = Config()) -> System:
    norm = partial(LayerNorm, c.dim)
    decoder = MixerDecoder(
        nn.Sequential(Embed(data.target.size, c.dim), nn.Dropout(c.dropout)),
        [DecoderLayer(GRU(c.dim), norm, dropout=c.dropout) for _ in range(c.layers)],
        norm(),
        Head(c.dim, data.target.size),
    )
    return System(
        name="gru-lm",
        model=LanguageModel(decoder),
        objective=Likelihood(),
        search=Sample(temperature=0.8, max_length=300),
        train=TrainConfig(learning_rate=3e-3, ema=0.998),
        config=c,
    )
