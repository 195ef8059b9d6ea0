"""The Universal Transformer (Dehghani et al., ICLR 2019, arXiv 1807.03819): recurrence over depth.

One block with one set of weights is applied S times, and every application adds codes of the position and of
the step anew::

    x = h^{s-1} + P_position + P_s,   a = norm(x + MHSA(x)),   h^s = norm(a + transition(a)),   s = 1..S

The decoder does the same with causal self-attention and, between the two, attention to the encoder's last
states. With ``halting="act"`` every position decides by itself after how many steps it stops: it spends
p = sigmoid(w . h + b) at each step until the sum reaches 0.99, is copied forward from there, and the blend of
what it went through is the output; a ponder loss of ``tau`` times steps + remainder makes it stop early.

Differs from the authors' code: p is computed from the state behind the step, as in Graves 2016, so that the
first decision has seen a context; at the last step a position that still runs spends all that is left, so
that the weights of every position sum to 1; a norm follows the blend. ``transition="convolution"`` is causal
on both sides. Claim: with equal block parameters, applying the block again solves what one application cannot
(chasing pointers over two hops), and halting spends more steps on the harder questions. ``transduce reproduce
universal-transformer`` measures both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from transduce.core.errors import UserError
from transduce.core.protocols import Mixer, Objective, System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import DepthLayer, EncoderDecoder, MixerDecoder, SequenceEncoder
from transduce.nn.attend import MultiHeadAttend
from transduce.nn.attention import Attention
from transduce.nn.combine import Pointwise, Serial
from transduce.nn.convolution import CausalConv
from transduce.nn.depth import DepthBlock, DepthLoop, Halting
from transduce.nn.embed import Embed, Head
from transduce.nn.feedforward import FeedForward
from transduce.nn.norm import LayerNorm
from transduce.objectives import Likelihood, WithSide
from transduce.search import Beam, Greedy, LengthPenalty, ratio
from transduce.train import TrainConfig

from ._universal_check import check


@dataclass(frozen=True)
class Config:
    dim: int = 192
    """Model width."""
    heads: int = 4
    """Attention heads."""
    steps: int = 4
    """How often the block is applied on either side; with halting at most so often."""
    halting: Literal["none", "act"] = "none"
    """Whether every position decides by itself when to stop."""
    halting_bias: float = 1.0
    """Where halting begins: at 1 an untrained position stops after two steps, at -1 after four."""
    tau: float = 0.01
    """Weight of the ponder loss, the steps and the remainder of a position, with halting."""
    transition: Literal["feedforward", "convolution"] = "feedforward"
    """What follows attention: a feedforward layer, or a depthwise convolution over three steps and a linear
    map."""
    feedforward: int = 768
    """Hidden width of the feedforward layer."""
    offset: int = 0
    """While training, positions of a row begin at a random number up to this one, for longer sequences later
    on."""
    codes: float = 1.0
    """Factor of the codes of position and step. Small where the symbols say who they are."""
    dropout: float = 0.1
    """Dropout on embeddings, residual branches and feedforward layers."""
    label_smoothing: float = 0.1
    """Share of probability spread over all symbols in the loss."""


def depth_loop(c: Config, *, decoder: bool) -> DepthLoop:
    """The repeated block of one side with its codes and, if asked for, its halting."""
    if c.halting == "act" and c.steps < 2:
        raise UserError("Halting chooses among steps, so it needs --steps of at least 2.")
    transition: Mixer = Pointwise(FeedForward(c.dim, c.feedforward, activation="relu", dropout=c.dropout))
    if c.transition == "convolution":
        transition = Serial(
            CausalConv(c.dim, kernel=3, activation=nn.functional.relu), Pointwise(nn.Linear(c.dim, c.dim))
        )
    block = DepthBlock(
        Attention(c.dim, c.heads, position=None, causal=decoder),
        transition,
        partial(LayerNorm, c.dim),
        MultiHeadAttend(c.dim, heads=c.heads) if decoder else None,
        c.dropout,
    )
    halting = Halting(c.dim, bias=c.halting_bias) if c.halting == "act" else None
    return DepthLoop(block, c.dim, c.steps, halting=halting, offset=c.offset, codes=c.codes)


def output_norm(c: Config) -> nn.Module:
    """The block ends with a norm, a blend of several of its outputs does not."""
    return LayerNorm(c.dim) if c.halting == "act" else nn.Identity()


@system(
    name="universal-transformer",
    kind="pairs",
    title="Universal Transformer",
    paper="Dehghani et al. 2019, arXiv 1807.03819",
    reproduce=check,
)
def universal_transformer(data: DataSpec, c: Config = Config()) -> System:
    embed = lambda field: nn.Sequential(Embed(field.size, c.dim), nn.Dropout(c.dropout))
    encoder = Serial(depth_loop(c, decoder=False), Pointwise(output_norm(c)))
    decoder = MixerDecoder(
        embed(data.target),
        [DepthLayer(depth_loop(c, decoder=True))],
        output_norm(c),
        Head(c.dim, data.target.size),
    )
    objective: Objective = Likelihood(c.label_smoothing)
    if c.halting == "act":
        objective = WithSide(objective, {"ponder": c.tau})
    length = ratio(2.0, 10)
    return System(
        name="universal-transformer",
        model=EncoderDecoder(SequenceEncoder(embed(data.source), encoder), decoder),
        objective=objective,
        search=Greedy(max_length=length),
        search_wide=Beam(width=5, max_length=length, length=LengthPenalty(1.0)),
        train=TrainConfig(learning_rate=1e-3, ema=0.998, warmup=0.1),
        config=c,
    )
