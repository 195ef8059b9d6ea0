"""The laws of decoders and searches hold for every kind of state, and catch what breaks them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from transduce.core import state as states
from transduce.core.dist import Categorical
from transduce.core.protocols import Model
from transduce.core.seq import EOS, Batch, Seq
from transduce.models import (
    DecoderLayer, EncoderDecoder, LanguageModel, MixerDecoder, RecurrentDecoder, SequenceEncoder,
)
from transduce.nn.attend import AdditiveAttend, LocationAttend, MultiHeadAttend
from transduce.nn.attention import Attention
from transduce.nn.embed import Embed, Head
from transduce.nn.norm import LayerNorm
from transduce.nn.recurrent import GRUCell, Recurrence
from transduce.search import Ensemble
from transduce.testing.decoder import check_decoder
from transduce.testing.search import check_search


class Table(Model):
    """log p(y_u | y_{u-1}, y_{u-2}, source) from a table; a dict as the state, with a static part."""

    def __init__(self, num_symbols: int) -> None:
        super().__init__()
        self.table = nn.Parameter(2.0 * torch.randn(num_symbols, num_symbols, num_symbols))
        self.lean = nn.Parameter(torch.randn(11, num_symbols))

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> states.State:
        zero = torch.zeros(batch.size, dtype=torch.long)
        total = zero if batch.source is None else (batch.source.data * batch.source.valid()).sum(1) % 11
        return {"last": zero, "of": states.Shared((total,)), "kind": "table"}

    def forward(
        self, prev: Tensor, state: states.State, *, mask: Tensor | None = None
    ) -> tuple[Categorical, states.State]:
        last, out = state["last"], []
        (total,) = state["of"].flat()
        valid = torch.ones_like(prev, dtype=torch.bool) if mask is None else mask
        for ids, keep in zip(prev.unbind(1), valid.unbind(1)):
            out.append(self.table[last, ids] + self.lean[total])
            last = torch.where(keep, ids, last)
        return Categorical(torch.stack(out, 1)), {**state, "last": last}


@dataclass(frozen=True)
class Carried:
    """A frozen dataclass as the state: the recurrence, and a memory that beams share."""

    hidden: Tensor
    memory: states.Shared


class Averaging(Model):
    """A GRU cell that reads the mean of its source's embeddings; written without any part of the library."""

    def __init__(self, num_symbols: int, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_symbols, width)
        self.cell = nn.GRUCell(2 * width, width)
        self.head = nn.Linear(width, num_symbols)

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> Carried:
        weight = batch.source.valid().to(self.head.weight.dtype)[..., None]
        mean = (self.embed(batch.source.data) * weight).sum(1) / weight.sum(1)
        return Carried(torch.zeros_like(mean), states.Shared(mean))

    def forward(
        self, prev: Tensor, state: Carried, *, mask: Tensor | None = None
    ) -> tuple[Categorical, Carried]:
        hidden, source, out = state.hidden, state.memory.flat(), []
        valid = [None] * prev.shape[1] if mask is None else mask.unbind(1)
        for x, keep in zip(self.embed(prev).unbind(1), valid):
            after = self.cell(torch.cat((x, source), -1), hidden)
            hidden = after if keep is None else torch.where(keep[:, None], after, hidden)
            out.append(hidden)
        return Categorical(3.0 * self.head(torch.stack(out, 1))), replace(state, hidden=hidden)


