"""Mamba and Mamba-2 as layers: variants obey the laws, they start as published, and they say what does not fit."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from transduce.nn import Mamba, Mamba2
from transduce.nn.selective import SelectiveState
from transduce.testing import check_mixer

VARIANTS = {
    "mamba, narrow": partial(Mamba, states=3, expansion=1, kernel=2, rank=3),
    "mamba, no convolution": partial(Mamba, states=4, kernel=1),
    "mamba2, groups": partial(Mamba2, heads=4, states=6, groups=2),
    "mamba2, one head": partial(Mamba2, heads=1, states=5, expansion=1.5),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_obey_the_laws(name):
    check_mixer(VARIANTS[name], dim=16)


@pytest.mark.parametrize("layer", [Mamba, Mamba2])
def test_steps_begin_between_a_thousandth_and_a_tenth(layer):
    torch.manual_seed(0)
    net = layer(64)
    dt = F.softplus(net.step.bias if layer is Mamba else net.step_bias).detach()
    assert 0.99e-3 < float(dt.min()) and float(dt.max()) < 0.101


def test_mamba_is_its_equations():
    """One row, step by step, from the paper's formulas alone."""
    torch.manual_seed(0)
    net = Mamba(8, states=3).double()
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    with torch.no_grad():
        y, _ = net(x)
        raw, z = net.input(x[0]).chunk(2, -1)
        h, rows = torch.zeros(16, 3, dtype=torch.float64), []
        for t in range(6):
            taps = [raw[t - 3 + j] if t - 3 + j >= 0 else torch.zeros(16).double() for j in range(4)]
            u = F.silu(net.conv.bias + sum(net.conv.weight[:, j] * taps[j] for j in range(4)))
            low, b, c = net.select(u).split((1, 3, 3))
            dt = torch.log1p(torch.exp(net.step.weight @ low + net.step.bias))
            h = torch.exp(-dt[:, None] * torch.arange(1, 4)) * h + (dt * u)[:, None] * b
            rows.append(net.output.weight @ ((h @ c + net.skip * u) * F.silu(z[t])))
    torch.testing.assert_close(y[0], torch.stack(rows), rtol=1e-6, atol=1e-7)  # log_rates were made in float32


def test_heads_of_one_group_share_what_they_write_and_read():
    """Two groups whose B and C are equal are one group."""
    torch.manual_seed(0)
    one, two = Mamba2(8, heads=2, states=3, groups=1), Mamba2(8, heads=2, states=3, groups=2)
    twice = torch.tensor([*range(16), *[16, 17, 18] * 2, *[19, 20, 21] * 2])
    with torch.no_grad():
        rows = torch.cat((torch.arange(16), 16 + twice, torch.tensor([38, 39])))
        two.input.weight.copy_(one.input.weight[rows])
        two.conv.weight.copy_(one.conv.weight[twice])
        two.conv.bias.copy_(one.conv.bias[twice])
        for name in ("step_bias", "log_rates", "skip"):
            getattr(two, name).copy_(getattr(one, name))
        x = torch.randn(2, 9, 8)
        states = [net(x, net.init_state(2))[1] for net in (one, two)]
    torch.testing.assert_close(states[0].memory, states[1].memory)


@pytest.mark.parametrize("layer", [Mamba, partial(Mamba2, heads=2)])
def test_layers_compile_into_one_graph_and_give_the_same(layer):
    net, x = layer(8, states=4), torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x)[0], net(x)[0])


def test_the_memory_of_a_layer_in_bfloat16_is_float32():
    state = Mamba(16).bfloat16().init_state(2)
    assert isinstance(state, SelectiveState) and state.memory.dtype == torch.float32
    assert Mamba2(16).double().init_state(2).memory.dtype == torch.float64


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least one channel, state"):
        Mamba(16, states=0)
    with pytest.raises(ValueError, match="heads of Mamba2 must divide its 32 channels .* got 5 heads"):
        Mamba2(16, heads=5)
    with pytest.raises(ValueError, match="multiple of its groups, got 4 heads and 3 groups"):
        Mamba2(16, heads=4, groups=3)
