"""Several sources: the identities of the four strategies, splitting, missing parts, the decoder laws, the
page."""

from functools import partial

import numpy as np
import pytest
import torch

from transduce import systems
from transduce.analysis import with_swapped_part, without_part
from transduce.core.errors import UserError
from transduce.core.joined import Joined, split_parts
from transduce.core.protocols import Hypothesis
from transduce.core.seq import Batch, Seq
from transduce.data import Corpus, Example, prepare
from transduce.data.fields import SEPARATOR
from transduce.data.synthetic import interleave
from transduce.nn.attend import MultiHeadAttend
from transduce.nn.multi_attend import STRATEGIES
from transduce.nn.norm import LayerNorm
from transduce.search import align
from transduce.systems.encoder_decoder import _multi_source_check as multi_check
from transduce.testing import check_decoder
from transduce.train.check import Check

PAGE = systems.find("multi-source-transformer")
SMALL = {"dim": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 32}
ROWS = [f"abc{SEPARATOR}de", f"b{SEPARATOR}cab", f"{SEPARATOR}da", f"ca{SEPARATOR}", "bad"]


def small_data(rows=ROWS):
    examples = [Example(s, t, (t,)) for s, t in zip(rows, ("xyz", "zy", "xx", "y", "zzyx"))]
    return prepare(Corpus("small", "pairs", examples, examples, examples, "chars", "chars"))


def batch_of(data):
    return data.train.batch(np.arange(len(data.train)))


def test_identities_are_exact():
    found = multi_check.identities()
    assert len(found) == 10 and max(found.values()) < 1e-12, found


@pytest.mark.parametrize("cross", sorted(STRATEGIES))
def test_decoder_laws_with_missing_sources(cross):
    data = small_data()
    torch.manual_seed(0)
    system = PAGE.build(data.spec, PAGE.config_type(cross=cross, dropout=0.0, **SMALL))
    for p in system.model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    check_decoder(system.model, batch_of(data))


@pytest.mark.parametrize("cross", sorted(STRATEGIES))
def test_a_missing_source_passes_no_gradient(cross):
    torch.manual_seed(0)
    layer = STRATEGIES[cross](2, partial(MultiHeadAttend, 8, heads=2), partial(LayerNorm, 8))
    gone = torch.full((2, 3, 8), float("nan")).requires_grad_()
    x, there = torch.randn(2, 4, 8, requires_grad=True), torch.randn(2, 5, 8)
    y, _ = layer(x, layer.start([Seq(there), Seq(gone, torch.zeros(2, 3, dtype=torch.bool))]))
    y.sum().backward()
    assert bool(y.isfinite().all()) and bool(x.grad.isfinite().all()) and float(gone.grad.abs().sum()) == 0.0
    empty = Seq(there, torch.zeros(2, 5, dtype=torch.bool))
    y, _ = layer(x, layer.start([empty, empty]))
    assert torch.equal(y, x), "without any source the layer adds nothing"


def test_rows_are_split_at_separators():
    ids = Seq.from_lists([[5, 9, 6, 7], [9, 8], [4, 4, 4], [9]])
    (first, second), places = split_parts(ids, 9, 2)
    rows = lambda s: [d[m].tolist() for d, m in zip(s.data, s.valid())]
    assert rows(first) == [[5], [], [4, 4, 4], []]
    assert rows(second) == [[6, 7], [8], [], []]
    assert places.tolist() == [[0, -1, -1, 2, 3], [-1, -1, -1, 1, -1], [0, 1, 2, -1, -1], [-1] * 5]
    holes = Seq(torch.tensor([[5, 0, 9, 0, 7]]), torch.tensor([[True, False, True, False, True]]))
    assert [rows(p) for p in split_parts(holes, 9, 2)[0]] == [[[5]], [[7]]]
    with pytest.raises(ValueError, match="has 3 parts, 2 are expected"):
        split_parts(Seq.from_lists([[9, 9]]), 9, 2)


def test_joined_parts_come_apart_again():
    parts = [Seq(torch.randn(2, 3, 4)), Seq.from_lengths(torch.randn(2, 2, 4), torch.tensor([1, 0]))]
    joined = Joined.of(parts)
    for part, again in zip(parts, joined.parts):
        assert torch.equal(part.data, again.data) and torch.equal(part.valid(), again.valid())
    assert torch.equal(joined.select(torch.tensor([1])).parts[1].data, parts[1].data[1:])
    with pytest.raises(ValueError, match="one width"):
        Joined.of([Seq(torch.randn(2, 3, 4)), Seq(torch.randn(2, 3, 5))])
    with pytest.raises(ValueError, match="do not fill"):
        Joined(torch.randn(2, 3), None, (1, 1))


