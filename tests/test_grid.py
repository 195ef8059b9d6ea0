"""Grids of target and source positions: the op, the layers row by row, the aggregators, the batch limit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from transduce import systems
from transduce.core import state as st
from transduce.core.errors import UserError
from transduce.core.protocols import Hypothesis
from transduce.core.seq import EOS, Batch, Seq
from transduce.core.tap import record
from transduce.data import Corpus, Example, Loader, batches, prepare
from transduce.models import EncoderDecoder, GridDecoder, SequenceEncoder
from transduce.nn.embed import Embed, Head
from transduce.nn.grid import AGGREGATES, DenseGrid, GatedMax, GridConv, MaxOver
from transduce.ops.conv2d import causal_conv2d
from transduce.search import Beam, CoveragePenalty, Greedy, align
from transduce.systems.encoder_decoder import _pervasive_check as pervasive_check
from transduce.testing.decoder import check_decoder
from transduce.testing.ops import check_op
from transduce.testing.search import check_search
from transduce.testing.system import check_system
from transduce.train import TrainConfig
from transduce.train.check import Check

each_aggregate = pytest.mark.parametrize("name", AGGREGATES)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model_with(
    name: str = "max", *, kernel: int = 3, cells: int = 1 << 16, symbols: int = 11
) -> EncoderDecoder:
    torch.manual_seed(0)
    grid = DenseGrid(12, growth=4, layers=3, kernel=kernel)
    target = Embed(symbols, 6, scale=True)
    decoder = GridDecoder(
        target, grid, AGGREGATES[name](grid.width), Head(6, symbols, tied=target), readout=6, cells=cells
    )
    return EncoderDecoder(SequenceEncoder(Embed(symbols, 6)), decoder).double().eval()


def batch() -> Batch:
    sources = [[4, 5, 6, 7, 8], [8, 4], [5, 5, 6]]
    targets = [[5, 6, EOS], [7, 8, 9, 10, 4, 5, EOS], [10, EOS]]
    return Batch(Seq.from_lists(sources), Seq.from_lists(targets))


def test_every_backend_agrees_with_the_reference():
    check_op(causal_conv2d)


def test_a_tail_of_the_wrong_length_is_refused():
    for backend in causal_conv2d.backends:
        with pytest.raises(ValueError, match="tail of 2 rows, got 1"):
            causal_conv2d.run(backend, normal(2, 3, 4, 5), normal(2, 5, 3, 5), None, normal(2, 1, 4, 5))


def test_it_is_the_square_kernel_with_zero_rows_behind_its_centre():
    conv, x = GridConv(3, 4, 5).double(), normal(2, 6, 7, 3)
    square = F.pad(conv.weight, (0, 0, 0, 2))  # rows beyond the centre
    expected = F.conv2d(x.permute(0, 3, 1, 2), square, conv.bias, padding=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(conv(x)[0], expected)


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_a_grid_row_by_row(kernel, chunk):
    grid, x = DenseGrid(6, growth=4, layers=3, kernel=kernel).double(), normal(3, 7, 5, 6)
    valid = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    mask = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.7
    poisoned = x.masked_fill(~mask[:, :, None, None], float("nan"))
    poisoned = poisoned.masked_fill(~valid[:, None, :, None], float("nan"))
    whole, none = grid(poisoned, valid=valid, mask=mask)
    assert none is None
    state, rows = grid.init_state(3, 5), []
    size = st.nbytes(state)
    for part, keep in zip(poisoned.split(chunk, 1), mask.split(chunk, 1)):
        y, state = grid(part, state, valid=valid, mask=keep)
        rows.append(y)
    assert st.nbytes(state) == size
    seen = mask[:, :, None] & valid[:, None]
    torch.testing.assert_close(torch.cat(rows, 1)[seen], whole[seen])
    for i in range(3):
        alone, _ = grid(x[i : i + 1, mask[i]][:, :, valid[i]])
        torch.testing.assert_close(whole[i][seen[i]], alone[0].flatten(0, 1))


def test_no_row_sees_a_later_one_in_any_layer():
    grid = DenseGrid(6, growth=4, layers=3).double()
    x = normal(1, 8, 5, 6).requires_grad_()
    y, _ = grid(x)
    (gradient,) = torch.autograd.grad((y[0, 4] ** 3).sum(), x)
    rows = gradient[0].abs().amax((1, 2)).nonzero()[:, 0]
    assert rows.tolist() == [1, 2, 3, 4]  # one earlier row a layer


@each_aggregate
@pytest.mark.parametrize("kernel", [3, 5])
def test_decoder_laws(name, kernel):
    check_decoder(model_with(name, kernel=kernel), batch())


@each_aggregate
def test_weights_are_shares_of_the_valid_source(name):
    model, pairs = model_with(name), batch()
    with torch.no_grad(), record(model, "*attend.weights") as seen:
        model(pairs.previous, model.start(pairs, continues=False), mask=pairs.target.mask)
    (weights,) = seen["decoder.attend.weights"]
    assert weights.shape == (3, 7, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 7, dtype=torch.float64))
    assert (weights.masked_select(~pairs.source.mask[:, None].expand_as(weights)) == 0).all()


def test_the_alignment_of_a_maximum_counts_channels():
    attend = MaxOver(4)
    x = torch.tensor([[[[5.0, 0.0, 0.0, 9.0], [1.0, 3.0, 1.0, 0.0], [2.0, 1.0, 4.0, 1.0]]]])
    with record(attend) as seen:
        attend(x)
    assert seen["weights"][0].tolist() == [[[0.5, 0.25, 0.25]]]


def test_walking_in_pieces_changes_nothing():
    whole, pairs = model_with(), batch()
    pieces = model_with(cells=1)
    with torch.no_grad():
        wanted, _ = whole(pairs.previous, whole.start(pairs, continues=False), mask=pairs.target.mask)
        with record(pieces, "*attend.weights") as seen:
            found, state = pieces(
                pairs.previous, pieces.start(pairs, continues=False), mask=pairs.target.mask
            )
        assert state.rows is None and len(seen["decoder.attend.weights"]) == pairs.target.steps
        valid = pairs.target.valid()
        torch.testing.assert_close(found.scores[valid], wanted.scores[valid])
        _, after = pieces(pairs.previous, pieces.start(pairs), mask=pairs.target.mask)
        _, expected = whole(pairs.previous, whole.start(pairs), mask=pairs.target.mask)
    for a, b in zip(st.leaves(after.rows), st.leaves(expected.rows)):
        torch.testing.assert_close(a, b)


def test_padding_may_stand_anywhere_in_the_source():
    model, pairs = model_with(), batch()
    data = torch.zeros(3, 7, dtype=torch.long)
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 1], [1, 0, 0, 0, 0, 1, 0], [0, 0, 1, 1, 1, 0, 0]]).bool()
    data[mask] = pairs.source.data[pairs.source.valid()]
    scattered = Batch(Seq(data, mask), pairs.target)
    scores = [
        model(pairs.previous, model.start(b, continues=False), mask=pairs.target.mask)[0].scores
        for b in (pairs, scattered)
    ]
    torch.testing.assert_close(*[s[pairs.target.valid()] for s in scores])


def test_search_laws():
    check_search(lambda symbols: model_with(symbols=symbols))


def test_search_and_alignment():
    model, pairs = model_with(), batch()
    found = Greedy(8)(model, Batch(pairs.source, None))
    beams = Beam(1, max_length=8)(model, Batch(pairs.source, None))
    assert [h.ids for h, *_ in found] == [h.ids for h, *_ in beams]
    Beam(3, max_length=8, scorers=[CoveragePenalty(0.2)])(model, Batch(pairs.source, None))
    maps = align(model, pairs, [Hypothesis((5, 6), 0.0)] * 3)
    assert [tuple(m.shape) for m in maps] == [(3, 5), (3, 2), (3, 3)]


def test_refusals_say_what_to_do():
    with pytest.raises(ValueError, match="must be odd.*try 5"):
        GridConv(3, 4, 4)
    with pytest.raises(UserError, match="gate must be at least 1, got 0"):
        GatedMax(4, 0)
    with pytest.raises(ValueError, match="layers and growth"):
        DenseGrid(4, growth=2, layers=0)
    with pytest.raises(ValueError, match="give start"):
        model_with().decoder.start(2)


@pytest.mark.parametrize(
    "change",
    [
        {"aggregate": "gated-max"},
        {"aggregate": "gated-max", "gate": 5},
        {"aggregate": "attention", "tied": False, "kernel": 5},
    ],
)
def test_variants_of_the_system(change):
    page = systems.find("pervasive-attention")
    check_system(page, config=page.config_type(**change))


def test_a_gate_without_a_gated_maximum_is_refused():
    page = systems.find("pervasive-attention")
    with pytest.raises(UserError, match="gate is for"):
        check_system(page, config=page.config_type(gate=5))


def test_batches_keep_to_their_cells():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abc"), n)) for n in rng.integers(1, 30, 200)]
    examples = [Example(w, w, (w,)) for w in words]
    data = prepare(Corpus("words", "pairs", examples, examples, examples, "chars", "chars"))
    cells = lambda b: b.size * b.source.steps * b.target.steps
    for limit in (50, 400):
        found = list(itertools.islice(Loader(data.train, batch_symbols=300, batch_cells=limit, seed=0), 40))
        found += batches(data.valid, 300, limit)
        assert all(cells(b) <= limit or b.size == 1 for b in found)
        assert any(b.size > 1 for b in found)
        assert all(b.size * (b.source.steps + b.target.steps) <= 300 for b in found)
        assert sorted(r for b in batches(data.valid, 300, limit) for r in b.rows) == list(range(200))
    assert TrainConfig(batch_cells=7).batch_limits == {"batch_symbols": 8192, "batch_cells": 7}
    with pytest.raises(UserError, match="batch_cells must be at least 1"):
        TrainConfig(batch_cells=0)


def test_a_quick_reproduction_writes_its_record(tmp_path):
    report = Check("pervasive-attention", tmp_path, quick=True, say=lambda text: None)
    pervasive_check.check(report)
    assert report.write().is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"pervasive-attention.json", *report.figures}
