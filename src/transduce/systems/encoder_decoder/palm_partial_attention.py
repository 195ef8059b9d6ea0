"""PALM: a decoder-only model with partial attention to its source (Fu et al. 2023, arXiv 2304.04052).

A causal language model on [source; target] is an encoder-decoder under five constraints, and every one is a
switch
here: (i) ``coordinated``, one softmax over the source's states at the same layer and the target's past, (ii)
``causal_source``, (iii) ``shared`` weights, (iv) ``consecutive`` positions, (v) ``source_loss``. With one
softmax the source is left |s| / (|s| + i) of the attention at target step i, so it fades as the target grows.
PALM keeps the language model and adds to each layer an attention to the source alone, with its own softmax,
beside the ordinary one::

    x <- x + attend(q, [K_src; K_past]) + attend'(q, K_src),   x <- x + FFN(norm(x)),   q = norm(x)

Its source positions see each other in both directions, positions begin anew in the target, each side has a
segment vector, and the source is still predicted. The defaults are PALM; ``--causal-source --consecutive
--partial none --no-segments`` is the language model, ``--no-coordinated --no-shared --source-loss 0 --partial
none --no-segments`` an encoder-decoder.

Simplified: sinusoidal positions; where the source is read in both directions, its loss asks for each
position's own symbol. Partial attention with ``own`` projections adds 4 dim^2 + 4 dim parameters a layer.
Claim: partial attention keeps the source in view, so the last part of a long output has fewer errors.
``transduce reproduce palm-partial-attention`` measures that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transduce.core.errors import UserError
from transduce.core.protocols import Objective, System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import RedForm, RedSize, RegularisedEncoderDecoder
from transduce.objectives import Likelihood, WithSide
from transduce.search import Beam, Greedy, LengthPenalty, ratio
from transduce.train import TrainConfig

from ._palm_check import check


@dataclass(frozen=True)
class Config:
    coordinated: bool = True
    """(i) A layer attends in one softmax to the source's states at the same layer and to the target's past;
    otherwise to the last source states in an attention of its own."""
    causal_source: bool = False
    """(ii) Source positions see earlier ones only."""
    shared: bool = True
    """(iii) The source is read with the weights that write the target."""
    consecutive: bool = False
    """(iv) The target's positions go on behind the source's instead of beginning at zero."""
    source_loss: float = 0.1
    """(v) Weight of predicting the source as well; 0 leaves it out."""
    partial: Literal["own", "shared", "none"] = "own"
    """A second attention to the source alone: with projections of its own, with those of the first, or not at
    all."""
    segments: bool = True
    """A learned vector that tells source from target."""
    dim: int = 192
    """Model width."""
    heads: int = 4
    """Attention heads."""
    layers: int = 4
    """Layers."""
    feedforward: int = 768
    """Hidden width of the feedforward layers."""
    dropout: float = 0.1
    """Dropout on embeddings, residual branches and feedforward layers."""
    label_smoothing: float = 0.1
    """Share of probability spread over all target symbols in the loss."""


def form_of(c: Config) -> RedForm:
    """The switches of a config."""
    if c.source_loss < 0:
        raise UserError(f"--source-loss is a weight of at least 0, got {c.source_loss}.")
    try:
        return RedForm(
            c.coordinated, c.causal_source, c.shared, c.consecutive, c.source_loss > 0, c.partial, c.segments
        )
    except ValueError as problem:
        raise UserError(
            f"{str(problem).capitalize()}: give --partial own, or leave --coordinated on."
        ) from None


@system(
    name="palm-partial-attention",
    kind="pairs",
    title="PALM: decoder-only with partial attention",
    paper="Fu et al. 2023, arXiv 2304.04052",
    reproduce=check,
)
def palm_partial_attention(data: DataSpec, c: Config = Config()) -> System:
    objective: Objective = Likelihood(c.label_smoothing)
    if c.source_loss > 0:
        objective = WithSide(objective, {"source": c.source_loss})
    size = RedSize(c.dim, c.heads, c.layers, c.feedforward, c.dropout)
    length = ratio(4.0, 10)  # long outputs are what partial attention is for
    return System(
        name="palm-partial-attention",
        model=RegularisedEncoderDecoder(data.source.symbols, data.target.symbols, size, form_of(c)),
        objective=objective,
        search=Greedy(max_length=length),
        search_wide=Beam(width=5, max_length=length, length=LengthPenalty(1.0)),
        train=TrainConfig(learning_rate=1e-3, ema=0.998, warmup=0.1),
        config=c,
    )
