"""Configuration, schedules, plans, the run folder, the average of weights, progress lines and pictures."""

from __future__ import annotations

import errno
import io
import json
import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_toys import listing, pairs, toy

from transduce.core.errors import UserError
from transduce.train import checkpoint, plots, storage
from transduce.train.config import TrainConfig, resumable
from transduce.train.ema import Ema
from transduce.train.plan import Pace, Plan, cap, settle, shortened
from transduce.train.progress import About, Live, Plain, StepReport, clock, reporter
from transduce.train.run import RunFolder, prepare_out
from transduce.train.schedules import SCHEDULES, factor

# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    "field, value",
    [
        ("max_time", 0),
        ("max_time", -5),
        ("max_time", float("nan")),
        ("max_time", float("inf")),
        ("max_steps", 0),
        ("max_epochs", 0),
        ("batch_symbols", 0),
        ("learning_rate", 0),
        ("learning_rate", float("inf")),
        ("schedule", "linear"),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("weight_decay", -1),
        ("betas", (0.9, 1.0)),
        ("clip", -1),
        ("accumulate", 0),
        ("precision", "fp8"),
        ("ema", 1.0),
        ("evaluations", -1),
        ("patience", 0),
        ("evaluation_rows", 0),
        ("log_every", 0),
        ("save_every", 0),
        ("threads", 0),
    ],
)
def test_senseless_settings_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=field) as caught:
        TrainConfig(**{field: value})
    assert "\n" not in str(caught.value)


def test_settings_survive_json_and_guard_a_resumed_run():
    config = TrainConfig(ema=0.99, betas=(0.8, 0.9))
    stored = json.loads(json.dumps(config.to_json()))
    assert TrainConfig(**{**stored, "betas": tuple(stored["betas"])}) == config
    assert resumable(stored, config) is False
    assert resumable(stored, TrainConfig(ema=0.99, betas=(0.8, 0.9), max_time=50)) is True
    assert resumable(stored, TrainConfig(ema=0.99, betas=(0.8, 0.9), save_every=5)) is False
    with pytest.raises(UserError, match="ema = 0.99 .* ema = None"):
        resumable(stored, TrainConfig(betas=(0.8, 0.9)))


# ---------------------------------------------------------------- schedules and plans


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SCHEDULES), st.integers(1, 3000), st.floats(0.0, 0.9))
def test_schedules_rise_to_one_and_never_pass_it(name, steps, warmup):
    values = [factor(name, step, steps, warmup) for step in range(steps)]
    assert all(0.0 < v <= 1.0 for v in values)
    peak = math.ceil(warmup * steps)
    assert all(a <= b for a, b in zip(values[:peak], values[1:peak]))
    assert all(a >= b for a, b in zip(values[peak:], values[peak + 1 :]))


def test_schedules_end_where_their_equations_say():
    assert factor("one-cycle", 999, 1000, 0.1) == 1e-4
    assert factor("cosine", 999, 1000, 0.1) == pytest.approx(0.1)
    assert factor("inverse-sqrt", 399, 1000, 0.1) == pytest.approx(0.5)
    assert factor("constant", 999, 1000, 0.1) == 1.0
    assert factor("one-cycle", 549, 1000, 0.1) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="one-cycle"):
        factor("zigzag", 1, 10, 0.1)


def paced(per_step: float, steps: int = 30) -> Pace:
    pace = Pace()
    for number in range(steps):
        pace.add(9.0 if number < 5 else per_step)
    return pace


def test_the_pace_leaves_out_the_first_steps_and_waits_for_enough():
    pace = paced(0.1)
    assert pace.per_step == pytest.approx(0.1)
    assert not pace.known(600.0, 50.0) and paced(0.1, 200).known(600.0, 50.0)
    assert pace.known(600.0, 151.0)  # a quarter of the budget is gone
    assert not Pace().known(1.0, 0.9)


def test_a_plan_fits_its_budget_with_evaluations():
    config = TrainConfig(max_time=600.0, evaluations=10, evaluation_rows=1000)
    plan = settle(config, 100, 20.0, paced(0.1), 0.002, 2500, (None, ""))
    assert plan.settled and plan.evaluation_rows == 1000 and plan.final_rows == 2500
    cost = 20.0 + (plan.steps - 100) * 0.1 + 0.002 * (10 * 1000 + 2500)
    assert 580.0 < cost < 600.0
    assert sum(plan.evaluation_due(step, 10) for step in range(plan.steps + 5)) == 10
    assert plan.evaluation_due(plan.steps, 10)


