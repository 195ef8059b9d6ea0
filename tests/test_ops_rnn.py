from __future__ import annotations

import pytest
import torch
from torch import nn

from transduce.ops.rnn import elman, gru, gru_gates, lstm
from transduce.ops.rnn_fused import lstm_layer
from transduce.testing.ops import check_op

OPS = [elman, gru, lstm]
PAIRS = [pytest.param(op, backend, id=f"{op.name}-{backend}") for op in OPS for backend in op.backends]
KINDS = {"elman": "RNN", "gru": "GRU", "lstm": "LSTM"}
GATES = {"elman": 1, "gru": 3, "lstm": 4}


def inputs(op, batch=3, steps=5, width=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=g)

    pre, weight = normal(batch, steps, GATES[op.name] * width), normal(GATES[op.name] * width, width) / 2
    extra = {"elman": (), "gru": (normal(width),), "lstm": (normal(batch, width),)}[op.name]
    return (pre, weight, *extra, normal(batch, width))


def outputs(op, backend, *args, **kwargs):
    got = op.run(backend, *args, **kwargs)
    return got if isinstance(got, tuple) else (got,)


@pytest.mark.parametrize("op", OPS, ids=lambda o: o.name)
def test_every_backend_obeys_the_law(op):
    record = check_op(op)
    assert {c.backend for c in record if c.refused is None} == set(op.backends)


def dtype_of(backend):
    """The kernels serve float32 only."""
    return torch.float32 if backend == "numba" else torch.float64


@pytest.mark.parametrize(("op", "backend"), PAIRS)
def test_torch_computes_the_same(op, backend):
    kind, dtype = KINDS[op.name], dtype_of(backend)
    torch.manual_seed(0)
    width = 6
    layer = getattr(nn, kind)(5, width, batch_first=True).to(dtype)
    x = torch.randn(3, 7, 5, dtype=dtype)
    h0, c0 = torch.randn(2, 3, width, dtype=dtype)
    outer, inner = layer.bias_ih_l0, layer.bias_hh_l0
    if kind == "GRU":
        outer, inner = outer + torch.cat((inner[: 2 * width], 0 * inner[2 * width :])), inner[2 * width :]
    pre = nn.functional.linear(x, layer.weight_ih_l0, outer if kind == "GRU" else outer + inner)
    args = {"RNN": (h0,), "GRU": (inner, h0), "LSTM": (h0, c0)}[kind]
    got = outputs(op, backend, pre, layer.weight_hh_l0, *args)
    expected, final = layer(x, (h0[None], c0[None]) if kind == "LSTM" else h0[None])
    torch.testing.assert_close(got[0], expected)
    if kind == "LSTM":
        torch.testing.assert_close(got[1][:, -1], final[1][0])


