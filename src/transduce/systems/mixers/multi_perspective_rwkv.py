"""Multiple temporal perspectives on one text (arXiv 2402.02625), around RWKV-4 (Peng et al. 2023, arXiv 2305.13048).

P residual streams start from the same embedding and share every matrix; only the vectors that mix a step with the one
before it, mu^(p), are a stream's own, so each stream keeps another account of the past. What they predict is mixed
token by token::

    k_t^(p) = W_k (mu_k^(p) * x_t + (1 - mu_k^(p)) * x_{t-1})      likewise v, r and the channel mixing
    pi_t = softmax(C mean_p x_t^(p)),    logits_t = sum_p pi_{t,p} head(x_t^(p))

What a user does with it: :func:`transduce.models.perspectives` takes a trained RWKV-4, freezes it and gives it P
streams, which begin as P copies of the model and cost 5 d numbers a layer and stream to train. ``transduce fit`` trains
the whole from the start, all weights free; with ``streams`` 1 that is a plain RWKV-4. Time and state grow with P.

Simplified: characters or words of the corpus instead of a published checkpoint; C starts at a standard deviation of
d^-1/2, since with C = 0 all streams would stay equal. Claim: behind the same number of steps four streams predict better
than one, and one better than the frozen model, for at most 0.5 % more parameters; a text is meant that the model was not
pretrained on, as an adapter is for. ``transduce reproduce multi-perspective-rwkv`` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass

from transduce.core.protocols import System
from transduce.core.registry import system
from transduce.data import DataSpec
from transduce.models import mixer_language_model, perspectives
from transduce.nn.norm import LayerNorm
from transduce.nn.rwkv import rwkv4_layers
from transduce.objectives import Likelihood
from transduce.search import Sample
from transduce.train import TrainConfig

from ._multi_perspective_check import check


@dataclass(frozen=True)
class Config:
    dim: int = 128
    """Width of the residual streams."""
    layers: int = 3
    """RWKV-4 layers, each one part over time and one over channels."""
    streams: int = 4
    """Perspectives; 1 is RWKV-4 itself."""
    dropout: float = 0.0
    """Dropout on embeddings and residual branches."""


@system(
    name="multi-perspective-rwkv",
    kind="text",
    title="RWKV-4 with several temporal perspectives",
    paper="arXiv 2402.02625",
    reproduce=check,
)
def multi_perspective_rwkv(data: DataSpec, c: Config = Config()) -> System:
    one = mixer_language_model(
        rwkv4_layers(c.dim, c.layers), data.target.size, c.dim, norm=LayerNorm, dropout=c.dropout
    )
    return System(
        name="multi-perspective-rwkv",
        model=one if c.streams == 1 else perspectives(one, c.streams, frozen=False),
        objective=Likelihood(),
        search=Sample(temperature=0.8, max_length=300),
        train=TrainConfig(learning_rate=2e-3, ema=0.998),
        config=c,
    )
