"""The training job: it learns, resumes bit for bit, answers signals, keeps to its budget."""

from __future__ import annotations

import dataclasses
import errno
import json
import signal

import numpy as np
import pytest
import torch
from train_toys import Recorder, ToyConfig, greedy, listing, pairs, quick, toy

from transduce.core.errors import UserError
from transduce.core.protocols import Loss
from transduce.objectives.likelihood import Likelihood
from transduce.train import bundle, checkpoint, storage
from transduce.train.evaluate import evaluate
from transduce.train.trainer import Trainer


def train(out, *, data=None, system=None, resume=False, recorder=None, **changes):
    data = data or pairs()
    recorder = recorder or Recorder()
    trainer = Trainer(system or toy(data), data, quick(**changes), out, reporter=recorder, resume=resume)
    return trainer.run(), recorder, trainer


def test_it_learns_and_leaves_a_whole_run_folder(tmp_path):
    out = tmp_path / "run"
    result, seen, trainer = train(out, max_steps=120, learning_rate=2e-2, evaluations=4)
    assert result.stopped_because == "max_steps reached" and result.steps == 120 and result.exit_code == 0
    assert sum(seen.losses[-20:]) < 0.4 * sum(seen.losses[:20])
    assert len(seen.evaluations) == 4 and seen.stopped
    assert {"bundle", "checkpoint", "config.json", "curve.png", "log.jsonl"} == {
        p.name for p in out.iterdir()
    }
    assert seen.about.row_name == "word" and seen.about.symbol_name == "letter error"
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert lines == result.history
    reports = [line for line in lines if "loss" in line]
    assert {
        "step",
        "epoch",
        "seconds",
        "loss",
        "learning_rate",
        "symbols_per_second",
        "rows_per_second",
    } == set(reports[0])
    assert [line["step"] for line in lines if "valid_loss" in line] == [30, 60, 90, 120]


def test_the_bundle_holds_the_weights_that_were_measured(tmp_path):
    data = pairs()
    result, _, _ = train(tmp_path / "run", data=data, ema=0.9, learning_rate=1e-2)
    parts = bundle.read(result.bundle)
    fresh = toy(data, seed=9)
    parts.load_into(fresh.model)
    again = evaluate(fresh.model, greedy, data.valid, parts.spec).numbers()
    assert again == result.metrics["valid"] == parts.metrics["valid"]
    assert parts.training["precision"] == "float32" and parts.training["steps"] == 30


@pytest.mark.parametrize(
    "changes",
    [{}, {"ema": 0.99, "accumulate": 2}, {"schedule": "inverse-sqrt", "precision": "bf16"}],
    ids=["plain", "ema-accumulate", "bf16"],
)
def test_resume_repeats_the_uninterrupted_run_bit_for_bit(tmp_path, changes):
    whole, straight, first = train(tmp_path / "whole", **changes)
    halted, before, _ = train(tmp_path / "parts", recorder=Recorder(stop_at=15), **changes)
    assert halted.interrupted and halted.steps == 15 and halted.exit_code == 130
    resumed, after, second = train(tmp_path / "parts", system=toy(pairs(), seed=5), resume=True, **changes)
    assert before.losses + after.losses == straight.losses
    assert before.rates + after.rates == straight.rates
    assert before.evaluations + after.evaluations == straight.evaluations
    stored, again = bundle.read(whole.bundle).weights, bundle.read(resumed.bundle).weights
    assert stored.keys() == again.keys() and all(torch.equal(t, again[name]) for name, t in stored.items())
    timeless = lambda history: [
        {k: v for k, v in r.items() if k not in ("seconds", "symbols_per_second", "rows_per_second")}
        for r in history
    ]
    assert timeless(resumed.history) == timeless(whole.history)
    assert resumed.metrics == whole.metrics


def test_a_run_on_short_rows_says_how_many_it_leaves_out_and_keeps_to_it(tmp_path):
    _, heard, _ = train(tmp_path / "run", recorder=Recorder(stop_at=15), longest=3)
    assert any("50 of 100 training rows have more than 3 symbols" in note for note in heard.notes)
    with pytest.raises(UserError, match="longest = 3 and cannot go on with longest = None"):
        train(tmp_path / "run", resume=True)
    result, _, _ = train(tmp_path / "run", resume=True, longest=3)
    assert result.steps == 30


