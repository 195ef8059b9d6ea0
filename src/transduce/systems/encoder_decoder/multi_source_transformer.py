"""The multi-source Transformer (Libovický, Helcl and Mareček, WMT 2018, arXiv 1811.04716).

A source is made of K parts (versions of a sentence in several languages, a translation and its draft), joined
by the separator ``␟``. Each part has an encoder of its own, and every decoder layer reads the K memories E_k
in one of four ways, x the residual stream and q = norm(x)::

    serial         x <- x + drop(attend_k(norm_k(x), E_k)), for k = 1..K
    parallel       x <- x + sum_k drop(attend_k(q, E_k))
    flat           x <- x + drop(attend(q, [E_1; ..; E_K]))
    hierarchical   c_k = drop(attend_k(q, E_k)),   x <- x + drop(choose(q, [c_1..c_K]))

The rest is the pre-norm Transformer of the page ``transformer``. A part may be missing in a row (nothing
between two separators, or fewer of them): it then adds exactly nothing. ``source_dropout`` removes parts at
random while training. Data without a separator have one source; all four are then the plain Transformer
(hierarchical but for a second attention over one candidate).

Claim: all four use several sources and beat the best single one, and a wrong second source hurts them.
``transduce reproduce multi-source-transformer`` measures it on words to interleave, ``python -m
benchmarks.multi_source`` on synopses of Debian's packages, German and French to English.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from transduce.core.errors import UserError
from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.data.fields import SEPARATOR, TextField
from transduce.models import (
    EncoderDecoder,
    MixerDecoder,
    MultiSourceEncoder,
    MultiSourceLayer,
    SequenceEncoder,
)
from transduce.nn.attend import MultiHeadAttend
from transduce.nn.attention import Attention
from transduce.nn.embed import Embed, Head
from transduce.nn.feedforward import FeedForward
from transduce.nn.multi_attend import STRATEGIES
from transduce.nn.norm import LayerNorm
from transduce.nn.stack import transformer_encoder
from transduce.objectives import Likelihood
from transduce.search import Beam, Greedy, LengthPenalty, ratio
from transduce.train import TrainConfig

from ._multi_source_check import check


@dataclass(frozen=True)
class Config:
    sources: int = 2
    """How many parts a source has, where the data hold the separator at all."""
    cross: Literal["serial", "parallel", "flat", "hierarchical"] = "parallel"
    """How a decoder layer reads the memories of several parts."""
    share_encoder: bool = False
    """One encoder for all parts instead of one for each."""
    source_dropout: float = 0.0
    """Chance of a row to lose one of its parts while training."""
    dim: int = 192
    """Model width."""
    heads: int = 4
    """Attention heads."""
    encoder_layers: int = 2
    """Layers of each encoder."""
    decoder_layers: int = 2
    """Layers of the decoder."""
    feedforward: int = 768
    """Hidden width of the feedforward layers."""
    position: Literal["rotary", "sinusoidal", "relative", "alibi"] = "rotary"
    """How self-attention knows positions, which begin anew in each part."""
    dropout: float = 0.15
    """Dropout on embeddings, residual branches and feedforward layers."""
    label_smoothing: float = 0.1
    """Share of probability spread over all symbols in the loss."""


def separator_of(field: TextField, sources: int) -> int | None:
    """The id between parts, None for data that hold no separator; refuses bytes, which cut
    it up."""
    if sources < 1:
        raise UserError(f"--sources must be at least 1, got {sources}.")
    if sources > 1 and field.units == "bytes":
        raise UserError(
            "Sources made of parts are told apart by one symbol, which bytes cut up: split the source into "
            "chars, words or bpe, or give --sources 1."
        )
    return field.id_of(SEPARATOR) if sources > 1 else None


@system(
    name="multi-source-transformer",
    kind="pairs",
    title="Multi-source Transformer",
    paper="Libovický et al. 2018, arXiv 1811.04716",
    reproduce=check,
)
def multi_source_transformer(data: DataSpec, c: Config = Config()) -> System:
    separator = separator_of(data.source, c.sources)
    count = 1 if separator is None else c.sources
    norm, attend = partial(LayerNorm, c.dim), partial(MultiHeadAttend, c.dim, heads=c.heads)
    own = partial(Attention, c.dim, c.heads, position=c.position)
    widen = partial(FeedForward, c.dim, c.feedforward, dropout=c.dropout)
    stack = lambda: transformer_encoder(c.encoder_layers, c.dim, own, widen, c.dropout)
    encoder = lambda: SequenceEncoder(Embed(data.source.size, c.dim, scale=True), stack())
    encoders = [encoder()] * count if c.share_encoder else [encoder() for _ in range(count)]
    layers = [
        MultiSourceLayer(
            own(),
            norm,
            STRATEGIES[c.cross](count, attend, norm, c.dropout),
            widen(),
            c.dropout,
        )
        for _ in range(c.decoder_layers)
    ]
    target = nn.Sequential(Embed(data.target.size, c.dim, scale=True), nn.Dropout(c.dropout))
    length = ratio(2.0, 10)
    return System(
        name="multi-source-transformer",
        model=EncoderDecoder(
            MultiSourceEncoder(encoders, separator, c.source_dropout),
            MixerDecoder(target, layers, norm(), Head(c.dim, data.target.size)),
        ),
        objective=Likelihood(c.label_smoothing),
        search=Greedy(max_length=length),
        search_wide=Beam(width=5, max_length=length, length=LengthPenalty(1.0)),
        train=TrainConfig(learning_rate=1e-3, ema=0.998, warmup=0.1),
        config=c,
    )