def test_source_dropout_takes_one_part_of_some_rows_while_training():
    data = small_data()
    torch.manual_seed(0)
    model = PAGE.build(data.spec, PAGE.config_type(source_dropout=0.5, dropout=0.0, **SMALL)).model
    source = Seq.from_lists([data.spec.source.encode(ROWS[0])] * 400 + [data.spec.source.encode(ROWS[4])])
    model.train()
    first, second = (p.valid().any(1) for p in model.encoder(source)[0].parts)
    assert bool((first | second).all()) and bool(first[-1]), "a row keeps a part, and its only one"
    assert 150 < int((first ^ second)[:-1].sum()) < 250
    assert min(int((~first[:-1]).sum()), int((~second[:-1]).sum())) > 60
    model.eval()
    assert bool(model.encoder(source)[0].parts[1].valid().any(1)[:-1].all())


def test_too_many_parts_and_units_that_hide_them_are_refused():
    data = small_data((*ROWS[:4], f"a{SEPARATOR}b{SEPARATOR}c"))
    system = PAGE.build(data.spec, PAGE.config_type(**SMALL))
    with pytest.raises(UserError, match=r"has 3 parts, 2 are expected; give --sources"):
        system.model.start(batch_of(data))
    spec = prepare(Corpus("b", "pairs", data.train.examples, [], [], "bytes", "chars"), None).spec
    with pytest.raises(UserError, match="chars, words or bpe"):
        PAGE.build(spec, PAGE.config_type(**SMALL))


def test_parts_are_swapped_and_taken_away():
    sources = [f"a{SEPARATOR}b", f"c{SEPARATOR}d", f"e{SEPARATOR}f"]
    assert with_swapped_part(sources, 1) == [f"a{SEPARATOR}d", f"c{SEPARATOR}f", f"e{SEPARATOR}b"]
    assert without_part(sources, 0) == [f"{SEPARATOR}b", f"{SEPARATOR}d", f"{SEPARATOR}f"]
    with pytest.raises(UserError, match="no part 3"):
        without_part(sources, 2)
    with pytest.raises(UserError, match="at least two"):
        with_swapped_part(sources[:1], 1)


def test_words_are_interleaved_as_the_second_one_says():
    seen = set()
    for e in interleave(train=100, held_out=20).train:
        a, b = e.source.split(SEPARATOR)
        rule = "abcdefghijkl".index(b[0]) % 3
        alternate = lambda p, q: "".join(x + y for x, y in zip(p, q))
        assert e.target == (alternate(a, b), alternate(b, a), a + b)[rule]
        seen.add(rule)
    assert seen == {0, 1, 2}


def test_beams_and_greedy_work_with_missing_sources():
    data = small_data()
    torch.manual_seed(0)
    system = PAGE.build(data.spec, PAGE.config_type(**SMALL))
    system.model.eval()
    batch = batch_of(data)
    open_ended = Batch(batch.source, None, batch.rows)
    for search in (system.search, system.search_wide):
        assert len(search(system.model, open_ended)) == len(ROWS)


@pytest.mark.parametrize("cross", sorted(STRATEGIES))
def test_one_attention_map_shows_all_sources(cross):
    data = small_data()
    torch.manual_seed(0)
    model = PAGE.build(data.spec, PAGE.config_type(cross=cross, **SMALL)).model.eval()
    batch = batch_of(data)
    hypotheses = [Hypothesis((4, 5), 0.0)] * batch.size
    maps = align(model, Batch(batch.source, None), hypotheses)
    for row, weights in zip(ROWS, maps):
        assert weights.shape == (3, len(row))
        cut = row.find(SEPARATOR)
        parts = [p for p in row.split(SEPARATOR) if p]
        whole = 1.0 if cross == "flat" else len(parts) / 2
        torch.testing.assert_close(weights.sum(1), torch.full((3,), whole))
        assert cut < 0 or float(weights[:, cut].abs().max()) == 0.0


def test_translations_of_two_languages_are_scored_and_swapped():
    pytest.importorskip("sacrebleu")
    rows = [(f"{a} eins {SEPARATOR} {a} un", f"{a} one") for a in ("rot", "blau", "gelb", "weiss")]
    examples = [Example(s, t, (t,)) for s, t in rows]
    corpus = Corpus("two", "pairs", examples, examples, examples, "words", "words")
    both, single = multi_check.translations(corpus), multi_check.translations(corpus, 1)
    assert [e.source for e in single.test.examples] == ["rot un", "blau un", "gelb un", "weiss un"]
    torch.manual_seed(0)
    system, alone = (PAGE.build(p.spec, PAGE.config_type(**SMALL)) for p in (both, single))
    assert 0.0 <= multi_check.chrf(system, both, 3) <= 100.0
    assert 0.0 <= multi_check.chrf(system, both, 3, swap=True) <= 100.0
    assert np.isnan(multi_check.chrf(alone, single, 3, swap=True))


def test_a_quick_reproduction_writes_its_record(tmp_path):
    check = Check("multi-source-transformer", tmp_path, quick=True, say=lambda text: None)
    multi_check.check(check)
    assert check.write().is_file() and check.figures
