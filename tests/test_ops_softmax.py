"""Running softmax averages: the op of fixed scores and the one with decay, against the law, the formula and each other."""

import math

import pytest
import torch

from transduce.ops.softmax_scan import softmax_scan
from transduce.ops.wkv import wkv
from transduce.testing.ops import check_op

BACKENDS = ("numba", "doubling", "reference")
both = pytest.mark.parametrize("op", [softmax_scan, wkv], ids=lambda op: op.name)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(batch=2, steps=9, heads=3, width=4):
    return normal(batch, steps, heads), normal(batch, steps, heads, width, seed=1)


def keys(batch=2, steps=9, width=5):
    return normal(batch, steps, width), normal(batch, steps, width, seed=1), normal(width).abs(), normal(width, seed=2)


@both
def test_every_backend_obeys_the_law(op):
    record = check_op(op)
    assert {c.backend for c in record if c.refused is None} == set(BACKENDS)


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_scan_is_softmax_over_every_prefix(backend, scale):
    scores, values = pairs(1, 777, 1)
    scores = scale * scores
    y, _ = softmax_scan.run(backend, scores, values)
    masked = torch.where(torch.ones(777, 777).tril().bool(), scores[0, :, 0], -math.inf)
    torch.testing.assert_close(y[0, :, 0], torch.softmax(masked, -1) @ values[0, :, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wkv_is_the_formula(backend):
    k, v, rate, bonus = keys()
    y, _ = wkv.run(backend, k, v, rate, bonus)
    for t in range(k.shape[1]):
        age = torch.arange(t - 1, -1, -1, dtype=k.dtype)[:, None]
        weights = torch.cat((torch.exp(k[:, :t] - age * rate), torch.exp(k[:, t : t + 1] + bonus)), 1)
        torch.testing.assert_close(y[:, t], (weights * v[:, : t + 1]).sum(1) / weights.sum(1))


def test_without_decay_and_bonus_wkv_is_the_scan():
    k, v, rate, bonus = keys()
    y, state = wkv(k, v, 0 * rate, 0 * bonus)
    want, end = softmax_scan(k, v[..., None])
    torch.testing.assert_close(y, want[..., 0])
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize("backend", BACKENDS)
@both
def test_a_row_that_never_advances_keeps_nothing_in_mind(op, backend):
    """The state of an untouched row is the empty one, and nothing there is NaN."""
    args = pairs() if op is softmax_scan else keys()
    args = [a.requires_grad_() for a in args]
    mask = torch.tensor([[True], [False]]).expand(2, 9)
    y, state = op.run(backend, *args, mask=mask)
    assert (state[1, ..., 0] == -math.inf).all() and (state[1, ..., 1:] == 0).all()
    (y[0].sum() + state[0].sum()).backward()
    assert all(torch.isfinite(a.grad).all() for a in args)


@both
def test_the_matrix_is_the_op(op):
    g = torch.Generator().manual_seed(3)
    flags = {name: torch.rand(2, 9, generator=g) < 0.6 for name in ("mask", "resets")}
    args = pairs() if op is softmax_scan else keys()
    matrix = op.matrix(*args[:1], *args[2:], **flags)
    values = args[1] if op is softmax_scan else args[1][..., None]
    values = torch.where(flags["mask"][..., None, None], values, 0)
    y = op(*args, **flags)[0]
    want = torch.einsum("bhts,bshv->bthv", matrix, values)
    want = want if op is softmax_scan else want[..., 0]
    there = flags["mask"]
    torch.testing.assert_close(y[there], want[there])
    torch.testing.assert_close(matrix.sum(-1).movedim(1, 2)[there], torch.ones_like(args[0])[there])


@pytest.mark.parametrize("threads", [1, 2, 3])
@both
def test_any_number_of_threads_gives_the_same_bits(op, threads):
    args = pairs(1, 400, 5, 33) if op is softmax_scan else keys(1, 300, 520)
    args = [a.float().requires_grad_() for a in args]

    def run():
        y, state = op.run("numba", *args)
        return y, state, *torch.autograd.grad(y.sum() + state.sum(), args)

    expected, before = run(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert all(torch.equal(a, b) for a, b in zip(run(), expected))
    finally:
        torch.set_num_threads(before)


@both
def test_half_precision_is_accumulated_in_float32(op):
    args = [a.bfloat16() for a in (pairs() if op is softmax_scan else keys())]
    y, state = op(*args)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    torch.testing.assert_close(y.float(), op(*(a.float() for a in args))[0], rtol=1e-2, atol=1e-2)


@both
def test_no_steps_give_nothing_and_keep_the_state(op):
    args = [a[:, :0] if a.dim() > 1 else a for a in (pairs() if op is softmax_scan else keys())]
    start = normal(2, *op(*args)[1].shape[1:])
    for backend in ("numba", "reference"):
        y, state = op.run(backend, *args, start)
        assert y.shape == args[1].shape and torch.equal(state, start)


def test_long_sums_stay_close_to_float64():
    """10^4 steps in float32, scores of 30."""
    scores, values = pairs(1, 10_000, 1, 2)
    want, got = softmax_scan(30 * scores, values)[0], softmax_scan((30 * scores).float(), values.float())[0]
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda s, v: softmax_scan(s, v[..., 0]), r"values \(B,T,H,V\)"),
        (lambda s, v: softmax_scan(s, v, torch.zeros(2, 3)), r"start of shape \(2, 3, 6\)"),
        (lambda s, v: softmax_scan(s, v, mask=torch.ones(2, 9)), "bool mask"),
        (lambda s, v: softmax_scan(s.long(), v), "floating point"),
        (lambda s, v: wkv(s, s, s[0, 0], s), r"rate and bonus \(D,\)"),
        (lambda s, v: wkv(s, s, s[0, 0], s[0, 0], torch.zeros(2, 3)), r"start of shape \(2, 3, 3\)"),
    ],
)
def test_what_does_not_fit_is_said(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(*pairs())
