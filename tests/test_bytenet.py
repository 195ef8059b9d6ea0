"""ByteNet's parts: the multiplicative unit, the stacks, unfolding, and decoding past the estimate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transduce import systems
from transduce.core import state as st
from transduce.core.errors import UserError
from transduce.core.seq import Batch, Seq
from transduce.models import EncoderDecoder, StackedDecoder, UnfoldingEncoder
from transduce.nn.bytenet import MultiplicativeUnit, dilated_stack, receptive_field
from transduce.nn.combine import Pointwise
from transduce.nn.embed import Embed, Head
from transduce.nn.masking import left_aligned
from transduce.search import Beam, Greedy
from transduce.systems.encoder_decoder import _bytenet_check as bytenet_check
from transduce.systems.language import _bytenet_lm_check as lm_check
from transduce.testing.mixers import check_mixer
from transduce.testing.search import check_search
from transduce.testing.system import check_system
from transduce.train.check import Check

STACKS = {
    "multiplicative unit": lambda dim: MultiplicativeUnit(dim, 3, 2),
    "causal stack": lambda dim: dilated_stack(dim, causal=True, dilations=(1, 2)),
    "multiplicative stack": lambda dim: dilated_stack(
        dim, causal=True, dilations=(1, 2), unit="multiplicative"
    ),
    "centred stack": lambda dim: dilated_stack(dim, causal=False, dilations=(1, 2), sets=2),
}


@pytest.mark.parametrize("make", STACKS.values(), ids=STACKS)
def test_laws(make):
    check_mixer(make, dim=8, steps=9)


def test_the_unit_is_its_equation():
    torch.manual_seed(0)
    unit, x = MultiplicativeUnit(4, 3, 2).double(), torch.randn(2, 9, 4, dtype=torch.float64)
    padded = torch.nn.functional.pad(x.mT, (4, 0))
    g1, g2, g3, u = torch.conv1d(padded, unit.weight, unit.bias, dilation=2).mT.chunk(4, -1)
    expected = g1.sigmoid() * torch.tanh(g2.sigmoid() * x + g3.sigmoid() * torch.tanh(u))
    torch.testing.assert_close(unit(x)[0], expected)


@pytest.mark.parametrize("kernel, dilations, sets", [(3, (1, 2, 4), 2), (2, (1, 3), 1)])
@pytest.mark.parametrize("unit", ["relu", "multiplicative"])
def test_the_receptive_field_is_the_computed_one(kernel, dilations, sets, unit):
    torch.manual_seed(0)
    stack = dilated_stack(6, causal=True, kernel=kernel, dilations=dilations, sets=sets, unit=unit).double()
    wanted = receptive_field(kernel, dilations, sets)
    x = torch.randn(1, wanted + 7, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(stack(x)[0][0, wanted + 3].sum(), x)
    seen = gradient[0].abs().amax(-1).nonzero()[:, 0]
    assert (int(seen.min()), int(seen.max())) == (4, wanted + 3)


def test_the_papers_field():
    assert receptive_field(3, (1, 2, 4, 8, 16), 6) == 373


def test_the_state_of_a_stack_does_not_grow():
    stack = dilated_stack(8, causal=True)
    state = stack.init_state(2)
    before = st.nbytes(state)
    for _ in range(5):
        _, state = stack(torch.randn(2, 7, 8), state)
    assert st.nbytes(state) == before == 2 * 2 * (1 + 2 + 4 + 8 + 16) * 4 * 4


def test_refusals_say_what_to_do():
    with pytest.raises(ValueError, match="even"):
        dilated_stack(7, causal=True)
    with pytest.raises(ValueError, match="relu"):
        dilated_stack(8, causal=False, unit="multiplicative")
    with pytest.raises(UserError, match="got 2 sets of \\[1, 0\\]"):
        dilated_stack(8, causal=True, sets=2, dilations=(1, 0))
    with pytest.raises(UserError, match="kernel"):
        dilated_stack(8, causal=True, kernel=0)
    with pytest.raises(UserError, match="stretch"):
        UnfoldingEncoder(Embed(9, 8), dilated_stack(8, causal=False), stretch=-1.0)
    with pytest.raises(ValueError, match="dilation"):
        MultiplicativeUnit(4, 3, 0)
    encoder = UnfoldingEncoder(Embed(9, 8), dilated_stack(8, causal=False))
    with pytest.raises(ValueError, match="whole source"):
        encoder(Seq.from_lists([[4, 5]]), final=False)
    centred = dilated_stack(8, causal=False)
    with pytest.raises(ValueError, match="causal"):
        StackedDecoder(Embed(9, 8), centred, Head(8, 9), embed_width=8, width=8)
    with pytest.raises(ValueError, match="give start"):
        _decoder(memory=8).start(2)
    with pytest.raises(ValueError, match="reads no memory"):
        _decoder(memory=None).start(2, Seq(torch.zeros(2, 3, 8)))


def test_unfolding_is_by_each_rows_own_length():
    encoder = UnfoldingEncoder(Embed(20, 8), dilated_stack(8, causal=False), stretch=1.5, offset=1)
    rows = [[4, 5, 6, 7], [8], [9, 10]]
    memory, state = encoder(Seq.from_lists(rows))
    assert state is None and memory.lengths.tolist() == [7, 2, 4]
    for i, row in enumerate(rows):
        alone, _ = encoder(Seq.from_lists([row]))
        torch.testing.assert_close(memory.data[i, : alone.steps], alone.data[0])
    assert (memory.data[1, 2:] == 0).all()
    never_shorter = UnfoldingEncoder(Embed(20, 8), dilated_stack(8, causal=False), stretch=0.5)
    assert never_shorter.unfolded(torch.tensor([1, 4, 9])).tolist() == [1, 4, 9]


def test_padding_may_stand_anywhere_in_the_source():
    encoder = UnfoldingEncoder(Embed(20, 8), dilated_stack(8, causal=False))
    data = torch.tensor([[4, 0, 5, 6, 0], [0, 0, 7, 8, 9]])
    mask = data > 0
    scattered, _ = encoder(Seq(data, mask))
    packed, _ = encoder(Seq.from_lists([[4, 5, 6], [7, 8, 9]]))
    torch.testing.assert_close(scattered.data, packed.data)
    moved, aligned = left_aligned(data, mask)
    assert moved[:, :3].tolist() == [[4, 5, 6], [7, 8, 9]] and aligned.sum(1).tolist() == [3, 3]


def _decoder(memory: int | None) -> StackedDecoder:
    stack = dilated_stack(8, causal=True, dilations=(1, 2))
    return StackedDecoder(Embed(20, 8), stack, Head(8, 20), embed_width=8, width=8, memory_width=memory)


def test_the_symbol_at_t_stands_on_memory_step_t():
    torch.manual_seed(0)
    decoder = _decoder(memory=8).double().eval()
    memory = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    dist, _ = decoder(torch.randint(4, 20, (1, 9)), decoder.start(1, Seq(memory), continues=False))
    for t, scores in enumerate(dist.scores.unbind(1)):
        (seen,) = torch.autograd.grad(scores[0, 7], memory, retain_graph=True)
        reach = seen[0].abs().amax(-1).nonzero()[:, 0].tolist()
        assert reach == [s for s in range(5) if t - 6 <= s <= t]  # field 7, and nothing beyond the memory


def test_search_laws():
    def make(num_symbols: int) -> EncoderDecoder:
        torch.manual_seed(3)
        encoder = UnfoldingEncoder(Embed(num_symbols, 8), dilated_stack(8, causal=False, dilations=(1, 2)))
        stack = dilated_stack(8, causal=True, dilations=(1, 2))
        decoder = StackedDecoder(
            Embed(num_symbols, 8), stack, Head(8, num_symbols), embed_width=8, width=8, memory_width=8
        )
        return EncoderDecoder(encoder, decoder)

    check_search(make)


@pytest.mark.parametrize("memory", [8, None])
def test_texts_packed_into_one_row_are_scored_as_alone(memory):
    torch.manual_seed(0)
    decoder = _decoder(memory).double().eval()
    source = None if memory is None else Seq(torch.randn(1, 5, 8, dtype=torch.float64))
    texts = [torch.randint(4, 20, (1, n)) for n in (6, 3, 8)]
    begins = torch.cat([torch.arange(t.shape[1])[None] == 0 for t in texts], 1)
    packed, _ = decoder(torch.cat(texts, 1), decoder.start(1, source, continues=False), resets=begins)
    alone = [decoder(t, decoder.start(1, source, continues=False))[0].scores for t in texts]
    torch.testing.assert_close(packed.scores, torch.cat(alone, 1))


def test_decoding_goes_on_past_the_memory():
    torch.manual_seed(0)
    encoder = UnfoldingEncoder(Embed(20, 8), Pointwise(nn.Identity()))
    model = EncoderDecoder(encoder, _decoder(memory=8)).eval()
    with torch.no_grad():
        model.decoder.head.bias[2] = -1e4  # never EOS
    batch = Batch(Seq.from_lists([[4, 5], [6, 7, 8, 9, 10]]), None)
    for search in (Greedy(12), Beam(3, max_length=12)):
        found = search(model, batch)
        assert all(len(best.ids) == 12 and not best.finished for best, *_ in found)


def test_the_language_model_with_rectifier_blocks():
    page = systems.find("bytenet-lm")
    check_system(page, config=page.config_type(unit="relu", width=64))


def test_later_symbols_reach_no_earlier_output():
    """The measure of the full check, on a decoder that is causal and on one whose norm spans time."""
    torch.manual_seed(0)
    encoder = UnfoldingEncoder(Embed(20, 8), Pointwise(nn.Identity()))
    model = EncoderDecoder(encoder, _decoder(memory=8))
    rows = Batch(Seq.from_lists([[4, 5, 6], [6, 7]]), Seq.from_lists([[5, 6, 7, 2], [9, 2]]))
    assert bytenet_check.future_leak(model, rows) == 0.0

    class OverTime(nn.Module):
        def forward(self, x):
            return x - x.mean(1, keepdim=True)

    model.decoder.mixer = Pointwise(OverTime())
    assert bytenet_check.future_leak(model, rows) > 1e-3


@pytest.mark.parametrize("name, check", [("bytenet", bytenet_check.check), ("bytenet-lm", lm_check.check)])
def test_a_quick_reproduction_writes_its_record(tmp_path, name, check):
    report = Check(name, tmp_path, quick=True, say=lambda text: None)
    check(report)
    assert report.write().is_file()
    assert {p.name for p in tmp_path.iterdir()} == {f"{name}.json", *report.figures}


def test_the_text_of_the_check_keeps_modules_apart():
    corpus, digest = lm_check.python_source(quick=True)
    assert digest == lm_check.python_source(quick=True)[1]
    parts = [
        {e.target for e in part if len(e.target) > 100} for part in (corpus.train, corpus.valid, corpus.test)
    ]
    assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
