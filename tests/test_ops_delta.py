"""The delta rule: its equation, its forms, its limits."""

from __future__ import annotations

import pytest
import torch

from transduce.ops.delta import delta_rule
from transduce.testing.ops import check_op

BACKENDS = ("numba", "chunked", "reference")


def inputs(steps=150, batch=2, heads=2, width=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, steps, heads, width, dtype=dtype, generator=g) for _ in range(3))
    beta, decay = (torch.rand(batch, steps, heads, dtype=dtype, generator=g) for _ in range(2))
    s0 = torch.randn(batch, heads, width, width, dtype=dtype, generator=g)
    return q, k / k.norm(dim=-1, keepdim=True), v, beta, -decay / 5, s0


def test_every_backend_obeys_the_law():
    record = check_op(delta_rule)
    assert {c.backend for c in record if c.refused is None} == set(BACKENDS)


def test_the_equation_itself():
    q, k, v, beta, g, s = inputs(3, batch=1, heads=1)
    y, _ = delta_rule.reference(q, k, v, beta, g, s)
    state, eye = s[0, 0], torch.eye(4, dtype=torch.float64)
    for t in range(3):
        key, b = k[0, t, 0], beta[0, t, 0]
        state = g[0, t, 0].exp() * (eye - b * torch.outer(key, key)) @ state + b * torch.outer(key, v[0, t, 0])
        torch.testing.assert_close(y[0, t, 0], q[0, t, 0] @ state)


@pytest.mark.parametrize("backend", BACKENDS)
class TestEveryBackend:
    def test_a_full_correction_is_read_back(self, backend):
        _, k, v, beta, _, s0 = inputs(70)
        y, _ = delta_rule.run(backend, k, k, v, torch.ones_like(beta), None, s0)
        torch.testing.assert_close(y, v)

    def test_twice_a_correction_without_values_reflects(self, backend):
        """b = 2 and v = 0 turn the sign of what the key holds: a memory that toggles."""
        _, k, v, beta, _, s0 = inputs(8)
        k = k[:, :1].expand_as(k)
        y, _ = delta_rule.run(backend, k, k, 0 * v, torch.full_like(beta, 2.0), None, s0)
        held = torch.einsum("bhk,bhkv->bhv", k[:, 0], s0)
        signs = torch.tensor([-1.0, 1.0] * 4, dtype=torch.float64)[None, :, None, None]
        torch.testing.assert_close(y, signs * held[:, None])

    @pytest.mark.parametrize("cut", [1, 63, 64, 65, 149])
    def test_a_chunk_at_a_time_is_the_whole(self, backend, cut):
        *x, s0 = inputs()
        whole, last = delta_rule.run(backend, *x, s0)
        first, state = delta_rule(*(a[:, :cut] for a in x), s0)
        second, state = delta_rule(*(a[:, cut:] for a in x), state)
        torch.testing.assert_close(torch.cat((first, second), 1), whole)
        torch.testing.assert_close(state, last)

    def test_a_masked_step_is_no_step(self, backend):
        *x, s0 = inputs(90)
        mask = torch.rand(90, generator=torch.Generator().manual_seed(1)) < 0.6
        poison = [torch.where(mask.view(1, -1, *[1] * (a.dim() - 2)), a, float("nan")) for a in x]
        resets = ~mask.expand(2, -1)  # at masked steps only: none of them happens
        y, state = delta_rule.run(backend, *poison, s0, mask=mask.expand(2, -1), resets=resets)
        dense, last = delta_rule.run(backend, *(a[:, mask] for a in x), s0)
        torch.testing.assert_close(y[:, mask], dense)
        torch.testing.assert_close(state, last)

    @pytest.mark.parametrize("at", [0, 31, 64, 86])
    def test_a_reset_is_a_new_beginning(self, backend, at):
        *x, s0 = inputs(90)
        resets = torch.zeros(2, 90, dtype=torch.bool)
        resets[:, at] = True
        y, state = delta_rule.run(backend, *x, s0, resets=resets)
        fresh, last = delta_rule(*(a[:, at:] for a in x))
        torch.testing.assert_close(y[:, at:], fresh)
        torch.testing.assert_close(state, last)

    def test_half_precision_keeps_a_float32_state(self, backend):
        *x, _ = (a.bfloat16() for a in inputs())
        y, state = delta_rule.run(backend, *x)
        wide, wide_state = delta_rule.run(backend, *(a.float() for a in x))
        assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
        assert torch.equal(y, wide.bfloat16()) and torch.equal(state, wide_state)

    def test_wrong_arguments_are_named(self, backend):
        q, k, v, beta, g, s0 = inputs()
        for label, args in (
            ("beta", (q, k, v, beta[:, :3], g)),
            ("log_decay", (q, k, v, beta, g[..., :1])),
            ("s0 of shape", (q, k, v, beta, g, s0[:1])),
            ("q and k", (q, k[:, 1:], v, beta)),
        ):
            with pytest.raises(ValueError, match=label):
                delta_rule.run(backend, *args)
        with pytest.raises(ValueError, match="bool mask"):
            delta_rule.run(backend, q, k, v, beta, mask=torch.ones(2, 150))


def test_no_steps():
    *x, s0 = inputs(0)
    y, state = delta_rule(*x, s0)
    assert y.shape == (2, 0, 2, 4) and torch.equal(state, s0)


def test_the_matrix_times_the_values_is_the_output():
    q, k, v, beta, g, _ = inputs(20)
    generator = torch.Generator().manual_seed(2)
    mask, resets = (torch.rand(2, 20, generator=generator) < p for p in (0.7, 0.2))
    for decay in (g, None):
        matrix = delta_rule.matrix(q, k, beta, decay, mask=mask, resets=resets)
        y, _ = delta_rule(q, k, v, beta, decay, mask=mask, resets=resets)
        product = torch.einsum("bhts,bshk->bthk", matrix, torch.where(mask[..., None, None], v, 0))
        torch.testing.assert_close(product[mask], y[mask])
        assert not matrix.triu(1).any()
