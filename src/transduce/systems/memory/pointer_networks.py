"""Pointer networks (Vinyals, Fortunato and Jaitly, NIPS 2015, arXiv 1506.03134).

The answer is a sequence of positions in the source itself, so the output grows with the source. An LSTM reads the
elements P_1..P_n, a second one names some of them in order::

    u_j = v . tanh(W_1 e_j + W_2 d_u),   p(C_u = j | C_<u, P) = softmax_j(u_j),   d_u = LSTM(P_{C_{u-1}}, d_{u-1})

What the decoder reads is the element that was chosen, not its encoding; the end is one more thing to point to.
Sources are points (``--source-units points``) or symbols, which are embedded first; targets are positions from 1.

Simplified: Adam instead of plain gradient descent, points are centred and scaled. ``once`` decodes permutations only
(tours, orders): every search then masks what was named before. Claim: on convex hulls of 5 to 8 points it names
all of them in order far more often than an LSTM with attention and a fixed output, and it goes on to work at 12 points,
which it never saw and where that one cannot run. ``transduce reproduce pointer-networks`` measures both.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from transduce.core.errors import UserError
from transduce.core.protocols import System
from transduce.core.registry import Sample, system
from transduce.data import DataSpec
from transduce.models import PointerAttend, PointerDecoder, PointerNet
from transduce.nn.embed import Embed
from transduce.nn.recurrent import LSTMCell, Recurrence
from transduce.objectives import Likelihood
from transduce.search import Beam, EachOnce, Greedy, LengthPenalty, ratio
from transduce.train import TrainConfig

from ._pointer_networks_check import check

ROWS = (
    ("0.1,0.1 0.9,0.2 0.5,0.8", "1 2 3"),
    ("0.9,0.1 0.2,0.3 0.8,0.9 0.1,0.9", "1 3 4 2"),
    ("0.2,0.2 0.5,0.1 0.9,0.9 0.4,0.4 0.1,0.8", "1 2 3 5"),
    ("0.5,0.5 0.1,0.1", "1 2"),
    ("0.9,0.9 0.1,0.8 0.5,0.1 0.5,0.6", "1 2 3"),
    ("0.3,0.1 0.1,0.9 0.9,0.4", "1 3 2"),
)


@dataclass(frozen=True)
class Config:
    hidden: int = 128
    """Width of both LSTMs and of the pointer's scores."""
    embed: int = 64
    """Width of the element vectors of a source of symbols; points are read as they are."""
    once: bool = False
    """Answers are permutations: every element exactly once."""
    beam: int = 5
    """Width of the beam where beam search is asked for."""


@system(
    name="pointer-networks",
    kind="pairs",
    title="Pointer network: the answer is a sequence of positions in the source",
    paper="Vinyals et al. 2015, arXiv 1506.03134",
    reproduce=check,
    sample=Sample(("points", "positions"), ROWS, "synthetic-hull"),
)
def pointer_networks(data: DataSpec, c: Config = Config()) -> System:
    if data.target.units != "positions":
        raise UserError(
            "pointer-networks answers with positions in its source: say --target-units positions (and --source-units "
            "points for lists of points)."
        )
    points = data.source.units == "points"
    width = data.source.size if points else c.embed
    lstm = lambda: Recurrence(LSTMCell(width, c.hidden))
    decoder = PointerDecoder(width, lstm(), PointerAttend(c.hidden, c.hidden, c.hidden))
    # A target may be longer than its source: triangulations name each point several times.
    length = ratio(1.0, 1) if c.once else ratio(max(2.0, 1.5 * data.longest_target / data.longest_source), 10)
    scorers = (EachOnce(),) if c.once else ()
    return System(
        name="pointer-networks",
        model=PointerNet(nn.Identity() if points else Embed(data.source.size, width), lstm(), decoder),
        objective=Likelihood(),
        search=Beam(1, max_length=length, scorers=scorers) if c.once else Greedy(max_length=length),
        search_wide=Beam(c.beam, max_length=length, length=LengthPenalty(1.0), scorers=scorers),
        train=TrainConfig(learning_rate=5e-3, batch_symbols=2048, ema=0.998),
        config=c,
    )
