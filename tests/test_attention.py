"""Self-attention: the op, the layer against brute force and torch, positions, windows, grouped heads,
taps."""

from __future__ import annotations

import math

import pytest
import torch

from transduce.core.tap import record, replace
from transduce.nn.attention import Attention
from transduce.nn.position import alibi_slopes, rotary, sinusoidal
from transduce.ops.attention import attention, attention_weights, masked_softmax
from transduce.ops.dispatch import use_backend
from transduce.testing.ops import check_op


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(*args, **kwargs) -> Attention:
    """A layer whose scores and biases are far from their initial sizes."""
    made = Attention(*args, **kwargs).double()
    generator = torch.Generator().manual_seed(7)
    for p in made.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.6
    return made


def brute_force(m: Attention, x: torch.Tensor) -> torch.Tensor:
    """One row (T,D), loops over everything, by the equation of the docstring; no positions but biases."""
    steps, dim = x.shape
    qkv = m.project(x)
    q = qkv[:, :dim].view(steps, m.heads, m.width)
    k, v = (t.view(steps, m.kv_heads, m.width) for t in qkv[:, dim:].chunk(2, -1))
    out = torch.zeros(steps, m.heads, m.width, dtype=x.dtype)
    for t in range(steps):
        for h in range(m.heads):
            g = h * m.kv_heads // m.heads
            seen = [s for s in range(steps) if not (m.causal and s > t)]
            seen = [s for s in seen if m.window is None or abs(t - s) < m.window]
            scores = torch.stack([q[t, h] @ k[s, g] / math.sqrt(m.width) for s in seen])
            bias = m.position.bias(torch.tensor([[[t - s for s in seen]]]), x.dtype)
            weights = torch.softmax(scores + (0 if bias is None else bias[0, h, 0]), 0)
            out[t, h] = sum(w * v[s, g] for w, s in zip(weights, seen))
    return m.output(out.flatten(1))


def test_every_backend_agrees_with_the_reference():
    check_op(attention)


def test_softmax_with_nothing_allowed_is_zero_and_passes_no_gradient():
    scores = normal(2, 3).requires_grad_()
    mask = torch.tensor([[True, False, True], [False, False, False]])
    weights = masked_softmax(scores, mask)
    assert weights[1].tolist() == [0, 0, 0] and weights[0, 1] == 0
    assert torch.allclose(weights[0].sum(), torch.ones((), dtype=weights.dtype))
    weights.square().sum().backward()
    assert scores.grad[1].tolist() == [0, 0, 0] and scores.grad[0].abs().sum() > 0


def test_causal_needs_as_many_queries_as_keys():
    q, k = normal(1, 2, 1, 4), normal(1, 3, 1, 4)
    for backend in attention.backends:
        with pytest.raises(ValueError, match="as many queries as keys"):
            attention.run(backend, q, k, k, causal=True)


@pytest.mark.parametrize("position", [None, "alibi", "relative"])
@pytest.mark.parametrize(
    "kv_heads, window, causal", [(4, None, True), (2, 3, True), (1, None, False), (2, 2, False), (4, 1, True)]
)
def test_layer_is_its_equation(position, kv_heads, window, causal):
    m = layer(8, 4, kv_heads, window, position, causal)
    x = normal(2, 7, 8)
    y, state = m(x)
    assert state is None
    for row in range(2):
        assert torch.allclose(y[row], brute_force(m, x[row]), atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_same_as_torch_multi_head_attention(causal):
    m = layer(8, 2, position=None, causal=causal)
    witness = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    witness.in_proj_weight.data, witness.in_proj_bias.data = m.project.weight.data, m.project.bias.data
    witness.out_proj.load_state_dict(m.output.state_dict())
    x = normal(3, 6, 8)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] * 2 + [False] * 4])
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1) if causal else None
    expected, weights = witness(x, x, x, key_padding_mask=~mask, attn_mask=hidden, average_attn_weights=False)
    y, _ = m(x, mask=mask)
    assert torch.allclose(y[mask], expected[mask], atol=1e-12)
    with record(m) as seen:
        m(x, mask=mask)
    tapped = seen["weights"][0].expand_as(weights)
    assert torch.allclose(tapped.movedim(1, 2)[mask], weights.movedim(1, 2)[mask], atol=1e-12)


def test_grouped_heads_are_repeated_heads():
    grouped, full = layer(8, 4, 2), layer(8, 4)
    q, kv = grouped.project.weight.data.split((8, 8))
    repeat = lambda t: t.view(2, 2, 2, -1).repeat_interleave(2, 1).reshape(16, -1)
    full.project.weight.data = torch.cat((q, repeat(kv)))
    q, kv = grouped.project.bias.data.split((8, 8))
    full.project.bias.data = torch.cat((q, repeat(kv[:, None])[:, 0]))
    full.output.load_state_dict(grouped.output.state_dict())
    x = normal(2, 9, 8)
    assert torch.allclose(grouped(x)[0], full(x)[0], atol=1e-12)


