"""Retentive network (Sun et al. 2023, arXiv 2307.08621): linear attention that fades, one rate a head.

Each head keeps a matrix and no cache; q and k are rotated by their position n::

    S_n = gamma_h S_{n-1} + k_n v_n^T,   y_n = S_n^T q_n,   gamma_h = 1 - 2^(-5-h)
    x <- x + W_o (SiLU(W_g x) * rms_norm(y)),   x <- x + FFN(x),   both behind an RMS norm

The same numbers come out of all steps at once (training), of chunks, and of single steps whose cost does not depend on
how many came before (decoding).

Simplified: the three scalings that the authors' code puts into the retention itself are left out, since the norm of each
head takes them out again; the angles are those of rotary positions. Claim: the three forms are equal; a step costs as much
at position 16,384 as at 64, in time and in bytes, where attention's grow; head h remembers about 2^(5+h) steps.
``transduce reproduce retnet`` measures it, and what those scalings do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import mixer_language_model
from transduce.nn import FeedForward, Retention
from transduce.objectives import Likelihood
from transduce.search import Sample
from transduce.train import TrainConfig

from ._retnet_check import check


@dataclass(frozen=True)
class Config:
    dim: int = 256
    """Width of the embeddings and of each layer."""
    layers: int = 4
    """Retention layers, each with a feedforward layer behind it."""
    heads: int = 4
    """Heads of each layer; head h forgets a share of 2^(-5-h) a step."""
    expansion: int = 2
    """How much wider a value is than a key."""
    dropout: float = 0.1
    """Dropout on embeddings and residual branches."""


@system(
    name="retnet",
    kind="text",
    title="Retentive network",
    paper="Sun et al. 2023, arXiv 2307.08621",
    reproduce=check,
)
def retnet(data: DataSpec, c: Config = Config()) -> System:
    return System(
        name="retnet",
        model=mixer_language_model(
            [Retention(c.dim, c.heads, expansion=c.expansion) for _ in range(c.layers)],
            data.target.size,
            c.dim,
            partial(FeedForward, c.dim, activation="swiglu", bias=False),
            dropout=c.dropout,
        ),
        objective=Likelihood(),
        search=Sample(temperature=0.8, max_length=300),
        train=TrainConfig(learning_rate=2e-3, ema=0.998),
        config=c,
    )
