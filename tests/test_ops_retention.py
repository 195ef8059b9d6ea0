from __future__ import annotations

import pytest
import torch

from transduce.ops.retention import retention
from transduce.testing.ops import check_op

BACKENDS = ("numba", "chunked", "reference")


def inputs(steps=150, batch=2, heads=2, width=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, steps, heads, width, dtype=dtype, generator=g) for _ in range(3))
    log_decay = -torch.rand(batch, steps, heads, dtype=dtype, generator=g) / 5
    return q, k, v, log_decay, torch.randn(batch, heads, width, width, dtype=dtype, generator=g)


def test_every_backend_obeys_the_law():
    record = check_op(retention)
    assert {c.backend for c in record if c.refused is None} == set(BACKENDS)


def test_the_equation_itself():
    q, k, v, g, s = inputs(3, batch=1, heads=1)
    y, _ = retention.reference(q, k, v, g, s)
    state = s[0, 0]
    for t in range(3):
        state = g[0, t, 0].exp() * state + torch.outer(k[0, t, 0], v[0, t, 0])
        torch.testing.assert_close(y[0, t, 0], q[0, t, 0] @ state)


@pytest.mark.parametrize("backend", BACKENDS)
class TestEveryBackend:
    @pytest.mark.parametrize("cut", [1, 63, 64, 65, 149])
    def test_a_chunk_at_a_time_is_the_whole(self, backend, cut):
        q, k, v, g, s0 = inputs()
        whole, last = retention.run(backend, q, k, v, g, s0)
        first, state = retention(q[:, :cut], k[:, :cut], v[:, :cut], g[:, :cut], s0)
        second, state = retention(q[:, cut:], k[:, cut:], v[:, cut:], g[:, cut:], state)
        torch.testing.assert_close(torch.cat((first, second), 1), whole)
        torch.testing.assert_close(state, last)

    def test_a_masked_step_is_no_step(self, backend):
        q, k, v, g, s0 = inputs(90)
        mask = torch.rand(90, generator=torch.Generator().manual_seed(1)) < 0.6
        poison = [torch.where(mask.view(1, -1, *[1] * (x.dim() - 2)), x, float("nan")) for x in (q, k, v, g)]
        resets = ~mask.expand(2, -1)  # at masked steps only: none of them happens
        y, state = retention.run(backend, *poison, s0, mask=mask.expand(2, -1), resets=resets)
        dense, last = retention.run(backend, *(x[:, mask] for x in (q, k, v, g)), s0)
        torch.testing.assert_close(y[:, mask], dense)
        torch.testing.assert_close(state, last)

    @pytest.mark.parametrize("at", [0, 31, 64, 89])
    def test_a_reset_is_a_new_beginning(self, backend, at):
        q, k, v, g, s0 = inputs(90)
        resets = torch.zeros(2, 90, dtype=torch.bool)
        resets[:, at] = True
        y, state = retention.run(backend, q, k, v, g, s0, resets=resets)
        fresh, last = retention(q[:, at:], k[:, at:], v[:, at:], g[:, at:])
        torch.testing.assert_close(y[:, at:], fresh)
        torch.testing.assert_close(state, last)

    def test_no_steps(self, backend):
        q, k, v, g, s0 = inputs(0)
        if backend != "reference":
            assert "cheaper as a recurrence" in retention.refusal(backend, q, k, v, g, s0)
            backend = "reference"
        y, state = retention.run(backend, q, k, v, g, s0)
        assert y.shape == (2, 0, 2, 4) and torch.equal(state, s0)

    def test_half_precision_keeps_a_float32_state(self, backend):
        q, k, v, g, _ = (x.bfloat16() for x in inputs())
        y, state = retention.run(backend, q, k, v, g)
        wide, wide_state = retention.run(backend, q.float(), k.float(), v.float(), g.float())
        assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
        assert torch.equal(y, wide.bfloat16()) and torch.equal(state, wide_state)

    def test_wrong_arguments_are_named(self, backend):
        q, k, v, g, s0 = inputs()
        with pytest.raises(ValueError, match="log_decay"):
            retention.run(backend, q, k, v, g[:, :3], s0)
        with pytest.raises(ValueError, match="s0 of shape"):
            retention.run(backend, q, k, v, g, s0[:1])
        with pytest.raises(ValueError, match="q and k"):
            retention.run(backend, q, k[:, 1:], v, g, s0)
        with pytest.raises(ValueError, match="bool mask"):
            retention.run(backend, q, k, v, g, s0, mask=torch.ones(2, 150))


def test_a_late_fast_decay_does_not_blur_the_steps_behind_it():
    """The sum of logarithms is about -1000 there; differences of it must still be exact."""
    q, k, v, g, _ = inputs(64, dtype=torch.float32)
    g[:, 5] = -1000.0
    y, _ = retention.run("chunked", q, k, v, g)
    clean, _ = retention.run("chunked", q[:, 5:], k[:, 5:], v[:, 5:], g[:, 5:])
    torch.testing.assert_close(y[:, 5:], clean, rtol=0, atol=2e-6)


def test_the_matrix_times_the_values_is_the_output():
    q, k, v, g, _ = inputs(20)
    generator = torch.Generator().manual_seed(2)
    mask, resets = (torch.rand(2, 20, generator=generator) < p for p in (0.7, 0.2))
    matrix = retention.matrix(q, k, g, mask=mask, resets=resets)
    y, _ = retention(q, k, v, g, mask=mask, resets=resets)
    product = torch.einsum("bhts,bshk->bthk", matrix, torch.where(mask[..., None, None], v, 0))
    torch.testing.assert_close(product[mask], y[mask])
    assert not matrix.triu(1).any()


def test_autocast_keeps_the_state_in_float32():
    q, k, v, g, s0 = inputs(dtype=torch.float32)
    exact, last = retention(q, k, v, g, s0)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = retention(q, k, v, g, s0)
    assert state.dtype == torch.float32
    assert (y - exact).norm() < 0.02 * exact.norm() and (state - last).norm() < 0.02 * last.norm()
