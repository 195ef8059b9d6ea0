"""Block-diagonal linear RNN for regular languages (Fan, Chi and Rudnicky 2024, arXiv 2309.07412): what it can count.

The state is cut into blocks, and the input chooses the matrix that acts on each of them::

    h_t = A(x_t) h_{t-1} + v(x_t),   A = blockdiag(A_1 .. A_H), each b by b, h_0 learned

A diagonal A in (0, 1) forgets, and diagonal matrices commute, so neither order nor a count that goes round survives a
long word; a block can be a permutation, which does both. ``blocks`` says what A may be: "p-norm" (as published: centred
columns, divided by the largest 1.2-norm of a column), "orthogonal" (Cayley transform of a skew matrix) or "stochastic"
(each column a softmax, no v: a finite automaton in superposition).

Simplified: the published network has a norm, the layer, a norm and an MLP, no residual around the last layer; here that
is so in the check (without norms for stochastic blocks), while the language model is an ordinary pre-norm stack with a
feedforward part a layer.

Claim: trained on words of 40 symbols, the layer labels words of 500 (running sum mod 5; is this symbol the first one
again?), where diagonal layers do not get beyond chance. The check trains stochastic blocks, which get there within its
budget, and reports the published p-norm under the same budget. ``transduce reproduce regular-lrnn`` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import mixer_language_model
from transduce.nn import BlockLRNN, FeedForward, OrthogonalBlocks, PNormBlocks, StochasticBlocks
from transduce.objectives import Likelihood
from transduce.search import Sample
from transduce.train import TrainConfig

from ._regular_lrnn_check import check

BLOCKS = {"p-norm": PNormBlocks, "orthogonal": OrthogonalBlocks, "stochastic": StochasticBlocks}


@dataclass(frozen=True)
class Config:
    dim: int = 128
    """Width of the embeddings and of each layer, a multiple of ``size``."""
    layers: int = 2
    """Layers of the stack."""
    size: int = 8
    """Rows and columns of a block."""
    blocks: Literal["p-norm", "orthogonal", "stochastic"] = "p-norm"
    """What the transition of a block may be."""
    dropout: float = 0.1
    """Dropout on embeddings and residual branches."""


@system(
    name="regular-lrnn",
    kind="text",
    title="Block-diagonal linear RNN for regular languages",
    paper="Fan et al. 2024, arXiv 2309.07412",
    reproduce=check,
)
def regular_lrnn(data: DataSpec, c: Config = Config()) -> System:
    layer = partial(BlockLRNN, c.dim, size=c.size, blocks=BLOCKS[c.blocks])
    model = mixer_language_model(
        [layer() for _ in range(c.layers)],
        data.target.size,
        c.dim,
        partial(FeedForward, c.dim, 2 * c.dim),
        dropout=c.dropout,
    )
    return System(
        name="regular-lrnn",
        model=model,
        objective=Likelihood(),
        search=Sample(temperature=0.8, max_length=300),
        train=TrainConfig(learning_rate=2e-3),
        config=c,
    )
