"""A language model out of any causal mixers."""

from __future__ import annotations

from functools import partial
from typing import Callable, Sequence

from torch import nn

from transduce.core.protocols import Mixer
from transduce.nn.embed import Embed, Head
from transduce.nn.norm import RMSNorm

from .encoder_decoder import LanguageModel
from .mixer_decoder import DecoderLayer, MixerDecoder


def mixer_language_model(
    mixers: Sequence[Mixer],
    num_symbols: int,
    dim: int,
    feedforward: Callable[[], nn.Module] | None = None,
    *,
    norm: Callable[[int], nn.Module] = RMSNorm,
    dropout: float = 0.0,
) -> LanguageModel:
    """Embedding, for each mixer x <- x + mixer(norm(x)) and x <- x + feedforward(norm(x)), a norm, a head of its own.

    The mixers are made by the caller, so layers may differ (hybrid stacks) and share parameters. ``feedforward()``
    makes the part over channels of each layer; None leaves it out. Order comes from the mixers: no position is added.
    """
    make_norm = partial(norm, dim)
    layers = [
        DecoderLayer(
            mixer, make_norm, feedforward=None if feedforward is None else feedforward(), dropout=dropout
        )
        for mixer in mixers
    ]
    embed = nn.Sequential(Embed(num_symbols, dim), nn.Dropout(dropout))
    return LanguageModel(MixerDecoder(embed, layers, make_norm(), Head(dim, num_symbols)))
