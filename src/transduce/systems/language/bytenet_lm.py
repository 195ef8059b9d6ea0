"""The ByteNet decoder as a language model (Kalchbrenner et al. 2016, arXiv 1610.10099, sections 3.6 and 4).

Causal dilated convolutions with multiplicative units in narrow residual blocks::

    p(y_t | y_<t) = head(stack(E y_1 .. E y_{t-1}))
    unit(x) = g_1 * tanh(g_2 * x + g_3 * tanh(V * x)),   [g_1, g_2, g_3] = sigmoid(W * x)

with dilations 1, 2, 4, 8, 16 in every set, so that a symbol is predicted from the 1 + 31 (k-1) sets symbols
before it. A step of decoding costs the same at every position: each block keeps its last (k-1) * dilation
inputs.

Simplified: one unit a block; far fewer and narrower blocks than the paper's 30 of width 892. ``unit="relu"``
takes the translation block instead. Claim: as good a character model as an LSTM of as many parameters after
the same time of training (within 0.05 bits a character). ``transduce reproduce bytenet-lm`` measures that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import LanguageModel, StackedDecoder
from transduce.nn.bytenet import dilated_stack
from transduce.nn.embed import Embed, Head
from transduce.objectives import Likelihood
from transduce.search import Sample
from transduce.train import TrainConfig

from ._bytenet_lm_check import check


@dataclass(frozen=True)
class Config:
    width: int = 192
    """Residual width, twice the width inside a block."""
    sets: int = 1
    """How often the dilations are gone through."""
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Steps between taps, block by block."""
    kernel: int = 3
    """Taps of each convolution."""
    unit: Literal["multiplicative", "relu"] = "multiplicative"
    """What mixes over time inside a block: the gated unit, or a convolution between rectifiers."""
    dropout: float = 0.0
    """Dropout on embeddings, residual branches and readout."""


@system(
    name="bytenet-lm",
    kind="text",
    title="ByteNet language model",
    paper="Kalchbrenner et al. 2016, arXiv 1610.10099",
    reproduce=check,
)
def bytenet_lm(data: DataSpec, c: Config = Config()) -> System:
    stack = dilated_stack(
        c.width,
        causal=True,
        kernel=c.kernel,
        dilations=c.dilations,
        sets=c.sets,
        unit=c.unit,
        dropout=c.dropout,
    )
    decoder = StackedDecoder(
        Embed(data.target.size, c.width),
        stack,
        Head(c.width, data.target.size),
        embed_width=c.width,
        width=c.width,
        dropout=c.dropout,
    )
    return System(
        name="bytenet-lm",
        model=LanguageModel(decoder),
        objective=Likelihood(),
        search=Sample(temperature=0.8, max_length=300),
        train=TrainConfig(learning_rate=2e-3, ema=0.998),
        config=c,
    )
