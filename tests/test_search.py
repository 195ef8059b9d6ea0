"""Search: beam 1 is greedy, a full beam is exhaustive, batches and scorers change nothing they should not."""

import itertools
import math

import pytest
import torch

from transduce.core.dist import Categorical
from transduce.core.protocols import Model
from transduce.core.seq import BOS, EOS, Batch, Seq
from transduce.core import state as states
from transduce.models import EncoderDecoder, RecurrentDecoder, SequenceEncoder
from transduce.nn.attend import AdditiveAttend
from transduce.nn.embed import Embed, Head
from transduce.nn.recurrent import GRUCell, Recurrence
from transduce.search import (
    Beam, BlockNGrams, Constrain, CoveragePenalty, Ensemble, Fusion, Greedy, LengthPenalty, Sample,
    align, score,
)

VOCAB = 8


class Bigrams(Model):
    """A table model whose state is a dict: remembers the last symbol, reads the sum of the source."""

    def __init__(self, seed: int = 0, sharp: float = 2.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("table", sharp * torch.randn(VOCAB, VOCAB, VOCAB, generator=generator))
        self.register_buffer("lean", torch.randn(50, VOCAB, generator=generator))

    def start(self, batch, *, capacity=None, continues=True):
        zero = torch.zeros(batch.size, dtype=torch.long)
        total = batch.source.data.sum(1) if batch.source is not None else zero
        return {"last": zero, "shared": states.Shared({"sum": total % 50}), "nothing": None}

    def forward(self, prev, state, *, mask=None):
        last, out = state["last"], []
        lean = self.lean[state["shared"].flat()["sum"]]
        for ids in prev.unbind(1):
            out.append(self.table[last, ids] + lean)
            last = ids
        return Categorical(torch.stack(out, 1)), {**state, "last": last}


def neural(seed: int = 0) -> EncoderDecoder:
    torch.manual_seed(seed)
    encoder = SequenceEncoder(Embed(10, 6), Recurrence(GRUCell(6, 12)))
    decoder = RecurrentDecoder(
        Embed(VOCAB, 6), 12, 16, Head(16, VOCAB), embed_width=6, attend=AdditiveAttend(16, 12, 8)
    )
    model = EncoderDecoder(encoder, decoder).eval()
    with torch.no_grad():
        model.decoder.head.weight.mul_(4.0)
    return model


MODELS = {"table": Bigrams(), "neural": neural()}
SOURCES = [[4, 5, 6, 7], [7, 8], [9, 4, 5], [5], [6, 6, 6, 6, 6]]


def batch(rows=range(5)) -> Batch:
    return Batch(Seq.from_lists([SOURCES[i] for i in rows]), None, tuple(rows))


def exhaustive(model, b, limit, length):
    """Every sequence of at most limit - 1 symbols and EOS, scored by teacher forcing, best first."""
    symbols = [i for i in range(VOCAB) if i > 3]
    found = []
    for n in range(limit):
        for ids in itertools.product(symbols, repeat=n):
            forced = Batch(b.source, Seq.from_lists([[*ids, EOS]]))
            total = score(model, forced)
            found.append((float(length(total, n + 1)), ids))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_beam_of_one_is_greedy(model):
    greedy, beam = Greedy(9)(model, batch()), Beam(1, max_length=9)(model, batch())
    for (g,), (b,) in zip(greedy, beam):
        assert g.ids == b.ids and g.finished == b.finished
        assert b.parts["model"] == pytest.approx(g.score, abs=1e-4)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("length", [LengthPenalty(0.0), LengthPenalty(1.0), LengthPenalty(0.6, 0.3)])
def test_a_full_beam_is_exhaustive(model, length):
    one, limit = batch([0]), 4
    expected = exhaustive(model, one, limit, length)
    found = Beam(100, num_best=10, max_length=limit, length=length)(model, one)[0]
    assert [h.ids for h in found] == [ids for _, ids in expected[:10]]
    assert [h.score for h in found] == pytest.approx([s for s, _ in expected[:10]], abs=1e-4)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(
    "search",
    [
        Greedy(9), Beam(4, num_best=3, max_length=9), Beam(3, max_length=9, length=LengthPenalty(1.0)),
        Beam(3, max_length=9, scorers=[BlockNGrams(2)]), Sample(num_samples=3, max_length=9, seed=3),
    ],
    ids=["greedy", "beam", "normalised", "block", "sample"],
)
def test_batched_equals_one_by_one(model, search):
    together = search(model, batch())
    for i, row in enumerate(together):
        alone = search(model, batch([i]))[0]
        assert [h.ids for h in row] == [h.ids for h in alone]
        assert [h.score for h in row] == pytest.approx([h.score for h in alone], abs=1e-4)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_scores_are_the_models_own(model):
    for row, source in zip(Beam(4, num_best=4, max_length=12)(model, batch()), range(5)):
        for h in row:
            if h.finished:
                forced = Batch(batch([source]).source, Seq.from_lists([[*h.ids, EOS]]))
                assert h.parts["model"] == pytest.approx(float(score(model, forced)), abs=1e-3)


def test_special_symbols_are_never_generated():
    model = Bigrams(sharp=0.01)
    for search in (Greedy(20), Beam(4, num_best=4, max_length=20), Sample(num_samples=5, max_length=20)):
        for row in search(model, batch()):
            assert all(i > 3 for h in row for i in h.ids)


def test_early_stopping_loses_nothing():
    """The same n-best list comes out when a scorer that could be positive switches stopping early off."""

    class Harmless(BlockNGrams):
        name, never_positive = "harmless", False

    for length in (LengthPenalty(0.0), LengthPenalty(1.0)):
        early = Beam(4, num_best=2, max_length=15, length=length)(MODELS["table"], batch())
        patient = Beam(4, num_best=2, max_length=15, length=length, scorers=[Harmless(15)])
        full = patient(MODELS["table"], batch())
        assert [h.ids for row in early for h in row] == [h.ids for row in full for h in row]


def test_blocked_ngrams_do_not_repeat():
    rows = Beam(4, max_length=12, scorers=[BlockNGrams(1)])(Bigrams(3, 6.0), batch())
    plain = Beam(4, max_length=12)(Bigrams(3, 6.0), batch())
    repeats = lambda h: len(set(h.ids)) < len(h.ids)
    assert any(repeats(h) for (h,) in plain), "the plain search must repeat itself"
    assert not any(repeats(h) for (h,) in rows)


def test_fusion_adds_the_other_models_score():
    other = Bigrams(9)
    for (h,) in Beam(3, max_length=10, scorers=[Fusion(other, 0.5)])(MODELS["table"], batch()):
        assert h.score == pytest.approx(h.parts["model"] + h.parts["lm"], abs=1e-4)
    (first,) = Beam(3, max_length=10, scorers=[Fusion(other, 0.5)])(MODELS["table"], batch([0]))[0]
    if first.finished:
        forced = Batch(batch([0]).source, Seq.from_lists([[*first.ids, EOS]]))
        assert first.parts["lm"] == pytest.approx(0.5 * float(score(other, forced)), abs=1e-3)


def test_constraints_hold():
    even = torch.tensor([i % 2 == 0 or i == EOS for i in range(VOCAB)])
    allowed = lambda history, sources: even.expand(len(history), -1)
    for row in Beam(3, max_length=6, scorers=[Constrain(allowed)])(MODELS["neural"], batch()):
        assert all(i % 2 == 0 for h in row for i in h.ids)


def test_coverage_follows_the_hypotheses():
    model = MODELS["neural"]
    rows = Beam(3, num_best=3, max_length=9, scorers=[CoveragePenalty(0.5)])(model, batch())
    for i, row in enumerate(rows):
        for h in (h for h in row if h.finished):
            (weights,) = align(model, batch([i]), [h])
            covered = weights.sum(0).clamp(1e-6, 1.0).log().sum()
            assert h.parts["coverage"] == pytest.approx(0.5 * float(covered), abs=1e-3)


def test_ensembles_average():
    a, b = Bigrams(1), Bigrams(2)
    same = Ensemble([a, a, a])
    first = lambda model: [row[0].ids for row in Beam(3, max_length=9)(model, batch())]
    assert first(same) == first(a)
    one = Batch(batch([0]).source, Seq.from_lists([[4, 5, EOS]]))
    p = [m(one.previous, m.start(one))[0].scores for m in (a, b)]
    mixed, _ = Ensemble([a, b], [0.25, 0.75])(one.previous, Ensemble([a, b]).start(one))
    torch.testing.assert_close(mixed.scores.exp(), 0.25 * p[0].exp() + 0.75 * p[1].exp())
    with pytest.raises(ValueError, match="weights"):
        Ensemble([a, b], [0.5, 0.6])


def test_sampling_follows_the_distribution():
    model = Bigrams(5, 1.0)
    many = Batch(Seq.from_lists([SOURCES[0]] * 4000), None)
    first = [h.ids[0] if h.ids else EOS for (h,) in Sample(max_length=1, seed=1)(model, many)]
    one = batch([0])
    dist, _ = model(torch.tensor([[BOS]]), model.start(one))
    p = dist.scores[0, -1].exp()
    p[[0, 1, 3]] = 0
    p = p / p.sum()
    for symbol in range(VOCAB):
        share = first.count(symbol) / len(first)
        assert abs(share - float(p[symbol])) < 4 * math.sqrt(0.25 / len(first)) + 1e-9


def test_sampling_cuts():
    greedy = [r[0].ids for r in Greedy(9)(MODELS["table"], batch())]
    sharp = Sample(0.01, max_length=9)
    for search in (Sample(top_k=1, max_length=9), Sample(top_p=1e-6, max_length=9), sharp):
        assert [r[0].ids for r in search(MODELS["table"], batch())] == greedy
    a, b = (Sample(max_length=9, seed=s)(MODELS["table"], batch()) for s in (0, 1))
    assert a != b and a == Sample(max_length=9, seed=0)(MODELS["table"], batch())


def test_alignments_have_a_row_for_each_symbol():
    rows = [r[0] for r in Greedy(9)(MODELS["neural"], batch())]
    for h, matrix, source in zip(rows, align(MODELS["neural"], batch(), rows), SOURCES):
        assert matrix.shape == (len(h.ids) + 1, len(source))
        torch.testing.assert_close(matrix.sum(1), torch.ones(len(h.ids) + 1))
    assert align(MODELS["table"], batch(), rows) == []


@pytest.mark.parametrize(
    "bad", [lambda: Beam(0), lambda: Beam(2, num_best=3), lambda: Sample(0.0), lambda: Sample(top_p=0.0)]
)
def test_senseless_settings_are_refused(bad):
    with pytest.raises(ValueError):
        bad()


def test_language_model_without_source():
    lm = Bigrams(4)
    b = Batch(None, Seq.from_lists([[4, EOS], [5, EOS]]))
    assert len(Greedy(5)(lm, b)) == 2
