"""minGRU and minLSTM (Feng et al. 2024, "Were RNNs All We Needed?", arXiv 2410.01201) as a language model.

The gates of a GRU without the state in them, so that the state is a weighted sum that a scan computes::

    minGRU    z_t = sigmoid(W_z x_t)               h_t = (1 - z_t) * h_{t-1} + z_t * (W_h x_t)
    minLSTM   f, i = sigmoid(W_f x_t, W_i x_t)     h_t = (f * h_{t-1} + i * (W_h x_t)) / (f + i)
    layer     x <- x + project(minRNN(conv_4(norm x))),   x <- x + MLP(norm x)

What one layer cannot decide, because its gates do not see its state, a second layer can: its gates see the first one's.

Simplified: trained and decoded by the plain recurrence, since the paper's form in logarithms (``form="log"``) loses
three digits in float32. Claim: after 2500 updates two layers copy the marked symbols of a noisy sequence and one layer
does not (at three times the rate one layer gets far, too, by what its MLP reads out of fading); a minGRU has
2 / (3 + 3 alpha) of the weights of a GRU. The paper's speed-up of 175 is one of a graphics processor, and only a
gain is claimed here. ``transduce reproduce min-rnn`` measures these.
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
from transduce.nn.linear_rnn import min_rnn
from transduce.objectives import Likelihood
from transduce.search import Sample
from transduce.train import TrainConfig

from ._min_rnn_check import check


@dataclass(frozen=True)
class Config:
    dim: int = 192
    """Model width."""
    layers: int = 3
    """Layers, each a recurrence and an MLP."""
    cell: Literal["gru", "lstm"] = "gru"
    """Which of the two cells."""
    expansion: float = 2.0
    """Width of the state over the width of the model."""
    conv: int | None = 4
    """Taps of the causal convolution in front of each recurrence; None for none."""
    form: Literal["scan", "log"] = "scan"
    """The plain recurrence, or the paper's with positive candidates in logarithms."""
    mlp: int = 384
    """Hidden width of the MLPs."""
    dropout: float = 0.1
    """Dropout on embeddings and residual branches."""


@system(
    name="min-rnn",
    kind="text",
    title="minGRU and minLSTM: gates that read the input only",
    paper="Feng et al. 2024, arXiv 2410.01201",
    reproduce=check,
)
def min_rnn_lm(data: DataSpec, c: Config = Config()) -> System:
    mixers = [
        min_rnn(c.cell, c.dim, conv=c.conv, expansion=c.expansion, form=c.form) for _ in range(c.layers)
    ]
    mlp = partial(FeedForward, c.dim, c.mlp)
    return System(
        name="min-rnn",
        model=mixer_language_model(mixers, data.target.size, c.dim, mlp, dropout=c.dropout),
        objective=Likelihood(),
        search=Sample(temperature=0.8, max_length=300),
        train=TrainConfig(learning_rate=3e-3, ema=0.998),
        config=c,
    )
