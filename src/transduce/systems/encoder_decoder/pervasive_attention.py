"""Pervasive attention: 2-D convolutional networks for sequence-to-sequence prediction (Elbayad et al., CoNLL
2018, arXiv 1808.03867).

No encoder and no attention: one network over the grid of all pairs of a target and a source position::

    X[u, s] = [E_x x_s ; E_y y_{u-1}],   H = DenseNet(X),   p(y_u | y_<u, x) = head(W max_s H[u, s])

Its k x k convolutions are masked in every layer, so that row u never sees rows beyond it; cells of padding
are zeroed wherever a neighbour reads them. The share of channels whose maximum comes from s is an alignment
that nobody trained (``transduce fit`` draws it). Decoding keeps the last k//2 rows of each layer and computes
one row a step.

Simplified: the norms are over the channels of a cell instead of over the batch (:mod:`transduce.nn.grid` says
why). Claim: no worse than a recurrent encoder-decoder with attention that has 1.3 times as many parameters,
after as many passes over 12,000 words of the CMU dictionary. ``transduce reproduce pervasive-attention``
measures it.

Long pairs cost memory and time for all their cells: ``batch_cells`` limits source times target symbols in a
batch, ``longest`` leaves long pairs out of the training, which is what lets it learn a translation in an hour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transduce.core.errors import UserError
from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import EncoderDecoder, GridDecoder, SequenceEncoder
from transduce.nn.embed import Embed, Head
from transduce.nn.grid import AGGREGATES, DenseGrid
from transduce.objectives import Likelihood
from transduce.search import Beam, Greedy, LengthPenalty, ratio
from transduce.train import TrainConfig

from ._pervasive_check import check


@dataclass(frozen=True)
class Config:
    embed: int = 48
    """Width of the symbol embeddings on either side."""
    layers: int = 8
    """Dense layers."""
    growth: int = 24
    """Channels that each layer adds."""
    kernel: int = 3
    """Side of the convolutions' kernel, odd."""
    aggregate: Literal["max", "average", "gated-max", "attention"] = "max"
    """How the source axis is collapsed."""
    gate: int | None = None
    """Channels of the gated maximum (aggregate="gated-max"), as many as the grid's where left out."""
    tied: bool = True
    """Use the target embedding as the output matrix."""
    dropout: float = 0.1
    """Dropout on the embeddings, on each layer's new channels and on the readout."""
    label_smoothing: float = 0.1
    """Share of probability spread over all symbols in the loss."""


@system(
    name="pervasive-attention",
    kind="pairs",
    title="Pervasive attention, a convolutional grid",
    paper="Elbayad et al. 2018, arXiv 1808.03867",
    reproduce=check,
)
def pervasive_attention(data: DataSpec, c: Config = Config()) -> System:
    grid = DenseGrid(2 * c.embed, growth=c.growth, layers=c.layers, kernel=c.kernel, dropout=c.dropout)
    source = Embed(data.source.size, c.embed, scale=True)
    target = Embed(data.target.size, c.embed, scale=True)
    if c.gate is not None and c.aggregate != "gated-max":
        raise UserError('gate is for aggregate="gated-max"; leave it out, or choose that.')
    aggregate = AGGREGATES[c.aggregate](grid.width, *([] if c.gate is None else [c.gate]))
    decoder = GridDecoder(
        target,
        grid,
        aggregate,
        Head(c.embed, data.target.size, tied=target if c.tied else None),
        readout=c.embed,
        dropout=c.dropout,
    )
    length = ratio(2.0, 10)
    return System(
        name="pervasive-attention",
        model=EncoderDecoder(SequenceEncoder(source), decoder),
        objective=Likelihood(c.label_smoothing),
        search=Greedy(max_length=length),
        search_wide=Beam(width=5, max_length=length, length=LengthPenalty(1.0)),
        train=TrainConfig(learning_rate=3e-3, ema=0.998, batch_symbols=2048, batch_cells=16384),
        config=c,
    )
