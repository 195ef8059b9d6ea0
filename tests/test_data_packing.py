"""Packed texts: every text once, lines nearly full, and a loss that is that of the texts alone."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from train_toys import quick

from transduce import systems
from transduce.api import fit
from transduce.core.errors import UserError
from transduce.core.protocols import Decoder
from transduce.core.seq import BOS, EOS
from transduce.data import Corpus, Example, Loader, prepare, synthetic
from transduce.data.packing import pack
from transduce.data.ragged import Ragged
from transduce.models import LanguageModel
from transduce.systems.build import assemble
from transduce.train import Trainer

WORDS = "the quick brown fox jumps over a lazy dog while seven wizards box for joy".split()


def texts(count=200, seed=0):
    rng = np.random.default_rng(seed)
    lines = [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(count)]
    examples = [Example(None, line, (line,)) for line in lines]
    return Corpus("texts", "text", examples, examples[:20], examples[20:40], "chars", "chars")


@pytest.fixture(scope="module")
def prepared():
    return prepare(texts())


def test_every_text_stands_in_one_line_and_lines_are_nearly_full():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 60, 3000)
    found = pack(rng.permutation(3000), lengths, 2048)
    assert sorted(np.concatenate([lines.rows for lines in found])) == list(range(3000))
    cells = 0
    for lines in found:
        sizes = [lengths[part].sum() for part in np.split(lines.rows, lines.firsts[1:])]
        assert max(sizes) <= 256 and len(sizes) * 256 <= 2048
        cells += len(sizes) * max(sizes)
    assert lengths.sum() / cells > 0.97


@pytest.mark.parametrize("budget, width", [(64, 64), (5, 60), (10_000, 256)])
def test_lines_fit_the_budget_unless_a_text_does_not(budget, width):
    lengths = np.array([60, 1, 3, 60, 2])
    found = pack(np.arange(5), lengths, budget)
    for lines in found:
        assert max(lengths[part].sum() for part in np.split(lines.rows, lines.firsts[1:])) <= width


def test_a_packed_batch_marks_where_texts_begin():
    rows = Ragged.of([[5, 6, EOS], [7, EOS], [8, 9, 9, EOS]], 10)
    seq, resets = rows.joined(np.array([1, 0, 2]), np.array([0, 2]))
    assert seq.data.tolist() == [[7, EOS, 5, 6, EOS], [8, 9, 9, EOS, 0]]
    assert seq.mask.tolist() == [[True] * 5, [True] * 4 + [False]]
    assert resets.int().tolist() == [[1, 0, 1, 0, 0], [1, 0, 0, 0, 0]]


def test_rows_of_a_packed_batch_keep_their_texts(prepared):
    batch = next(iter(Loader(prepared.train, batch_symbols=900, seed=0, packed=True)))
    picked = batch.select(torch.tensor([2, 0]))
    per_line = batch.resets.sum(1).tolist()
    assert picked.rows == batch.rows[sum(per_line[:2]) :][: per_line[2]] + batch.rows[: per_line[0]]
    assert torch.equal(picked.previous, batch.previous[[2, 0]]) and torch.equal(
        picked.resets, batch.resets[[2, 0]]
    )


def test_vectors_are_rows_too():
    rows = Ragged.of([[(0.0, 1.0)], [(2.0, 3.0), (4.0, 5.0)]])
    seq = rows.take(np.array([1, 0]))
    assert seq.data.tolist() == [[[2, 3], [4, 5]], [[0, 1], [0, 0]]] and seq.data.dtype == torch.float32
    assert seq.mask.tolist() == [[True, True], [True, False]] and rows[1] == [[2, 3], [4, 5]]


def test_the_loader_packs_every_epoch_anew_and_goes_on_where_it_was(prepared):
    loader = Loader(prepared.train, batch_symbols=600, seed=3, packed=True)
    stream = iter(loader)
    epochs = [[next(stream) for _ in range(loader.batches_per_epoch)] for _ in range(2)]
    for epoch in epochs:
        assert sorted(r for b in epoch for r in b.rows) == list(range(len(prepared.train)))
        for batch in epoch:
            assert (batch.previous[batch.resets] == BOS).all() and batch.target.data.numel() <= 600
            assert int(batch.resets.sum()) == len(batch.rows)
    assert [b.rows for b in epochs[0]] != [b.rows for b in epochs[1]]
    stored = json.loads(json.dumps(loader.state_dict()))
    expected = next(stream)
    other = Loader(prepared.train, batch_symbols=600, seed=3, packed=True)
    other.load_state_dict(stored)
    found = next(iter(other))
    assert found.rows == expected.rows and torch.equal(found.target.data, expected.target.data)


@pytest.mark.parametrize(
    "name, config",
    [
        ("gru-lm", {"dim": 16}),
        ("transformer-lm", {"dim": 16, "heads": 2, "feedforward": 32, "layers": 2}),
        ("transformer-lm", {"dim": 16, "heads": 2, "feedforward": 32, "layers": 2, "window": 8}),
    ],
    ids=["gru-lm", "transformer-lm", "transformer-lm window"],
)
def test_the_loss_of_packed_texts_is_that_of_the_texts_alone(prepared, name, config):
    page = systems.find(name)
    torch.manual_seed(0)
    system = page.build(prepared.spec, page.config_type(**config))
    system.model.double().eval()
    batch = next(iter(Loader(prepared.train, batch_symbols=900, seed=0, packed=True)))
    assert batch.target.mask is not None and batch.target.data.shape[0] > 1

    def summed(batch):
        loss = system.objective(system.model, batch, step=0)
        return loss.total * loss.weight, loss.weight

    def gradient(total):
        system.model.zero_grad()
        total.backward()
        return torch.cat([p.grad.flatten() for p in system.model.parameters()])

    together, symbols = summed(batch)
    alone = [summed(prepared.train.batch(np.array([row]))) for row in batch.rows]
    assert symbols == sum(n for _, n in alone)
    torch.testing.assert_close(together, sum(t for t, _ in alone), rtol=1e-10, atol=0)
    apart = gradient(sum(t for t, _ in alone))
    torch.testing.assert_close(gradient(summed(batch)[0]), apart, rtol=1e-8, atol=1e-10)
    # The marks are what does it: without them the texts see each other.
    mixed, _ = summed(dataclasses.replace(batch, resets=None))
    assert abs(float((mixed - together).detach())) > 1e-3


def test_training_packs_where_it_is_asked_to(tmp_path):
    corpus = texts()
    page = systems.find("gru-lm")
    data, system = assemble(page, corpus, page.config_type(dim=16, layers=1))
    result = Trainer(
        system, data, quick(pack=True, batch_symbols=512, learning_rate=2e-2), tmp_path / "run"
    ).run()
    assert result.steps == 30 and result.history[-1]["valid_loss"] < 3.2
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["pack"] is True


def test_what_cannot_be_packed_says_so(prepared, tmp_path):
    pairs = prepare(synthetic.make("synthetic-copy", train=20, held_out=2))
    with pytest.raises(UserError, match="Only texts can be packed"):
        Loader(pairs.train, batch_symbols=100, seed=0, packed=True)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(UserError, match="Only texts can be packed"):
        fit("rnnsearch", synthetic.make("synthetic-copy", train=20, held_out=2), tmp_path, train=quick(pack=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == before

    class Plain(Decoder):
        def start(self, batch, memory=None, *, capacity=None, continues=True):
            return None

        def forward(self, prev, state, *, mask=None):
            raise AssertionError("not reached")

    batch = next(iter(Loader(prepared.train, batch_symbols=100, seed=0, packed=True)))
    model = LanguageModel(Plain())
    with pytest.raises(UserError, match="without packing"):
        model(batch.previous, model.start(batch), mask=batch.target.mask, **batch.marks)
