"""Several perspectives on one text: a recurrent language model run in parallel streams that look at the past differently."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from transduce.core import state as states
from transduce.core.dist import Dist
from transduce.core.protocols import Decoder
from transduce.core.seq import Seq, zero_masked
from transduce.core.state import State
from transduce.nn.embed import Head
from transduce.nn.token_shift import TokenShift

from .encoder_decoder import LanguageModel
from .mixer_decoder import MixerDecoder


class PerspectiveDecoder(Decoder):
    """logits_t = sum_p pi_{t,p} head(x_t^p), pi_t = softmax(C mean_p x_t^p), x^p what stream p has behind the last norm.

    The streams start from the same embedding and share every weight but the vectors of their token shifts, which
    ``decoder`` must hold for as many streams. They run as rows of one batch; every leaf of the state is (B,P,...). The
    head is linear and the pi_{t,p} sum to one, so the mean is taken in front of it.
    """

    def __init__(self, decoder: MixerDecoder, streams: int) -> None:
        super().__init__()
        if not isinstance(decoder.head, Head):
            raise ValueError(f"perspectives are merged in front of a linear Head, this is a {type(decoder.head).__name__}")
        self.decoder, self.streams = decoder, streams
        width = decoder.head.weight.shape[1]
        self.gate = nn.Parameter(torch.randn(streams, width) / math.sqrt(width)) if streams > 1 else None

    def start(
        self, batch: int, memory: Seq | None = None, *, capacity: int | None = None, continues: bool = True
    ) -> State:
        rows = self.decoder.start(batch * self.streams, memory, capacity=capacity, continues=continues)
        return self._split(rows)

    def forward(
        self, prev: Tensor, state: State, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Dist, State]:
        every = lambda t: None if t is None else t.repeat_interleave(self.streams, 0)
        mask_rows, resets_rows = every(mask), every(resets)
        x = every(zero_masked(self.decoder.embed(prev), mask))
        after: list[State] = []
        for layer, layer_state in zip(self.decoder.layers, states.map_tensors(lambda t: t.flatten(0, 1), state)):
            x, layer_state = layer(x, layer_state, mask_rows, resets_rows)
            after.append(layer_state)
        return self.decoder.head(self._merge(self.decoder.norm(x))), self._split(tuple(after))

    def _merge(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return x
        x = x.unflatten(0, (-1, self.streams))
        weights = torch.softmax(x.mean(1) @ self.gate.mT, -1)
        return torch.einsum("btp,bptd->btd", weights, x)

    def _split(self, rows: State) -> State:
        return states.map_tensors(lambda t: t.unflatten(0, (-1, self.streams)), rows)


def perspectives(model: LanguageModel, streams: int, *, frozen: bool = True) -> LanguageModel:
    """A copy of ``model`` with ``streams`` perspectives; at first all are the model's own, so its scores are unchanged.

    ``model``: a language model whose layers hold :class:`~transduce.nn.token_shift.TokenShift`, such as RWKV-4, as
    :func:`transduce.models.mixer_language_model` makes it. ``frozen``: only the mixing vectors of the streams and the
    gate between them are trained, (number of mixing vectors + 1) * dim numbers a stream. With one stream there is no
    gate. Time and state grow with ``streams``, parameters hardly. Raises ValueError where there is no token shift.

    Source: multiple temporal perspectives, arXiv 2402.02625 (known to us by its summary and the authors' code).
    """
    if streams < 1:
        raise ValueError(f"a model has at least one perspective, got {streams}")
    decoder = copy.deepcopy(model.decoder)
    if not isinstance(decoder, MixerDecoder):
        raise ValueError(f"perspectives are made of a stack of mixers, not of a {type(decoder).__name__}")
    shifts = [m for m in decoder.modules() if isinstance(m, TokenShift)]
    if not shifts:
        raise ValueError("perspectives differ in their token shifts, and this model has none; use RWKV-4 layers")
    if any(len(shift.mix) != 1 for shift in shifts):
        raise ValueError("this model has several perspectives already")
    own_way = states.nodes(decoder.start(1))
    if own_way:
        raise ValueError(f"perspectives need states of plain tensors, one layer keeps a {type(own_way[0]).__name__}")
    decoder.requires_grad_(not frozen)
    for shift in shifts:
        shift.mix = nn.Parameter(shift.mix.detach().repeat(streams, 1, 1))
    return LanguageModel(PerspectiveDecoder(decoder, streams)).to(decoder.head.weight)
