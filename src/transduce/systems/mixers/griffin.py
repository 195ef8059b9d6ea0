"""Griffin and Hawk (De et al. 2024, arXiv 2402.19427): gated linear recurrences with local attention.

Two recurrent layers, one layer of attention to a short window, and again; every layer has a gated MLP behind it::

    R   y = W_o (GELU(W_y x) * RGLRU(conv_4(W_x x)))
        RGLRU: h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * (i_t * x_t),  a_t = a^(8 r_t),  r, i = sigmoid(block-diagonal x)
    A   attention to the last ``window`` steps, one head of keys and values for all queries, half of a head rotated
    layer   x <- x + mixer(RMSNorm x),   x <- x + GeGLU(RMSNorm x)

``pattern="RRA"`` is Griffin, ``pattern="R"`` Hawk. All state is constant in size once the window is full, and nothing
in it knows how long training texts were.

Simplified: embeddings are not tied, and logits not capped; a window of w here is w steps, the released mask shows
w + 1. Claim: trained on texts of 128 bytes, it predicts bytes 512 to 1023 as well as bytes 64 to 127, where a
Transformer of the same size that attends to everything gets worse. ``transduce reproduce griffin`` measures that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from transduce.core.errors import UserError
from transduce.core.protocols import Mixer, System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import mixer_language_model
from transduce.nn.attention import Attention
from transduce.nn.feedforward import FeedForward
from transduce.nn.griffin import GriffinRecurrent
from transduce.objectives import Likelihood
from transduce.search import Sample
from transduce.train import TrainConfig

from ._griffin_check import check


@dataclass(frozen=True)
class Config:
    dim: int = 192
    """Model width, a multiple of 4 heads."""
    layers: int = 3
    """Layers."""
    pattern: str = "RRA"
    """The kinds of layers, repeated: R recurrent, A local attention."""
    heads: int = 4
    """Query heads of the attention, and blocks of the recurrences' gates."""
    window: int = 64
    """Steps that a local attention sees, its own included."""
    expansion: float = 3.0
    """Hidden width of the MLPs over the model's."""
    dropout: float = 0.1
    """Dropout on embeddings and residual branches."""


def griffin_layers(c: Config) -> list[Mixer]:
    """The mixers of all layers. Raises :class:`UserError` for a pattern of other letters."""
    if not c.pattern or set(c.pattern) - set("RA"):
        raise UserError(f'A pattern is made of R (recurrent) and A (attention), RRA say, not "{c.pattern}".')
    kinds = {
        "R": lambda: GriffinRecurrent(c.dim, heads=c.heads),
        "A": lambda: Attention(c.dim, c.heads, kv_heads=1, window=c.window, position="half-rotary"),
    }
    return [kinds[c.pattern[k % len(c.pattern)]]() for k in range(c.layers)]


@system(
    name="griffin",
    kind="text",
    title="Griffin and Hawk: gated linear recurrences with local attention",
    paper="De et al. 2024, arXiv 2402.19427",
    reproduce=check,
)
def griffin(data: DataSpec, c: Config = Config()) -> System:
    mlp = partial(FeedForward, c.dim, round(c.expansion * c.dim), activation="geglu")
    return System(
        name="griffin",
        model=mixer_language_model(griffin_layers(c), data.target.size, c.dim, mlp, dropout=c.dropout),
        objective=Likelihood(),
        search=Sample(temperature=0.8, max_length=300),
        train=TrainConfig(learning_rate=3e-3, ema=0.998),
        config=c,
    )
