"""Several sources in one row: an encoder for each, and a decoder layer that reads all of their memories."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor, nn

from transduce.core.errors import UserError
from transduce.core.joined import Joined, split_parts
from transduce.core.protocols import Encoder, Mixer
from transduce.core.seq import Seq
from transduce.core.state import Shared, State
from transduce.core.tap import listening, record, tap
from transduce.models.mixer_decoder import LayerState
from transduce.nn.multi_attend import MultiAttend, States


class MultiSourceEncoder(Encoder):
    """Ids with separators -> K memories, laid end to end as a :class:`~transduce.core.joined.Joined`.

    Each part of a row is read by its own encoder (pass one encoder K times to share it); a part that a row
    lacks becomes an empty memory.

    Args:
        encoders: one for each part, in order, all of one width.
        separator: the id between parts; None where the vocabulary has none, then everything is the first
            part.
        source_dropout: while training, the chance of a row to lose one of its parts, drawn among those it
            has; a row's only part stays. Libovický et al. leave it out; it teaches the decoder to do without.
    """

    def __init__(
        self, encoders: Sequence[Encoder], separator: int | None, source_dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not 0.0 <= source_dropout < 1.0:
            raise ValueError(f"source_dropout is at least 0 and below 1, got {source_dropout}")
        if separator is None and len(encoders) != 1:
            raise ValueError("without a separator there is one source: give one encoder")
        self.encoders = nn.ModuleList(encoders)
        self.separator, self.source_dropout = separator, source_dropout

    def forward(self, source: Seq, state: State = None, *, final: bool = True) -> tuple[Seq, State]:
        if state is not None or not final:
            raise ValueError("sources made of parts are read as a whole: call the encoder without a state")
        parts, places = ((source,), None) if self.separator is None else self._split(source)
        if self.training and self.source_dropout and len(parts) > 1:
            parts = self._drop(parts)
        memories = [encoder(part)[0] for encoder, part in zip(self.encoders, parts)]
        return Joined.of(memories, places), None

    def _split(self, source: Seq) -> tuple[tuple[Seq, ...], Tensor]:
        try:
            return split_parts(source, self.separator, len(self.encoders))
        except ValueError as problem:
            raise UserError(
                f"In a source {str(problem).removeprefix('a row ')}; give --sources the number of parts in the data."
            ) from None

    def _drop(self, parts: tuple[Seq, ...]) -> tuple[Seq, ...]:
        there = torch.stack([p.valid().any(1) for p in parts], 1)  # (B,K)
        chance = torch.rand(there.shape[0], device=there.device) < self.source_dropout
        chance = chance & (there.sum(1) > 1)
        victim = torch.rand(there.shape, device=there.device).masked_fill(~there, -1.0).argmax(1)
        lost = chance[:, None] & (victim[:, None] == torch.arange(len(parts), device=there.device))
        return tuple(Seq(p.data, p.valid() & ~gone[:, None]) for p, gone in zip(parts, lost.unbind(1)))


@dataclass(frozen=True)
class MultiMemory:
    """``states`` of the attentions to all memories. ``places``: a :class:`Shared` with the place of every memory
    step in the source (G,T), or None where there is one memory."""

    states: States
    places: Shared | None


class MultiSourceLayer(nn.Module):
    """x + mixer(norm(x)), then what ``attend`` reads of all memories, then x + feedforward(norm(x)).

    A decoder layer of :class:`MixerDecoder` whose memory is the :class:`Joined` of a
    :class:`MultiSourceEncoder`.
    """

    def __init__(
        self, mixer: Mixer, norm, attend: MultiAttend, feedforward: nn.Module, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.mixer, self.attend, self.feedforward = mixer, attend, feedforward
        self.mixer_norm, self.feedforward_norm = norm(), norm()
        self.dropout = nn.Dropout(dropout)

    def start(self, batch: int, memory: Seq | None, capacity: int | None, continues: bool) -> LayerState:
        if not isinstance(memory, Joined):
            raise ValueError(
                "this layer reads several memories: give start() what a MultiSourceEncoder returns"
            )
        return LayerState(
            self.mixer.init_state(batch, capacity=capacity) if continues else None,
            MultiMemory(
                self.attend.start(memory.parts), None if memory.places is None else Shared(memory.places)
            ),
        )

    def forward(
        self, x: Tensor, state: LayerState, mask: Tensor | None, resets: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        mixed, mixer_state = self.mixer(self.mixer_norm(x), state.mixer, mask=mask, resets=resets)
        with record(self.attend, "*weights") if listening() else nullcontext() as seen:
            x, states = self.attend(x + self.dropout(mixed), state.memory.states, mask=mask)
        if seen:
            self._show(seen, state.memory.places)
        x = x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        return x, LayerState(mixer_state, MultiMemory(states, state.memory.places))

    def _show(self, seen: dict[str, list[Tensor]], places: Shared | None) -> None:
        """Tap the weights of all sources at the places that their steps have in the source text, so that one
        map shows them together; separate softmaxes share the map evenly."""
        weights = torch.cat([w for calls in seen.values() for w in calls], -1)  # (B,H,U,T)
        if places is not None:
            at = places.flat()[:, None, None]
            # One place more than the last one takes what stands nowhere, and separators get nothing.
            shown = weights.new_zeros(*weights.shape[:-1], int(at.max()) + 2)
            at = torch.where(at < 0, shown.shape[-1] - 1, at).expand_as(weights)
            weights = shown.scatter_add(-1, at, weights)[..., :-1]
        tap(self, "attend.weights", weights / len(seen))
