"""ByteNet: neural machine translation in linear time (Kalchbrenner et al. 2016, arXiv 1610.10099).

A stack of centred dilated convolutions reads the source, and a stack of causal ones stands on its outputs,
position by position, without attention::

    |t^| = a |s| + b,   s_1 .. s_|t^| = encoder(source, padded to |t^|),   s_t = 0 beyond
    p(y_t | y_<t, s) = head(decoder([E y_1; s_2], .., [E y_{t-1}; s_t]))

Every block is x + leave(conv(enter(x))) with norms over channels only (:mod:`transduce.nn.bytenet`); with
dilations 1, 2, 4, 8, 16 in n sets an output reads 1 + 31 (k-1) n steps. Decoding goes on past |t^| until EOS,
and a step costs the same wherever it is: each block keeps its last (k-1) * dilation inputs.

Simplified: symbols where the paper embeds character n-grams; one set of blocks by default, enough for words
(its 6 sets are ``--sets 6``). Added: dropout, label smoothing, weight averaging. Claim: linear time, and
character translation without attention beats a recurrent encoder-decoder without attention; its language
model is the page ``bytenet-lm``. ``transduce reproduce bytenet`` measures that.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import EncoderDecoder, StackedDecoder, UnfoldingEncoder
from transduce.nn.bytenet import dilated_stack
from transduce.nn.combine import Pointwise, Serial
from transduce.nn.embed import Embed, Head
from transduce.objectives import Likelihood
from transduce.search import Beam, Greedy, LengthPenalty, ratio
from transduce.train import TrainConfig

from ._bytenet_check import check


@dataclass(frozen=True)
class Config:
    width: int = 256
    """Residual width of both stacks, twice the width inside a block."""
    sets: int = 1
    """How often the dilations are gone through, on each side."""
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Steps between taps, block by block."""
    kernel: int = 3
    """Taps of each convolution."""
    stretch: float = 1.2
    """a: memory steps for each source symbol, about as many as a source symbol has target symbols."""
    offset: int = 0
    """b: further memory steps."""
    dropout: float = 0.1
    """Dropout on embeddings, residual branches and readout."""
    label_smoothing: float = 0.1
    """Share of probability spread over all symbols in the loss."""


@system(
    name="bytenet",
    kind="pairs",
    title="ByteNet, stacked dilated convolutions",
    paper="Kalchbrenner et al. 2016, arXiv 1610.10099",
    reproduce=check,
)
def bytenet(data: DataSpec, c: Config = Config()) -> System:
    stack = lambda causal: dilated_stack(
        c.width, causal=causal, kernel=c.kernel, dilations=c.dilations, sets=c.sets, dropout=c.dropout
    )
    encoder = UnfoldingEncoder(
        Embed(data.source.size, c.width),
        Serial(Pointwise(nn.Dropout(c.dropout)), stack(causal=False)),
        stretch=c.stretch,
        offset=c.offset,
    )
    decoder = StackedDecoder(
        Embed(data.target.size, c.width),
        stack(causal=True),
        Head(c.width, data.target.size),
        embed_width=c.width,
        width=c.width,
        memory_width=c.width,
        dropout=c.dropout,
    )
    length = ratio(2.0, 10)
    return System(
        name="bytenet",
        model=EncoderDecoder(encoder, decoder),
        objective=Likelihood(c.label_smoothing),
        search=Greedy(max_length=length),
        search_wide=Beam(width=12, max_length=length, length=LengthPenalty(1.0)),
        train=TrainConfig(learning_rate=2e-3, ema=0.998, batch_symbols=4096),
        config=c,
    )
