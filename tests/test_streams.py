"""Labelled streams, the labeller and the stacks that every mixer is put into."""

import pytest
import torch

from transduce.data.synthetic.streams import IGNORE, associative_recall, first_token_recall, selective_copying
from transduce.models import Labeller, mixer_language_model
from transduce.nn import FeedForward, MinGRU
from transduce.nn.catalogue import MIXERS
from transduce.nn.embed import Embed
from transduce.nn.stack import mixer_stack
from transduce.testing import check_mixer
from transduce.train.streams import stream_accuracy, train_stream


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_of_the_catalogue_obeys_the_laws(name, dtype):
    check_mixer(MIXERS[name], dim=16, dtype=dtype)


def test_first_token_recall_asks_for_the_first():
    inputs, labels = first_token_recall(steps=10)(5, torch.Generator().manual_seed(0))
    assert (labels[:, -1] == inputs[:, 0]).all() and (labels[:, :-1] == IGNORE).all()
    assert (inputs[:, -1] == 32).all() and (inputs[:, 1:-1] >= 16).all()


def test_selective_copying_asks_for_the_symbols_in_order():
    inputs, labels = selective_copying(4, 10, 12)(6, torch.Generator().manual_seed(0))
    for row, wanted in zip(inputs, labels):
        assert row[:12][row[:12] < 10].tolist() == wanted[12:].tolist()


def test_associative_recall_asks_for_the_value_of_the_key():
    inputs, labels = associative_recall(4, 32, 20)(6, torch.Generator().manual_seed(0))
    for row, wanted in zip(inputs, labels):
        pairs = dict(zip(row[:8:2].tolist(), row[1:8:2].tolist()))
        asked = wanted != IGNORE
        assert asked.sum() == 4 and [pairs[k] for k in row[asked].tolist()] == wanted[asked].tolist()
    with pytest.raises(ValueError, match="48 steps"):
        associative_recall(16, steps=40)


@pytest.mark.parametrize("pool", [None, "mean", "last"])
def test_labels_do_not_depend_on_padding(pool):
    torch.manual_seed(0)
    net = Labeller(Embed(9, 16), mixer_stack([MinGRU(16)], 16, lambda: FeedForward(16)), 16, 4, pool=pool)
    x, mask = torch.randint(9, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    got, alone = net(x, mask)[1], net(x[1:, :4])[0]
    torch.testing.assert_close(got[:4] if pool is None else got, alone)


def test_a_language_model_of_two_kinds_of_layers_learns_a_stream():
    torch.manual_seed(0)
    task = first_token_recall(4, 4, 8)
    net = Labeller(Embed(9, 16), mixer_stack([MinGRU(16), MIXERS["gru"](16)], 16), 16, 4)
    before = stream_accuracy(net, task, batches=2)
    losses = train_stream(net, task, 120, batch=32, learning_rate=1e-2)
    assert len(losses) == 120 and stream_accuracy(net, task, batches=2) > max(0.9, before)


def test_a_mixer_language_model_shares_nothing_between_layers():
    lm = mixer_language_model([MinGRU(16), MinGRU(16)], 9, 16, lambda: FeedForward(16))
    assert len({id(p) for p in lm.parameters()}) == len(list(lm.parameters()))
    with pytest.raises(ValueError, match="pool"):
        Labeller(Embed(9, 16), MinGRU(16), 16, 4, pool="first")
