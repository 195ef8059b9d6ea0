"""A decoder whose symbols are the elements of its own source."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transduce.core.dist import Categorical
from transduce.core.protocols import Decoder, Mixer, Model
from transduce.core.seq import UNK, Batch, Seq, zero_masked
from transduce.core.state import Shared, State
from transduce.core.tap import listening, tap

FIRST = UNK + 1
"""The id of the first source element; the ids below are padding, begin, end and unknown."""


@dataclass(frozen=True)
class Pointed:
    """What is pointed into: element vectors (G,S,X), keys (G,S,A), mask (G,S) or None, one row for each source."""

    elements: Tensor
    keys: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class PointerState:
    """The recurrence's state and the source, which beams share."""

    mixer: State
    source: Shared


class PointerAttend(nn.Module):
    """u_j = v . tanh(W_1 e_j + W_2 d): the score of each source element, and of the end, whose key is learned.

    Vinyals et al. 2015 (arXiv 1506.03134, equation 3). Tapped: ``scores`` as returned, and ``weights``, the elements'
    part of their softmax (B,U,S), which is there to be read, not replaced.
    """

    def __init__(self, query_width: int, memory_width: int, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_width, width)
        self.key = nn.Linear(memory_width, width, bias=False)
        self.end = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.score = nn.Parameter(torch.empty(width).uniform_(-1, 1) / math.sqrt(width))

    def forward(self, query: Tensor, source: Shared) -> Tensor:
        """query (B,U,D) -> scores (B,U,1+S), the end first; -inf where the source is padding."""
        read: Pointed = source.value
        end = self.end.expand(read.keys.shape[0], 1, -1)
        keys = torch.cat((end, read.keys), 1)  # (G,1+S,A)
        fit = source.fold(self.query(query))[:, :, None] + keys[:, None]
        scores = torch.tanh(fit) @ self.score  # (G,Q,1+S)
        if read.mask is not None:
            outside = torch.cat((torch.zeros_like(read.mask[:, :1]), ~read.mask), 1)
            scores = scores.masked_fill(outside[:, None], -math.inf)
        scores = tap(self, "scores", source.unfold(scores))
        if listening():
            tap(self, "weights", scores.softmax(-1)[..., 1:])
        return scores


class PointerDecoder(Decoder):
    """p(C_u = j | C_<u, P) = softmax_j(u_j) over the elements of the source (Vinyals et al. 2015, section 2.3).

    The recurrence reads the *vector* P_{C_{u-1}} of the element chosen before, not its encoding; a learned vector
    stands for it at the first step. Element k of the source (counted from 1) has the id k + 3, and the end, which can
    be pointed to like an element, is EOS; so ids reach to S + 3, and a batch has as many as its longest source. The
    ids of padding, begin and unknown have probability 0. An id behind the end of the source reads as zeros.

    ``mixer``: reads (B,U,element_width); its state at the start is that of the encoder's last step. ``start``
    takes a memory whose ``data`` is :class:`Pointed`'s elements and encodings side by side: see :class:`PointerNet`.
    """

    def __init__(self, element_width: int, mixer: Mixer, attend: PointerAttend) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(element_width) / math.sqrt(element_width))
        self.mixer, self.attend = mixer, attend
        self.element_width = element_width

    def start(
        self, batch: int, memory: Seq | None = None, *, capacity: int | None = None, continues: bool = True
    ) -> PointerState:
        if memory is None:
            raise ValueError("a pointer points into a memory: give start() one")
        return self.start_from(batch, memory, self.mixer.init_state(batch, capacity=capacity))

    def start_from(self, batch: int, memory: Seq, state: State) -> PointerState:
        """Start with a given state of the recurrence."""
        both = zero_masked(memory.data, memory.mask)
        elements = both[..., : self.element_width]
        keys = self.attend.key(both[..., self.element_width :])
        return PointerState(state, Shared(Pointed(elements, keys, memory.mask), batch // memory.batch))

    def forward(
        self, prev: Tensor, state: PointerState, *, mask: Tensor | None = None
    ) -> tuple[Categorical, PointerState]:
        hidden, after = self.mixer(self.chosen(prev, state.source), state.mixer, mask=mask)
        scores = self.attend(hidden, state.source)
        never = torch.full_like(scores[..., :1], -math.inf)
        end, elements = scores[..., :1], scores[..., 1:]
        logits = torch.cat((never, never, end, never, elements), -1)  # PAD, BOS, EOS, UNK, positions
        return Categorical(logits), PointerState(after, state.source)

    def chosen(self, prev: Tensor, source: Shared) -> Tensor:
        """ids (B,U) -> the vectors (B,U,X) of the elements that they name."""
        elements = source.value.elements
        count = elements.shape[1]
        place = source.fold(prev) - FIRST  # (G,Q)
        index = place.clamp(0, count - 1)[..., None].expand(-1, -1, self.element_width)
        found = elements.gather(1, index)
        found = torch.where((place < count)[..., None], found, torch.zeros_like(found))
        return source.unfold(torch.where((place >= 0)[..., None], found, self.first.to(found.dtype)))


class PointerNet(Model):
    """An encoder reads the elements of the source, a :class:`PointerDecoder` names them one after another.

    ``embed`` makes element vectors (B,S,X) of the source: the identity for points, an embedding for symbols.
    ``encoder``: a causal mixer (B,S,X) -> (B,S,M) with the state type of the decoder's.
    """

    def __init__(self, embed: nn.Module, encoder: Mixer, decoder: PointerDecoder) -> None:
        super().__init__()
        self.embed, self.encoder, self.decoder = embed, encoder, decoder

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> PointerState:
        if batch.source is None:
            raise ValueError("a pointer network needs a batch with a source")
        mask = batch.source.mask
        elements = zero_masked(self.embed(batch.source.data), mask)
        encoded, last = self.encoder(elements, self.encoder.init_state(batch.size), mask=mask)
        memory = Seq(torch.cat((elements.to(encoded.dtype), encoded), -1), mask)
        return self.decoder.start_from(batch.size, memory, last)

    def forward(
        self, prev: Tensor, state: PointerState, *, mask: Tensor | None = None
    ) -> tuple[Categorical, PointerState]:
        return self.decoder(prev, state, mask=mask)