@pytest.mark.parametrize(("op", "backend"), PAIRS)
class TestEveryBackend:
    def test_a_masked_step_shows_the_kept_state_whatever_the_input_is(self, op, backend):
        pre, *rest = inputs(op, dtype=dtype_of(backend))
        mask = torch.tensor([[0, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
        poisoned = torch.where(mask[..., None], pre, float("nan"))
        initial = rest[-2:] if op is lstm else rest[-1:]
        for got, start in zip(outputs(op, backend, poisoned, *rest, mask=mask), initial):
            assert torch.equal(got[0, 0], start[0]) and torch.equal(got[0, 2], got[0, 1])
            assert torch.equal(got[0, 4], got[0, 3]) and torch.equal(got[2], start[2].expand(5, -1))

    def test_a_masked_row_goes_on_as_if_the_step_were_not_there(self, op, backend):
        pre, *rest = inputs(op, dtype=dtype_of(backend))
        mask = torch.tensor([True, False, True, True, False]).expand(3, 5)
        got = outputs(op, backend, pre, *rest, mask=mask)
        dense = outputs(op, backend, pre[:, [0, 2, 3]], *rest)
        for g, d in zip(got, dense):
            torch.testing.assert_close(g[:, [0, 2, 3]], d)

    def test_a_reset_starts_from_zero_but_not_at_a_masked_step(self, op, backend):
        pre, *rest = inputs(op, dtype=dtype_of(backend))
        resets = torch.tensor([False, False, True, False, False]).expand(3, 5)
        got = outputs(op, backend, pre, *rest, resets=resets)
        states = 2 if op is lstm else 1
        fresh = [*rest[: len(rest) - states], *(torch.zeros_like(s) for s in rest[-states:])]
        for g, f in zip(got, outputs(op, backend, pre[:, 2:], *fresh)):
            torch.testing.assert_close(g[:, 2:], f)
        mask = ~resets
        for with_reset, without in zip(
            outputs(op, backend, pre, *rest, mask=mask, resets=resets),
            outputs(op, backend, pre, *rest, mask=mask),
        ):
            assert torch.equal(with_reset, without)

    def test_no_steps(self, op, backend):
        pre, *rest = inputs(op, dtype=dtype_of(backend))
        assert all(o.shape == (3, 0, 4) for o in outputs(op, backend, pre[:, :0], *rest))

    def test_half_precision_is_computed_in_float32(self, op, backend):
        pre, *rest = (x.bfloat16() for x in inputs(op, steps=40, dtype=dtype_of(backend)))
        wide = outputs(op, backend, pre.float(), *(x.float() for x in rest))
        for n, w in zip(outputs(op, backend, pre, *rest), wide):
            assert n.dtype == torch.bfloat16 and torch.equal(n, w.bfloat16())

    def test_wrong_shapes_are_named(self, op, backend):
        pre, weight, *rest = inputs(op, dtype=dtype_of(backend))
        with pytest.raises(ValueError, match=f"{op.name} needs pre"):
            op.run(backend, pre[..., 1:], weight, *rest)
        with pytest.raises(ValueError, match="initial state"):
            op.run(backend, pre[1:], weight, *rest)
        with pytest.raises(ValueError, match="bool mask"):
            op.run(backend, pre, weight, *rest, mask=torch.ones(3, 5))


@pytest.mark.parametrize(("op", "backend"), [p for p in PAIRS if p.values[1] != "reference"])
def test_autocast_keeps_the_state_in_float32_and_the_gradients_close(op, backend):
    pre, *rest = inputs(op, batch=8, steps=12, width=16, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in (pre, *rest)]
    exact = torch.autograd.grad(outputs(op, backend, *leaves)[0].sum(), leaves)
    with torch.autocast("cpu", torch.bfloat16):
        low = outputs(op, backend, leaves[0].bfloat16(), *leaves[1:])[0]
    assert low.dtype == torch.float32
    for g, e in zip(torch.autograd.grad(low.sum(), leaves), exact):
        assert g.dtype == torch.float32
        assert (g - e).norm() < 0.1 * e.norm()


@pytest.mark.parametrize(("op", "backend"), [p for p in PAIRS if p.values[1] != "reference"])
def test_only_the_gradients_that_are_wanted(op, backend):
    pre, *rest = inputs(op, dtype=dtype_of(backend))
    pre.requires_grad_()
    op.run(backend, pre, *rest).sum().backward() if op is not lstm else op.run(backend, pre, *rest)[
        1
    ].sum().backward()
    assert pre.grad is not None and all(r.grad is None for r in rest)


@pytest.mark.parametrize(("op", "backend"), [p for p in PAIRS if p.values[1] != "reference"])
def test_a_second_derivative_is_refused(op, backend):
    leaves = [x.requires_grad_() for x in inputs(op, dtype=dtype_of(backend))]
    (grad,) = torch.autograd.grad(
        outputs(op, backend, *leaves)[0].square().sum(), leaves[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(("op", "backend"), PAIRS)
def test_a_weight_changed_before_backward_is_noticed(op, backend):
    pre, weight, *rest = inputs(op, dtype=dtype_of(backend))
    pre.requires_grad_()
    h = outputs(op, backend, pre, weight, *rest)[0]
    weight.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()


def test_gru_gates_is_a_step_of_the_gru():
    pre, weight, bias, h0 = (x.requires_grad_() for x in inputs(gru, steps=1))
    inner = torch.cat((torch.zeros_like(bias).repeat(2), bias))
    args = (pre[:, 0], h0 @ weight.mT + inner, h0)
    torch.testing.assert_close(gru_gates(*args), gru.reference(pre, weight, bias, h0)[:, 0])
    assert torch.autograd.gradcheck(gru_gates, [a.detach().requires_grad_() for a in args])


@pytest.mark.parametrize("op", OPS, ids=lambda o: o.name)
def test_export_falls_back_to_the_reference(op):
    class Layer(nn.Module):
        def forward(self, *args):
            return op(*args)

    args = inputs(op)
    exported = torch.export.export(Layer(), args, strict=False)
    torch.testing.assert_close(exported.module()(*args), op(*args))


def test_the_kernels_tell_why_they_refuse():
    assert "float64" in gru.why(*inputs(gru))["numba"]
    assert "the kernel runs on the CPU" in lstm.why(*(x.to("meta") for x in inputs(lstm)))["numba"]
    assert gru.why(*inputs(gru, dtype=torch.float32)) == {"numba": "used"}


@pytest.mark.parametrize("op", [gru, lstm], ids=lambda o: o.name)
def test_extreme_and_undefined_numbers_in_the_kernels(op):
    pre, *rest = inputs(op, batch=1, steps=1, width=40, dtype=torch.float32)
    edge = torch.tensor(
        [0.0, 1e-30, 1e-4, 0.29, 0.31, 5.0, 43.9, 44.1, 87.9, 88.8, 89.1, 1e4, 1e38, torch.inf]
    )
    values = torch.cat((edge, -edge, torch.tensor([torch.nan])))
    pre = values.repeat(10)[: pre.shape[-1]].expand_as(pre).contiguous()
    for got, want in zip(outputs(op, "numba", pre, *rest), outputs(op, "reference", pre, *rest)):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6, equal_nan=True)
        assert got.isnan().any()


@pytest.mark.parametrize("op", [gru, lstm], ids=lambda o: o.name)
def test_any_number_of_threads_gives_the_same(op):
    leaves = [x.requires_grad_() for x in inputs(op, batch=64, steps=3, width=96, dtype=torch.float32)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            h = outputs(op, "numba", *leaves)[0]
            found.append([h, *torch.autograd.grad(h.square().sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(other, found[0]):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("flags", ["", "mask", "resets", "mask resets"])
@pytest.mark.parametrize("op", OPS, ids=lambda o: o.name)
def test_threads_that_divide_the_units_agree_with_one_that_has_all(op, flags, monkeypatch):
    from transduce.ops import rnn_numba

    leaves = [x.requires_grad_() for x in inputs(op, batch=2, steps=9, width=96, dtype=torch.float32)]
    g = torch.Generator().manual_seed(3)
    kwargs = {name: torch.rand(2, 9, generator=g) < 0.6 for name in flags.split()}
    found = []
    for division in ((1, False), (2, True), (3, True)):
        monkeypatch.setattr(rnn_numba, "divide", lambda *_, division=division: division)
        h = outputs(op, "numba", *leaves, **kwargs)[0]
        found.append([h, *torch.autograd.grad(h.square().sum(), leaves)])
    for other in found[1:]:
        for a, b in zip(other, found[0]):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_units_are_divided_only_where_rows_are_few_and_weights_many(monkeypatch):
    from transduce.ops import rnn_numba
    from transduce.ops.panels import COLUMNS

    monkeypatch.setattr(rnn_numba, "threads_for", lambda elements: 2)
    wide = 16 * COLUMNS
    assert rnn_numba.divide(1, wide, 100, 4) == (2, True)
    assert rnn_numba.divide(5, wide, 100, 4) == (2, False)
    assert rnn_numba.divide(1, wide + 1, 100, 4) == (1, False)  # no whole panels
    assert rnn_numba.divide(1, COLUMNS, 100, 4) == (1, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_layer_of_torch_agrees(dtype):
    pre, weight, h0, c0 = inputs(lstm, dtype=dtype)
    g = torch.Generator().manual_seed(3)
    x, input_weight = (torch.randn(*s, dtype=dtype, generator=g) for s in ((3, 5, 6), (16, 6)))
    leaves = [t.requires_grad_() for t in (x, input_weight, pre[0, 0].clone(), weight, h0, c0)]
    x, input_weight, bias, *rest = leaves
    y, h, c = lstm_layer(*leaves)
    ours, memory = lstm(x @ input_weight.mT + bias, *rest)
    for got, want in ((y, ours), (h, ours[:, -1]), (c, memory[:, -1])):
        torch.testing.assert_close(got, want)
    fused = torch.autograd.grad(y.sum() + 2 * c.sum(), leaves)
    for got, want in zip(fused, torch.autograd.grad(ours.sum() + 2 * memory[:, -1].sum(), leaves)):
        torch.testing.assert_close(got, want)


def test_the_fused_layer_names_a_wrong_input():
    with pytest.raises(ValueError, match="T at least 1"):
        lstm_layer(torch.zeros(2, 0, 3), *(torch.zeros(1) for _ in range(5)))