def test_a_run_killed_after_a_checkpoint_goes_on_from_it(tmp_path):
    class Killed(BaseException):
        pass

    class Bomb(Recorder):
        def step(self, report):
            super().step(report)
            if report.step == 23:
                raise Killed

    _, straight, _ = train(tmp_path / "whole", save_every=1e-6)
    bomb = Bomb()
    with pytest.raises(Killed):
        train(tmp_path / "parts", recorder=bomb, save_every=1e-6)
    _, after, _ = train(tmp_path / "parts", resume=True, save_every=1e-6)
    begun = 30 - len(after.losses)
    assert 0 < begun <= 23
    assert after.losses == straight.losses[begun:]
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_interrupted_before_an_evaluation_that_is_due_makes_it_later(tmp_path):
    data = pairs()

    class StopInEvaluation(Recorder):
        def step(self, report):
            super().step(report)
            if report.step == 20:
                signal.raise_signal(signal.SIGTERM)

    _, straight, _ = train(tmp_path / "whole", data=data)
    halted, before, _ = train(tmp_path / "parts", data=data, recorder=StopInEvaluation())
    assert halted.stopped_because == "interrupted by SIGTERM" and halted.steps == 20
    assert any("--resume" in note for note in before.notes)
    _, after, _ = train(tmp_path / "parts", data=data, resume=True)
    assert before.evaluations + after.evaluations == straight.evaluations


def test_interrupted_in_the_last_measurement_repeats_it(tmp_path):
    data = pairs()
    whole, _, _ = train(tmp_path / "whole", data=data, evaluations=0)
    calls = []

    def ends_itself(model, batch):
        calls.append(batch)
        signal.raise_signal(signal.SIGINT)
        return greedy(model, batch)

    system = dataclasses.replace(toy(data), search=ends_itself)
    halted, _, _ = train(tmp_path / "parts", data=data, system=system, evaluations=0, batch_symbols=16)
    assert halted.interrupted and halted.exit_code == 130 and halted.metrics == {} and len(calls) == 1
    resumed, seen, _ = train(tmp_path / "parts", data=data, resume=True, evaluations=0, batch_symbols=16)
    assert (
        not resumed.interrupted
        and seen.losses == []
        and set(resumed.metrics["valid"]) == set(whole.metrics["valid"])
    )


def test_handlers_are_put_back_and_a_second_ctrl_c_is_immediate(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    class Impatient(Recorder):
        def step(self, report):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", recorder=Impatient())
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_can_be_lengthened_but_not_altered(tmp_path):
    first, _, _ = train(tmp_path / "run", max_steps=12)
    again, seen, _ = train(tmp_path / "run", max_steps=12, resume=True)
    assert again.steps == 12 and seen.losses == [] and again.metrics == first.metrics
    longer, seen, _ = train(tmp_path / "run", max_steps=20, resume=True)
    assert longer.steps == 20 and len(seen.losses) == 8
    with pytest.raises(UserError, match="learning_rate = 0.002 .* learning_rate = 0.1"):
        train(tmp_path / "run", max_steps=20, learning_rate=0.1, resume=True)
    with pytest.raises(UserError, match="width = 16 .* width = 8"):
        train(tmp_path / "run", max_steps=20, system=toy(pairs(), config=ToyConfig(width=8)), resume=True)
    with pytest.raises(UserError, match="data have changed"):
        train(tmp_path / "run", max_steps=20, data=pairs(119), resume=True)


def test_interrupted_while_decoding_repeats_the_evaluation(tmp_path):
    def ends_itself(model, batch):
        signal.raise_signal(signal.SIGINT)
        return greedy(model, batch)

    data = pairs()
    _, straight, _ = train(tmp_path / "whole", data=data, batch_symbols=16)
    system = dataclasses.replace(toy(data), search=ends_itself)
    halted, before, _ = train(tmp_path / "parts", data=data, system=system, batch_symbols=16)
    assert halted.interrupted and halted.steps == 10 and before.evaluations == []
    resumed, after, _ = train(tmp_path / "parts", data=data, resume=True, batch_symbols=16)
    assert after.evaluations == straight.evaluations and before.losses + after.losses == straight.losses


def test_the_time_budget_becomes_a_plan_that_is_kept(tmp_path):
    result, seen, trainer = train(tmp_path / "run", max_steps=None, max_time=2.0, evaluations=2)
    assert result.stopped_because == "time budget used"
    assert trainer.progress.plan.settled and result.steps == trainer.progress.plan.steps > 6
    assert any(note.startswith("plan: ") for note in seen.notes)
    stored = checkpoint.load(tmp_path / "run" / "checkpoint").state["progress"]["plan"]
    assert stored["steps"] == result.steps


def test_epochs_limit_the_run(tmp_path):
    result, _, trainer = train(tmp_path / "run", max_steps=None, max_epochs=1.5)
    assert result.stopped_because == "max_epochs reached"
    assert trainer.loader.epoch == pytest.approx(1.5, abs=0.1)


def test_patience_ends_a_run_that_does_not_improve(tmp_path):
    result, seen, _ = train(tmp_path / "run", learning_rate=1e-12, evaluations=10, patience=2)
    assert result.stopped_because == "no better for 2 evaluations" and len(seen.evaluations) == 3


def test_accumulation_weighs_every_symbol_alike(tmp_path):
    """Two batches of different size with accumulation give the gradient of their union."""
    from transduce.train.engine import Engine

    data = pairs()
    whole = [data.train.batch(np.arange(100))]
    parts = [data.train.batch(np.arange(70)), data.train.batch(np.arange(70, 100))]
    grads = []
    for group in (whole, parts):
        system = toy(data, config=ToyConfig(dropout=0.0))
        engine = Engine(system.model, system.objective, quick(clip=0.0))
        update = engine.update(group, 0, 0.0)
        grads.append((update, [p.grad.clone() for p in system.model.parameters()]))
    (one, a), (two, b) = grads
    assert one.symbols == two.symbols and one.loss == pytest.approx(two.loss, rel=1e-6)
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-7)


