"""minGRU, minLSTM, HGRU, RG-LRU: laws of their variants, their equations, and what each promises beyond the laws."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transduce.core import state as states
from transduce.core.errors import UserError
from transduce.nn import (
    HGRU,
    RGLRU,
    AlongAxes,
    Attention,
    Bidirectional,
    BlockDiagonal,
    FeedForward,
    GriffinRecurrent,
    LowerBounds,
    MinGRU,
    MinLSTM,
    Pointwise,
    Residual,
    Serial,
    min_rnn,
)
from transduce.nn.linear_rnn import log_scan
from transduce.nn.position import rotary
from transduce.ops.dispatch import use_backend
from transduce.ops.scan import linear_scan
from transduce.systems.mixers.griffin import Config as GriffinConfig
from transduce.systems.mixers.griffin import griffin_layers
from transduce.systems.mixers.hgrn import Config as HGRNConfig
from transduce.systems.mixers.hgrn import hgrn_layers
from transduce.testing import check_mixer
from transduce.train.weights import collect

VARIANTS = {
    "minGRU, convolution, wide": lambda d: min_rnn("gru", d, conv=4, expansion=1.5),
    "minGRU, logarithms": lambda d: MinGRU(d, form="log"),
    "minLSTM, convolution": lambda d: min_rnn("lstm", d, conv=3),
    "minLSTM, logarithms": lambda d: MinLSTM(d, form="log"),
    "HGRU, bounded": lambda d: HGRU(d, 12, bound=LowerBounds(3, 12).layer(2)),
    "HGRU, real, gate first": lambda d: HGRU(d, rotating=False, order="gate-norm"),
    "two HGRUs that share bounds": lambda d: Serial(*map(Residual, hgrn_layers(HGRNConfig(d, layers=2)))),
    "RG-LRU, two heads": lambda d: RGLRU(d, 2),
    "Griffin": lambda d: Serial(*map(Residual, griffin_layers(GriffinConfig(d, heads=2, window=3)))),
    "attention, half rotary, one key head": lambda d: Attention(d, 2, 1, window=4, position="half-rotary"),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_obey_the_laws(name, dtype):
    check_mixer(VARIANTS[name], dim=16, dtype=dtype)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


# ---------------------------------------------------------------- minGRU and minLSTM


def test_min_lstm_is_its_equation():
    layer, x = MinLSTM(5, expansion=1.2).double(), random(2, 7, 5)
    h, want = torch.zeros(2, 6, dtype=torch.float64), []
    for x_t in x.unbind(1):
        f, i, v = layer.input(x_t).chunk(3, -1)
        f, i = torch.sigmoid(f), torch.sigmoid(i)
        h = (f * h + i * v) / (f + i)
        want.append(layer.project(h))
    torch.testing.assert_close(layer(x)[0], torch.stack(want, 1))


@pytest.mark.parametrize("kind", [MinGRU, MinLSTM])
def test_the_form_in_logarithms_is_the_recurrence_on_positive_candidates(kind):
    layer, x = kind(6, form="log").double(), 3 * random(2, 9, 6)
    gates, u = layer.input(x).split((layer.hidden * (1 if kind is MinGRU else 2), layer.hidden), -1)
    if kind is MinGRU:
        write = torch.sigmoid(gates)
    else:
        f, i = torch.sigmoid(gates).chunk(2, -1)
        write = i / (f + i)
    positive = torch.where(u >= 0, u + 0.5, torch.sigmoid(u))
    torch.testing.assert_close(layer(x)[0], linear_scan(1 - write, write * positive))


def test_the_form_in_logarithms_is_less_exact():
    log_decay, log_value = F.logsigmoid(random(2, 1000, 32)), random(2, 1000, 32).flip(1)
    truth = linear_scan(log_decay.exp(), log_value.exp())
    error = lambda got: float((got.double() - truth).abs().max() / truth.abs().max())
    assert error(log_scan(log_decay, log_value)) < 1e-10
    logs = log_decay.float(), log_value.float()
    assert error(linear_scan(*(t.exp() for t in logs))) < 2e-6 < error(log_scan(*logs)) < 2e-3


def test_what_cannot_be_built_says_why():
    for make, said in (
        (lambda: MinGRU(4, form="fast"), 'form must be "scan" or "log"'),
        (lambda: MinLSTM(4, expansion=0.01), "leaves no channel"),
        (lambda: min_rnn("rnn", 4), 'cell must be "gru" or "lstm"'),
        (lambda: HGRU(4, order="none"), 'order must be "norm-gate"'),
        (lambda: LowerBounds(0, 4), "at least one layer"),
        (lambda: LowerBounds(2, 4).layer(2), "layers 0 to 1, not of layer 2"),
        (lambda: BlockDiagonal(10, 4), "does not divide into 4 blocks"),
        (lambda: Attention(12, 2, position="half-rotary"), "multiple of 4, got 6"),
        (lambda: AlongAxes(None, None), "at least one of its axes"),
        (lambda: AlongAxes(MinGRU(4), None)(torch.zeros(2, 3, 4)), "shape \\(batch, height"),
    ):
        with pytest.raises(ValueError, match=said):
            make()
    with pytest.raises(UserError, match='not "RX"'):
        griffin_layers(GriffinConfig(16, pattern="RX"))


# ---------------------------------------------------------------- HGRU


def test_hgru_is_its_equation_in_complex_numbers():
    bound = LowerBounds(3, 6).double()
    nn.init.normal_(bound.weight)
    layer, x = HGRU(5, 6, bound=bound.layer(1)).double(), random(2, 7, 5)
    floor = bound.weight.softmax(0)[0]
    h, want = torch.zeros(2, 6, dtype=torch.complex128), []
    for x_t in x.unbind(1):
        mu, re, im = layer.input(x_t).chunk(3, -1)
        forget = floor + (1 - floor) * torch.sigmoid(mu)
        h = forget * torch.exp(1j * layer.angle) * h + (1 - forget) * torch.complex(F.silu(re), F.silu(im))
        read = F.layer_norm(torch.cat((h.real, h.imag), -1), (12,))
        want.append(layer.output(read * F.silu(layer.gate(x_t))))
    torch.testing.assert_close(layer(x)[0], torch.stack(want, 1))


def test_bounds_rise_with_depth_and_stay_below_one():
    bounds = LowerBounds(5, 8)
    nn.init.normal_(bounds.weight, std=3.0)
    gammas = bounds()
    assert bool((gammas[0] == 0).all() and (gammas[1:] > gammas[:-1]).all() and (gammas < 1).all())
    torch.testing.assert_close(torch.stack([bounds.layer(k)() for k in range(5)]), gammas)


def test_a_stack_has_one_set_of_bounds_and_trains_it():
    layers = hgrn_layers(HGRNConfig(16, layers=3))
    stack = Serial(*map(Residual, layers))
    shared = {id(layer.bound.bounds.weight) for layer in layers}
    names = [name for name in collect(stack) if "bounds" in name]
    assert len(shared) == 1 and len(names) == 1
    stack(torch.randn(2, 5, 16))[0].square().sum().backward()
    assert float(layers[0].bound.bounds.weight.grad.abs().min()) > 0
    assert all(layer.bound is None for layer in hgrn_layers(HGRNConfig(16, layers=2, bounded=False)))
    twin = copy.deepcopy(stack)  # what an averaged copy of the weights does
    assert len({id(m) for m in twin.modules() if isinstance(m, LowerBounds)}) == 1


# ---------------------------------------------------------------- RG-LRU and Griffin


def test_rg_lru_is_its_equation_and_begins_in_full():
    layer, x = RGLRU(6, 2).double(), random(2, 7, 6)
    nn.init.normal_(layer.gates.bias)
    w, b = layer.gates.weight, layer.gates.bias
    dense = [torch.block_diag(*(block[:, part * 3 : part * 3 + 3] for block in w)) for part in range(2)]
    flat = [b[:, part * 3 : part * 3 + 3].flatten() for part in range(2)]
    h, want = None, []
    for x_t in x.unbind(1):
        r, i = (torch.sigmoid(x_t @ m + c) for m, c in zip(dense, flat))
        a = torch.sigmoid(-layer.rate) ** (8 * r)
        h = i * x_t if h is None else a * h + torch.sqrt(1 - a**2) * (i * x_t)
        want.append(h)
    torch.testing.assert_close(layer(x)[0], torch.stack(want, 1))
    square = torch.sigmoid(-RGLRU(4096).rate.detach()) ** 2
    assert 0.9**2 <= float(square.min()) < 0.82 and 0.99 < float(square.max()) <= 0.999**2 + 1e-6


def test_the_first_step_is_the_first_valid_one_of_a_state_that_has_seen_none():
    layer, x = RGLRU(8).double(), random(3, 4, 8)
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    _, state = layer(x * float("nan"), layer.init_state(3), mask=nothing)
    assert not bool(state.begun.any())
    torch.testing.assert_close(layer(x, state)[0], layer(x)[0])


def test_the_state_stays_wide_in_half_precision():
    layer = GriffinRecurrent(32).bfloat16()
    y, state = layer(torch.randn(2, 5, 32).bfloat16(), layer.init_state(2))
    assert y.dtype == torch.bfloat16 and state.recurrence.h.dtype == torch.float32
    assert state.recurrence.h.ne(state.recurrence.h.bfloat16()).any()


def test_the_gradient_of_the_square_root_is_bounded():
    layer = RGLRU(4, 1)
    with torch.no_grad():
        layer.rate.fill_(-60.0)  # a is 1 to the last bit
    x = torch.randn(1, 6, 4, requires_grad=True)
    for backend in ("numba", "scan"):
        with use_backend(rg_lru=backend):
            found = torch.autograd.grad(layer(x)[0].sum(), [x, *layer.parameters()])
        assert all(bool(torch.isfinite(g).all()) for g in found)


def test_half_rotary_turns_half_of_each_head():
    layer = Attention(16, 2, position="half-rotary")
    x, at = random(2, 5, 2, 8), torch.arange(5)[None]
    turned = layer.position.rotate(x, at)
    torch.testing.assert_close(turned[..., 4:], x[..., 4:], rtol=0, atol=0)
    torch.testing.assert_close(turned[..., :4], rotary(x[..., :4], at))


def test_griffin_decodes_in_constant_memory():
    stack = Serial(*map(Residual, griffin_layers(GriffinConfig(16, heads=2, window=4))))
    state, sizes = stack.init_state(1), []
    for _ in range(24):
        _, state = stack(torch.randn(1, 1, 16), state)
        sizes.append(states.nbytes(state))
    assert len(set(sizes[4:])) == 1


def test_geglu_gates_with_gelu():
    layer, x = FeedForward(6, 8, activation="geglu"), torch.randn(3, 6)
    gate, value = layer.widen(x).chunk(2, -1)
    torch.testing.assert_close(layer(x), layer.narrow(F.gelu(gate) * value))


# ---------------------------------------------------------------- grids


def test_a_grid_is_scanned_along_both_axes():
    across, down = HGRU(8).double(), Bidirectional(MinGRU(8), MinGRU(8)).double()
    x, project = random(2, 3, 5, 8), nn.Linear(16, 8, bias=False).double()
    down = Serial(down, Pointwise(project))
    y = AlongAxes(across, down)(x)
    for i in range(3):
        for j in range(5):
            want = across(x[:, i])[0][:, j] + down(x[:, :, j])[0][:, i]
            torch.testing.assert_close(y[:, i, j], want)


def test_cells_that_are_not_there_have_no_influence():
    grid, x = AlongAxes(HGRU(8), MinGRU(8)).double(), random(2, 4, 4, 8)
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[1, 3:], mask[1, :, 2:] = False, False
    y = grid(x.masked_fill(~mask[..., None], float("nan")), mask)
    torch.testing.assert_close(y[1, :3, :2], grid(x[1:, :3, :2])[0])
    torch.testing.assert_close(y[0], grid(x[:1])[0])
