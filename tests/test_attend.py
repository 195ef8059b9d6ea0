"""Attention to a memory: each score against its formula, stepping, beams, padding, coverage."""

from __future__ import annotations

import math

import pytest
import torch

from transduce.core import state as st
from transduce.core.seq import Seq
from transduce.core.tap import record, replace
from transduce.nn.attend import AdditiveAttend, DotAttend, GeneralAttend, LocationAttend, MultiHeadAttend

MAKERS = {
    "dot": lambda: DotAttend(8, 0.5),
    "general": lambda: GeneralAttend(8, 8),
    "additive": lambda: AdditiveAttend(8, 8, 5),
    "additive with coverage": lambda: AdditiveAttend(8, 8, 5, coverage=True),
    "location": lambda: LocationAttend(8, 8, 5, filters=3, kernel=5),
    "multi-head": lambda: MultiHeadAttend(8, heads=4, kv_heads=2),
    "multi-head with coverage": lambda: MultiHeadAttend(8, heads=2, coverage=True),
}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
remembering = pytest.mark.parametrize(
    "make", [m for m in MAKERS.values() if m().remembers], ids=[n for n, m in MAKERS.items() if m().remembers]
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(make):
    made = make().double()
    generator = torch.Generator().manual_seed(7)
    for p in made.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.7
    return made


def memory(batch: int = 3, steps: int = 6, width: int = 8) -> Seq:
    lengths = torch.tensor([steps, steps - 2, steps - 3])[:batch]
    return Seq.from_lengths(normal(batch, steps, width, seed=9), lengths)


@each
def test_steps_equal_the_whole_target(make):
    m, query = layer(make), normal(3, 5, 8)
    start = m.start(memory())
    whole, end = m(query, start)
    assert whole.shape == (3, 5, m.context_width)
    state, stepped = start, []
    for u in range(5):
        context, state = m.attend_step(query[:, u], state)
        stepped.append(context)
    assert torch.allclose(torch.stack(stepped, 1), whole, atol=1e-12)
    first, state = m(query[:, :2], start)
    second, state = m(query[:, 2:], state)
    assert torch.allclose(torch.cat((first, second), 1), whole, atol=1e-12)
    assert all(
        torch.allclose(a, b, atol=1e-12) for a, b in zip(st.leaves(state), st.leaves(end), strict=True)
    )


@each
def test_padding_of_the_memory_changes_nothing_and_gets_no_weight(make):
    m, query, source = layer(make), normal(3, 4, 8), memory()
    poisoned = Seq(source.data.masked_fill(~source.mask[..., None], float("nan")), source.mask)
    with record(m) as seen:
        padded, _ = m(query, m.start(poisoned))
    weights = torch.cat(seen["weights"], -2)
    hidden = ~source.mask.view(3, *([1] * (weights.dim() - 2)), -1)
    assert weights.shape[-2:] == (4, 6) and (weights.masked_select(hidden) == 0).all()
    assert torch.allclose(weights.sum(-1), torch.ones((), dtype=torch.float64))
    for row, length in enumerate(source.lengths.tolist()):
        alone, _ = m(query[row : row + 1], m.start(Seq(source.data[row : row + 1, :length])))
        assert torch.allclose(padded[row], alone[0], atol=1e-12)


@each
def test_padding_reaches_no_gradient(make):
    m, source = layer(make), memory()
    data = source.data.masked_fill(~source.mask[..., None], float("nan")).requires_grad_()
    query = normal(3, 4, 8).requires_grad_()
    context, _ = m(query, m.start(Seq(data, source.mask)))
    context.square().sum().backward()
    assert data.grad[~source.mask].abs().max() == 0
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (data, query, *m.parameters()))


