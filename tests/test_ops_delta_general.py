"""The generalised delta rule: its equation, what it contains, its limits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from transduce.ops.delta import delta_rule
from transduce.ops.delta_general import generalised_delta_rule
from transduce.testing.ops import check_op

BACKENDS = ("numba", "reference")


def inputs(steps=40, batch=2, heads=2, width=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    q, k, v, e = (torch.randn(batch, steps, heads, width, dtype=dtype, generator=g) for _ in range(4))
    decay, rate = (torch.rand(batch, steps, heads, width, dtype=dtype, generator=g) for _ in range(2))
    e = F.normalize(e, dim=-1)
    s0 = torch.randn(batch, heads, width, width, dtype=dtype, generator=g)
    return q, k, v, -decay / 5, torch.stack((e, 0.5 * rate * e), 3), s0


def test_every_backend_obeys_the_law():
    record = check_op(generalised_delta_rule)
    assert {c.backend for c in record if c.refused is None} == set(BACKENDS)


@pytest.mark.parametrize("backend", BACKENDS)
class TestEveryBackend:
    def test_the_equation_itself(self, backend):
        q, k, v, g, removal, s = inputs(3, batch=1, heads=1)
        y, _ = generalised_delta_rule.run(backend, q, k, v, g, removal, s)
        state = s[0, 0]
        for t in range(3):
            e, r = removal[0, t, 0]
            state = (torch.diag(g[0, t, 0].exp()) - torch.outer(r, e)) @ state + torch.outer(k[0, t, 0], v[0, t, 0])
            torch.testing.assert_close(y[0, t, 0], q[0, t, 0] @ state)

    def test_the_delta_rule_is_one_of_it(self, backend):
        q, k, v, g, _, s0 = inputs(70)
        k, decay, beta = F.normalize(k, dim=-1), g[..., 0], torch.sigmoid(v[..., 0])
        removal = torch.stack((k, (decay.exp() * beta)[..., None] * k), 3)
        y, s = generalised_delta_rule.run(
            backend, q, beta[..., None] * k, v, decay[..., None].expand_as(q), removal, s0
        )
        want, state = delta_rule(q, k, v, beta, decay, s0)
        torch.testing.assert_close(y, want)
        torch.testing.assert_close(s, state)

    @pytest.mark.parametrize("cut", [1, 15, 16, 17, 39])
    def test_a_chunk_at_a_time_is_the_whole(self, backend, cut):
        *x, s0 = inputs()
        whole, last = generalised_delta_rule.run(backend, *x, s0)
        first, state = generalised_delta_rule.run(backend, *(a[:, :cut] for a in x), s0)
        second, state = generalised_delta_rule.run(backend, *(a[:, cut:] for a in x), state)
        torch.testing.assert_close(torch.cat((first, second), 1), whole)
        torch.testing.assert_close(state, last)

    def test_a_masked_step_leaves_the_memory_bit_for_bit(self, backend):
        *x, s0 = inputs(3)
        nothing = torch.zeros(2, 3, dtype=torch.bool)
        poison = (a * float("nan") for a in x)
        _, state = generalised_delta_rule.run(backend, *poison, s0, mask=nothing, resets=~nothing)
        assert torch.equal(state, s0)

    def test_a_decay_of_minus_infinity_forgets_the_channel(self, backend):
        q, k, v, g, removal, s0 = inputs(1)
        g[..., 0] = -torch.inf
        removal[..., 0] = 0
        g.requires_grad_()
        y, state = generalised_delta_rule.run(backend, q, k, v, g, removal, s0)
        torch.testing.assert_close(state[:, :, 0], (k[:, 0, :, :1] * v[:, 0]))
        assert torch.isfinite(torch.autograd.grad(y.sum(), g)[0]).all()

    def test_wrong_arguments_are_named(self, backend):
        q, k, v, g, removal, s0 = inputs()
        for label, args in (
            ("q and k", (q, k[:, 1:], v, g, removal)),
            ("log_decay", (q, k, v, g[..., :1], removal)),
            ("removal", (q, k, v, g, removal[:, :, :, 0])),
            ("s0 of shape", (q, k, v, g, removal, s0[:1])),
        ):
            with pytest.raises(ValueError, match=label):
                generalised_delta_rule.run(backend, *args)
        with pytest.raises(ValueError, match="bool mask"):
            generalised_delta_rule.run(backend, q, k, v, g, removal, mask=torch.ones(2, 40))


def test_no_steps():
    *x, s0 = inputs(0)
    y, state = generalised_delta_rule(*x, s0)
    assert y.shape == (2, 0, 2, 4) and torch.equal(state, s0)


def test_the_matrix_times_the_values_is_the_output():
    q, k, v, g, removal, _ = inputs(20)
    generator = torch.Generator().manual_seed(2)
    mask, resets = (torch.rand(2, 20, generator=generator) < p for p in (0.7, 0.2))
    matrix = generalised_delta_rule.matrix(q, k, g, removal, mask=mask, resets=resets)
    y, _ = generalised_delta_rule(q, k, v, g, removal, mask=mask, resets=resets)
    product = torch.einsum("bhts,bshk->bthk", matrix, torch.where(mask[..., None, None], v, 0))
    torch.testing.assert_close(product[mask], y[mask])
    assert not matrix[mask[:, None].expand(-1, 2, -1)].isnan().any() and not matrix.triu(1).any()
