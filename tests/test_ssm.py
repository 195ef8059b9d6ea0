"""State space layers: constant decays, time-invariant systems, their discretization, and the layers on them."""

from __future__ import annotations

import math
import sys
from functools import partial

import pytest
import torch

from transduce.core.seq import length_mask
from transduce.core.state import leaves
from transduce.nn import LRU, LSSL, S4D, Bidirectional, lru_block
from transduce.nn.catalogue import MIXERS
from transduce.ops.diagonal_scan import diagonal_scan
from transduce.ops.dispatch import use_backend
from transduce.ops.hippo import delay, discretize, legendre, legs, legt
from transduce.ops.lti import lti
from transduce.ops.scan import linear_scan
from transduce.systems.mixers import _lru_check, _lssl_check
from transduce.testing import check_mixer
from transduce.testing.ops import check_op
from transduce.train.check import Check
from transduce.train.optim import parameter_groups, set_rate


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- ops


@pytest.mark.parametrize(
    "tried, backends",
    [(diagonal_scan, {"numba", "chunked", "reference"}), (lti, {"blocks", "reference"})],
    ids=lambda v: getattr(v, "name", ""),
)
def test_every_backend_obeys_the_law(tried, backends):
    assert {c.backend for c in check_op(tried) if c.refused is None} == backends


def test_planes_are_the_complex_scan():
    decay, b, h0 = normal(2, 7, seed=1) / 3, normal(3, 11, 2, 7), normal(3, 2, 7, seed=2)
    whole = linear_scan(*(torch.complex(*x.unbind(-2)) for x in (decay[None, None], b, h0)))
    h = diagonal_scan(decay, b, h0)
    torch.testing.assert_close(torch.complex(*h.unbind(2)), whole)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 200, 2, 300), (3, 70, 1, 260)])
