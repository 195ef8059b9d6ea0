"""The LSTM with exponential gates: its law, its first step, its range, its heads."""

import pytest
import torch

from transduce.ops.slstm import slstm
from transduce.testing.ops import check_op


def inputs(batch=3, steps=6, width=4, heads=1, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    pre = torch.randn(batch, steps, 4 * width, dtype=dtype, generator=g)
    weight = torch.randn(4 * width, width // heads, dtype=dtype, generator=g) / 2
    return pre, weight, *torch.zeros(4, batch, width, dtype=dtype)


def test_every_backend_obeys_the_law():
    record = check_op(slstm)
    assert {c.backend for c in record if c.refused is None} == set(slstm.backends)


@pytest.mark.parametrize("backend", [b for b in slstm.backends])
def test_it_is_the_plain_recurrence_without_a_maximum(backend):
    """c and n in float64 without the stabiliser: m is only a change of units."""
    pre, weight, *zeros = inputs(dtype=torch.float32 if backend == "numba" else torch.float64)
    got = slstm.run(backend, pre, weight, *zeros)
    h, c, n = torch.zeros(3, 3, 4, dtype=torch.float64)
    for p in pre.double().unbind(1):
        i, f, z, o = (p + h @ weight.double().mT).chunk(4, -1)
        c, n = torch.sigmoid(f) * c + i.exp() * z.tanh(), torch.sigmoid(f) * n + i.exp()
        h = torch.sigmoid(o) * c / n
    torch.testing.assert_close(got[0][:, -1].double(), h, rtol=1e-5, atol=1e-6)
    for mine, plain in zip(got[1:3], (c, n)):
        torch.testing.assert_close(mine.double() * got[3].double().exp(), plain, rtol=1e-5, atol=1e-6)
    assert (got[2] >= 1).all()


@pytest.mark.parametrize("backend", [b for b in slstm.backends])
def test_gates_of_any_size_stay_in_range(backend):
    pre, weight, *zeros = inputs(steps=40, dtype=torch.float32)
    pre = (pre * 1e4).requires_grad_()
    h, c, n, _ = slstm.run(backend, pre, weight, *zeros)
    (grad,) = torch.autograd.grad(h.sum(), pre)
    assert all(bool(torch.isfinite(x).all()) for x in (h, c, n, grad)) and h.abs().max() <= 1


def test_heads_are_blocks_of_one_matrix():
    pre, weight, *zeros = inputs(width=6, heads=3)
    dense = torch.cat([torch.block_diag(*gate.split(2)) for gate in weight.split(6)])
    for got, want in zip(slstm(pre, weight, *zeros), slstm(pre, dense, *zeros)):
        torch.testing.assert_close(got, want)


def test_wrong_shapes_are_named():
    pre, weight, *zeros = inputs()
    with pytest.raises(ValueError, match="slstm needs pre"):
        slstm(pre[..., 1:], weight, *zeros)
    with pytest.raises(ValueError, match="slstm needs pre"):
        slstm(pre, weight[:, :3], *zeros)
    with pytest.raises(ValueError, match="initial state"):
        slstm(pre, weight, *zeros[:3], zeros[3][:2])


@pytest.mark.parametrize("flags", ["", "mask", "resets", "mask resets"])
def test_threads_that_divide_the_units_agree_with_one_that_has_all(flags, monkeypatch):
    from transduce.ops import rnn_numba

    leaves = [x.requires_grad_() for x in inputs(batch=2, steps=9, width=64, dtype=torch.float32)]
    g = torch.Generator().manual_seed(3)
    kwargs = {name: torch.rand(2, 9, generator=g) < 0.6 for name in flags.split()}
    found = []
    for division in ((1, False), (2, True)):
        monkeypatch.setattr(rnn_numba, "divide", lambda *_, division=division: division)
        got = slstm.run("numba", *leaves, **kwargs)
        found.append([*got, *torch.autograd.grad(sum(x.square().sum() for x in got), leaves)])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