def test_dear_evaluations_read_fewer_rows():
    config = TrainConfig(max_time=60.0, evaluations=10)
    plan = settle(config, 10, 2.0, paced(0.1), 0.05, 2500, (None, ""))
    assert 100 <= plan.evaluation_rows < 1000 and plan.steps > 10


def test_the_smallest_limit_wins():
    config = TrainConfig(max_steps=500, max_epochs=2.5, accumulate=2)
    assert cap(config, 100.0) == (125, "max_epochs reached")
    assert cap(TrainConfig(), 100.0) == (None, "")
    plan = settle(config, 100, 20.0, paced(0.1), 0.001, 100, (125, "max_epochs reached"))
    assert (plan.steps, plan.limited_by) == (125, "max_epochs reached")


def test_a_plan_is_shortened_only_when_time_runs_out():
    config = TrainConfig(max_time=100.0, evaluations=0)
    plan = Plan(1000, "time budget used", 100, 100, settled=True)
    assert shortened(plan, config, 500, 50.0, paced(0.095), 0.0) is None
    late = shortened(plan, config, 500, 50.0, paced(0.2), 0.0)
    assert 500 < late.steps < 1000 and 50.0 + (late.steps - 500) * 0.2 <= 100.0


# ---------------------------------------------------------------- the run folder


def a_run(path):
    folder = prepare_out(path)
    folder.write_config({"system": "toy"})
    return folder


def test_new_and_empty_folders_are_taken(tmp_path):
    assert prepare_out(tmp_path / "a" / "b").path.is_dir()
    assert prepare_out(tmp_path / "a" / "b").path.is_dir()


def test_a_run_is_only_replaced_when_asked_and_only_what_is_ours(tmp_path):
    folder = a_run(tmp_path / "run")
    (folder.path / "bundle").mkdir()
    folder.curve.write_bytes(b"png")
    with pytest.raises(UserError, match="--resume .* --force"):
        prepare_out(folder.path)
    (folder.path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes.txt"):
        prepare_out(folder.path, force=True)
    assert folder.curve.exists()
    (folder.path / "notes.txt").unlink()
    prepare_out(folder.path, force=True)
    assert listing(folder.path) == []


def test_what_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "config.json").write_text('{"kind": "something else"}')
    for force in (False, True):
        with pytest.raises(UserError, match="not a run folder"):
            prepare_out(tmp_path / "data", force=force)
        with pytest.raises(UserError, match="not a folder"):
            prepare_out(tmp_path / "data" / "config.json", force=force)
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder(tmp_path / "data").read_config()
    with pytest.raises(UserError, match="not both"):
        prepare_out(tmp_path / "data", force=True, resume=True)


def test_resume_needs_a_run_with_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no run to resume"):
        prepare_out(tmp_path / "none", resume=True)
    folder = a_run(tmp_path / "run")
    with pytest.raises(UserError, match="no complete checkpoint"):
        prepare_out(folder.path, resume=True)
    checkpoint.save(folder.checkpoint, {}, {"step": 1})
    (folder.path / ".tmp-left-over").write_text("")
    assert prepare_out(folder.path, resume=True).read_config()["system"] == "toy"
    assert not (folder.path / ".tmp-left-over").exists()


@pytest.mark.parametrize(
    "code, word", [(errno.EROFS, "read-only"), (errno.EACCES, "permission"), (errno.ENOSPC, "full")]
)
def test_places_that_cannot_be_written_are_one_sentence(tmp_path, monkeypatch, code, word):
    from pathlib import Path

    def refuse(self, *args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=word):
        prepare_out(tmp_path / "run")


def test_the_log_keeps_whole_lines_on_a_full_disk(tmp_path, monkeypatch):
    folder = a_run(tmp_path / "run")
    folder.append_log({"step": 1})

    class Full(io.FileIO):
        def write(self, data):
            super().write(data[:5])
            raise OSError(errno.ENOSPC, "No space left on device")

    import builtins

    monkeypatch.setattr(builtins, "open", lambda path, mode: Full(path, mode.replace("b", "")))
    with pytest.raises(UserError, match="full"):
        folder.append_log({"step": 2})
    monkeypatch.undo()
    assert folder.log.read_text() == '{"step": 1}\n'


def test_replacing_a_file_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    storage.replace_file(path, b"old")

    def fail(handle):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError):
        storage.replace_file(path, b"new")
    assert path.read_bytes() == b"old" and listing(tmp_path) == ["file"]


