"""pLSTM (Poeppel et al. 2025, arXiv 2506.11997): a linear recurrence over sequences, grids and acyclic graphs.

Every node makes a query, a key, a value and gates; a matrix stands on every edge::

    C_e = s_e k_n v_n^T + sum_e' t_(e,e') C_e'      for an edge e that leaves node n, over the edges e' that enter n
    y_n = (d_n k_n v_n^T + sum_e' m_e' C_e')^T q_n

On a path that is gated linear attention, and this page is the language model made of it: :class:`transduce.nn.PLSTM`.
:class:`transduce.nn.PLSTM2D` runs over a grid in four pairs of directions, :class:`transduce.nn.PLSTMGraph` along and
against the edges of a graph. Two ways to choose the gates keep long paths from exploding: each edge hands on exactly
what it has (P), or no two paths lead from one edge to another (D).

Simplified: numbers as transitions, no orthogonal matrices; gates read their own cell, without a convolution.
Added where the check labels pictures: GELU between a patch and its vector, convolutions over 3 by 3 cells, both without
biases, so that blank cells send nothing into the first layer; maxima over all cells, which more blank ones do not
change.

Claim: the recurrence is the sum over all paths; signals neither explode nor fade over a grid; and a network that says
on pictures of 48 pixels whether an arrow points at a disc still says it on 96, where a vision transformer of that
size does worse. ``transduce reproduce plstm`` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import mixer_language_model
from transduce.nn import PLSTM, FeedForward
from transduce.objectives import Likelihood
from transduce.search import Sample
from transduce.train import TrainConfig

from ._plstm_check import check


@dataclass(frozen=True)
class Config:
    dim: int = 128
    """Width of the embeddings and of each layer, a multiple of ``heads``."""
    layers: int = 2
    """Layers of the stack, each a pLSTM and a feedforward part."""
    heads: int = 4
    """Heads of a layer; each keeps a matrix of dim / heads by dim / heads."""
    dropout: float = 0.1
    """Dropout on embeddings and residual branches."""


@system(
    name="plstm",
    kind="text",
    title="pLSTM: linear recurrence over sequences, grids and graphs",
    paper="Poeppel et al. 2025, arXiv 2506.11997",
    reproduce=check,
)
def plstm(data: DataSpec, c: Config = Config()) -> System:
    stack = [PLSTM(c.dim, c.heads) for _ in range(c.layers)]
    wide = partial(FeedForward, c.dim, activation="swiglu")
    model = mixer_language_model(stack, data.target.size, c.dim, wide, dropout=c.dropout)
    search, plan = Sample(temperature=0.8, max_length=300), TrainConfig(learning_rate=3e-3, ema=0.998)
    return System(name="plstm", model=model, objective=Likelihood(), search=search, train=plan, config=c)
