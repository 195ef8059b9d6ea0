"""Classic recurrent networks with heads and a hand-written backward (Pöppel et al. 2024, "FlashRNN", arXiv 2412.07752)::

    g_t = W x_t + b + R h_{t-1},   R block-diagonal: a head of the state reads itself only
    states_t = pointwise(states_{t-1}, g_t)          Elman, GRU, LSTM or sLSTM

The input product is one matrix product for all time; the loop keeps states and gates, and backward walks them once with
one small product a step and a single large one for the gradient of R (:mod:`transduce.ops.rnn`,
:mod:`transduce.ops.slstm`). Heads do not see each other, so the layers around must mix them: here a gated MLP.

Simplified: CPU kernels instead of CUDA; the paper's two GPU variants and its Triton kernel are not here. Its tuner of
tile sizes is :mod:`transduce.ops.tuner`.

Claim: states and gradients of all four cells are those of a plain loop; one head of the LSTM is ``torch.nn.LSTM``; at
least 2.5 times as fast as automatic differentiation of the loop, without a compiler; parity is tracked far beyond the
trained lengths, where a linear scan with positive eigenvalues guesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import mixer_language_model
from transduce.nn import GRU, LSTM, SLSTM, Elman
from transduce.nn.feedforward import FeedForward
from transduce.objectives import Likelihood
from transduce.search import Sample
from transduce.train import TrainConfig

from ._flashrnn_check import check

LAYERS = {"elman": Elman, "gru": GRU, "lstm": LSTM, "slstm": SLSTM}


@dataclass(frozen=True)
class Config:
    dim: int = 192
    """Width of the residual stream and of the state."""
    layers: int = 2
    """Blocks of a recurrence and a gated MLP."""
    cell: str = "slstm"
    """"elman", "gru", "lstm" or "slstm"."""
    heads: int = 4
    """Blocks of the recurrent weights; ``dim`` is a multiple of it."""
    dropout: float = 0.1
    """Dropout on embeddings and residual branches."""


@system(
    name="flashrnn",
    kind="text",
    title="FlashRNN: Elman, GRU, LSTM and sLSTM with heads and a hand-written backward",
    paper="Pöppel et al. 2024, arXiv 2412.07752",
    reproduce=check,
)
def flashrnn(data: DataSpec, c: Config = Config()) -> System:
    if c.cell not in LAYERS:
        raise ValueError(f'cell is one of {", ".join(LAYERS)}, not "{c.cell}"')
    model = mixer_language_model(
        [LAYERS[c.cell](c.dim, heads=c.heads) for _ in range(c.layers)],
        data.target.size,
        c.dim,
        partial(FeedForward, c.dim, 2 * c.dim, activation="swiglu"),
        dropout=c.dropout,
    )
    search = Sample(temperature=0.8, max_length=300)
    plan = TrainConfig(learning_rate=3e-3, ema=0.998)
    return System(name="flashrnn", model=model, objective=Likelihood(), search=search, train=plan, config=c)
