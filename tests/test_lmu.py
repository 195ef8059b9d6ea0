"""Delay lines, spiking neurons, and the blocks of LMUFormer."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from transduce.core.seq import length_mask
from transduce.core.tap import record
from transduce.models import Labeller
from transduce.nn import GRU, LIF, LMU, BatchNorm, Serial, lmuformer_block, patch_embedding, spiking_lmuformer_block
from transduce.nn.lmu import spiking
from transduce.ops.hippo import delay, discretize
from transduce.ops.spike import SHARPNESS, lif
from transduce.systems.mixers import _lmuformer_check as page_check
from transduce.systems.mixers._digits import Sequences
from transduce.systems.mixers._spoken import ANSWERS, Listener
from transduce.testing import check_mixer
from transduce.testing.ops import check_op
from transduce.train.check import Check
from transduce.train.labels import label_accuracy, train_labels


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_every_backend_of_the_neuron_obeys_the_law():
    assert {c.backend for c in check_op(lif) if c.refused is None} == {"numba", "reference"}


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_a_neuron_by_hand(backend):
    x = torch.tensor([1.0, 1.0, 1.5, 3.0, 0.0])[None, :, None]
    spikes, v = lif.run(backend, x, tau=2.0)
    # membranes 0.5, 0.75, 1.125 (fires, back to zero), 1.5 (fires), 0
    assert spikes[0, :, 0].tolist() == [0, 0, 1, 1, 0] and float(v) == 0
    exactly, _ = lif.run(backend, torch.tensor([[[2.0]]]), tau=2.0)
    assert float(exactly) == 1  # the threshold itself fires


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_the_surrogate_is_the_derivative_of_an_arc_tangent(backend):
    x = normal(1, 1, 9).mul(2).requires_grad_()
    spikes, _ = lif.run(backend, x, tau=2.0)
    (grad,) = torch.autograd.grad(spikes.sum(), x)
    z = (x.detach() / 2 - 1).requires_grad_()
    smooth = torch.atan(math.pi / 2 * SHARPNESS * z) / math.pi
    (want,) = torch.autograd.grad(smooth.sum(), z)
    torch.testing.assert_close(grad, want / 2)


def test_a_reset_membrane_sends_no_gradient_back():
    x = torch.tensor([[[5.0], [0.3]]], dtype=torch.float64, requires_grad=True)
    _, v = lif(x)
    (grad,) = torch.autograd.grad(v.sum(), x)
    assert grad[0, :, 0].tolist() == [0.0, 0.5]


def test_a_second_derivative_is_refused():
    x = normal(1, 3, 2).requires_grad_()
    (grad,) = torch.autograd.grad(lif.run("numba", x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: lif(torch.zeros(2, 3)), "real currents"),
        (lambda: lif(torch.zeros(2, 3, 4), torch.zeros(2, 3)), "v0 of shape"),
        (lambda: lif(torch.zeros(2, 3, 4), tau=0.5), "time constant"),
        (lambda: lif(torch.zeros(2, 3, 4), resets=torch.zeros(2, 3)), "bool resets"),
        (lambda: LMU(8, window=0.0), "window"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


VARIANTS = {
    "neurons": partial(LIF, tau=3.0),
    "norm": BatchNorm,
    "several drives": partial(LMU, memory=4, drives=3, window=9.0),
    "spiking unit": partial(LMU, memory=4, window=9.0, activation=spiking, read=spiking),
    "front": partial(patch_embedding, layers=2),
    "spiking front and block": lambda dim: Serial(
        patch_embedding(dim, 2, spiking=True), spiking_lmuformer_block(dim, memory=4, expansion=2)
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_obey_the_laws(name):
    check_mixer(VARIANTS[name], dim=6)


def test_an_lmu_by_its_equations():
    torch.manual_seed(0)
    unit, x = LMU(5, memory=4, window=12.0, drives=2).double(), normal(2, 9, 5)
    a, b = (t[0] for t in discretize(*delay(4, 12.0), torch.ones(1, dtype=torch.float64), "zoh"))
    m, outputs = torch.zeros(2, 2, 4, dtype=torch.float64), []
    for x_t in x.unbind(1):
        u = torch.relu(unit.drive(x_t))
        m = m @ a.T + u[..., None] * b
        outputs.append(torch.relu(unit.output(torch.cat((m.flatten(1), x_t), -1))))
    torch.testing.assert_close(unit(x)[0], torch.stack(outputs, 1))


def test_spikes_of_every_layer_are_the_same_by_steps_and_at_once():
    """Those of the drive and of the memory included, which the published streaming path leaves out."""
    torch.manual_seed(0)
    net = Serial(patch_embedding(8, 2, spiking=True), spiking_lmuformer_block(8, memory=4, window=9.0, drives=3)).double()
    x = 3 * normal(2, 40, 8)
    net.train()
    for part in net.modules():
        if isinstance(part, BatchNorm):
            torch.nn.init.constant_(part.weight, 2.5)  # strong currents, so that neurons fire
    for _ in range(20):
        net(x)
    net.eval()
    with torch.no_grad():
        with record(net, "*.spikes") as whole:
            y, _ = net(x)
        state, steps = net.init_state(2), []
        with record(net, "*.spikes") as single:
            for x_t in x.split(1, 1):
                out, state = net(x_t, state)
                steps.append(out)
    torch.testing.assert_close(torch.cat(steps, 1), y)
    assert whole.keys() == single.keys() and len(whole) == 7
    for name, (spikes,) in whole.items():
        assert torch.equal(torch.cat(single[name], 1), spikes), name
        assert 0 < float(spikes.mean()) < 0.9, name


def test_the_norm_of_a_batch_sees_valid_steps_only():
    torch.manual_seed(0)
    norm, plain = BatchNorm(3).double(), torch.nn.BatchNorm1d(3).double()
    x, mask = 2 + 3 * normal(4, 7, 3), length_mask(torch.tensor([7, 2, 5, 1]), 7)
    y, state = norm(x.masked_fill(~mask[..., None], float("nan")), mask=mask)
    torch.testing.assert_close(y[mask], plain(x[mask]))
    assert state is None
    torch.testing.assert_close(norm.mean, plain.running_mean)
    # with a state, and in evaluation, every step is mapped alike, whatever stands beside it
    streamed, _ = norm(x[:1, :1], norm.init_state(1))
    torch.testing.assert_close(streamed, norm.eval()(x)[0][:1, :1])
    alone, _ = norm.train()(x[:1, :1])
    assert bool(alone.isfinite().all())


def test_the_fused_norm_is_the_plain_one():
    fused, plain = BatchNorm(3, gain=2.0).double(), BatchNorm(3, gain=2.0).double()
    x = 2 + 3 * normal(4, 7, 3)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, _ = fused(a)
    z, _ = plain(b, mask=torch.ones(4, 7, dtype=torch.bool))
    (y**3).sum().backward()
    (z**3).sum().backward()
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(y.std((0, 1), correction=0), torch.full((3,), 2.0, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(fused.weight.grad, plain.weight.grad)
    torch.testing.assert_close(fused.mean, plain.mean)
    torch.testing.assert_close(fused.variance, plain.variance)


def test_a_front_reads_no_future():
    torch.manual_seed(0)
    net = Serial(patch_embedding(6, 4), lmuformer_block(6, memory=4)).double().eval()
    x = normal(1, 12, 6)
    other = x.clone()
    other[:, 8:] += 1
    with torch.no_grad():
        a, b = net(x)[0], net(other)[0]
    torch.testing.assert_close(a[:, :8], b[:, :8])
    assert float((a - b)[:, 8:].abs().min()) > 0


# ---------------------------------------------------------------- the check of the page


def test_the_delay_line_of_the_page():
    assert page_check.forms(12, 200) < 1e-12
    assert page_check.reconstruction(12) < 0.002 < 0.02 < page_check.reconstruction(12, half_sample=False)
    assert page_check.reconstruction(6) > 0.2


def test_the_share_of_a_sequence_that_suffices():
    assert page_check._share([0.1, 0.5, 0.995, 1.0]) == 0.75
    assert page_check._share([1.0, 0.5, 1.0, 1.0]) == 0.75  # right at first, but not for good
    assert page_check._share([1.0, 1.0]) == 0.5


def test_a_quick_reproduction_writes_its_record(monkeypatch, tmp_path):
    images = page_check.Sequences(normal(24, 20, 1, dtype=torch.float32), torch.arange(24) % 10)
    words = page_check.Sequences(normal(24, 30, 40, dtype=torch.float32), torch.arange(24) % 10)
    words.inputs[::2, 17:] = torch.nan
    monkeypatch.setattr(page_check, "digits", lambda side, by_columns: {"train": images, "test": images})
    monkeypatch.setattr(page_check, "spoken_digits", lambda: {"train": words, "test": words})
    check = Check("lmuformer", tmp_path, quick=True, say=lambda text: None)
    page_check.check(check)
    assert check.write().is_file() and [p.name for p in tmp_path.glob("*.png")] == ["lmuformer-early.png"]
    streaming = [m for m in check.measured if "streaming" in m.metric]
    assert len(streaming) == 2 and all(m.holds for m in streaming)


def test_currents_start_where_neurons_fire():
    net = spiking(200)
    with record(net, "*.spikes") as seen:
        net(normal(8, 50, 200, dtype=torch.float32))
    (spikes,) = seen.popitem()[1]
    assert 0.1 < spikes.mean() < 0.25


def test_a_listener_answers_on_the_way_and_not_of_what_comes_later():
    torch.manual_seed(0)
    words = Sequences(normal(6, 20, 3, dtype=torch.float32), torch.arange(6))
    words.inputs[3:, 12:] = torch.nan
    net = Listener(Labeller(torch.nn.Linear(3, 8), GRU(8), 8, 10, pool="mean"), least=0.5, noise=0.0)
    answers = net(words.inputs)
    assert answers.shape == (6, 10, ANSWERS)
    stream = page_check.streamed(net.labeller, words.inputs, 7)
    assert torch.allclose(answers[:3, :, 0], stream[:3, 9], atol=1e-6)
    assert torch.allclose(answers[3:, :, -1], stream[3:, 11], atol=1e-6)
    assert torch.allclose(net.eval()(words.inputs), answers[:, :, -1], atol=1e-6)
    assert page_check.early(net, words)[-1] == label_accuracy(net, *words)
    losses = train_labels(net.train(), *words, 30, batch=6, learning_rate=1e-2)
    assert losses[-1] < losses[0]
