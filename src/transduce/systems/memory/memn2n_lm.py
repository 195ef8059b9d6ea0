"""The language model of end-to-end memory networks (Sukhbaatar et al., NIPS 2015, arXiv 1503.08895, section 5).

There is no question and there are no sentences: each of the ``capacity`` symbols before is one memory, and what is
sought starts as the constant 0.1. Keys and values are the same in all hops, so that it is a recurrent network over hops
whose input is read by attention::

    p = softmax_i(u . (A x_i + T_A(i))),   u <- H u + sum_i p_i (C x_i + T_C(i)),   half of u through a ReLU
    p(y) = softmax(W u + b)

Simplified: Adam. The state is the last ``capacity`` symbols, so text of any length goes on at constant cost.
"""

from __future__ import annotations

from dataclasses import dataclass

from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import LanguageModel, RecentDecoder
from transduce.nn.embed import Head
from transduce.nn.memory import RecentHops
from transduce.objectives import Likelihood
from transduce.search import Sample
from transduce.train import TrainConfig


@dataclass(frozen=True)
class Config:
    dim: int = 150
    """Width of the memories and of what is sought."""
    hops: int = 5
    """How often the memory is read for each symbol."""
    capacity: int = 100
    """Symbols before that are remembered."""


@system(
    name="memn2n-lm",
    kind="text",
    title="Memory network language model: hops over the recent symbols",
    paper="Sukhbaatar et al. 2015, arXiv 1503.08895",
)
def memn2n_lm(data: DataSpec, c: Config = Config()) -> System:
    hops = RecentHops(data.target.size, c.dim, hops=c.hops, capacity=c.capacity)
    return System(
        name="memn2n-lm",
        model=LanguageModel(RecentDecoder(hops, Head(c.dim, data.target.size))),
        objective=Likelihood(),
        search=Sample(temperature=0.8, max_length=300),
        train=TrainConfig(learning_rate=3e-3, ema=0.998),
        config=c,
    )