def test_any_number_of_threads_gives_the_same_bits(threads, shape):
    decay, b, h0 = (normal(*s, dtype=torch.float32) for s in (shape[2:], shape, (shape[0], *shape[2:])))
    expected = diagonal_scan(decay * 0.3, b, h0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(diagonal_scan(decay * 0.3, b, h0), expected)
    finally:
        torch.set_num_threads(before)


def test_the_matrix_of_constant_decays_is_the_scan():
    decay, b = normal(2, 3) / 2, normal(1, 6, 2, 3)
    product = torch.einsum("nts,bsn->btn", diagonal_scan.matrix(decay, 6), torch.complex(*b.unbind(2)))
    torch.testing.assert_close(product, torch.complex(*diagonal_scan(decay, b).unbind(2)))


def test_half_precision_is_computed_in_float32():
    decay, b = torch.tensor([[0.99, 0.5]]).bfloat16(), normal(2, 300, 1, 2).bfloat16()
    assert torch.equal(diagonal_scan(decay, b), diagonal_scan(decay.float(), b.float()).bfloat16())


def test_nothing_to_scan():
    b = torch.zeros(2, 0, 2, 3, requires_grad=True)
    diagonal_scan(torch.zeros(2, 3), b).sum().backward()
    assert b.grad.shape == (2, 0, 2, 3) and diagonal_scan(torch.zeros(1, 3), torch.zeros(0, 4, 1, 3)).shape[0] == 0


@pytest.mark.parametrize("steps", [65, 200])
def test_a_long_convolution_does_not_wrap_around(steps):
    """One impulse at the last step would reach the first outputs of a circular convolution."""
    a, b = discretize(*legs(4), torch.tensor([0.1], dtype=torch.float64))
    u = torch.zeros(1, steps, 1, dtype=torch.float64)
    u[0, -1] = 1
    y, _ = lti(a, b, None, u)
    assert float(y[:, :-1].abs().max()) < 1e-15
    torch.testing.assert_close(y[0, -1, 0], b[0])


def test_responses_that_do_not_fit_are_cut_into_blocks(monkeypatch):
    a, b = discretize(*legs(5), torch.tensor([0.1, 0.02], dtype=torch.float64))
    u, c = normal(2, 150, 2), normal(2, 1, 5)
    whole = lti(a, b, c, u)
    monkeypatch.setattr(sys.modules["transduce.ops.lti"], "_KERNEL_NUMBERS", 100)
    for mine, other in zip(lti(a, b, c, u), whole):
        torch.testing.assert_close(mine, other)


# ---------------------------------------------------------------- discretization


@pytest.mark.parametrize("method, alpha", [("forward", 0.0), ("bilinear", 0.5), ("backward", 1.0), (0.3, 0.3)])
def test_the_generalised_bilinear_rule(method, alpha):
    a, b = legs(4)
    step = torch.tensor([0.2], dtype=torch.float64)
    mine, input_ = discretize(a, b, step, method)
    left = torch.linalg.inv(torch.eye(4, dtype=torch.float64) - alpha * 0.2 * a)
    torch.testing.assert_close(mine[0], left @ (torch.eye(4, dtype=torch.float64) + (1 - alpha) * 0.2 * a))
    torch.testing.assert_close(input_[0], 0.2 * left @ b)


@pytest.mark.parametrize("method", ["zoh", "bilinear", "backward"])
def test_diagonal_and_dense_systems_are_made_discrete_alike(method):
    diagonal, b, step = -torch.rand(3, dtype=torch.float64) - 0.1, normal(3), torch.tensor([0.1, 0.7])
    dense = discretize(torch.diag(diagonal), b, step.double(), method)
    mine = discretize(diagonal[None], b[None], step.double(), method)
    torch.testing.assert_close(mine[0], torch.diagonal(dense[0], dim1=1, dim2=2))
    torch.testing.assert_close(mine[1], dense[1])


def test_an_unknown_discretization_is_named():
    for method in ("euler", 1.5):
        with pytest.raises(ValueError, match="zoh, not"):
            discretize(*legs(2), torch.ones(1, dtype=torch.float64), method)
    with pytest.raises(ValueError, match="zoh, not"):
        LSSL(4, discretization="euler")
    with pytest.raises(ValueError, match="zoh, not"):
        S4D(4, discretization="tustin")


def test_the_delay_line_is_legt_in_another_scale():
    """Both project on Legendre polynomials of the window; they differ in norm, sign and in which end is new."""
    size, window = 6, 40.0
    a, b = legt(size, window)
    other, into = delay(size, window)
    n = torch.arange(size, dtype=torch.float64)
    scale = torch.sqrt(2 * n + 1) * (1 - 2 * (n % 2))
    torch.testing.assert_close(scale[:, None] * a / scale, other)
    torch.testing.assert_close(scale * b, into)


def test_legendre_polynomials():
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(legendre(4, x)[:, 3], (5 * x**3 - 3 * x) / 2)
    assert legendre(1, x).shape == (9, 1)


# ---------------------------------------------------------------- layers


VARIANTS = {
    "lru, few modes": partial(LRU, state=5, ring=(0.0, 1.0), normalise=False),
    "lru block": lru_block,
    "s4d bilinear": partial(S4D, state=4, discretization="bilinear"),
    "lssl learned": partial(LSSL, state=5, trained=True, outputs=2),
    "lssl zoh": partial(LSSL, state=4, discretization="zoh", system=partial(legt, window=4.0)),
    "lssl backward": partial(LSSL, state=4, discretization="backward"),
    "both directions": lambda dim: Bidirectional(LRU(dim), S4D(dim, 4)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_obey_the_laws(name):
    check_mixer(VARIANTS[name], dim=6)


@pytest.mark.parametrize("layer", [partial(LRU, 8), partial(S4D, 8, 8), partial(LSSL, 8, 8)])
def test_long_rows_of_different_lengths_with_a_state(layer):
    """Longer than a block, so that rows end inside of different ones."""
    torch.manual_seed(0)
    unit, x = layer().double(), normal(3, 150, 8)
    mask = length_mask(torch.tensor([150, 70, 3]), 150)
    state = unit(normal(3, 9, 8, seed=1), unit.init_state(3))[1]
    y, end = unit(x.masked_fill(~mask[..., None], float("nan")), state, mask=mask)
    for i, length in enumerate((150, 70, 3)):
        alone, after = unit(x[i : i + 1, :length], state[i : i + 1])
        torch.testing.assert_close(y[i, :length], alone[0])
        torch.testing.assert_close(end[i], after[0])


def test_steps_in_float32_stay_with_the_whole():
    torch.manual_seed(0)
    unit, x = LRU(8, ring=(0.99, 0.9999)), normal(2, 3000, 8, dtype=torch.float32)
    with torch.no_grad():
        whole, end = unit(x, unit.init_state(2))
        state, steps = unit.init_state(2), []
        for x_t in x.split(1, 1):
            y, state = unit(x_t, state)
            steps.append(y)
        double, _ = unit.double()(x.double())
    assert float((torch.cat(steps, 1) - whole).abs().max()) < 1e-5 and float((state - end).abs().max()) < 1e-5
    assert float((whole - double).abs().max() / double.abs().max()) < 1e-5


def test_the_ring_and_gamma_of_a_new_lru():
    torch.manual_seed(0)
    unit = LRU(4, 400, ring=(0.8, 0.95), max_phase=0.3)
    decay = torch.complex(*unit.decays().detach())
    assert 0.799 < float(decay.abs().min()) < 0.81 and 0.945 < float(decay.abs().max()) < 0.951
    assert -1e-6 < float(decay.angle().min()) < 0.02 and 0.28 < float(decay.angle().max()) < 0.301
    torch.testing.assert_close(unit.log_gamma.exp() ** 2 + decay.abs() ** 2, torch.ones(400))
    for ring in ((0.5, 0.4), (0.0, 1.1), (-0.1, 0.5)):
        with pytest.raises(ValueError, match="ring"):
            LRU(4, ring=ring)
    extremes = LRU(4, 50, ring=(0.0, 1.0))
    assert all(bool(p.isfinite().all()) for p in extremes.parameters())


def test_the_learned_class_begins_as_legs():
    layer = LSSL(3, 12, trained=True)
    a, b = layer.continuous()
    torch.testing.assert_close(a, legs(12)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(b, legs(12)[1], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="trained=False"):
        LSSL(3, 12, trained=True, system=partial(legt, window=3.0))


@pytest.mark.parametrize("trained", [False, True])
def test_nothing_kept_outlives_the_numbers_it_was_made_of(trained):
    torch.manual_seed(0)
    layer, other = LSSL(3, 4, trained=trained), LSSL(3, 4, trained=trained)
    x = normal(1, 9, 3, dtype=torch.float32)
    with torch.no_grad():
        before, again = layer(x)[0], layer(x)[0]
        assert torch.equal(before, again)
        layer.log_step.data += 1.0  # what no version counter sees
        moved = layer(x)[0]
        assert float((moved - before).abs().max()) > 1e-3
        layer.load_state_dict(other.state_dict())
        assert torch.equal(layer(x)[0], other(x)[0])
        layer.double()
        torch.testing.assert_close(layer(x.double())[0].float(), other(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [partial(LSSL, 2, 8), partial(S4D, 2, 8)])
def test_resampling_reads_a_signal_at_half_the_rate(make):
    torch.manual_seed(0)
    layer = make(steps=(0.02, 0.02)).double()
    torch.nn.init.zeros_(layer.skip)  # what passes by the state does not know of steps
    time = torch.arange(400, dtype=torch.float64)[None, :, None]
    signal = torch.cat((torch.sin(time / 15), torch.cos(time / 25)), -1)
    with torch.no_grad():
        fine = layer(signal)[0][:, ::2]
        wrong = layer(signal[:, ::2])[0]
        right = layer.resample(2.0)(signal[:, ::2])[0]
    away, moved = ((y - fine).std() / fine.std() for y in (wrong, right))
    assert float(away) > 0.05 and float(moved) < 0.1 * float(away)


def test_time_constants_are_learned_slowly_and_never_decay():
    net = torch.nn.Sequential(LRU(4), S4D(4, 4), LSSL(4, 4, trained=True), torch.nn.Linear(4, 4))
    groups = parameter_groups(net, 0.1)
    kept = [id(p) for g in groups for p in g["params"]]
    assert sorted(kept) == sorted(id(p) for p in net.parameters())
    slow = {id(p): g for g in groups if "rate_factor" in g for p in g["params"]}
    assert slow[id(net[0].nu)]["rate_factor"] == 0.25 and slow[id(net[1].log_step)]["rate_factor"] == 0.1
    assert all(g["weight_decay"] == 0 for g in slow.values()) and id(net[0].input) not in slow
    optimiser = torch.optim.AdamW(groups, lr=1.0)
    set_rate(optimiser, 0.5)
    rates = {id(p): g["lr"] for g in optimiser.param_groups for p in g["params"]}
    assert rates[id(net[0].theta)] == 0.125 and rates[id(net[3].weight)] == 0.5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: diagonal_scan(torch.zeros(2, 3), torch.zeros(1, 4, 3)), "P = 1"),
        (lambda: diagonal_scan(torch.zeros(2, 3), torch.zeros(1, 4, 2, 3), torch.zeros(1, 3)), "h0 of shape"),
        (lambda: diagonal_scan(torch.zeros(1, 3), torch.zeros(1, 4, 1, 3), mask=torch.ones(1, 4)), "bool mask"),
        (lambda: lti(torch.zeros(2, 3, 3), torch.zeros(2, 3), None, torch.zeros(1, 4, 5)), "as many channels"),
        (lambda: lti(torch.zeros(1, 3, 2), torch.zeros(1, 3), None, torch.zeros(1, 4, 1)), r"\(H,N,N\)"),
        (lambda: lti(torch.zeros(1, 3) * 1j, torch.zeros(1, 3), None, torch.zeros(1, 4, 1)), "pass c"),
        (lambda: S4D(4, 3), "even"),
        (lambda: S4D(4, steps=(0.0, 1.0)), "positive"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["lru", "s4d", "lssl", "lmu"])
def test_autocast_rounds_maps_but_neither_powers_nor_states(name):
    torch.manual_seed(0)
    layer, x = MIXERS[name](16), normal(2, 90, 16, dtype=torch.float32)
    expected = layer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = layer(x, layer.init_state(2))
        y.float().square().sum().backward()
    assert float((y - expected).detach().std() / expected.detach().std()) < 0.02
    assert all(s.real.dtype == torch.float32 for s in leaves(state))
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())


def test_the_reference_serves_every_layer():
    torch.manual_seed(0)
    x = normal(2, 80, 6)
    for make in (LRU, partial(S4D, state=4), partial(LSSL, state=4)):
        layer = make(6).double()
        with use_backend("reference"):
            expected = layer(x)[0]
        torch.testing.assert_close(layer(x)[0], expected)


# ---------------------------------------------------------------- the checks of the pages


def test_exactness_and_variance_of_the_lru():
    assert max(_lru_check.exactness().values()) < 1e-12
    for modulus, (kept, without) in _lru_check.variances(40_000).items():
        assert abs(kept - 1) < 0.2 and without == pytest.approx(1 / (1 - modulus**2), rel=0.2)


def test_identities_of_the_lssl():
    assert _lssl_check.views(0.5, 16, 200) < 1e-12 and _lssl_check.gate_identity() < 1e-12
    moved, kept = _lssl_check.resampling(0, steps=4000)
    assert moved < 0.02 < 1 < kept
    torch.manual_seed(0)
    assert float(torch.linalg.eigvals(_lssl_check.random_stable(16)[0]).real.max()) == pytest.approx(-0.5)


@pytest.mark.parametrize("module, name, pictures", [(_lru_check, "lru", 1), (_lssl_check, "lssl", 1)])
def test_a_quick_reproduction_writes_its_record(monkeypatch, tmp_path, module, name, pictures):
    from transduce.systems.mixers._digits import Sequences

    images = Sequences(normal(24, 16, 1, dtype=torch.float32), torch.arange(24) % 10)
    monkeypatch.setattr(module, "digits", lambda side: {"train": images, "test": images})
    check = Check(name, tmp_path, quick=True, say=lambda text: None)
    module.check(check)
    assert check.write().is_file() and len(list(tmp_path.glob("*.png"))) == pictures
    assert all(math.isfinite(m.value) for m in check.measured)
