"""Convolutions over time: the op, the mixers against torch and brute force, continued, skipped and
restarted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from transduce.core import state as st
from transduce.nn.convolution import CausalConv, DilatedConv
from transduce.ops.conv import causal_conv
from transduce.testing.ops import check_op


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MAKERS = {
    "depthwise": lambda: CausalConv(6, 4),
    "full, dilated, tanh": lambda: CausalConv(6, 3, 2, depthwise=False, activation=torch.tanh),
    "many taps": lambda: CausalConv(6, 11),
    "one tap": lambda: CausalConv(6, 1),
}
CENTRED = {
    "depthwise": lambda: DilatedConv(6, 3),
    "full, dilated, even": lambda: DilatedConv(6, 4, 2, depthwise=False, activation=torch.tanh),
    "one tap": lambda: DilatedConv(6, 1),
}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
each_centred = pytest.mark.parametrize("make", CENTRED.values(), ids=CENTRED)


def test_every_backend_agrees_with_the_reference():
    check_op(causal_conv)


def test_backend_says_why_it_refuses():
    x, w, mask = normal(2, 5, 3), normal(3, 9), torch.ones(2, 5, dtype=torch.bool)
    assert causal_conv.why(x, w[:, :4]) == {"numba": "used"}
    assert causal_conv.why(x, w)["conv1d"] == "used" and "at most 8" in causal_conv.why(x, w)["numba"]
    assert all("skip" in reason for reason in list(causal_conv.why(x, w, mask=mask).values())[:-1])
    half = x.bfloat16(), w[:, :4].bfloat16()
    assert "one dtype" in causal_conv.why(*half)["numba"] and "backward" in causal_conv.why(*half)["conv1d"]
    with torch.no_grad():
        assert causal_conv.why(*half)["conv1d"] == "used"


def test_a_tail_of_the_wrong_length_is_refused():
    for backend in causal_conv.backends:
        with pytest.raises(ValueError, match="tail of 3 inputs, got 2"), torch.no_grad():
            causal_conv.run(backend, normal(2, 5, 3), normal(3, 4), None, normal(2, 2, 3))


@each
def test_same_as_torch_with_padding_in_front(make):
    m, x = make().double(), normal(2, 9, 6)
    depthwise = m.weight.dim() == 2
    padded = F.pad(x.mT, ((m.kernel - 1) * m.dilation, 0))
    weight = m.weight[:, None] if depthwise else m.weight
    expected = F.conv1d(padded, weight, m.bias, dilation=m.dilation, groups=6 if depthwise else 1).mT
    y, state = m(x)
    assert state is None
    assert torch.allclose(y, expected if m.activation is None else m.activation(expected), atol=1e-12)


@each
@pytest.mark.parametrize("chunk", [1, 2, 7, 31])
def test_chunks_with_masks_and_resets(make, chunk):
    m, x = make().double(), normal(3, 31, 6)
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(3, 31, generator=generator) > 0.4
    resets = torch.rand(3, 31, generator=generator) < 0.15
    poisoned = x.masked_fill(~mask[..., None], float("nan"))
    whole, none = m(poisoned, mask=mask, resets=resets)
    assert none is None
    outputs, state = [], m.init_state(3)
    for part, valid, restart in zip(poisoned.split(chunk, 1), mask.split(chunk, 1), resets.split(chunk, 1)):
        y, state = m(part, state, mask=valid, resets=restart)
        outputs.append(y)
    assert torch.allclose(torch.cat(outputs, 1)[mask], whole[mask], atol=1e-12)
    assert torch.allclose(state, m(poisoned, m.init_state(3), mask=mask, resets=resets)[1], atol=1e-12)
    for row in range(3):  # each row is what its valid steps alone give, stretch by stretch
        alone, starts = x[row : row + 1, mask[row]], resets[row, mask[row]].nonzero().flatten().tolist()
        pieces = [p for p in alone.tensor_split(starts, 1) if p.shape[1]]
        states = [m(p, m.init_state(1)) for p in pieces]
        assert torch.allclose(torch.cat([y for y, _ in states], 1)[0], whole[row, mask[row]], atol=1e-12)
        assert torch.allclose(states[-1][1][0], state[row], atol=1e-12)


@each
def test_a_masked_step_is_the_identity_even_with_a_reset(make):
    m = make().double()
    _, before = m(normal(2, 5, 6), m.init_state(2))
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    _, after = m(
        torch.full((2, 3, 6), float("nan"), dtype=torch.float64), before, mask=nothing, resets=~nothing
    )
    assert torch.equal(before, after)


@each
def test_gradients_stepped_equal_whole(make):
    m = make().double()
    x, start = (
        normal(2, 9, 6).requires_grad_(),
        normal(2, m.init_state(2).shape[1], 6, seed=1).requires_grad_(),
    )
    inputs = [t for t in (x, start, *m.parameters()) if t.numel()]
    weights = normal(2, 9, 6, seed=2)
    y, _ = m(x, start)
    whole = torch.autograd.grad((y * weights).sum(), inputs)
    outputs, state = [], start
    for part in x.split(1, 1):
        y, state = m(part, state)
        outputs.append(y)
    stepped = torch.autograd.grad((torch.cat(outputs, 1) * weights).sum(), inputs)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(whole, stepped))


@each
def test_state_is_constant_and_rows_follow_the_algebra(make):
    m, x = make().double(), normal(2, 9, 6)
    _, state = m(x[:, :5], m.init_state(2))
    assert st.nbytes(state) == st.nbytes(m.init_state(2)) and m.bytes_per_step == 0
    y, _ = m(x[[1, 1], 5:], st.select(state, [1, 1]))
    assert torch.allclose(y[0], m(x)[0][1, 5:], atol=1e-12) and torch.equal(y[0], y[1])


@each_centred
def test_centred_convolution_against_brute_force(make):
    m, x = make().double(), normal(2, 8, 6)
    y, _ = m(x)
    kernel = m.weight.shape[-1]
    for t in range(8):
        expected = m.bias.expand(2, 6)
        for j in range(kernel):
            s = t + (j - (kernel - 1) // 2) * m.dilation
            if 0 <= s < 8:
                w = m.weight[..., j]
                expected = expected + (x[:, s] * w if m.weight.dim() == 2 else x[:, s] @ w.T)
        assert torch.allclose(
            y[:, t], expected if m.activation is None else m.activation(expected), atol=1e-12
        )


@each_centred
def test_centred_convolution_skips_masked_steps_and_stays_within_resets(make):
    m, x = make().double(), normal(1, 7, 6)
    mask = torch.tensor([[True, False, True, True, False, True, True, True, True, False]])
    padded = torch.full((1, 10, 6), float("nan"), dtype=torch.float64)
    padded[mask] = x[0]
    resets = torch.zeros(1, 10, dtype=torch.bool)
    assert torch.allclose(m(padded, mask=mask)[0][mask], m(x)[0][0], atol=1e-12)
    assert torch.allclose(m(x, resets=resets[:, :7])[0], m(x)[0], atol=1e-12)
    resets[0, [3, 4]] = True  # the second one is masked and does not count
    apart = torch.cat([m(part)[0] for part in x.split((2, 5), 1)], 1)
    assert torch.allclose(m(padded, mask=mask, resets=resets)[0][mask], apart[0], atol=1e-12)


@each_centred
def test_lookahead_is_what_the_gradient_sees(make):
    m = make().double()
    x = normal(1, 15, 6).requires_grad_()
    m(x)[0][0, 4].sum().backward()
    assert x.grad[0].abs().sum(-1).nonzero().max().item() == 4 + m.lookahead
    with pytest.raises(ValueError, match="whole sequence"):
        m(x, torch.zeros(1, 2, 6))
    with pytest.raises(ValueError, match="CausalConv"):
        m.init_state(1)


def test_arguments_that_do_not_fit_are_named():
    for make in (CausalConv, DilatedConv):
        with pytest.raises(ValueError, match="at least one tap"):
            make(4, kernel=0)
        with pytest.raises(ValueError, match="dilation"):
            make(4, dilation=0)
