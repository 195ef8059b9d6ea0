"""Encoders over any mixer."""

from __future__ import annotations

from torch import Tensor, nn

from transduce.core.protocols import Encoder, Mixer
from transduce.core.seq import Seq, zero_masked
from transduce.core.state import State


class SequenceEncoder(Encoder):
    """Symbols -> embedding -> mixer -> memory of the same length.

    ``embed`` maps ids (B,T) to (B,T,D); ``mixer`` is any mixer or stack of them, None for the embeddings
    alone. With a causal mixer the encoder streams: give it a state and chunks of source.
    """

    def __init__(self, embed: nn.Module, mixer: Mixer | None = None) -> None:
        super().__init__()
        self.embed = embed
        self.mixer = mixer
        self.lookahead = mixer.lookahead if mixer is not None else 0

    def forward(self, source: Seq, state: State = None, *, final: bool = True) -> tuple[Seq, State]:
        y = self.embed(source.data)
        if self.mixer is not None:
            y, state = self.mixer(y, state, mask=source.mask)
        return Seq(zero_masked(y, source.mask), source.mask), state


class VectorEncoder(Encoder):
    """A fixed-length code: a memory of one step.

    ``read`` turns the encoded sequence into (B,D): :class:`LastStep` for the final state of a forward
    recurrence, a pyramid, or any other summary.
    """

    def __init__(self, encoder: Encoder, read: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.read = read

    def forward(self, source: Seq, state: State = None, *, final: bool = True) -> tuple[Seq, State]:
        if state is not None or not final:
            raise ValueError("a fixed-length code needs the whole source at once")
        memory, _ = self.encoder(source)
        return Seq(self.read(memory)[:, None]), None


class LastStep(nn.Module):
    """(B,T,D) -> (B,D): the last valid step of each row."""

    def forward(self, memory: Seq) -> Tensor:
        last = (memory.lengths - 1).clamp_min(0)
        return memory.data.gather(1, last[:, None, None].expand(-1, 1, memory.data.shape[-1]))[:, 0]


class MeanStep(nn.Module):
    """(B,T,D) -> (B,D): the mean over the valid steps of each row."""

    def forward(self, memory: Seq) -> Tensor:
        total = zero_masked(memory.data, memory.mask).sum(1)
        return total / memory.lengths.clamp_min(1)[:, None].to(total.dtype)