# ---------------------------------------------------------------- average, progress, pictures


def test_the_average_follows_its_equation_and_gives_the_weights_back():
    model = toy(pairs()).model
    ema, weight = Ema(model, 0.5), model.out.bias
    first = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    ema.update()  # d = min(0.5, 1/10)
    expected = 0.1 * first + 0.9 * (first + 1.0)
    torch.testing.assert_close(ema.tensors()["out.bias"], expected)
    with ema.applied():
        torch.testing.assert_close(weight.detach(), expected)
    assert torch.equal(weight.detach(), first + 1.0)


REPORT = StepReport(20, 100, 1.23, 1.25, 1e-3, 1500.0, 20000.0, 75.0)
NUMBERS = {"loss": 0.5, "sequence_error": 0.4, "symbol_error": 0.1, "rows": 1000}
WORDS = About("word error", "phoneme error", "word", "pairs")


def test_plain_lines_name_the_errors_of_the_corpus():
    stream = io.StringIO()
    plain = Plain(stream, every=0.0)
    plain.start(WORDS)
    plain.step(REPORT)
    plain.evaluated(NUMBERS)
    plain.note("plan: 100 steps")
    plain.stop()
    assert stream.getvalue().splitlines() == [
        "step 20/100  loss 1.250  1,500 words/s  time left 1:15",
        "step 20: held-out word error 40.0 %, phoneme error 10.0 % (1000 words)",
        "plan: 100 steps",
    ]
    assert isinstance(reporter(io.StringIO()), Plain)
    assert clock(3725) == "1:02:05" and clock(None) == "-:--"


def test_the_live_line_shows_everything():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    live = reporter(stream)
    assert isinstance(live, Live)
    live.start(WORDS)
    live.note("a note [with brackets]")
    live.evaluated(NUMBERS)
    live.step(REPORT)
    live.stop()
    shown = stream.getvalue()
    for part in (
        "step 20/100",
        "loss 1.250",
        "word error 40.0 %",
        "phoneme error 10.0 %",
        "1,500 words/s",
        "1:15 left",
        "a note [with brackets]",
    ):
        assert part in shown


PNG = b"\x89PNG\r\n\x1a\n"
HISTORY = [
    {"step": s, "epoch": s / 50, "seconds": 3.0 * s, "loss": 3 * 0.98**s + 0.2, "learning_rate": 1e-3}
    for s in range(1, 100)
] + [
    {
        "step": s,
        "epoch": s / 50,
        "seconds": 3.0 * s,
        "valid_loss": 3 * 0.98**s + 0.3,
        "sequence_error": 0.98**s,
        "symbol_error": 0.3 * 0.98**s,
        "rows": 10,
    }
    for s in range(10, 100, 10)
]


@pytest.mark.parametrize(
    "history", [[], HISTORY, [{"step": 1, "seconds": 1.0, "valid_loss": 1.0, "bits_per_character": 2.0}]]
)
def test_learning_curves_are_pictures_whatever_is_known(tmp_path, history):
    assert plots.learning_curve(history, tmp_path / "curve.png").read_bytes().startswith(PNG)
    assert listing(tmp_path) == ["curve.png"]


def test_attention_maps_must_fit_their_symbols(tmp_path):
    weights = torch.softmax(torch.randn(3, 5), -1)
    assert (
        plots.attention_map(weights, "lines"[:5], ["L", "AY", "N"], tmp_path / "a.png")
        .read_bytes()
        .startswith(PNG)
    )
    with pytest.raises(ValueError, match="does not fit 2 target"):
        plots.attention_map(weights, "lines", ["L", "AY"], tmp_path / "b.png")
    assert listing(tmp_path) == ["a.png"]


def test_curves_draw_lines_bands_and_levels(tmp_path):
    lines = {
        "gated": ([1, 2, 3], [3.0, 2.0, 1.0]),
        "seeds": ([1, 2, 3], [[3.0, 2.5], [2.5, 2.0], [2.4, 1.0]]),
    }
    path = plots.curves(
        lines, tmp_path / "c.png", bands={"gated": ([2.5, 1.5, 0.5], [3.5, 2.5, 1.5])}, levels={"claim": 1.2}
    )
    assert path.read_bytes().startswith(PNG)


def test_drawing_leaves_pyplot_alone(tmp_path):
    import sys

    loaded = "matplotlib.pyplot" in sys.modules
    plots.curves({"a": ([0, 1], [0, 1])}, tmp_path / "d.png")
    assert ("matplotlib.pyplot" in sys.modules) is loaded
