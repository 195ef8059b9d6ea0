"""Lattice's update: what it is the gradient of, what it leaves unchanged, and its approximation by chunks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from transduce.ops.orthogonal import initial_slots, orthogonal_update
from transduce.ops.orthogonal_frozen import FrozenState, frozen_update
from transduce.testing.ops import check_op

BACKENDS = ("numba", "reference")


def inputs(steps=40, batch=2, heads=2, slots=5, width=6, decay=0.05, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    keys = torch.softmax(2 * torch.randn(batch, steps, heads, 2, slots, dtype=dtype, generator=g), -1)
    v = torch.randn(batch, steps, heads, width, dtype=dtype, generator=g)
    gates = torch.rand(batch, steps, heads, 2, dtype=dtype, generator=g) * torch.tensor([1.0, -decay], dtype=dtype)
    fresh = initial_slots(slots, width, dtype) + 0.1 * torch.randn(heads, slots, width, dtype=dtype, generator=g)
    return keys, v, gates, fresh


def test_every_backend_obeys_the_law():
    record = check_op(orthogonal_update)
    assert {c.backend for c in record if c.refused is None} == set(BACKENDS)


@pytest.mark.parametrize("backend", BACKENDS)
class TestEveryBackend:
    def test_a_step_descends_the_reconstruction_error(self, backend):
        """s moves by -rate times the gradient of 1/2 |sum_i k_i s_i / |s_i| - v|^2."""
        keys, v, gates, fresh = inputs(1, decay=0.0)
        s = (torch.randn_like(fresh.expand(2, -1, -1, -1)) * 2).requires_grad_()
        held = torch.einsum("bhm,bhmd->bhd", keys[:, 0, :, 1], F.normalize(s, dim=-1))
        (slope,) = torch.autograd.grad(((held - v[:, 0]) ** 2).sum() / 2, s)
        _, after = orthogonal_update.run(backend, keys, v, gates, fresh, s.detach())
        torch.testing.assert_close(after, s.detach() - gates[:, 0, :, 0, None, None] * slope)

    def test_what_is_written_stands_at_right_angles_and_norms_add_up(self, backend):
        keys, v, gates, fresh = inputs(1, decay=0.0)
        before = fresh.expand(2, -1, -1, -1)
        _, after = orthogonal_update.run(backend, keys, v, gates, fresh)
        added = after - before
        assert added.norm() > 0.1
        torch.testing.assert_close((before * added).sum(-1), torch.zeros(2, 2, 5, dtype=v.dtype))
        torch.testing.assert_close((after**2).sum(-1), (before**2).sum(-1) + (added**2).sum(-1))
        _, plain = orthogonal_update.run(backend, keys, v, gates, fresh, project=False)
        assert ((plain - before) * before).sum(-1).abs().max() > 0.01

    @pytest.mark.parametrize("cut", [1, 15, 16, 17, 39])
    def test_a_chunk_at_a_time_is_the_whole(self, backend, cut):
        *x, fresh = inputs()
        whole, last = orthogonal_update.run(backend, *x, fresh)
        first, state = orthogonal_update.run(backend, *(a[:, :cut] for a in x), fresh)
        second, state = orthogonal_update.run(backend, *(a[:, cut:] for a in x), fresh, state)
        torch.testing.assert_close(torch.cat((first, second), 1), whole)
        torch.testing.assert_close(state, last)

    def test_a_masked_step_leaves_the_slots_bit_for_bit(self, backend):
        keys, v, gates, fresh = inputs(3)
        s0 = torch.randn(2, *fresh.shape, dtype=v.dtype)
        nothing = torch.zeros(2, 3, dtype=torch.bool)
        poison = (x * float("nan") for x in (keys, v, gates))
        _, state = orthogonal_update.run(backend, *poison, fresh, s0, mask=nothing, resets=~nothing)
        assert torch.equal(state, s0)

    def test_a_slot_that_faded_away_comes_back_with_the_next_write(self, backend):
        keys, v, gates, fresh = inputs(2, dtype=torch.float32)
        keys[:, 0, :, 1] = 0.0  # nothing is written and all is forgotten, ...
        gates[:, 0, :, 1] = -torch.inf
        x = [a.requires_grad_() for a in (keys, v, gates, fresh)]
        y, state = orthogonal_update.run(backend, *x)
        grads = torch.autograd.grad(y.sum() + F.normalize(state, dim=-1).sum(), x)
        assert all(torch.isfinite(a).all() for a in (state, *grads)) and not y[:, 0].any()
        towards = F.normalize(v[:, 1, :, None].expand_as(state), dim=-1)  # ... so every slot turns to the news
        torch.testing.assert_close(F.normalize(state, dim=-1), towards)

    def test_half_precision_keeps_float32_slots(self, backend):
        x = [a.bfloat16() for a in inputs()]
        y, state = orthogonal_update.run(backend, *x)
        wide, wide_state = orthogonal_update.run(backend, *(a.float() for a in x))
        assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
        assert torch.equal(y, wide.bfloat16()) and torch.equal(state, wide_state)

    def test_wrong_arguments_are_named(self, backend):
        keys, v, gates, fresh = inputs()
        for label, args in (
            ("keys", (keys[:, :, :, 0], v, gates, fresh)),
            ("gates", (keys, v, gates[..., :1], fresh)),
            ("fresh slots", (keys, v, gates, fresh[:1])),
            ("s0", (keys, v, gates, fresh, fresh)),
        ):
            with pytest.raises(ValueError, match=label):
                orthogonal_update.run(backend, *args)
        with pytest.raises(ValueError, match="bool resets"):
            orthogonal_update.run(backend, keys, v, gates, fresh, resets=torch.ones(2, 40))


def test_no_steps():
    keys, v, gates, fresh = inputs(0)
    y, state = orthogonal_update(keys, v, gates, fresh)
    assert y.shape == v.shape and torch.equal(state, fresh.expand(2, -1, -1, -1))


@pytest.mark.parametrize(("slots", "width"), [(1, 1), (3, 8), (8, 8), (20, 8)])
def test_initial_slots_are_orthonormal_as_far_as_they_can_be(slots, width):
    s = initial_slots(slots, width, torch.float64)
    gram = s @ s.T
    torch.testing.assert_close(gram.diagonal(), torch.ones(slots, dtype=s.dtype))
    for i in range(0, slots, width):
        block = gram[i : i + width, i : i + width]
        torch.testing.assert_close(block, torch.eye(len(block), dtype=s.dtype))
    assert (gram - torch.eye(slots)).abs().max() < 1 - 1e-3  # no slot twice


class TestFrozen:
    def test_chunks_of_one_step_are_exact(self):
        x = inputs()
        exact, _ = orthogonal_update(*x)
        torch.testing.assert_close(frozen_update(*x, chunk=1)[0], exact)
        start = FrozenState.fresh(x[3].expand(2, -1, -1, -1))
        y, state = frozen_update(*x, start, chunk=1)
        torch.testing.assert_close(y, exact)
        torch.testing.assert_close(state.start, orthogonal_update(*x)[1])

    @pytest.mark.parametrize("chunk", [1, 7, 16, 64])
    def test_chunks_at_once_are_the_steps(self, chunk):
        """Values and gradients of the products of matrices are those of the definition."""
        found = []
        for state in (None, FrozenState.fresh(inputs()[3].expand(2, -1, -1, -1))):
            x = [a.requires_grad_() for a in inputs()]
            if state is not None:
                state = FrozenState.fresh(x[3].expand(2, -1, -1, -1))
            y, _ = frozen_update(*x, state, chunk=chunk)
            found.append((y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), x)))
        for a, b in zip(*found):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)

    def test_the_error_falls_with_the_chunk(self):
        x = inputs(96)
        exact, _ = orthogonal_update(*x)
        errors = [float((frozen_update(*x, chunk=c)[0] - exact).norm()) for c in (32, 16, 8, 4, 2, 1)]
        assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-12 < errors[-2]

    def test_strong_decay_within_a_chunk_stays_finite(self):
        keys, v, gates, fresh = inputs(64, decay=8.0, dtype=torch.float32)
        assert torch.isfinite(frozen_update(keys, v, gates, fresh, chunk=64)[0]).all()

    def test_a_chunk_has_steps(self):
        with pytest.raises(ValueError, match="at least 1 step"):
            frozen_update(*inputs(), chunk=0)
