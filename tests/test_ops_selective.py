"""The selective scan: its law, its matrix, what it refuses, and the vectors that its kernels are written over."""

import pytest
import torch
from numba import carray

from transduce.ops.dispatch import use_backend
from transduce.ops.kernels import Kernel, as_size
from transduce.ops.selective_scan import selective_scan
from transduce.ops.vectors import exp2, lanes_of, load, load_one, spread, store, total
from transduce.testing.ops import check_op


def inputs(batch, steps, width, states, *, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, dtype=dtype, generator=g)
    dt, a = 0.3 * normal(batch, steps, width).abs(), -normal(width, states).exp()
    b, c = normal(batch, steps, states), normal(batch, steps, states)
    return normal(batch, steps, width), dt, a, b, c, normal(batch, width, states)


def test_every_backend_obeys_the_law_of_ops():
    check_op(selective_scan)


def test_the_matrix_is_what_the_scan_does():
    x, dt, a, b, c, _ = inputs(2, 19, 3, 4)
    g = torch.Generator().manual_seed(1)
    mask, resets = (torch.rand(2, 19, generator=g) < 0.7 for _ in range(2))
    for flags in ({}, {"mask": mask, "resets": resets}):
        matrix = selective_scan.matrix(dt, a, b, c, **flags)
        seen = x if not flags else torch.where(mask[..., None], x, 0)
        y = torch.einsum("bdts,bsd->btd", matrix, seen)
        valid = torch.ones(2, 19, dtype=torch.bool) if not flags else mask
        want = selective_scan(x, dt, a, b, c, **flags)[0]
        torch.testing.assert_close(y[valid], want[valid])


def test_the_gradient_needs_no_states_of_all_steps(monkeypatch):
    """What is saved for the backward pass grows with (B,T,D), not with (B,T,D,N)."""
    tensors = [t.requires_grad_() for t in inputs(1, 256, 32, 16, dtype=torch.float32)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        y, _ = selective_scan(*tensors)
    assert sum(saved) < 4 * y.numel()
    y.sum().backward()


def test_a_reset_cuts_off_even_nan():
    tensors = list(inputs(1, 40, 17, 3, dtype=torch.float32))
    tensors[5] = torch.full_like(tensors[5], float("nan"))
    resets = torch.zeros(1, 40, dtype=torch.bool)
    resets[0, 0] = True
    tensors = [t.requires_grad_() for t in tensors]
    y, h = selective_scan(*tensors, resets=resets)
    found = torch.autograd.grad(y.sum() + h.sum(), tensors)
    assert torch.isfinite(y).all() and all(torch.isfinite(g).all() for g in found)
    assert not found[5].any()


def test_a_step_width_of_zero_leaves_the_state_bit_for_bit():
    x, _, a, b, c, h0 = inputs(2, 9, 21, 5, dtype=torch.float32)
    _, h = selective_scan(x, torch.zeros_like(x), a, b, c, h0)
    assert torch.equal(h, h0)


def test_half_precision_is_computed_in_float32():
    tensors = inputs(2, 20, 17, 3, dtype=torch.float32)
    low = [t.bfloat16() for t in tensors[:5]]
    y, h = selective_scan(*low, tensors[5])
    want, want_h = selective_scan(*(t.float() for t in low), tensors[5])
    assert y.dtype == torch.bfloat16 and h.dtype == torch.float32
    torch.testing.assert_close(h, want_h)
    torch.testing.assert_close(y, want.bfloat16())


def test_empty_sequences_and_compiled_graphs_are_served():
    x, dt, a, b, c, h0 = inputs(2, 0, 4, 3)
    y, h = selective_scan(x, dt, a, b, c, h0)
    assert y.shape == (2, 0, 4) and torch.equal(h, h0)
    full = inputs(2, 70, 4, 3)
    run = torch.compile(lambda *t: selective_scan(*t), fullgraph=True, backend="eager")
    torch.testing.assert_close(run(*full), selective_scan(*full))
    with use_backend(selective_scan="reference"):
        torch.testing.assert_close(run(*full), selective_scan(*full))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.__setitem__(1, t[1][:, :3]), r"x and dt \(B,T,D\)"),
        (lambda t: t.__setitem__(3, t[3][..., :2]), r"b of shape \(2, 5, 3\), got \(2, 5, 2\)"),
        (lambda t: t.__setitem__(5, t[5][:1]), r"h0 of shape \(2, 4, 3\)"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(change, message):
    tensors = list(inputs(2, 5, 4, 3))
    change(tensors)
    with pytest.raises(ValueError, match=message):
        selective_scan(*tensors)
    with pytest.raises(ValueError, match="bool mask"):
        selective_scan(*inputs(2, 5, 4, 3), mask=torch.ones(2, 5))


# ---------------------------------------------------------------- vectors


def _powers(data):
    count = as_size(data[2])
    lanes = lanes_of(data[0])
    for k in range(count // lanes):
        store(data[1], k * lanes, exp2(load(data[0], k * lanes)))
    for k in range(count // lanes * lanes, count):
        store(data[1], k, exp2(load_one(data[0], k)))


def _sums(data):
    out = carray(data[1], (2,))
    row = load(data[0], 0)
    out[0] = total(row * row - row + spread(row, 2))
    out[1] = total(load_one(data[0], 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_powers_of_two_are_right_to_the_last_places(dtype):
    ends = {torch.float32: (-126.0, 127.0), torch.float64: (-1022.0, 1023.0)}[dtype]
    x = torch.cat((torch.linspace(*ends, 3001, dtype=dtype), torch.linspace(-2, 2, 1000, dtype=dtype)))
    out = torch.empty_like(x)
    Kernel(_powers).launch(dtype, (x, out), (len(x),), 1)
    if dtype == torch.float64:
        error = (out / torch.exp2(x) - 1).abs()
    else:
        error = (out.double() / torch.exp2(x.double()) - 1).abs()
    assert float(error.max()) < 2 * torch.finfo(dtype).eps
    odd = torch.tensor([0.0, float("nan"), -float("inf"), -1e9], dtype=dtype)
    out = torch.empty_like(odd)
    Kernel(_powers).launch(dtype, (odd, out), (len(odd),), 1)
    assert out[0] == 1 and out[1].isnan() and (out[2:] <= torch.finfo(dtype).tiny).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_add_up(dtype):
    x = torch.arange(16, dtype=dtype)
    out = torch.empty(2, dtype=dtype)
    Kernel(_sums).launch(dtype, (x, out), (), 1)
    row = x[: 64 // x.element_size()]
    assert out.tolist() == [float((row * row - row + 2).sum()), 3.0]
