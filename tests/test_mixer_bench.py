"""The matrix of mixers and tasks: what is asked, what is kept, what is shown."""



import pytest
import torch

from transduce.cli.main import main
from transduce.data.synthetic.streams import IGNORE, Stream, first_token_recall
from transduce.nn import MinGRU
from transduce.report.mixers import columns, page
from transduce.train.mixer_bench import Network, Plan, bits_a_symbol, costs, network, read, run
from transduce.train.mixer_tasks import ABOUT, TASKS, Trial

SYNTHETIC = ["copying", "recall", "first-token", "parity", "even-pair", "sum", "s3"]


def test_every_task_is_told():
    assert set(ABOUT) == set(TASKS)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_task_fits_its_network(name):
    trial = TASKS[name](None)
    for task in [trial.train, *trial.tests.values()]:
        inputs, labels = task(4, torch.Generator().manual_seed(0))
        scored = labels[labels != IGNORE]
        assert inputs.max() < trial.num_inputs and len(scored) and scored.max() < trial.num_labels
    model = network(MinGRU, trial, Network(16, 1))
    assert model(inputs).shape == (4, inputs.shape[1], trial.num_labels)


def test_python_source_is_read_byte_by_byte():
    trial = TASKS["bytes"](None)
    inputs, labels = trial.train(3, torch.Generator().manual_seed(0))
    assert inputs.shape == (3, 256) and (inputs[:, 1:] == labels[:, :-1]).all() and trial.bits


def test_a_guess_has_the_bits_of_its_alphabet():
    class Guess(torch.nn.Module):
        def forward(self, x):
            return torch.zeros(*x.shape, 8)

    task = lambda batch, generator: Stream(torch.zeros(batch, 5, dtype=torch.long), torch.ones(batch, 5, dtype=torch.long))
    assert bits_a_symbol(Guess(), task, batches=2, batch=3) == pytest.approx(3.0)


def test_training_learns_what_can_be_learned():
    task = first_token_recall(4, 4, 8)
    trial = Trial(task, {"": task}, 9, 4, steps=150, batch=32, learning_rate=1e-2, test_batches=2)
    found = run(MinGRU, trial, Network(16, 1), seed=0)
    assert found["tests"][""] > 0.9 and found["steps"] == 150
    assert run(MinGRU, trial, Network(16, 1, share=0.1), seed=0)["steps"] == 15


def test_costs_tell_growth():
    from transduce.nn import Attention

    constant, growing = costs(MinGRU, Network(16)), costs(Attention, Network(16))
    assert constant["state bytes at 64"] == constant["state bytes at 1024"] == 64 and constant["bytes a step"] == 0
    assert growing["state bytes at 1024"] > growing["state bytes at 64"] and growing["bytes a step"] == 128


def test_the_command_goes_on_where_it_stopped(tmp_path, capsys):
    flags = ["bench", "mixers", "--quick", "--out", str(tmp_path), "--dim", "16", "--layers", "1"]
    assert main([*flags, "--only", "min-gru", "--tasks", "parity"]) == 0
    first = read(tmp_path / "quick" / "mixers.json")
    assert main([*flags, "--only", "min-gru", "gru", "--tasks", "parity", "sum"]) == 0
    said = capsys.readouterr().out
    assert said.count("min-gru              parity") == 1
    both = read(tmp_path / "quick" / "mixers.json")
    assert both["mixers"]["min-gru"]["tasks"]["parity"] == first["mixers"]["min-gru"]["tasks"]["parity"]
    assert columns(both) == [("parity", "at 40"), ("parity", "at 200"), ("sum", "at 40"), ("sum", "at 200")]
    table = (tmp_path / "quick" / "mixers.md").read_text()
    assert "`gru`" in table and "| parity at 40 |" in table
    assert (tmp_path / "quick" / "mixers.png").read_bytes().startswith(b"\x89PNG")
    assert main([*flags[:-2], "--layers", "2", "--only", "gru", "--tasks", "sum"]) == 2
    assert "another network" in capsys.readouterr().err


def test_a_system_stands_for_its_mixers(tmp_path):
    flags = ["--quick", "--out", str(tmp_path), "--dim", "16", "--layers", "1", "--tasks", "parity"]
    assert main(["bench", "mixers", "--only", "min-rnn", *flags]) == 0
    assert list(read(tmp_path / "quick" / "mixers.json")["mixers"]) == ["min-gru", "min-lstm"]


def test_every_system_named_has_known_mixers():
    from transduce.cli.bench import OF_SYSTEMS
    from transduce.nn.catalogue import MIXERS
    from transduce.systems import names

    assert set(OF_SYSTEMS) <= set(names()) and {m for mixers in OF_SYSTEMS.values() for m in mixers} <= set(MIXERS)


def test_a_task_without_its_data_is_said_not_to_be_measured(tmp_path, monkeypatch, capsys):
    from transduce.train import mixer_tasks

    def absent(data_dir):
        raise OSError("no such text")

    monkeypatch.setitem(mixer_tasks.TASKS, "characters", absent)
    flags = ["bench", "mixers", "--quick", "--out", str(tmp_path), "--dim", "16", "--only", "min-gru"]
    assert main([*flags, "--tasks", "characters", "parity"]) == 0
    assert "not measured: characters: no such text" in capsys.readouterr().out
    record = read(tmp_path / "quick" / "mixers.json")
    assert "Not measured: no such text" in page(record, "x.png", "y")


@pytest.mark.parametrize(
    "flags, said", [(["--dim", "20"], "multiple of 16"), (["--only", "min-grup"], "min-gru"), (["--tasks", "x"], "parity")]
)
def test_mistakes_are_one_sentence(flags, said, capsys):
    assert main(["bench", "mixers", *flags]) == 2
    assert said in capsys.readouterr().err


def test_the_plan_lists_what_is_missing():
    record = {"mixers": {"a": {"tasks": {"t": {"0": {}}}}}}
    plan = Plan(["a", "b"], ["t"], [0, 1])
    assert plan.missing(record) == [("a", "t", 1), ("b", "t", 0), ("b", "t", 1)]
    assert len(Plan(["a"], ["t"], [0], again=True).missing(record)) == 1
