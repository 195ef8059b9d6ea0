"""Steps that go wrong: numbers that are lost, memory that runs out; and what a run says before it starts."""

from __future__ import annotations

import pytest
import torch
from cli_cases import refused, write_pairs
from train_toys import Recorder, ToyConfig, pairs, quick, toy

from transduce.cli.main import main
from transduce.core.errors import UserError
from transduce.core.protocols import Loss
from transduce.objectives.likelihood import Likelihood
from transduce.train import dump
from transduce.train.engine import NotFinite
from transduce.train.forecast import forecast
from transduce.train.trainer import Trainer


class LostAt:
    """The usual objective until a step at which a weight of the model turns to infinity."""

    def __init__(self, step: int, name: str) -> None:
        self.step, self.name, self.usual = step, name, Likelihood()

    def __call__(self, model, batch, *, step, generator=None) -> Loss:
        if step == self.step:
            dict(model.named_parameters())[self.name].data.view(-1)[0] = float("inf")
        return self.usual(model, batch, step=step, generator=generator)


def test_a_lost_number_leaves_a_dump_that_names_the_layer_and_shows_it_again(tmp_path):
    data = pairs()
    system = toy(data, config=ToyConfig(dropout=0.3))
    system = type(system)(system.name, system.model, LostAt(7, "gru.weight_ih_l0"), system.search, system.config)
    with pytest.raises(NotFinite) as caught:
        Trainer(system, data, quick(), tmp_path / "run", reporter=Recorder()).run()
    said = str(caught.value)
    assert "became nan at step 7" in said and "gru" in said and "transduce replay" in said
    place = tmp_path / "run" / "dump-000007"
    found = dump.read(place)
    assert found.about["step"] == 7 and found.about["rows"] == list(caught.value.batch.rows)
    assert "gru.weight_ih_l0" in found.about["layer"]
    again = dump.replay(found, toy(data, seed=3, config=ToyConfig(dropout=0.3)))
    assert not again.finite and again.layer == found.about["layer"]


def test_a_gradient_that_is_lost_names_its_parameter(tmp_path):
    class Explodes(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("inf")

    def objective(model, batch, *, step, generator=None):
        loss = Likelihood()(model, batch, step=step, generator=generator)
        return Loss(Explodes.apply(loss.total), loss.parts, loss.weight)

    data = pairs()
    system = toy(data)
    system = type(system)(system.name, system.model, objective, system.search, system.config)
    before = {n: p.clone() for n, p in system.model.named_parameters()}
    with pytest.raises(NotFinite, match="gradient became .* first in the gradient of"):
        Trainer(system, data, quick(), tmp_path / "run", reporter=Recorder()).run()
    assert all(torch.equal(p, before[n]) for n, p in system.model.named_parameters())


def test_replay_is_a_command_and_damaged_dumps_are_one_sentence(tmp_path, monkeypatch, capsys):
    from transduce.systems.encoder_decoder import rnnsearch as page

    data = write_pairs(tmp_path / "pairs.tsv", 60, 10, 5)
    monkeypatch.setattr(page, "Likelihood", lambda smoothing: _FirstLost(3))
    flags = ["--encoder", "8", "--hidden", "8", "--max-steps", "9", "--evaluations", "0"]
    said = refused(capsys, "fit", "rnnsearch", "--data", data, "--out", tmp_path / "run", *flags)
    assert "at step 3" in said and "transduce replay" in said
    (place,) = (tmp_path / "run").glob("dump-*")
    assert main(["replay", str(place)]) == 0
    assert "the same again" in capsys.readouterr().out
    (place / "tensors.safetensors").write_bytes(b"cut")
    assert "is damaged" in refused(capsys, "replay", place)
    assert "is not a dump" in refused(capsys, "replay", tmp_path)
    assert "Name the dump" in refused(capsys, "replay")


class _FirstLost(LostAt):
    def __init__(self, step: int) -> None:
        super().__init__(step, "")

    def __call__(self, model, batch, *, step, generator=None) -> Loss:
        self.name = [n for n, p in model.named_parameters() if p.dim() == 2][-1]
        return super().__call__(model, batch, step=step, generator=generator)


def test_a_step_without_memory_halves_the_batches_once_and_says_so(tmp_path):
    data = pairs()

    class Small:
        """A machine on which only ten rows fit."""

        def __init__(self, fits: int) -> None:
            self.fits = fits

        def __call__(self, model, batch, *, step, generator=None):
            if step >= 5 and batch.size > self.fits:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
            return Likelihood()(model, batch, step=step, generator=generator)

    def train(out, objective):
        system = toy(data, config=ToyConfig(dropout=0.0))
        system = type(system)(system.name, system.model, objective, system.search, system.config)
        seen = Recorder()
        Trainer(system, data, quick(max_steps=12), out, reporter=seen).run()
        return seen

    plain, halved = train(tmp_path / "plain", Likelihood()), train(tmp_path / "halved", Small(7))
    assert sum("two halves" in note for note in halved.notes) == 1
    torch.testing.assert_close(torch.tensor(halved.losses), torch.tensor(plain.losses), rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError, match="allocate"):
        train(tmp_path / "never", Small(1))


def test_the_forecast_counts_what_a_step_needs_and_changes_nothing():
    data = pairs()
    system = toy(data)
    before = {n: p.clone() for n, p in system.model.named_parameters()}
    found = forecast(system, data, quick(ema=0.9))
    count = sum(p.numel() for p in system.model.parameters())
    assert found.parameters == count and found.weights == 8 * count and found.optimiser == 8 * count
    assert found.activations > 4 * found.largest_symbols and found.memory > found.activations
    assert found.step > 0 and found.per_symbol > 0 and found.state == 4 * 16
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in system.model.named_parameters())
    assert len(found.lines(quick())) == 7


def test_the_log_can_go_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = pairs()
    result = Trainer(toy(data), data, quick(tensorboard=True), tmp_path / "run", reporter=Recorder()).run()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    written = [(e.step, round(e.value, 4)) for e in events.Scalars("valid/loss")]
    assert written == [(h["step"], round(h["valid_loss"], 4)) for h in result.history if "valid_loss" in h]


def test_without_tensorboard_one_sentence_says_so(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    data = pairs()
    with pytest.raises(UserError, match="needs the package tensorboard"):
        Trainer(toy(data), data, quick(tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