@each
def test_beams_share_the_memory(make):
    m, source, k = layer(make), memory(), 4
    query = normal(3 * k, 5, 8)
    start = m.start(source)
    beams = st.expand(start, k)
    assert all(a is b for a, b in zip(st.leaves(beams.memory), st.leaves(start.memory), strict=True))
    copied = m.start(Seq(source.data.repeat_interleave(k, 0), source.mask.repeat_interleave(k, 0)))
    parents = torch.tensor([[1, 1, 0, 2], [3, 2, 1, 0], [0, 0, 0, 3]])
    with record(m) as seen:
        first, beams = m(query[:, :3], beams)
        beams = st.reorder(beams, parents)
        assert beams.memory.value.keys is start.memory.value.keys
        second, _ = m(query[:, 3:], beams)
    with record(m) as expected:
        first_copied, copied = m(query[:, :3], copied)
        second_copied, _ = m(query[:, 3:], st.reorder(copied, parents))
    assert torch.allclose(first, first_copied, atol=1e-12) and torch.allclose(
        second, second_copied, atol=1e-12
    )
    for a, b in zip(seen["weights"], expected["weights"], strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@each
def test_an_empty_memory_row_gives_a_finite_result(make):
    m, source = layer(make), memory()
    source.mask[1] = False
    context, _ = m(normal(3, 2, 8), m.start(source))
    rest = (
        m.output.bias.expand(2, -1)
        if isinstance(m, MultiHeadAttend)
        else torch.zeros(2, 8, dtype=torch.float64)
    )
    assert torch.allclose(context[1], rest)


@each
def test_weights_can_be_replaced(make):
    m, source = layer(make), Seq(normal(2, 4, 8))
    plain, _ = m(normal(2, 3, 8), m.start(source))
    with replace(m, {"weights": lambda w: torch.zeros_like(w).index_fill(-1, torch.tensor([2]), 1.0)}):
        pointed, _ = m(normal(2, 3, 8), m.start(source))
    assert torch.allclose(pointed, pointed[:, :1].expand_as(pointed)) and not torch.allclose(pointed, plain)


@remembering
def test_masked_target_steps_leave_no_trace(make):
    m, query = layer(make), normal(3, 5, 8)
    mask = torch.tensor([[True] * 5, [True, False, True, True, False], [False, True, True, False, True]])
    start = m.start(memory())
    context, end = m(query.masked_fill(~mask[..., None], float("nan")), start, mask=mask)
    for row in range(3):
        alone, after = m(query[row : row + 1, mask[row]], st.select(start, [row]))
        assert torch.allclose(context[row, mask[row]], alone[0], atol=1e-12)
        assert torch.allclose(end.past[row], after.past[0], atol=1e-12)


def scores_of(m, query: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Scores of one row, query (U,D) and source (S,M), from the tapped weights: log a - its mean over s."""
    with record(m) as seen:
        m(query[None], m.start(Seq(source[None])))
    logs = torch.cat(seen["weights"], -2)[0].log()
    return logs - logs.mean(-1, keepdim=True)


def same_up_to_constant(scores: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(scores, expected - expected.mean(-1, keepdim=True), atol=1e-10)


def test_scores_are_their_formulas():
    q, s = normal(3, 8), normal(5, 8, seed=1)
    dot, general, additive = (layer(MAKERS[name]) for name in ("dot", "general", "additive"))
    assert same_up_to_constant(scores_of(dot, q, s), 0.5 * q @ s.T)
    assert same_up_to_constant(scores_of(general, q, s), q @ general.key.weight @ s.T)
    inner = (q @ additive.query.weight.T)[:, None] + s @ additive.key.weight.T + additive.key.bias
    assert same_up_to_constant(scores_of(additive, q, s), torch.tanh(inner) @ additive.score)


def test_coverage_and_location_scores_are_their_formulas():
    q, s = normal(4, 8), normal(5, 8, seed=1)
    covering, located = layer(MAKERS["additive with coverage"]), layer(MAKERS["location"])
    coverage, previous = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    got_covering, got_located = scores_of(covering, q, s), scores_of(located, q, s)
    for u in range(4):
        inner = covering.query(q[u]) + covering.key(s) + coverage[:, None] * covering.covered
        expected = torch.tanh(inner) @ covering.score
        assert same_up_to_constant(got_covering[u], expected)
        coverage = coverage + torch.softmax(expected, 0)
        features = torch.stack(
            [
                sum(
                    located.filters.weight[:, 0, j] * previous[i + j - 2]
                    for j in range(5)
                    if 0 <= i + j - 2 < 5
                )
                for i in range(5)
            ]
        )
        inner = located.query(q[u]) + located.key(s) + features @ located.location.weight.T
        expected = torch.tanh(inner) @ located.score
        assert same_up_to_constant(got_located[u], expected)
        previous = torch.softmax(expected, 0)


def test_multi_head_is_torch_multi_head_attention():
    m = layer(lambda: MultiHeadAttend(8, memory_width=8, heads=2))
    witness = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    witness.in_proj_weight.data = torch.cat((m.query.weight, m.key_value.weight))
    witness.in_proj_bias.data = torch.cat((m.query.bias, m.key_value.bias))
    witness.out_proj.load_state_dict(m.output.state_dict())
    query, source = normal(3, 4, 8), memory()
    expected, weights = witness(
        query, source.data, source.data, key_padding_mask=~source.mask, average_attn_weights=False
    )
    plain, _ = m(query, m.start(source))
    with record(m) as seen:
        listened, _ = m(query, m.start(source))
    assert torch.allclose(plain, expected, atol=1e-12) and torch.allclose(listened, expected, atol=1e-12)
    assert torch.allclose(seen["weights"][0], weights, atol=1e-12)


def test_multi_head_coverage_pushes_away_from_what_was_read():
    m = layer(MAKERS["multi-head with coverage"])
    m.covered.data.fill_(1e3)
    source, query = Seq(normal(1, 5, 8)), normal(1, 1, 8, seed=2).expand(1, 2, 8)
    with record(m) as seen:
        _, end = m(query, m.start(source))
    first, second = (w[0, :, 0] for w in seen["weights"])
    assert second.argmax(-1).tolist() == [first.mean(0).argmin().item()] * 2
    assert torch.allclose(end.past[0], (first + second).mean(0), atol=1e-12)


def test_dropout_acts_in_training_only():
    m = MultiHeadAttend(8, heads=2, dropout=0.5)
    query, state = (
        torch.ones(1, 3, 8),
        m.start(Seq(torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(0)))),
    )
    torch.manual_seed(0)
    assert not torch.allclose(m(query, state)[0], m(query, state)[0])
    m.eval()
    assert torch.equal(m(query, state)[0], m(query, state)[0])


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="GeneralAttend"):
        DotAttend(7).start(memory())
    with pytest.raises(ValueError, match="odd, got 4"):
        LocationAttend(8, 8, 8, kernel=4)
    with pytest.raises(ValueError, match="3 heads"):
        MultiHeadAttend(8, heads=3)
    with pytest.raises(ValueError, match="kv_heads"):
        MultiHeadAttend(8, heads=4, kv_heads=3)


def test_scores_scale():
    query, source = normal(1, 2, 8), Seq(normal(1, 4, 8))
    scaled, plain = DotAttend(8, 1 / math.sqrt(8)), DotAttend(8)
    assert torch.allclose(
        scaled(query * math.sqrt(8), scaled.start(source))[0],
        plain(query, plain.start(source))[0],
        atol=1e-12,
    )


@each
def test_under_autocast_the_past_stays_in_float32(make):
    m, query = make(), torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    source = Seq(memory().data.float(), memory().mask)
    plain, _ = m(query, m.start(source))
    with torch.autocast("cpu", torch.bfloat16):
        context, state = m(query, m.start(source))
    assert state.past is None or state.past.dtype == torch.float32
    assert torch.allclose(context.float(), plain, atol=0.05)
