"""The Transformer (Vaswani et al., NeurIPS 2017, arXiv 1706.03762), pre-norm.

Encoder layer: x + MHSA(norm x), then x + FFN(norm x). Decoder layer: causal self-attention, attention to
the encoder's memory, FFN, each behind a norm and a residual. ``attention(Q,K,V) = softmax(Q K^T / sqrt(d))
V`` in several heads.

Changed: norms stand in front of each part (Xiong et al. 2020), and positions are rotary by default
(``position="sinusoidal"`` takes the paper's codes). The target's input and output embeddings are not tied:
for the small vocabularies of characters and phonemes that start costs ten nats a symbol and saves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import DecoderLayer, EncoderDecoder, MixerDecoder, SequenceEncoder
from transduce.nn.attend import MultiHeadAttend
from transduce.nn.attention import Attention
from transduce.nn.embed import Embed, Head
from transduce.nn.feedforward import FeedForward
from transduce.nn.norm import LayerNorm
from transduce.nn.stack import transformer_encoder
from transduce.objectives import Likelihood
from transduce.search import Beam, Greedy, LengthPenalty, ratio
from transduce.train import TrainConfig


@dataclass(frozen=True)
class Config:
    dim: int = 192
    """Model width."""
    heads: int = 4
    """Attention heads."""
    encoder_layers: int = 3
    """Layers of the encoder."""
    decoder_layers: int = 3
    """Layers of the decoder."""
    feedforward: int = 768
    """Hidden width of the feedforward layers."""
    position: Literal["rotary", "sinusoidal", "relative", "alibi"] = "rotary"
    """How self-attention knows positions."""
    dropout: float = 0.15
    """Dropout on embeddings, residual branches and feedforward layers."""
    label_smoothing: float = 0.1
    """Share of probability spread over all symbols in the loss."""
    beam: int = 5
    """Width of the beam where beam search is asked for."""


@system(
    name="transformer",
    kind="pairs",
    title="Transformer encoder-decoder",
    paper="Vaswani et al. 2017, arXiv 1706.03762",
)
def transformer(data: DataSpec, c: Config = Config()) -> System:
    norm = partial(LayerNorm, c.dim)
    attention = partial(Attention, c.dim, c.heads, position=c.position)
    feedforward = partial(FeedForward, c.dim, c.feedforward, dropout=c.dropout)
    target = Embed(data.target.size, c.dim, scale=True)
    layers = [
        DecoderLayer(
            attention(),
            norm,
            MultiHeadAttend(c.dim, c.dim, heads=c.heads),
            feedforward(),
            c.dropout,
        )
        for _ in range(c.decoder_layers)
    ]
    decoder = MixerDecoder(
        nn.Sequential(target, nn.Dropout(c.dropout)), layers, norm(), Head(c.dim, data.target.size)
    )
    source = Embed(data.source.size, c.dim, scale=True)
    stack = transformer_encoder(c.encoder_layers, c.dim, attention, feedforward, c.dropout)
    length = ratio(2.0, 10)
    return System(
        name="transformer",
        model=EncoderDecoder(SequenceEncoder(source, stack), decoder),
        objective=Likelihood(c.label_smoothing),
        search=Greedy(max_length=length),
        search_wide=Beam(width=c.beam, max_length=length, length=LengthPenalty(1.0)),
        train=TrainConfig(learning_rate=1e-3, ema=0.998, warmup=0.1),
        config=c,
    )
