"""A decoder-only model on [source; target] seen as a regularised encoder-decoder (Fu et al. 2023, arXiv
2304.04052).

Five switches lead from the one to the other; see :class:`RegularisedEncoderDecoder`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.dist import Categorical, Dist
from transduce.core.protocols import Model
from transduce.core.seq import Batch, Seq, zero_masked
from transduce.core.side import collecting, side
from transduce.core.state import Shared
from transduce.core.tap import tap
from transduce.nn.arena import KVArena
from transduce.nn.attend import AttendState, Memory, MultiHeadAttend
from transduce.nn.embed import Embed, Head
from transduce.nn.feedforward import FeedForward
from transduce.nn.masking import positions
from transduce.nn.norm import LayerNorm
from transduce.nn.partial import PartialAttention
from transduce.nn.position import sinusoidal


@dataclass(frozen=True)
class RedLayerState:
    """A layer's past of the target, the source's keys and values that join it in one softmax, and the states
    of the attentions that read the source by themselves; None for what the layer has not."""

    past: KVArena | None
    source: Shared | None
    partial: AttendState | None
    cross: AttendState | None


@dataclass(frozen=True)
class RedState:
    """``count`` (B,): position of the next target symbol."""

    count: Tensor
    layers: tuple[RedLayerState, ...]


@dataclass(frozen=True)
class RedForm:
    """The five switches, all on for a language model on [source; target], all off for an encoder-decoder; and
    what PALM adds.

    coordinated: (i) layer l attends, in one softmax with the target's past, to the source's states at layer
        l; off, to the last source states in an attention of its own.
    causal_source: (ii) source positions see earlier ones only; off, all.
    shared: (iii) the source is read with the weights that write the target; off, with weights of its own.
    consecutive: (iv) the target's positions go on behind the source's; off, they begin at zero.
    source_loss: (v) the source is predicted too: the next symbol where the source is causal, else each
        position's own.
    partial: a second attention to the source at each layer, "own" or "shared" projections, or "none".
    segments: one learned vector for everything in the source, another for the target.
    """

    coordinated: bool = True
    causal_source: bool = True
    shared: bool = True
    consecutive: bool = True
    source_loss: bool = True
    partial: Literal["none", "own", "shared"] = "none"
    segments: bool = False

    def __post_init__(self) -> None:
        if self.partial == "shared" and not self.coordinated:
            raise ValueError(
                "partial attention shares the projections of the joint softmax over source and target: "
                "it needs coordinated, or projections of its own"
            )


@dataclass(frozen=True)
class RedSize:
    """Widths and depth. ``feedforward``: hidden width."""

    dim: int
    heads: int
    layers: int
    feedforward: int
    dropout: float = 0.0


class RedLayer(nn.Module):
    """x + attention(norm x) [+ partial attention] [, + cross attention(norm x)], then + feedforward(norm x).

    ``cross`` is there where the target reads the last source states in an attention of its own.
    """

    def __init__(self, size: RedSize, form: RedForm, *, writes: bool = True) -> None:
        super().__init__()
        attend = lambda: MultiHeadAttend(size.dim, heads=size.heads)
        self.attention = PartialAttention(size.dim, size.heads, partial=writes and form.partial == "shared")
        self.partial_attend = attend() if writes and form.partial == "own" else None
        self.cross_attend = attend() if writes and not form.coordinated else None
        self.feedforward = FeedForward(size.dim, size.feedforward, dropout=size.dropout)
        self.attention_norm, self.feedforward_norm = LayerNorm(size.dim), LayerNorm(size.dim)
        self.cross_norm = LayerNorm(size.dim) if self.cross_attend is not None else None
        self.dropout = nn.Dropout(size.dropout)

    def encode(self, x: Tensor, mask: Tensor | None, causal: bool, memory: Memory | None = None) -> Tensor:
        """One layer over the source (B,S,D); ``memory``: its keys and values, where known already."""
        normed = self.attention_norm(x)
        memory = self.attention.memory(normed, mask) if memory is None else memory
        return self._widen(x + self.dropout(self.attention.among(normed, memory, causal)))

    def decode(self, x: Tensor, state: RedLayerState, mask: Tensor | None) -> tuple[Tensor, RedLayerState]:
        normed = self.attention_norm(x)
        read, past = self.attention(normed, state.past, state.source, mask)
        if self.partial_attend is not None:
            partial, _ = self.partial_attend(normed, state.partial)
            read = read + partial
        x = x + self.dropout(tap(self, "read", read))
        if self.cross_attend is not None:
            context, _ = self.cross_attend(self.cross_norm(x), state.cross)
            x = x + self.dropout(context)
        return self._widen(x), RedLayerState(past, state.source, state.partial, state.cross)

    def _widen(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))


class RegularisedEncoderDecoder(Model):
    """p(y | x) from one stack of layers over [source; target], in every form that :class:`RedForm` names.

    With all switches on its logits are those of a causal language model on the joined sequence (section 3 of
    the paper); PALM (section 4) keeps that but for bidirectional sources, positions that begin anew, and
    partial attention.

    Source and target symbols share one embedding and one output matrix over the union of their vocabularies,
    a symbol that stands in both being one; probabilities are over the symbols of one side. The first target
    position reads BOS, which stands between source and target. With ``source_loss`` the mean negative
    log-likelihood of the source symbols is offered as the side loss "source", apart from the targets', which
    is what objectives report as ``nll``.

    Args:
        source_symbols, target_symbols: both vocabularies, by id.
        size, form: see there.

    The source's vectors are tapped as ``source`` (B,S,D), what a layer reads by attention as
    ``layers.N.read`` (B,U,D).
    """

    def __init__(
        self, source_symbols: Sequence[str], target_symbols: Sequence[str], size: RedSize, form: RedForm
    ) -> None:
        super().__init__()
        union = {s: i for i, s in enumerate(dict.fromkeys((*source_symbols, *target_symbols)))}
        for name, symbols in (("source_ids", source_symbols), ("target_ids", target_symbols)):
            self.register_buffer(name, torch.tensor([union[s] for s in symbols]), persistent=False)
        self.dim, self.form = size.dim, form
        self.embed, self.head = Embed(len(union), size.dim), Head(size.dim, len(union))
        self.segments = nn.Parameter(torch.randn(2, size.dim) * 0.1) if form.segments else None
        self.layers = nn.ModuleList(RedLayer(size, form) for _ in range(size.layers))
        self.norm, self.dropout = LayerNorm(size.dim), nn.Dropout(size.dropout)
        self.source_embed = self.source_layers = self.source_norm = None
        if not form.shared:
            # Under coordination nothing reads what a last source layer would compute.
            depth = size.layers - 1 if form.coordinated else size.layers
            self.source_embed = Embed(len(union), size.dim)
            self.source_layers = nn.ModuleList(RedLayer(size, form, writes=False) for _ in range(depth))
            self.source_norm = None if form.coordinated else LayerNorm(size.dim)

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> RedState:
        if batch.source is None:
            raise ValueError("this model writes a target for a source: give it a batch with one")
        source, mask = batch.source, batch.source.mask
        steps, count = positions(source.data, None, mask, None)
        embed = self.embed if self.source_embed is None else self.source_embed
        readers = self.layers if self.source_layers is None else self.source_layers
        x = self._enter(embed(self.source_ids[source.data]), steps, 0)
        x = tap(self, "source", zero_masked(x, mask))
        wants_loss = self.form.source_loss and collecting()
        found: list[RedLayerState] = []
        for number, layer in enumerate(self.layers):
            normed = Seq(layer.attention_norm(x), mask)
            memory = layer.attention.memory(normed.data, mask) if self.form.coordinated else None
            found.append(
                RedLayerState(
                    layer.attention.init_state(batch.size, capacity) if continues else None,
                    None if memory is None else Shared(memory),
                    None if layer.partial_attend is None else layer.partial_attend.start(normed),
                    None,
                )
            )
            last = number == len(self.layers) - 1
            if number < len(readers) and (not last or not self.form.coordinated or wants_loss):
                known = memory if self.form.shared else None
                x = readers[number].encode(x, mask, self.form.causal_source, known)
        if not self.form.coordinated or wants_loss:
            x = (self.norm if self.source_norm is None else self.source_norm)(x)
        if wants_loss:
            self._offer_source_loss(x, source)
        if not self.form.coordinated:
            final = Seq(zero_masked(x, mask), mask)
            found = [
                RedLayerState(s.past, s.source, s.partial, layer.cross_attend.start(final))
                for s, layer in zip(found, self.layers)
            ]
        begin = count if self.form.consecutive else torch.zeros_like(count)
        return RedState(begin, tuple(found))

    def forward(self, prev: Tensor, state: RedState, *, mask: Tensor | None = None) -> tuple[Dist, RedState]:
        steps, count = positions(prev, state.count, mask, None)
        x = zero_masked(self._enter(self.embed(self.target_ids[prev]), steps, 1), mask)
        after: list[RedLayerState] = []
        for layer, before in zip(self.layers, state.layers):
            x, now = layer.decode(x, before, mask)
            after.append(now)
        return self._symbols(self.norm(x), self.target_ids), RedState(count, tuple(after))

    def _enter(self, vectors: Tensor, steps: Tensor, segment: int) -> Tensor:
        x = vectors + sinusoidal(steps, self.dim, vectors.dtype)
        return self.dropout(x if self.segments is None else x + self.segments[segment])

    def _symbols(self, h: Tensor, ids: Tensor) -> Categorical:
        return Categorical(F.linear(h, self.head.weight[ids], self.head.bias[ids]))

    def _offer_source_loss(self, x: Tensor, source: Seq) -> None:
        target, mask = source.data, source.mask
        if self.form.causal_source:
            if source.steps < 2:
                return
            x, target = x[:, :-1], target[:, 1:]
            mask = None if mask is None else mask[:, 1:] & mask[:, :-1]
        dist = self._symbols(zero_masked(x, mask), self.source_ids)
        side("source", -dist.log_prob(target), mask)
