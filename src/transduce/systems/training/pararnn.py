"""Nonlinear recurrences trained in parallel over time (Danieli et al. 2025, "ParaRNN", arXiv 2510.21450)::

    h_t = f(h_{t-1}, x_t) for all t at once:   d_t = J_t d_{t-1} + (f(h_{t-1}, x_t) - h_t),   h <- h + d

Newton's method on the whole sequence. Each step is an affine scan, cheap because the GRU's and the LSTM's
state-to-state weights are vectors, so that the Jacobian J_t is a number or a 2 x 2 block in each channel
(:mod:`transduce.ops.newton`). Backward is one more scan, with J_t transposed. The block around the cell is the paper's:
projection, short convolution, cell, gated norm, projection; a gated MLP follows.

Added: the residual is checked, and where Newton's method does not converge the steps are run one after the other.
Simplified: smaller models, no custom GPU kernels. On the CPU a compiled loop over time is the faster solver and
the default; ``--solver newton`` takes the paper's (``python -m benchmarks.solvers`` compares them).

Claim: the solution and the gradients are those of the loop; three iterations suffice at the published initialisation;
parity, which a diagonal linear recurrence cannot carry beyond the trained lengths, is tracked exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from transduce.core.protocols import Mixer, System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import mixer_language_model
from transduce.nn.feedforward import FeedForward
from transduce.nn.para import ConvGated, ParaGRU, ParaLSTM
from transduce.objectives import Likelihood
from transduce.search import Sample
from transduce.train import TrainConfig

from ._pararnn_check import check

CELLS = {"gru": ParaGRU, "lstm": ParaLSTM}


@dataclass(frozen=True)
class Config:
    dim: int = 192
    """Width of the residual stream."""
    layers: int = 3
    """Blocks of a recurrence and a gated MLP."""
    cell: str = "gru"
    """"gru" or "lstm", both with vectors between states."""
    heads: int = 4
    """Blocks of the cell's input weights."""
    solver: str = "auto"
    """"newton" (all steps at once), "loop", or "auto": the fastest on this machine's kind of device."""
    dropout: float = 0.1
    """Dropout on embeddings and residual branches."""


@system(
    name="pararnn",
    kind="text",
    title="ParaRNN: a nonlinear GRU or LSTM trained in parallel over time",
    paper="Danieli et al. 2025, arXiv 2510.21450",
    reproduce=check,
)
def pararnn(data: DataSpec, c: Config = Config()) -> System:
    if c.cell not in CELLS:
        raise ValueError(f'cell is one of {", ".join(CELLS)}, not "{c.cell}"')

    def block() -> Mixer:
        return ConvGated(c.dim, c.dim, CELLS[c.cell](c.dim, heads=c.heads, solver=c.solver))

    model = mixer_language_model(
        [block() for _ in range(c.layers)],
        data.target.size,
        c.dim,
        partial(FeedForward, c.dim, 2 * c.dim, activation="swiglu"),
        dropout=c.dropout,
    )
    return System(
        name="pararnn",
        model=model,
        objective=Likelihood(),
        search=Sample(temperature=0.8, max_length=300),
        train=TrainConfig(learning_rate=3e-3, ema=0.998),
        config=c,
    )
