"""HGRN, the hierarchically gated recurrent network (Qin et al., NeurIPS 2023, arXiv 2311.04823), as a language model.

A linear recurrence whose forget gate has a lower bound, learned, and higher in every layer than in the one below: low
layers look at what is near, high ones must remember::

    lambda_t = gamma^k + (1 - gamma^k) * sigmoid(W x_t),   gamma^k = P_1 + .. + P_(k-1),   P = softmax over layers
    h_t = lambda_t e^(i theta) * h_{t-1} + (1 - lambda_t) * SiLU(C x_t)
    layer: x <- x + W_o (LN(h) * SiLU(G x)),   x <- x + SwiGLU(x),   each behind a norm

No positions are added: the phases theta tell the order. The state of a layer is one complex vector.

Simplified: nothing of the mixer; one learning rate for all parameters. Claim: with the bound the network learns to
recall the first of 40 symbols, without it (gamma = 0) the same network does not. ``transduce reproduce hgrn``
measures that, and that whole, chunked and stepped forms agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import mixer_language_model
from transduce.nn.feedforward import FeedForward
from transduce.nn.hgrn import HGRU, LowerBounds
from transduce.objectives import Likelihood
from transduce.search import Sample
from transduce.train import TrainConfig

from ._hgrn_check import check


@dataclass(frozen=True)
class Config:
    dim: int = 192
    """Model width, and that of the state."""
    layers: int = 4
    """Layers, each a recurrence and a feedforward part."""
    bounded: bool = True
    """Bound the forget gates from below, more with every layer; else all bounds are zero."""
    rotating: bool = True
    """Complex states that turn by a learned angle a step; else real ones."""
    order: Literal["norm-gate", "gate-norm"] = "norm-gate"
    """Whether the state is normed before the output gate or behind it."""
    dropout: float = 0.1
    """Dropout on embeddings and residual branches."""


def hgrn_layers(c: Config) -> list[HGRU]:
    """The recurrences of all layers, lowest first; they share one module of bounds."""
    bounds = LowerBounds(c.layers, c.dim) if c.bounded else None
    return [
        HGRU(
            c.dim,
            bound=None if bounds is None else bounds.layer(k),
            rotating=c.rotating,
            order=c.order,
        )
        for k in range(c.layers)
    ]


@system(
    name="hgrn",
    kind="text",
    title="HGRN: forget gates bounded from below, more in higher layers",
    paper="Qin et al. 2023, arXiv 2311.04823",
    reproduce=check,
)
def hgrn(data: DataSpec, c: Config = Config()) -> System:
    feedforward = partial(FeedForward, c.dim, 2 * c.dim, activation="swiglu")
    return System(
        name="hgrn",
        model=mixer_language_model(hgrn_layers(c), data.target.size, c.dim, feedforward, dropout=c.dropout),
        objective=Likelihood(),
        search=Sample(temperature=0.8, max_length=300),
        train=TrainConfig(learning_rate=3e-3, ema=0.998),
        config=c,
    )
