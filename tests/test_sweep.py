"""``transduce sweep``: searches by the held-out error, shares a journal, goes on, and says how to train."""

import json
import shlex
import sys
import time

import pytest
from cli_cases import refused, write_pairs

optuna = pytest.importorskip("optuna")

from transduce import systems
from transduce.cli import sweep
from transduce.cli.main import main
from transduce.cli.searching import Searched, Watch, score_of, searched
from transduce.core.errors import UserError
from transduce.train.trainer import Trainer

TINY = ["embed=8", "encoder=8", "attention=8", "precision=float32", "evaluations=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.tsv", train=180, held_out=10, longest=6)


@pytest.fixture
def command(data, tmp_path):
    tiny = [w for text in TINY for w in ("--set", text)]
    return [
        "sweep", "rnnsearch", "--data", str(data), "--journal", str(tmp_path / "s.log"), "--budget", "1s",
        "--search", "learning_rate=1e-4:1e-2:log", "--search", "hidden=8:24", "--search", "score=additive,general",
        *tiny,
    ]  # fmt: skip


def trials_of(command):
    backend = optuna.storages.journal.JournalFileBackend(command[command.index("--journal") + 1])
    return optuna.load_study(study_name=sweep.STUDY, storage=optuna.storages.JournalStorage(backend))


class Trained:
    """In the place of training: the error is a known function of the settings, the test part is not there."""

    def __init__(self, fail_at=()):
        self.seen, self.fail_at = [], fail_at

    def __call__(self, job, values, corpus, device, trial):
        self.seen.append(dict(values))
        if len(self.seen) in self.fail_at:
            return None, "the loss was no longer a finite number"
        return abs(values["learning_rate"] - 1e-3) + values["hidden"] / 1e4 + (
            values["score"] == "general"
        ), ""


@pytest.fixture
def trained(monkeypatch):
    stand_in = Trained(fail_at=(2,))
    monkeypatch.setattr(sweep.Sweep, "_train", lambda job, *rest: stand_in(job, *rest))
    return stand_in


def test_real_trainings_are_told_by_the_valid_part_alone(command, capsys, monkeypatch):
    parts = []
    real = Trainer.measure

    def measure(trainer, rows):
        parts.append(trainer.prepared.valid)
        return real(trainer, rows)

    monkeypatch.setattr(Trainer, "measure", measure)
    assert main([*command, "--trials", "1"]) == 0
    out = capsys.readouterr().out
    (trial,) = trials_of(command).trials
    assert trial.value >= 0 and trial.intermediate_values and parts
    assert "test part was not looked at" in out and "transduce fit rnnsearch" in out


def test_the_first_trial_is_the_default_and_the_same_command_goes_on(command, trained, capsys, tmp_path):
    assert main([*command, "--trials", "4"]) == 0
    assert trained.seen[0]["learning_rate"] == 3e-3 and trained.seen[0]["score"] == "additive"
    assert all(
        v["embed"] == 8 and 8 <= v["hidden"] <= 24 and isinstance(v["hidden"], int) for v in trained.seen
    )
    assert main([*command, "--trials", "4"]) == 0 and len(trained.seen) == 4  # enough: nothing is trained
    assert main([*command, "--trials", "6"]) == 0 and len(trained.seen) == 6
    states = [t.state.name for t in trials_of(command).trials]
    assert states.count("COMPLETE") == 5 and states.count("PRUNED") == 1
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_that_is_printed_trains_with_the_best_settings(command, trained, capsys):
    assert main([*command, "--trials", "6"]) == 0
    out = capsys.readouterr().out
    words = shlex.split(out.splitlines()[-1])
    assert words[:3] == ["transduce", "fit", "rnnsearch"] and "--data" in words
    best = trials_of(command).best_trial
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    assert float(flags["--learning-rate"]) == pytest.approx(best.params["learning_rate"], rel=1e-5)
    assert int(flags["--hidden"]) == best.params["hidden"] and flags["--score"] == best.params["score"]
    assert flags["--embed"] == "8"
    from transduce.cli.fit import _options
    from transduce.cli.options import parse

    options = parse(_options(systems.find("rnnsearch"), False), words[3:], "fit")
    assert options.model.hidden == best.params["hidden"] and options.training.evaluations == 1


def test_two_processes_share_a_journal(command, trained, capsys):
    """A trial that another process has begun counts; one that a killed process has left behind does not."""
    assert main([*command, "--trials", "1"]) == 0
    study = trials_of(command)
    other, dead = study.ask(), study.ask()
    other.set_user_attr("begun", time.time())
    dead.set_user_attr("begun", time.time() - 1e6)
    assert main([*command, "--trials", "3"]) == 0
    assert len(trained.seen) == 2  # one before, one now, one at the other process
    assert [t.state.name for t in trials_of(command).trials].count("FAIL") == 1


