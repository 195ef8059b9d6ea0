"""The linear recurrent unit as a language model (Orvieto et al., ICML 2023, arXiv 2303.06349).

A recurrent network without a nonlinearity between steps, with a complex diagonal transition that cannot explode::

    h_t = lambda * h_{t-1} + gamma * (B x_t),   y_t = Re(C h_t) + d * x_t,   lambda = exp(-exp(nu) + i exp(theta))
    layer(x) = x + GLU(gelu(LRU(norm x)))

|lambda| starts in a ring near one and gamma = sqrt(1 - |lambda|^2), so that the past is kept and no mode drowns the
others. nu, theta and gamma are learned at a quarter of the rate, without weight decay.

Simplified: layer norm, never batch norm; B decays like other matrices. The state is two numbers a mode and the same at
every position. Claim: on digits read pixel by pixel, the ring and gamma are worth at least 15 points of accuracy over
the same network begun without them, and 25 over a tanh network. ``transduce reproduce lru`` measures it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import mixer_language_model
from transduce.nn.norm import LayerNorm
from transduce.nn.ssm import lru_block
from transduce.objectives import Likelihood
from transduce.search import Sample
from transduce.train import TrainConfig

from ._lru_check import check


@dataclass(frozen=True)
class Config:
    dim: int = 192
    """Width of embeddings and layers."""
    layers: int = 3
    """LRU layers."""
    modes: int = 192
    """Complex modes of each layer's state."""
    shortest: float = 0.6
    """Least modulus of lambda at the start."""
    longest: float = 0.999
    """Largest modulus of lambda at the start; a mode forgets in about 1 / (1 - modulus) symbols."""
    max_phase: float = 2 * math.pi
    """Largest turn of a mode in one step at the start, in radians."""
    dropout: float = 0.1
    """Dropout on embeddings, branches and inside them."""


@system(
    name="lru",
    kind="text",
    title="Linear recurrent unit language model",
    paper="Orvieto et al. 2023, arXiv 2303.06349",
    reproduce=check,
)
def lru(data: DataSpec, c: Config = Config()) -> System:
    ring = c.shortest, c.longest
    layers = [
        lru_block(c.dim, c.modes, ring=ring, max_phase=c.max_phase, dropout=c.dropout) for _ in range(c.layers)
    ]
    return System(
        name="lru",
        model=mixer_language_model(layers, data.target.size, c.dim, norm=LayerNorm, dropout=c.dropout),
        objective=Likelihood(),
        search=Sample(temperature=0.8, max_length=300),
        train=TrainConfig(learning_rate=4e-3, ema=0.998),
        config=c,
    )
