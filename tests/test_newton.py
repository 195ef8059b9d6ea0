"""Newton's method for nonlinear recurrences: the loop's states and gradients, quadratic convergence, the fallback."""

import logging
import math
import re

import pytest
import torch
from torch import nn

from transduce.core.errors import UserError
from transduce.core.protocols import Cell
from transduce.core.tap import record
from transduce.nn import (
    ConvGated,
    GRUCell,
    ParaGRU,
    ParaGRUCell,
    ParaLSTM,
    ParaLSTMCell,
    Recurrence,
)
from transduce.nn.newton import Channels
from transduce.nn.para import HeadInput
from transduce.ops.affine import affine_scan
from transduce.ops.newton import Newton, automatic_jacobian, newton_solve
from transduce.ops.para import para_gru, para_lstm
from transduce.testing import check_mixer
from transduce.testing.ops import check_op

CELLS = {"gru": ParaGRUCell, "lstm": ParaLSTMCell}


def problem(kind, batch=3, steps=40, width=6, dtype=torch.float64, scale=1.0):
    torch.manual_seed(0)
    cell = CELLS[kind](width, width).to(dtype)
    with torch.no_grad():
        cell.weight.mul_(scale)
    x = torch.randn(batch, steps, width, dtype=dtype)
    start = cell.init_state(batch)
    channels = Channels(cell)
    return cell, channels, cell.inputs(x), torch.randn_like(channels.join(start))


def test_the_affine_scan_obeys_the_law():
    record = check_op(affine_scan)
    assert {c.backend for c in record if c.refused is None} == {"numba", "doubling", "reference"}


@pytest.mark.parametrize("op", [para_gru, para_lstm], ids=lambda o: o.name)
def test_the_compiled_loops_obey_the_law(op):
    record = check_op(op)
    assert {c.backend for c in record if c.refused is None} == {"numba", "reference"}


def test_wrong_shapes_of_the_affine_scan_are_named():
    with pytest.raises(ValueError, match="B,T,K,K,D"):
        affine_scan(torch.zeros(1, 2, 2, 1, 3), torch.zeros(1, 2, 2, 3))
    with pytest.raises(ValueError, match="h0 of shape"):
        affine_scan(torch.zeros(1, 2, 2, 2, 3), torch.zeros(1, 2, 2, 3), torch.zeros(1, 3))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("marks", ["", "mask", "resets", "mask resets"])
def test_states_and_gradients_are_those_of_the_loop(kind, marks):
    cell, _, pre, _ = problem(kind)
    g = torch.Generator().manual_seed(1)
    flags = {m: torch.rand(pre.shape[:2], generator=g) < 0.7 for m in marks.split()}
    if len(flags) == 2:
        flags["resets"] &= flags["mask"]  # the layer sees to that
    start = cell.init_state(len(pre))
    leaves = [torch.randn_like(t).requires_grad_() for t in ([start] if kind == "gru" else start)]
    start = leaves[0] if kind == "gru" else type(start)(*leaves)
    pre = pre.detach().requires_grad_()
    found = {}
    for solver in ("newton", "loop"):
        layer = Recurrence(cell, solver=solver)
        y, after = getattr(layer, f"_{solver}")(pre, start, mask=flags.get("mask"), resets=flags.get("resets"))
        y = y if "mask" not in flags else y[flags["mask"]]
        end = after if kind == "gru" else after.c
        wanted = [pre, cell.weight, *leaves]
        found[solver] = [y, end, *torch.autograd.grad(y.square().sum() + end.sum(), wanted)]
    for got, want in zip(found["newton"], found["loop"]):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", CELLS)
def test_the_jacobian_of_the_cell_is_the_derivative_of_its_step(kind):
    cell, channels, pre, h = problem(kind)
    pre = pre[:, 0]
    torch.testing.assert_close(channels.jacobian(pre, h), automatic_jacobian(channels.step)(pre, h))
    full = torch.autograd.functional.jacobian(lambda s: channels.step(pre[:1], s[None])[0], h[0])  # (K,D,K,D)
    torch.testing.assert_close(channels.jacobian(pre, h)[0], full.diagonal(dim1=1, dim2=3))


@pytest.mark.parametrize("kind", CELLS)
def test_convergence_is_quadratic(kind):
    """A wrong Jacobian also converges, but loses a constant factor a step instead of doubling the digits."""
    cell, channels, pre, h0 = problem(kind, steps=300, scale=3.0)
    with torch.no_grad():
        solution = channels.solve(pre, channels.part(h0))[2]
    assert solution.fallback is None
    logs = [math.log10(r) for r in solution.residuals if r > 0]
    steps = [(a, b) for a, b in zip(logs, logs[1:]) if a < -1.5 and b > -13]
    assert steps and all(b < 1.6 * a for a, b in steps), logs