def test_vectors_do_not_decay():
    from transduce.train.optim import adamw

    system = toy(pairs())
    groups = adamw(system.model, quick(weight_decay=0.3)).param_groups
    decays = {p.dim(): g["weight_decay"] for g in groups for p in g["params"]}
    assert decays == {2: 0.3, 1: 0.0}


def test_a_loss_that_is_not_finite_stops_with_one_sentence(tmp_path):
    class Breaks:
        def __call__(self, model, batch, *, step, generator=None):
            loss = Likelihood()(model, batch, step=step, generator=generator)
            return Loss(loss.total * float("nan"), loss.parts, loss.weight) if step == 7 else loss

    system = dataclasses.replace(toy(pairs()), objective=Breaks())
    with pytest.raises(UserError, match=r"loss became nan at step 7 \(training rows \d+, ") as caught:
        train(tmp_path / "run", system=system, save_every=1e-6)
    assert "\n" not in str(caught.value)
    assert checkpoint.load(tmp_path / "run" / "checkpoint").state["progress"]["step"] <= 7
    assert all(torch.isfinite(p).all() for p in system.model.parameters())


def test_a_full_disk_stops_with_one_sentence_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    halted, _, _ = train(tmp_path / "run", recorder=Recorder(stop_at=10))
    kept = listing(tmp_path / "run" / "checkpoint")
    written = storage.write_new

    def full(path, content):
        if path.name == "optimiser.safetensors":
            written(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, content)

    monkeypatch.setattr(checkpoint, "write_new", full)
    with pytest.raises(UserError, match="the disk is full; free some space"):
        train(tmp_path / "run", resume=True, save_every=1e-6)
    assert listing(tmp_path / "run" / "checkpoint") == kept
    monkeypatch.undo()
    result, _, _ = train(tmp_path / "run", resume=True)
    assert result.steps == 30


def test_texts_report_bits_per_character(tmp_path):
    data = pairs(kind="text")
    result, seen, _ = train(tmp_path / "run", data=data)
    numbers = result.metrics["valid"]
    assert set(numbers) == {"loss", "bits_per_character", "rows"}
    symbols = sum(len(t) for t in data.valid.targets)
    expected = numbers["loss"] * symbols / 0.6931471805599453 / (symbols - len(data.valid.targets))
    assert numbers["bits_per_character"] == pytest.approx(expected)


def test_evaluation_leaves_the_random_numbers_of_training_alone(tmp_path):
    _, often, _ = train(tmp_path / "a", evaluations=10)
    _, never, _ = train(tmp_path / "b", evaluations=0)
    assert often.losses == never.losses


def test_bf16_is_refused_with_a_note_where_the_model_cannot(tmp_path, monkeypatch):
    from transduce.train import engine

    class Float32Only:
        def __call__(self, model, batch, *, step, generator=None):
            if torch.is_autocast_enabled("cpu"):
                raise TypeError("only float32 here")
            return Likelihood()(model, batch, step=step, generator=generator)

    monkeypatch.setattr(engine, "fast_bf16", lambda device: True)
    system = dataclasses.replace(toy(pairs()), objective=Float32Only())
    _, seen, trainer = train(tmp_path / "run", system=system, precision="auto", max_steps=5)
    assert trainer.engine.precision == "float32"
    assert "only float32 here" in seen.notes[0]


@pytest.mark.parametrize("seconds, chosen", [((1.0, 0.5), "bf16"), ((1.0, 0.9), "float32")])
def test_bf16_must_be_clearly_faster(tmp_path, monkeypatch, seconds, chosen):
    from transduce.train import engine

    monkeypatch.setattr(engine, "fast_bf16", lambda device: True)
    monkeypatch.setattr(engine.Engine, "_race", lambda self, batch: seconds)
    _, seen, trainer = train(tmp_path / "run", precision="auto", max_steps=3)
    assert trainer.engine.precision == trainer.progress.precision == chosen
    assert seen.notes[0].startswith(f"precision: {chosen}")


def test_the_race_for_precision_costs_training_no_random_numbers(tmp_path, monkeypatch):
    from transduce.train import engine

    _, plain, _ = train(tmp_path / "a", max_steps=10)
    monkeypatch.setattr(engine, "fast_bf16", lambda device: True)
    monkeypatch.setattr(engine, "_WORTH", 0.0)
    _, raced, trainer = train(tmp_path / "b", precision="auto", max_steps=10)
    assert trainer.engine.precision == "float32" and raced.losses == plain.losses