def test_rotary_scores_depend_on_distance_only():
    q, k = normal(1, 5, 2, 8), normal(1, 5, 2, 8, seed=1)
    places = torch.arange(5)[None]
    at = lambda shift: attention_weights(rotary(q, places + shift), rotary(k, places + shift))
    assert torch.allclose(at(0), at(1000), atol=1e-10)
    assert not torch.allclose(at(0), attention_weights(q, k), atol=1e-3)
    assert torch.allclose(rotary(q, places).norm(dim=-1), q.norm(dim=-1))


def test_sinusoidal_is_its_formula():
    code = sinusoidal(torch.tensor([[0, 1, 7]]), 6, torch.float64)
    for i in range(3):
        theta = 10000 ** (-2 * i / 6)
        assert code[0, 2, i].item() == pytest.approx(math.sin(7 * theta))
        assert code[0, 2, 3 + i].item() == pytest.approx(math.cos(7 * theta))
    assert sinusoidal(torch.tensor([[3]]), 5, torch.float32).shape == (1, 1, 5)


def test_alibi_slopes_of_the_paper():
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    assert alibi_slopes(3).tolist() == [2.0**-4, 2.0**-8, 2.0**-2]


@pytest.mark.parametrize("position", ["rotary", "sinusoidal", "relative", "alibi", None])
def test_padding_in_front_and_between_shifts_nothing(position):
    m = layer(8, 2, position=position)
    x = normal(1, 5, 8)
    padded = torch.full((1, 9, 8), float("nan"), dtype=x.dtype)
    mask = torch.tensor([[False, False, True, True, False, True, False, True, True]])
    padded[mask] = x[0]
    for causal in (True, False):
        m.causal = causal
        assert torch.allclose(m(padded, mask=mask)[0][mask], m(x)[0][0], atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("position", ["rotary", "sinusoidal", "relative", "alibi"])
def test_packed_documents_do_not_see_each_other(position, causal):
    m = layer(8, 2, window=4, position=position, causal=causal)
    x = normal(1, 11, 8)
    resets = torch.zeros(1, 11, dtype=torch.bool)
    resets[0, [4, 5]] = True
    apart = torch.cat([m(part)[0] for part in x.split((4, 1, 6), 1)], 1)
    assert torch.allclose(m(x, resets=resets)[0], apart, atol=1e-12)


@pytest.mark.parametrize("position", ["rotary", "alibi"])
@pytest.mark.parametrize("window, steps", [(1, 40), (5, 64), (40, 97)])
def test_long_windowed_sequences_go_in_blocks_with_equal_results(window, steps, position):
    m = layer(8, 4, 2, window, position)
    x = normal(2, steps, 8).requires_grad_()
    resets = torch.rand(2, steps, generator=torch.Generator().manual_seed(3)) < 0.1
    for restart in (None, resets):
        blocks, _ = m(x, resets=restart)
        with record(m) as seen:  # a listener wants all weights in one tensor, so it gets the dense path
            dense, _ = m(x, resets=restart)
        assert seen["weights"][0].shape[-2:] == (steps, steps)
        assert torch.allclose(blocks, dense, atol=1e-12)
        gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (blocks, dense)]
        assert torch.allclose(*gradients, atol=1e-11)


def test_right_padding_takes_the_unmasked_path_with_equal_results():
    m = layer(8, 2)
    x, mask = normal(2, 6, 8), torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    y, _ = m(x, mask=mask)
    stepped, _ = m(x, m.init_state(2), mask=mask)
    assert torch.allclose(y[mask], stepped[mask], atol=1e-12)


def test_taps_can_be_replaced_and_leave_the_result_alone_otherwise():
    m = layer(8, 2)
    x = normal(2, 5, 8)
    plain, _ = m(x)
    with record(m) as seen:
        listened, _ = m(x)
    assert seen["weights"][0].shape[-3:] == (2, 5, 5)
    assert torch.allclose(plain, listened, atol=1e-12)
    with replace(m, {"weights": torch.zeros_like}):
        silenced, _ = m(x)
    assert torch.allclose(silenced, m.output.bias.expand_as(silenced))


def test_dropout_acts_in_training_only():
    m = layer(8, 2, dropout=0.5)
    x = normal(2, 16, 8)
    torch.manual_seed(0)
    assert not torch.allclose(m(x)[0], m(x)[0])
    m.eval()
    assert torch.equal(m(x)[0], m(x)[0])
    with use_backend(attention="reference"):
        assert torch.allclose(m(x)[0], m.eval()(x)[0], atol=1e-12)


def test_lookahead_is_declared():
    assert (
        layer(8).lookahead,
        layer(8, causal=False).lookahead,
        layer(8, causal=False, window=3).lookahead,
    ) == (0, None, 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"heads": 3}, "does not divide into 3 heads"),
        ({"kv_heads": 3}, "must divide heads"),
        ({"window": 0}, "the step itself"),
        ({"position": "rotry"}, 'Did you mean "rotary"'),
        ({"heads": 8}, "even head width"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Attention(8, **arguments)


def test_without_causality_a_state_is_refused():
    m = layer(8, causal=False)
    with pytest.raises(ValueError, match="no state"):
        m.init_state(2)
    with pytest.raises(ValueError, match="whole sequence"):
        m(normal(1, 2, 8), layer(8).init_state(1))
