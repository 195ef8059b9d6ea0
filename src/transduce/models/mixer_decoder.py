"""A decoder from any mixer: self-mixing, optional attention to a memory, optional feedforward, layer by
layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from torch import Tensor, nn

from transduce.core.dist import Dist
from transduce.core.protocols import Decoder, Mixer
from transduce.core.seq import Seq, zero_masked
from transduce.core.state import State


@dataclass(frozen=True)
class LayerState:
    """What one decoder layer carries: its mixer's state (None under ``continues=False``) and its memory."""

    mixer: State
    memory: State


class DecoderLayer(nn.Module):
    """x + mixer(norm(x)), then x + attend(norm(x), memory), then x + feedforward(norm(x)); each with dropout.

    ``attend`` is a module of :mod:`transduce.nn.attend`, or None for a layer that does not read the memory.
    ``norm`` makes one norm for each part.
    """

    def __init__(
        self,
        mixer: Mixer,
        norm,
        attend: nn.Module | None = None,
        feedforward: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.mixer, self.attend, self.feedforward = mixer, attend, feedforward
        self.mixer_norm = norm()
        self.attend_norm = norm() if attend is not None else None
        self.feedforward_norm = norm() if feedforward is not None else None
        self.dropout = nn.Dropout(dropout)

    def start(self, batch: int, memory: Seq | None, capacity: int | None, continues: bool) -> LayerState:
        if self.attend is not None and memory is None:
            raise ValueError("this decoder attends to a memory: give start() one")
        return LayerState(
            self.mixer.init_state(batch, capacity=capacity) if continues else None,
            self.attend.start(memory) if self.attend is not None else None,
        )

    def forward(
        self, x: Tensor, state: LayerState, mask: Tensor | None, resets: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        mixed, mixer_state = self.mixer(self.mixer_norm(x), state.mixer, mask=mask, resets=resets)
        x = x + self.dropout(mixed)
        memory = state.memory
        if self.attend is not None:
            context, memory = self.attend(self.attend_norm(x), memory, mask=mask)
            x = x + self.dropout(context)
        if self.feedforward is not None:
            x = x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        return x, LayerState(mixer_state, memory)


class MixerDecoder(Decoder):
    """Embedding, decoder layers, a final norm and a head ``h -> Dist``.

    Without a memory this is a causal language model; with ``attend`` in its layers the decoder of any
    encoder-decoder. Every mixer here must be causal. ``resets`` (B,U) begin a text anew inside of a row
    (packed texts); the memory stays the row's own.
    """

    def __init__(
        self, embed: nn.Module, layers: Sequence[DecoderLayer], norm: nn.Module, head: nn.Module
    ) -> None:
        super().__init__()
        for layer in layers:
            if not layer.mixer.causal:
                raise ValueError(f"a decoder needs causal mixers, {type(layer.mixer).__name__} is not")
        self.embed = embed
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = head

    def start(
        self, batch: int, memory: Seq | None = None, *, capacity: int | None = None, continues: bool = True
    ) -> tuple[LayerState, ...]:
        return tuple(layer.start(batch, memory, capacity, continues) for layer in self.layers)

    def forward(
        self,
        prev: Tensor,
        state: tuple[LayerState, ...],
        *,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Dist, tuple[LayerState, ...]]:
        x = zero_masked(self.embed(prev), mask)
        after: list[LayerState] = []
        for layer, layer_state in zip(self.layers, state):
            x, layer_state = layer(x, layer_state, mask, resets)
            after.append(layer_state)
        return self.head(self.norm(x)), tuple(after)
