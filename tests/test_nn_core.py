"""Norms, feedforwards, embeddings, dropout, and what combinations of mixers compute."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transduce.core import state as states
from transduce.core.dist import Categorical
from transduce.nn import (
    GRU,
    LSTM,
    Attention,
    Bidirectional,
    DilatedConv,
    Elman,
    Embed,
    FeedForward,
    Head,
    LayerNorm,
    MinGRU,
    Parallel,
    Pointwise,
    Recurrence,
    Repeat,
    Residual,
    Retention,
    RMSNorm,
    SequenceDropout,
    Serial,
    from_torch,
)
from transduce.nn.masking import only_pads_right, positions, valid_resets
from transduce.nn.recurrent import GRUCell


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- position-wise parts


def test_norms_follow_their_equations():
    x = 3 * torch.randn(2, 5, 8) + 1
    rms, layer = RMSNorm(8), LayerNorm(8)
    with torch.no_grad():
        for p in (*rms.parameters(), *layer.parameters()):
            p.uniform_(0.5, 2.0)
    close(rms(x), rms.weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt())
    spread = (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    close(layer(x), layer.weight * (x - x.mean(-1, keepdim=True)) / spread + layer.bias)
    assert LayerNorm(8, bias=False).bias is None


@pytest.mark.parametrize("name, f", [("relu", F.relu), ("gelu", F.gelu), ("silu", F.silu)])
def test_feedforward_follows_its_equation(name, f):
    layer, x = FeedForward(6, 10, activation=name), torch.randn(2, 3, 6)
    hidden = f(x @ layer.widen.weight.T + layer.widen.bias)
    close(layer(x), hidden @ layer.narrow.weight.T + layer.narrow.bias)


def test_gated_feedforward_follows_its_equation_and_costs_the_same():
    gated, x = FeedForward(48, activation="swiglu", bias=False), torch.randn(2, 3, 48)
    gate, value = gated.widen.weight.chunk(2)
    close(gated(x), (F.silu(x @ gate.T) * (x @ value.T)) @ gated.narrow.weight.T)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (gated, FeedForward(48, bias=False))]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
    with pytest.raises(ValueError, match="activation must be one of relu, gelu, silu, swiglu"):
        FeedForward(8, activation="glue")


@pytest.mark.parametrize("scale", [False, True])
def test_embeddings_start_with_unit_variance(scale):
    embed = Embed(50, 64, scale=scale)
    vectors = embed(torch.arange(50))
    assert vectors.shape == (50, 64)
    assert float(vectors.detach().std()) == pytest.approx(1.0, abs=0.1)
    close(vectors[7], embed.weight[7] * (8.0 if scale else 1.0))


def test_a_head_is_a_categorical_and_may_share_the_embedding():
    embed = Embed(11, 16, scale=True)
    head = Head(16, 11, tied=embed)
    assert head.weight is embed.weight
    h = torch.randn(2, 3, 16)
    dist = head(h)
    assert isinstance(dist, Categorical)
    close(dist.scores, (h @ embed.weight.T + head.bias).log_softmax(-1))
    assert Head(16, 11, bias=False).bias is None
    with pytest.raises(ValueError, match=r"tie it to Embed\(12, 16\)"):
        Head(16, 12, tied=embed)


# ---------------------------------------------------------------- dropout under stepping


def test_sequence_dropout_draws_one_mask_a_row_and_carries_it():
    layer = SequenceDropout(64, 0.5, generator=torch.Generator().manual_seed(1)).train()
    x = torch.ones(3, 7, 64)
    state = layer.init_state(3)
    whole, end = layer(x, state)
    assert torch.equal(whole, whole[:, :1].expand_as(whole)), "one mask for all steps of a row"
    assert set(whole.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(whole[0], whole[1]), "rows have masks of their own"
    first, middle = layer(x[:, :3], state)
    second, last = layer(x[:, 3:], middle)
    assert torch.equal(torch.cat((first, second), 1), whole) and torch.equal(last, end)


def test_sequence_dropout_draws_anew_at_a_reset_that_counts():
    layer = SequenceDropout(64, 0.5).train()
    resets = torch.zeros(2, 6, dtype=torch.bool)
    resets[:, 3] = True
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 3] = False
    y, end = layer(torch.ones(2, 6, 64), layer.init_state(2), mask=mask, resets=resets)
    assert torch.equal(y[0, 0], y[0, 2]) and torch.equal(y[0, 3], y[0, 5])
    assert not torch.equal(y[0, 2], y[0, 3])
    assert torch.equal(y[1, 0], y[1, 5]), "a reset at a masked step does not count"
    assert torch.equal(end[:, None], y[:, 5:])


def test_sequence_dropout_repeats_with_its_generator_and_rests_in_evaluation():
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    assert torch.equal(*(SequenceDropout(32, 0.3, generator=g).init_state(4) for g in generators))
    layer, x = SequenceDropout(8, 0.9).eval(), torch.randn(2, 3, 8)
    assert layer(x)[0] is x
    with pytest.raises(ValueError, match="must be in"):
        SequenceDropout(8, 1.0)


def test_residual_dropout_acts_on_the_branch_only_and_only_in_training():
    layer, x = Residual(Pointwise(nn.Linear(64, 64)), dropout=0.5), torch.randn(2, 5, 64)
    branch = layer.mixer.module(x)
    close(layer.eval()(x)[0], x + branch)
    kept = (layer.train()(x)[0] - x) / branch
    assert 0.3 < float((kept.abs() < 1e-3).float().mean()) < 0.7
    close(kept[kept.abs() > 1e-3], torch.full_like(kept[kept.abs() > 1e-3], 2.0).detach())


# ---------------------------------------------------------------- combinations


def test_serial_residual_and_parallel_compute_what_they_say():
    a, b, norm, x = GRU(8), MinGRU(8), RMSNorm(8), torch.randn(2, 5, 8)
    close(Serial(a, b)(x)[0], b(a(x)[0])[0])
    close(Residual(a, norm=norm)(x)[0], x + a(norm(x))[0])
    close(Parallel(a, b)(x)[0], a(x)[0] + b(x)[0])
    joined = Parallel(a, b, combine="project", dim=8)
    close(joined(x)[0], joined.project(torch.cat((a(x)[0], b(x)[0]), -1)))


def test_states_mirror_the_composition():
    stack = Serial(Residual(LSTM(8)), Pointwise(RMSNorm(8)), Repeat(MinGRU(8), 3))
    state = stack.init_state(2)
    assert [type(s).__name__ for s in state] == ["LSTMState", "tuple", "tuple"]
    assert state[1] == () and len(state[2]) == 3 and states.batch_size(state) == 2
    _, after = stack(torch.randn(2, 4, 8), state)
    assert len(states.leaves(after)) == len(states.leaves(state)) == 5


def test_repeat_shares_weights_and_keeps_a_state_for_each_pass():
    once, x = MinGRU(8), torch.randn(2, 5, 8)
    thrice = Repeat(once, 3)
    assert len(list(thrice.parameters())) == len(list(once.parameters()))
    close(thrice(x)[0], once(once(once(x)[0])[0])[0])
    with pytest.raises(ValueError, match="times >= 1"):
        Repeat(once, 0)


def test_lookahead_causality_and_growth_follow_from_the_parts():
    ahead = DilatedConv(8, kernel=3, dilation=2)
    assert ahead.lookahead == 2
    assert Serial(ahead, ahead, GRU(8)).lookahead == 4
    assert Parallel(ahead, GRU(8)).lookahead == 2
    assert Repeat(ahead, 3).lookahead == 6
    assert Serial(ahead, Bidirectional(GRU(8), GRU(8))).lookahead is None
    assert not Serial(GRU(8), ahead).causal and Serial(GRU(8), MinGRU(8)).causal
    cache = Attention(8, 2).bytes_per_step
    assert Serial(Attention(8, 2), GRU(8), Repeat(Attention(8, 2), 2)).bytes_per_step == 3 * cache > 0
    assert Serial(Attention(8, 2)).double().bytes_per_step == 2 * cache
    with pytest.raises(ValueError):
        Serial(ahead).init_state(2)


def test_bidirectional_agrees_with_torch_on_padded_rows():
    theirs = nn.GRU(5, 6, batch_first=True, bidirectional=True)
    halves = [nn.GRU(5, 6, batch_first=True) for _ in range(2)]
    for half, suffix in zip(halves, ("", "_reverse")):
        half.load_state_dict({k: getattr(theirs, k + suffix).detach() for k in half.state_dict()})
    ours = Bidirectional(*map(from_torch, halves))
    x, lengths = torch.randn(3, 7, 5), torch.tensor([7, 4, 1])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    want, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    mask = torch.arange(7) < lengths[:, None]
    got, state = ours(x.masked_fill(~mask[..., None], torch.nan), mask=mask)
    close(got[mask], want[mask])
    assert state is None


# ---------------------------------------------------------------- recurrences


def test_a_cell_of_ones_own_runs_without_a_fused_solver():
    class Sum(nn.Module):
        def init_state(self, batch):
            return torch.zeros(batch, 3)

        def inputs(self, x):
            return x

        def step(self, pre, state):
            return state + pre

        def output(self, state):
            return state

    x = torch.randn(2, 6, 3)
    close(Recurrence(Sum())(x)[0], x.cumsum(1))
    with pytest.raises(ValueError, match='use solver="loop"'):
        Recurrence(Sum(), solver="fused")
    with pytest.raises(ValueError, match="solver must be"):
        Recurrence(GRUCell(3, 3), solver="secant")


@pytest.mark.parametrize("make", [Elman, GRU, LSTM])
def test_loop_and_fused_solvers_agree_under_masks_and_resets(make):
    layer = make(6, 5).double()
    loop = Recurrence(layer.cell, solver="loop", project=layer.project)
    x = torch.randn(3, 8, 6, dtype=torch.float64)
    marks = {"mask": torch.rand(3, 8) < 0.6, "resets": torch.rand(3, 8) < 0.3}
    y, end = layer(x, layer.init_state(3), **marks)
    other, same = loop(x, loop.init_state(3), **marks)
    close(y[marks["mask"]], other[marks["mask"]])
    for a, b in zip(states.leaves(end), states.leaves(same)):
        close(a, b)


def test_initial_weights_are_orthogonal_and_the_forget_gate_starts_open():
    layer = LSTM(8, 6)
    for block in layer.cell.weight.split(6):
        close(block @ block.T, torch.eye(6))
    close(layer.cell.input.bias.view(4, 6), torch.tensor([0.0, 1.0, 0.0, 0.0])[:, None].expand(4, 6))


def test_from_torch_refuses_what_it_cannot_express():
    for module in (nn.GRU(4, 4, num_layers=2), nn.LSTM(4, 4, proj_size=2), nn.RNN(4, 4, nonlinearity="relu")):
        with pytest.raises(ValueError, match="from_torch takes one layer"):
            from_torch(module)


def test_min_gru_and_retention_equal_their_recurrences():
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    layer, h, want = MinGRU(8).double(), torch.zeros(2, 8, dtype=torch.float64), []
    for gate, candidate in zip(*(t.unbind(1) for t in layer.input(x).chunk(2, -1))):
        z = gate.sigmoid()
        h = (1 - z) * h + z * candidate
        want.append(h)
    close(layer(x)[0], torch.stack(want, 1))
    # Written as attention: rotated products, decayed by distance instead of normalised by a softmax.
    one = Retention(8, 1, expansion=1).double()
    q, k, v, g = one.input(x).chunk(4, -1)
    angle = torch.arange(9)[:, None] * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turn = torch.polar(torch.ones_like(angle), angle)
    q, k = (torch.complex(*t.chunk(2, -1)) * turn for t in (q, k))
    lag = torch.arange(9)[:, None] - torch.arange(9)
    decay = torch.where(lag >= 0, (1 - 2.0**-5) ** lag.double(), 0.0)
    y = ((q @ k.mH).real * 8**-0.5 * decay) @ v
    y = y / (y.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    close(one(x)[0], one.output(F.silu(g) * y))


# ---------------------------------------------------------------- masks and positions


def test_positions_count_valid_steps_since_the_last_reset():
    x = torch.zeros(2, 6, 1)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 1, 0]]).bool()
    resets = torch.tensor([[0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0]]).bool()
    at, after = positions(x, torch.tensor([0, 5]), mask, valid_resets(resets, mask))
    assert at[mask].tolist() == [0, 1, 0, 1, 5, 0] and after.tolist() == [2, 1]
    at, after = positions(x, torch.tensor([0, 5]), None, None)
    assert at.tolist() == [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 10]] and after.tolist() == [6, 11]


def test_padding_on_the_right_is_told_from_other_masks():
    assert only_pads_right(None)
    assert only_pads_right(torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool())
    assert not only_pads_right(torch.tensor([[1, 1, 0], [0, 1, 1]]).bool())