def sharpened(model: Model) -> Model:
    """Larger logits, so that different sources and pasts give clearly different scores."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Head):
                module.weight.mul_(4.0)
    return model


def encoder(num_symbols: int) -> SequenceEncoder:
    return SequenceEncoder(Embed(num_symbols, 6), Recurrence(GRUCell(6, 8)))


def recurrent(num_symbols: int, attend: nn.Module) -> Model:
    decoder = RecurrentDecoder(
        Embed(num_symbols, 6), 8, 10, Head(10, num_symbols), embed_width=6, attend=attend
    )
    return sharpened(EncoderDecoder(encoder(num_symbols), decoder))


def attending(num_symbols: int, memory: bool, window: int | None = None) -> MixerDecoder:
    norm = lambda: LayerNorm(8)
    attend = lambda: MultiHeadAttend(8, heads=2) if memory else None
    layers = [DecoderLayer(Attention(8, heads=2, window=window), norm, attend()) for _ in range(2)]
    return MixerDecoder(Embed(num_symbols, 8), layers, norm(), Head(8, num_symbols))


MODELS = {
    "table, dict": Table,
    "gru, dataclass": Averaging,
    "gru, additive": lambda v: recurrent(v, AdditiveAttend(10, 8, 6)),
    "gru, location": lambda v: recurrent(v, LocationAttend(10, 8, 6)),
    "attention": lambda v: sharpened(EncoderDecoder(encoder(v), attending(v, True))),
    "windowed attention": lambda v: sharpened(EncoderDecoder(encoder(v), attending(v, True, window=3))),
    "ensemble": lambda v: Ensemble([Table(v), Averaging(v)], [0.3, 0.7]),
}


def batch(num_symbols: int = 9) -> Batch:
    generator = torch.Generator().manual_seed(1)
    draw = lambda n: torch.randint(4, num_symbols, (n,), generator=generator).tolist()
    sources, targets = [draw(n) for n in (4, 2, 6)], [[*draw(n), EOS] for n in (5, 2, 7)]
    return Batch(Seq.from_lists(sources), Seq.from_lists(targets), (7, 3, 5))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(3)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_decoders_keep_the_laws(make) -> None:
    check_decoder(make(9), batch())


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_searches_keep_the_laws(make) -> None:
    check_search(make)


def test_language_models_keep_the_laws() -> None:
    model = sharpened(LanguageModel(attending(9, False)))
    check_decoder(model, replace(batch(), source=None))
    check_search(lambda v: sharpened(LanguageModel(attending(v, False))), batch=replace(batch(), source=None))


def test_checked_models_are_left_as_they_were() -> None:
    model = Averaging(9).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_decoder(model, batch())
    assert model.training and all(value.dtype == torch.float32 for value in model.state_dict().values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ------------------------------------------------------------- broken decoders


class ForgetsLast(Table):
    """Starts every call with an empty past."""

    def forward(self, prev, state, *, mask=None):
        return super().forward(prev, {**state, "last": torch.zeros_like(state["last"])}, mask=mask)


class IgnoresMask(Table):
    def forward(self, prev, state, *, mask=None):
        return super().forward(prev, state, mask=None)


class ScoresDifferentlyInTraining(Table):
    def start(self, batch, *, capacity=None, continues=True):
        state = super().start(batch)
        return state if continues else {**state, "last": state["last"] + 1}


class NeedsCapacity(Averaging):
    """Gives other scores where room was reserved."""

    def start(self, batch, *, capacity=None, continues=True):
        state = super().start(batch)
        return state if capacity is None else replace(state, hidden=state.hidden + 1e-6)


class ReadsPadding(Averaging):
    def start(self, batch, *, capacity=None, continues=True):
        return super().start(replace(batch, source=replace(batch.source, mask=None)))


class ReadsNeighbours(Averaging):
    def start(self, batch, *, capacity=None, continues=True):
        state = super().start(batch)
        mean = state.memory.value
        return replace(state, memory=states.Shared(mean + 0.01 * mean.mean(0, keepdim=True)))


class WritesInPlace(Averaging):
    """Keeps its history in a tensor of the old state."""

    def forward(self, prev, state, *, mask=None):
        dist, after = super().forward(prev, state, mask=mask)
        if not torch.is_grad_enabled():
            state.hidden.copy_(after.hidden)
        return dist, after


class MixesBeams(Averaging):
    """Reads the memory of the wrong source once there are several beams."""

    def forward(self, prev, state, *, mask=None):
        memory = state.memory
        if memory.fanout > 1:
            state = replace(state, memory=states.Shared(memory.value.flip(0), memory.fanout))
        dist, after = super().forward(prev, state, mask=mask)
        return dist, replace(after, memory=memory)


class CutsGradient(Averaging):
    def forward(self, prev, state, *, mask=None):
        return super().forward(prev, replace(state, hidden=state.hidden.detach()), mask=mask)


class Unreached(Averaging):
    def __init__(self, num_symbols: int) -> None:
        super().__init__(num_symbols)
        self.spare = nn.Parameter(torch.zeros(2))


BROKEN_DECODERS = [
    (ForgetsLast, "stepping"), (IgnoresMask, "ragged chunks"), (ScoresDifferentlyInTraining, "stepping"),
    (NeedsCapacity, "one call"), (ReadsPadding, "rows"), (ReadsNeighbours, "rows"),
    (WritesInPlace, "old states"), (MixesBeams, "beams"),
    (CutsGradient, "gradients"), (Unreached, "gradients"),
]


@pytest.mark.parametrize("make, law", BROKEN_DECODERS, ids=[m.__name__ for m, _ in BROKEN_DECODERS])
def test_a_broken_decoder_is_caught_by_its_law(make, law: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(f'law "{law}"')):
        check_decoder(make(9), batch())


class Unnormalised(Averaging):
    """Scores that grow with the length, so that its sums mean nothing."""

    def forward(self, prev, state, *, mask=None):
        dist, after = super().forward(prev, state, mask=mask)
        return _Raised(dist.logits, float(prev.shape[1] == 1)), after


class _Raised(Categorical):
    def __init__(self, logits: Tensor, more: float) -> None:
        super().__init__(logits)
        object.__setattr__(self, "more", more)

    @property
    def scores(self) -> Tensor:
        return super().scores + self.more


BROKEN_FOR_SEARCH = [(Unnormalised, "full beam"), (MixesBeams, "batch"), (ReadsNeighbours, "batch")]


@pytest.mark.parametrize("make, law", BROKEN_FOR_SEARCH, ids=[m.__name__ for m, _ in BROKEN_FOR_SEARCH])
def test_a_model_that_search_cannot_trust_is_caught(make, law: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(f'law "{law}"')):
        check_search(make)