def test_an_interrupt_stops_and_is_not_counted(command, monkeypatch, capsys):
    monkeypatch.setattr(sweep.Sweep, "_train", lambda *a: (None, ""))
    assert main([*command, "--trials", "3"]) == 130
    assert "goes on" in capsys.readouterr().out

    def broken(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(sweep.Sweep, "_train", broken)
    assert main([*command, "--trials", "3"]) == 1
    assert {t.state.name for t in trials_of(command).trials} == {"FAIL"}


def test_no_trial_that_ends_is_one_sentence(command, monkeypatch, capsys):
    monkeypatch.setattr(sweep.Sweep, "_train", lambda *a: (None, "the loss was no longer a finite number"))
    assert "finite number" in refused(capsys, *command, "--trials", "2")


def test_settings_that_do_not_go_together_are_given_up(command, capsys):
    coverage = ["--set", "coverage=true", "--search", "dropout=0:0.1"]
    call = [w if w != "score=additive,general" else "score=general,location" for w in command]
    job = sweep_job([*call, *coverage])
    reason = job._train({"coverage": True, "score": "general"}, None, None, None)
    assert reason[0] is None and "coverage goes with" in reason[1]


def sweep_job(words):
    made = []

    class Caught(sweep.Sweep):
        def run(self, command):
            made.append(self)
            return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "Sweep", Caught)
        assert main(words) == 0
    return made[0]


def test_a_trial_behind_the_others_ends():
    class Trial:
        def __init__(self):
            self.told = []

        def report(self, value, step):
            self.told.append((step, value))

        def should_prune(self):
            return len(self.told) == 2

    trial = Trial()
    watch = Watch(trial)
    watch.evaluated({"symbol_error": 0.5, "sequence_error": 1.0, "rows": 3})
    with pytest.raises(optuna.TrialPruned):
        watch.evaluated({"symbol_error": 0.4, "sequence_error": 1.0, "rows": 3})
    assert trial.told == [(1, 0.5), (2, 0.4)]
    assert score_of({"bits_per_character": 2.0, "loss": 1.0}) == 2.0 and score_of({"loss": 1.0}) == 1.0


def test_what_is_searched_is_read_by_type():
    page = systems.find("rnnsearch")
    assert searched(page, "hidden=8:24") == Searched("hidden", True, 8.0, 24.0)
    assert searched(page, "learning-rate=1e-4:1e-2:log") == Searched("learning_rate", False, 1e-4, 1e-2, True)
    assert searched(page, "coverage=true,false").choices == ("true", "false")
    for wrong, said in [
        ("hidden", "takes FIELD"), ("hidden=8:4", "empty"), ("hidden=8", "no choice"), ("hiden=8:9", "hidden"),
        ("dropout=0:0.4:log", "above 0"), ("score=additive:general", "no range"), ("hidden=8:24:lin", "LOW:HIGH"),
        ("score=additive,nice", "nice"), ("max_time=1:9", "budget"), ("hidden=8.5:9", "whole number"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=said):
            searched(page, wrong)


def test_mistakes_are_one_sentence(command, trained, capsys, tmp_path, monkeypatch):
    assert main([*command, "--trials", "1"]) == 0
    said = refused(capsys, *[w if w != "1s" else "2s" for w in command])
    assert "budget" in said and "--journal" in said
    (tmp_path / "notes.txt").write_text("my notes\n")
    other = [w if not w.endswith("s.log") else str(tmp_path / "notes.txt") for w in command]
    assert "not the journal of a sweep" in refused(capsys, *other)
    assert (tmp_path / "notes.txt").read_text() == "my notes\n"
    assert "is a folder" in refused(
        capsys, *[w if not w.endswith("s.log") else str(tmp_path) for w in command]
    )
    assert "twice" in refused(capsys, *command, "--set", "hidden=8")
    assert "--search" in refused(capsys, "sweep", "rnnsearch", "--data", "cmudict")
    assert "plain text" in refused(capsys, *[w if w != "rnnsearch" else "gru-lm" for w in command[:6]],
                                   "--search", "dim=8:16")  # fmt: skip
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert 'pip install "transduce[train]"' in refused(capsys, *command)


def test_the_request_is_json(command):
    assert json.loads(json.dumps(sweep_job(command).request())) == sweep_job(command).request()