def test_it_is_exact_after_as_many_iterations_as_steps():
    cell, channels, pre, h0 = problem("gru", steps=7, scale=4.0)
    with torch.no_grad():
        h, solution = newton_solve(channels.step, channels.jacobian, pre, h0, settings=Newton(0.0, 7))
        state = h0
        for t, p in enumerate(pre.unbind(1)):
            state = channels.step(p, state)
            torch.testing.assert_close(h[:, t], state, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("settings, reason", [(Newton(max_iterations=1), "after 1 iterations"), (None, "diverged|after 12")])
def test_the_loop_takes_over_and_says_why(settings, reason, caplog):
    scale = 1.0 if settings else 40.0
    cell, channels, pre, h0 = problem("gru", steps=300, scale=scale)
    with caplog.at_level(logging.WARNING, "transduce.ops"):
        y, end, solution = channels.solve(pre, channels.part(h0), settings=settings or Newton())
    assert solution.fallback and "gave up" in caplog.text
    assert re.search(reason, solution.fallback)
    want, last = Recurrence(cell, solver="loop")._loop(pre, channels.part(h0), mask=None, resets=None)
    assert torch.equal(y, want) and torch.equal(end, last)
    (grad,) = torch.autograd.grad(y.sum(), cell.weight, retain_graph=True)
    torch.testing.assert_close(grad, torch.autograd.grad(want.sum(), cell.weight)[0])


class Lorentz(Cell):
    """A cell of a user, without a Jacobian: two numbers a channel, and a mix of channels where asked for."""

    def __init__(self, dim, mixes=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim) / 2)
        self.mix = nn.Parameter(torch.randn(dim, dim) / dim) if mixes else None

    def init_state(self, batch):
        zero = self.weight.new_zeros(batch, len(self.weight))
        return {"p": zero, "q": zero + 0.5}

    def inputs(self, x):
        return x

    def step(self, pre, state):
        q = state["q"] if self.mix is None else state["q"] @ self.mix
        return {"p": torch.sin(pre + self.weight * q), "q": 0.5 * state["p"] + pre / (1 + q * q)}

    def output(self, state):
        return state["p"] + state["q"]


def test_the_jacobian_of_a_users_cell_is_found():
    check_mixer(lambda d: Recurrence(Lorentz(d), solver="newton"), dim=8)


def test_a_cell_whose_channels_mix_is_refused():
    x = torch.randn(2, 5, 4)
    with pytest.raises(UserError, match=r'Lorentz cannot .* channel \d of its state reads channel \d.*solver="loop"'):
        Recurrence(Lorentz(4, mixes=True), solver="newton")(x)
    with pytest.raises(UserError, match="GRUCell cannot be solved by Newton"):
        Recurrence(GRUCell(4, 4), solver="newton")(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "factory",
    [
        lambda d: ParaGRU(d, 12, heads=4, solver="newton"),
        lambda d: ParaLSTM(d, solver="newton"),
        lambda d: ConvGated(d, 2 * d, ParaGRU(2 * d, solver="newton")),
    ],
    ids=["ParaGRU, narrow, heads", "ParaLSTM", "ConvGated"],
)
def test_laws(factory, dtype):
    check_mixer(factory, dtype=dtype)


def test_heads_of_the_input_are_a_block_diagonal_matrix():
    torch.manual_seed(0)
    headed, dense = HeadInput(6, 4, 3, 2), HeadInput(6, 4, 3)
    with torch.no_grad():
        for gate in range(3):
            dense.weight[gate, 0] = torch.block_diag(*headed.weight[gate])
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(headed(x), dense(x))
    with pytest.raises(ValueError, match="4 heads"):
        ParaGRU(10, heads=4)


def test_the_residuals_can_be_looked_at():
    layer = ParaGRU(8, solver="newton")
    with record(layer, "*residuals") as seen:
        layer(torch.randn(2, 30, 8))
    (residuals,) = seen["residuals"]
    assert residuals[-1] < 1e-5 < residuals[0]


def test_half_precision_is_solved_in_float32():
    torch.manual_seed(0)
    layer = ParaGRU(8, solver="newton").bfloat16()
    x = torch.randn(2, 30, 8).bfloat16()
    y, state = layer(x, layer.init_state(2))
    assert y.dtype == state.dtype == torch.bfloat16
    wide = ParaGRU(8, solver="loop")
    wide.load_state_dict({k: v.float() for k, v in layer.state_dict().items()})
    torch.testing.assert_close(y.float(), wide(x.float())[0], rtol=0.02, atol=0.02)
