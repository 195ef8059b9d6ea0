"""Encoder and decoder laid on each other position by position, without attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.dist import Dist
from transduce.core.errors import UserError
from transduce.core.protocols import Decoder, Encoder, Mixer
from transduce.core.seq import PAD, Seq, length_mask, zero_masked
from transduce.core.state import Shared, State
from transduce.nn.masking import left_aligned, positions, valid_resets
from transduce.nn.norm import LayerNorm


class UnfoldingEncoder(Encoder):
    """A source of n symbols -> a memory of max(n, round(stretch * n + offset)) steps, s_1, s_2, ...

    Behind its end a row is filled with the padding symbol, whose embedding is learned, and the mixer reads
    the whole, so that the further steps hold what the mixer brings there. Dynamic unfolding: Kalchbrenner et
    al. 2016 (arXiv 1610.10099), section 3.2. The estimate is of each row's own length. ``mixer``: any mixer
    over the source, usually not causal. Raises :class:`UserError` for a negative stretch, ValueError for a
    state, since where a source ends decides how far it is unfolded.
    """

    def __init__(self, embed: nn.Module, mixer: Mixer, *, stretch: float = 1.2, offset: int = 0) -> None:
        super().__init__()
        if stretch < 0:
            raise UserError(
                f"stretch must be at least 0, got {stretch:g}; 1 unfolds a source to its own length."
            )
        self.embed, self.mixer = embed, mixer
        self.stretch, self.offset = stretch, offset

    def unfolded(self, lengths: Tensor) -> Tensor:
        """Memory steps for sources of these lengths: (B,) -> (B,)"""
        return torch.maximum(lengths, (self.stretch * lengths.double() + self.offset).round().long())

    def forward(self, source: Seq, state: State = None, *, final: bool = True) -> tuple[Seq, State]:
        if state is not None or not final:
            raise ValueError("an unfolding encoder needs the whole source at once")
        ids, valid = left_aligned(source.data, source.mask)
        steps = self.unfolded(source.lengths)
        size = int(steps.max())
        if valid is not None:
            ids = ids.masked_fill(~valid, PAD)
        ids = F.pad(ids, (0, max(0, size - ids.shape[1])), value=PAD)[:, :size]
        mask = length_mask(steps, size)
        mask = None if bool(mask.all()) else mask
        y, _ = self.mixer(self.embed(ids), mask=mask)
        return Seq(zero_masked(y, mask), mask), None


@dataclass(frozen=True)
class StackedState:
    """``mixer``: what the mixer carries. ``source``: the memory and a step of zeros behind it
    (G,S+1,M), shared by beams. ``count``: symbols read so far (B,). None where there is none."""

    mixer: State
    source: Shared | None
    count: Tensor | None


class StackedDecoder(Decoder):
    """A causal mixer over x_t = W [E y_{t-1}; s_t]: target position t stands on memory step t.

    ::

        p(y_t | y_<t, s) = head(ReLU(V ReLU(LN(mixer(x)_t))))

    Past the end of the memory s_t is zero, and decoding goes on until EOS. Without a memory (``memory_width``
    None) the decoder is a language model over W E y_{t-1}. One step costs what the mixer's step costs,
    however much was written. Kalchbrenner et al. 2016 (arXiv 1610.10099), sections 3.1 to 3.4.

    ``resets`` (B,U) begin a text anew inside of a row (packed texts); it then stands on the row's memory
    again. ``head``: h (B,U,width) -> Dist. Raises ValueError for a mixer that is not causal.
    """

    def __init__(
        self,
        embed: nn.Module,
        mixer: Mixer,
        head: nn.Module,
        *,
        embed_width: int,
        width: int,
        memory_width: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not mixer.causal:
            raise ValueError(f"a decoder needs a causal mixer, {type(mixer).__name__} is not")
        self.embed, self.mixer, self.head = embed, mixer, head
        self.memory_width = memory_width
        self.enter = nn.Linear(embed_width + (memory_width or 0), width)
        self.leave = nn.Sequential(LayerNorm(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.dropout = nn.Dropout(dropout)

    def start(
        self, batch: int, memory: Seq | None = None, *, capacity: int | None = None, continues: bool = True
    ) -> StackedState:
        if (memory is None) != (self.memory_width is None):
            raise ValueError(
                "this decoder stands on a memory: give start() one"
                if memory is None
                else "this decoder was made without memory_width and reads no memory"
            )
        source = None
        if memory is not None:
            data, mask = left_aligned(memory.data, memory.mask)
            source = Shared(F.pad(zero_masked(data, mask), (0, 0, 0, 1)), batch // memory.batch)
        count = torch.zeros(batch, dtype=torch.long, device=self.enter.weight.device)
        mixer = self.mixer.init_state(batch, capacity=capacity) if continues else None
        return StackedState(mixer, source, count if source is not None else None)

    def forward(
        self,
        prev: Tensor,
        state: StackedState,
        *,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Dist, StackedState]:
        x, count = self.dropout(self.embed(prev)), state.count
        if state.source is not None:
            at, count = positions(prev, state.count, mask, valid_resets(resets, mask))
            under = _read(state.source, at.expand(prev.shape))
            x = torch.cat((x, under.to(x.dtype)), -1)
        y, mixer = self.mixer(zero_masked(self.enter(x), mask), state.mixer, mask=mask, resets=resets)
        return self.head(self.dropout(self.leave(y))), StackedState(mixer, state.source, count)


def _read(source: Shared, at: Tensor) -> Tensor:
    """Memory steps ``at`` (B,U) -> (B,U,M); beyond the end the last step, which is zero."""
    folded = source.fold(at).clamp(0, source.value.shape[1] - 1)
    return source.unfold(source.value.gather(1, folded[..., None].expand(-1, -1, source.value.shape[2])))
