"""The mixers with a matrix memory: their equations, and the variants that the catalogue does not hold."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transduce.nn import HGRN2, MLSTM, GatedLinearAttention, LowerBounds, Retention, Serial
from transduce.nn.gated_linear_attention import log_forget
from transduce.nn.mlstm import MLSTMState, stabiliser
from transduce.testing import check_mixer


class Bound(nn.Module):
    """A bound as a stack would share it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-3, 3, width))

    def forward(self):
        return torch.sigmoid(self.weight)


VARIANTS = {
    "GLA, one head, few keys": lambda d: GatedLinearAttention(d, 1, keys=4, rank=2, temperature=1.0),
    "HGRN2 with a bound": lambda d: HGRN2(d, 2, bound=Bound(d)),
    "mLSTM without a cap": lambda d: MLSTM(d, 2, keys=d, cap=None),
    "Retention, one head": lambda d: Retention(d, 1, expansion=1),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_obey_the_laws(name, dtype):
    check_mixer(VARIANTS[name], dim=16, dtype=dtype)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def heads_of(layer, x):
    return x.unflatten(-1, (layer.heads, -1))


def test_gla_is_its_equation():
    torch.manual_seed(0)
    layer, x = GatedLinearAttention(8, 2).double(), random(1, 5, 8)
    q, k, v, r = layer.input(x).split((4, 4, 8, 8), -1)
    decay = torch.sigmoid(layer.gate[1](layer.gate[0](x))) ** (1 / 16)
    q, k, v, decay = (heads_of(layer, part)[0] for part in (q, k, v, decay))
    state, rows = torch.zeros(2, 2, 4, dtype=torch.float64), []
    for t in range(5):
        state = decay[t][..., None] * state + k[t][..., None] * v[t][:, None]
        y = (state * q[t][..., None]).sum(1) / 2**0.5
        rows.append((y / (y.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()).flatten())
    want = layer.output(F.silu(r) * torch.stack(rows))
    torch.testing.assert_close(layer(x)[0], want)


def test_hgrn2_is_its_equation():
    torch.manual_seed(0)
    layer, x = HGRN2(8, 2, bound=Bound(8)).double(), random(1, 5, 8)
    q, z, v = layer.input(x).chunk(3, -1)
    beta = layer.bound()
    f = beta + (1 - beta) * torch.sigmoid(z)
    q, f, v = (heads_of(layer, part)[0] for part in (F.silu(q), f, v))
    state, rows = torch.zeros(2, 4, 4, dtype=torch.float64), []
    for t in range(5):
        state = f[t][..., None] * state + (1 - f[t])[..., None] * v[t][:, None]
        y = (state * q[t][..., None]).sum(1)
        rows.append((y / (y.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()).flatten())
    torch.testing.assert_close(layer(x)[0], layer.output(torch.stack(rows))[None])


def test_the_bound_of_hgrn2_is_a_bound_and_learns():
    layer = HGRN2(16, bound=Bound(16))
    layer(torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)))[0].sum().backward()
    assert layer.bound.weight.grad.abs().min() > 0
    log_f, _ = log_forget(torch.full((16,), -1e9), layer.bound())
    torch.testing.assert_close(log_f, layer.bound().log())


@pytest.mark.parametrize("z", [-1e30, -100.0, -30.0, 0.0, 30.0, 1e30])
@pytest.mark.parametrize("beta", [None, 0.0, 0.3, 0.999])
def test_forget_gates_are_exact_at_the_ends(z, beta):
    z = torch.tensor([z], requires_grad=True)
    bound = None if beta is None else torch.tensor([beta], requires_grad=True)
    log_f, k = log_forget(z, bound)
    (log_f + k).sum().backward()
    clamped = z.detach().double().clamp_min(-60)
    f = (beta or 0.0) + (1 - (beta or 0.0)) * torch.sigmoid(clamped)
    torch.testing.assert_close(log_f.double(), f.log(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(k.double(), (1 - (beta or 0.0)) * torch.sigmoid(-clamped))
    assert z.grad.isfinite().all() and (bound is None or bound.grad.isfinite().all())


def test_mlstm_is_its_equation_without_a_stabiliser():
    torch.manual_seed(0)
    layer, x = MLSTM(8, 2).double(), random(1, 6, 8)
    nn.init.normal_(layer.gates.weight)
    q, k, v, r = layer.input(x).split((4, 4, 8, 8), -1)
    i, f = (15 * torch.tanh(layer.gates(x) / 15))[0].chunk(2, -1)
    q, k, v = (heads_of(layer, part)[0] for part in (q / 2**0.5, k, v))
    memory, size = torch.zeros(2, 2, 4, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    rows = []
    for t in range(6):
        keep, put = torch.sigmoid(f[t]), torch.exp(i[t])
        memory = keep[:, None, None] * memory + put[:, None, None] * k[t][..., None] * v[t][:, None]
        size = keep[:, None] * size + put[:, None] * k[t]
        h = (memory * q[t][..., None]).sum(1) / (size * q[t]).sum(-1).abs().clamp_min(1)[:, None]
        rows.append(F.layer_norm(h, (4,), eps=1e-6).flatten())
    want = layer.output(torch.sigmoid(r) * (torch.stack(rows) * layer.norm))
    torch.testing.assert_close(layer(x)[0], want)


def test_mlstm_survives_gates_that_would_overflow():
    torch.manual_seed(0)
    layer = MLSTM(16, 2, cap=None)
    with torch.no_grad():
        layer.gates.bias[:2] = 200.0  # exp(200) is beyond float32
        layer.gates.bias[2:] = -40.0
    x = torch.randn(2, 70, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y, state = layer(x, layer.init_state(2))
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all() and state.memory.isfinite().all()


def test_the_stabiliser_is_the_running_maximum():
    i, f, m0 = random(2, 37, 3), -random(2, 37, 3).abs(), random(2, 3)
    resets = torch.rand(2, 37, generator=torch.Generator().manual_seed(1)) < 0.2
    want, m = [], m0
    for t in range(37):
        m = torch.maximum(f[:, t] + torch.where(resets[:, t, None], 0, m), i[:, t])
        want.append(m)
    torch.testing.assert_close(stabiliser(i, f, m0, resets), torch.stack(want, 1))


def test_the_stabiliser_of_a_state_is_only_a_way_to_write_it():
    torch.manual_seed(0)
    layer, x = MLSTM(16, 2).double(), random(2, 4, 16)
    _, state = layer(x, layer.init_state(2))
    other = MLSTMState(state.memory / 3, state.normaliser / 3, state.stabiliser + torch.tensor(3.0).double().log())
    torch.testing.assert_close(layer(x, other)[0], layer(x, state)[0])


@pytest.mark.parametrize("make", [GatedLinearAttention, HGRN2, MLSTM])
def test_widths_that_do_not_fit_are_named(make):
    with pytest.raises(ValueError, match="heads = 3"):
        make(16, 3)


def test_retention_starts_as_published():
    layer = Retention(64, 4)
    parts = layer.input.weight.split((64, 64, 128, 128))
    for part in parts:  # xavier uniform of each matrix of its own with gain 2^-2.5
        bound = 2**-2.5 * (6 / (64 + len(part))) ** 0.5
        assert 0.95 * bound < float(part.detach().abs().max()) <= bound


def test_layers_of_hgrn2_share_bounds_that_rise():
    bounds = LowerBounds(3, 16)
    stack = Serial(*(HGRN2(16, 2, bound=bounds.layer(k)) for k in range(3)))
    assert len([p for p in stack.parameters() if p is bounds.weight]) == 1
    check_mixer(lambda dim: stack, dim=16, dtype=torch.float64)
