"""Mixers with a memory that is corrected: the delta rule's and Lattice's, in their variants."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from transduce.nn import RWKV7, DeltaNet, GatedDeltaNet, Lattice
from transduce.testing import check_mixer

VARIANTS = {
    "delta-net, reflecting": partial(DeltaNet, heads=2, expansion=2, reflect=True),
    "gated-delta-net, one head": partial(GatedDeltaNet, heads=1, kernel=2, reflect=True),
    "lattice, chunks of 3": partial(Lattice, heads=2, slots=5, chunk=3),
    "lattice, no projection": partial(Lattice, slots=4, project=False, forget=False),
    "rwkv7, narrow heads": partial(RWKV7, head_width=8, rank=4),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_obeys_the_laws(name):
    check_mixer(VARIANTS[name], dim=16)


def test_lattice_in_chunks_of_one_step_is_the_exact_one():
    torch.manual_seed(0)
    exact, chunked = Lattice(16), Lattice(16, chunk=1)
    chunked.load_state_dict(exact.state_dict())
    x = torch.randn(2, 21, 16)
    torch.testing.assert_close(chunked(x)[0], exact(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixer", [DeltaNet, GatedDeltaNet, Lattice])
def test_a_width_that_does_not_divide_is_named(mixer):
    with pytest.raises(ValueError, match="multiple of its 3 heads, got 16"):
        mixer(16, 3)
    with pytest.raises(ValueError, match="multiple of its heads' 3, got 16"):
        RWKV7(16, 3)


def test_lattice_refuses_chunks_without_projection():
    with pytest.raises(ValueError, match="leave chunk out"):
        Lattice(16, chunk=4, project=False)


@torch.no_grad()
def test_rwkv7_step_by_step_as_published():
    """With S (V,K) as in the paper: S <- S (diag(w) - e (a e)^T) + v k^T."""
    torch.manual_seed(0)
    m = RWKV7(16, 8, rank=4).double()
    for p in m.parameters():
        p.add_(0.3 * torch.randn_like(p))
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    before, memory, outputs = torch.zeros(16, dtype=x.dtype), torch.zeros(2, 8, 8, dtype=x.dtype), []
    for now in x[0]:
        xr, xw, xk, xv, xa, xg = (mu * now + (1 - mu) * before for mu in m.shift.mix[0])
        w = torch.exp(-torch.exp(torch.tensor(-0.5)) * torch.sigmoid(m.decay(xw))).view(2, 8)
        a = torch.sigmoid(m.rate(xa))
        r, k, v = m.receptance(xr), m.key(xk), m.value(xv).view(2, 8)
        e = torch.nn.functional.normalize((k * m.removal_scale).view(2, 8), dim=-1)
        k = (k * (1 + (a - 1) * m.rate_scale)).view(2, 8)
        removed = torch.einsum("hv,hk->hvk", torch.einsum("hvk,hk->hv", memory, e), a.view(2, 8) * e)
        memory = memory * w[:, None] - removed + torch.einsum("hv,hk->hvk", v, k)
        y = m.norm(torch.einsum("hvk,hk->hv", memory, r.view(2, 8)).reshape(1, 16))[0]
        y = y + ((r.view(2, 8) * k * m.bonus).sum(-1, keepdim=True) * v).flatten()
        outputs.append(m.output(y * m.gate(xg)))
        before = now
    torch.testing.assert_close(m(x)[0][0], torch.stack(outputs), rtol=1e-6, atol=1e-7)
