"""Aaren, RWKV-4 and models with several perspectives."""

import math

import pytest
import torch

from transduce.core import state as states
from transduce.core.seq import Batch, Seq
from transduce.models import mixer_language_model, perspectives
from transduce.nn import (
    RWKV4,
    Aaren,
    Attention,
    LayerNorm,
    MinGRU,
    Residual,
    RWKV4ChannelMix,
    Serial,
    TokenShift,
    rwkv4_layers,
)
from transduce.ops.attention import attention
from transduce.ops.dispatch import use_backend
from transduce.testing import check_mixer
from transduce.testing.decoder import check_decoder

VARIANTS = {
    "Aaren, one head": lambda d: Aaren(d, 1),
    "channel mix": RWKV4ChannelMix,
    "channel mix, narrow": lambda d: RWKV4ChannelMix(d, 24, depth=1.0),
    "RWKV4, last layer": lambda d: RWKV4(d, depth=1.0),
    "two layers": lambda d: Serial(*(Residual(m, norm=LayerNorm(d)) for m in rwkv4_layers(d, 2))),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("factory", VARIANTS.values(), ids=VARIANTS)
def test_laws(factory, dtype):
    check_mixer(factory, dim=16, dtype=dtype)


@pytest.mark.parametrize("backend", ["doubling", "reference"])
@pytest.mark.parametrize("factory", [Aaren, RWKV4])
def test_laws_hold_without_the_kernels(factory, backend):
    name = {Aaren: "softmax_scan", RWKV4: "wkv"}[factory]
    with use_backend(**{name: "reference" if backend == "reference" else backend}):
        if backend == "reference":
            check_mixer(factory, dim=8, steps=7)
        else:  # it refuses single steps
            torch.manual_seed(0)
            layer = factory(8).double()
            x = torch.randn(2, 9, 8, dtype=torch.float64)
            whole, end = layer(x, layer.init_state(2))
            first, middle = layer(x[:, :4], layer.init_state(2))
            second, last = layer(x[:, 4:], middle)
            torch.testing.assert_close(torch.cat((first, second), 1), whole)
            torch.testing.assert_close(states.leaves(last), states.leaves(end))


def test_aaren_is_attention_with_one_query():
    torch.manual_seed(0)
    layer = Aaren(16, 2).double()
    x = torch.randn(3, 11, 16, dtype=torch.float64)
    k, v = (linear(x).unflatten(-1, (2, 8)) for linear in (layer.key, layer.value))
    query = layer.query.expand(3, 11, 2, 8)
    want = layer.output(attention(query, k, v, causal=True).flatten(2))
    torch.testing.assert_close(layer(x)[0], want)


@pytest.mark.parametrize("query", [torch.nn.Linear(16, 16), lambda x: x])
def test_aaren_refuses_a_query_made_from_the_token(query):
    with pytest.raises(ValueError, match="no state of constant size"):
        Aaren(16, 2, query=query)


def test_aaren_says_what_does_not_fit():
    with pytest.raises(ValueError, match="3 heads"):
        Aaren(16, 3)
    with pytest.raises(ValueError, match="one row a head"):
        Aaren(16, 2, query=torch.zeros(16))
    with pytest.raises(ValueError, match="depth"):
        RWKV4(8, depth=2.0)


def test_the_state_stays_as_small_as_it_was():
    layer, other = Aaren(32), Attention(32)
    state, cache = layer.init_state(1), other.init_state(1)
    before = states.nbytes(state)
    with torch.no_grad():
        for _ in range(4):
            _, state = layer(torch.randn(1, 50, 32), state)
            _, cache = other(torch.randn(1, 50, 32), cache)
    assert states.nbytes(state) == before and states.nbytes(cache) >= 200 * other.bytes_per_step


def test_a_token_shift_mixes_each_step_with_the_one_before():
    shift = TokenShift(2, 2)
    with torch.no_grad():
        shift.mix.copy_(torch.tensor([[[1.0, 0.0], [0.25, 0.5]]]))
    x = torch.tensor([[[4.0, 8.0], [12.0, 2.0]]])
    (first, second), state = shift(x, shift.init_state(1))
    assert first.tolist() == [[[4.0, 0.0], [12.0, 8.0]]]
    assert second.tolist() == [[[1.0, 4.0], [6.0, 5.0]]]
    assert state.tolist() == [[12.0, 2.0]]


# ---------------------------------------------------------------- perspectives


def small(dtype=torch.float64, layers=2, dim=16):
    torch.manual_seed(0)
    model = mixer_language_model(rwkv4_layers(dim, layers), 11, dim, norm=LayerNorm).to(dtype)
    with torch.no_grad():  # matrices that start at zero would hide what stands behind them
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def scores(model, ids):
    return model(ids, model.start(Batch(None, Seq(ids)), continues=False))[0].scores


def test_perspectives_begin_as_the_model_itself():
    model, ids = small(), torch.randint(4, 11, (3, 9))
    for streams in (1, 4):
        torch.testing.assert_close(scores(perspectives(model, streams), ids), scores(model, ids), rtol=0, atol=1e-12)


def test_perspectives_train_little_and_leave_the_rest():
    model = small()
    many = perspectives(model, 4)
    trained = {name: p for name, p in many.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"mix", "gate"}
    assert sum(p.numel() for p in trained.values()) == 4 * (2 * 5 + 1) * 16
    assert all(p.requires_grad for p in perspectives(model, 2, frozen=False).parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_perspectives_part():
    """They begin alike; the gate, which treats them differently, drives them apart."""
    model = perspectives(small(), 3)
    ids = torch.randint(4, 11, (4, 12), generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(5):
        loss = -scores(model, ids)[:, :-1].gather(2, ids[:, 1:, None]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    mixes = model.decoder.decoder.layers[0].mixer.shift.mix.detach()
    assert min(float((mixes[i] - mixes[j]).abs().max()) for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-4


def test_perspectives_are_a_decoder():
    model = perspectives(small(), 3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    check_decoder(model, Batch(None, Seq.from_lists([[5, 7, 9, 4, 2], [6, 10, 2], [8, 8, 5, 2]])))


@pytest.mark.parametrize(
    "mixer, message",
    [(MinGRU, "no"), (lambda d: Serial(RWKV4(d), Attention(d)), "KVArena")],
)
def test_perspectives_say_what_they_cannot_do(mixer, message):
    with pytest.raises(ValueError, match=message):
        perspectives(mixer_language_model([mixer(16)], 11, 16), 2)


def test_perspectives_of_perspectives_are_refused():
    model = perspectives(small(), 2)
    with pytest.raises(ValueError, match="stack of mixers"):
        perspectives(model, 2)
    with pytest.raises(ValueError, match="at least one"):
        perspectives(small(), 0)
    assert math.isfinite(float(scores(model, torch.randint(4, 11, (1, 3))).sum()))
