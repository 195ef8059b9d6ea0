"""What the command line answers to mistakes, refusals of the machine, and bugs: one sentence and exit code 2, or a
traceback that says where to report it."""

import dataclasses
import errno
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cli_cases import refused, write_pairs

from transduce import systems
from transduce.cli import machine
from transduce.cli import main as entry
from transduce.cli.main import main
from transduce.core.errors import UserError
from transduce.core.protocols import Claim
from transduce.data import fetch

SMALL = ["--embed", "8", "--encoder", "8", "--hidden", "8", "--attention", "8"]
FAST = ["--max-steps", "2", "--evaluations", "0", "--precision", "float32"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.tsv", train=60, held_out=5, longest=5)


@pytest.fixture(scope="module")
def run(pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["fit", "rnnsearch", "--data", str(pairs), "--out", str(out), *SMALL, *FAST]) == 0
    return out


def fails_with(monkeypatch, problem):
    """Let every command end in ``problem``."""

    def fail(_):
        raise problem

    monkeypatch.setattr(entry, "_run", fail)


# ---------------------------------------------------------------- data


@pytest.mark.parametrize(
    "name, content, flags, message",
    [
        ("a.tsv", b"", [], "empty"),
        ("a.tsv", b"source\ttarget\n", [], "no rows"),
        ("a.tsv", b"ab\tba\n\tb\n", [], "line 2 has an empty source"),
        ("a.tsv", b"ab\tba\n" + b"a" * 100_000 + b"\tb\n", [], "100,000 characters"),
        ("a.tsv", b"ab\tba\n\xff\xfe\tb\n", [], "not UTF-8: line 2"),
        ("a.csv", b"word,sound\nab,ba\n", ["--source-column", "wrod"], 'Did you mean "word"'),
        ("a.csv", b"word,sound,more\nab,ba,c\n", [], 'no column "source"'),
        ("a.jsonl", b'{"source": "a"}\n', [], 'no column "target"'),
        ("a.jsonl", b"{\n", [], "not valid JSON"),
        ("a.xml", b"<a/>", [], ".tsv, .csv, .jsonl"),
        ("a.tsv", b"ab\tba\n", [], "too few different sources"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_files_are_refused_before_anything_is_made(name, content, flags, message, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    sentence = refused(capsys, "fit", "rnnsearch", "--data", tmp_path / name, "--out", tmp_path / "x", *flags)
    assert message in sentence
    assert not (tmp_path / "x").exists()


def test_data_have_to_be_named(tmp_path, pairs, capsys):
    assert "--data" in refused(capsys, "fit", "rnnsearch", "--out", tmp_path / "x")
    assert "no file" in refused(
        capsys, "fit", "rnnsearch", "--out", tmp_path / "x", "--data", tmp_path / "y.tsv"
    )
    few = ["--vocabulary", "0"]
    assert "--vocabulary" in refused(
        capsys, "fit", "rnnsearch", "--out", tmp_path / "x", "--data", pairs, *few
    )


def test_without_a_network_one_sentence_says_where_to_put_the_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TRANSDUCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRANSDUCE_DATA", raising=False)
    monkeypatch.setattr(
        fetch.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "no route to host")
    )
    sentence = refused(capsys, "fit", "rnnsearch", "--data", "cmudict", "--out", tmp_path / "x")
    assert "network" in sentence and str(tmp_path / "cache") in sentence and "--data-dir" in sentence
    sentence = refused(capsys, "fit", "gru-lm", "--data", "shakespeare", "--out", tmp_path / "x")
    assert "input.txt" in sentence and "--data-dir" in sentence
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize(
    "flags", [["--learning-rate", "-1"], ["--heads", "3"], ["--data", "nowhere.tsv"], ["--max-time", "0"]]
)
def test_force_deletes_nothing_before_the_new_run_can_begin(flags, run, pairs, capsys):
    before = sorted(p.name for p in run.iterdir())
    assert main(["fit", "rnnsearch", "--data", str(pairs), "--out", str(run), "--force", *flags]) == 2
    assert "Traceback" not in "".join(capsys.readouterr())
    assert sorted(p.name for p in run.iterdir()) == before and (run / "bundle" / "bundle.json").is_file()


def test_a_run_is_resumed_with_its_own_system_data_and_time(run, pairs, tmp_path, capsys):
    assert "trains rnnsearch, not transformer" in refused(
        capsys, "fit", "transformer", "--out", run, "--resume"
    )
    sentence = refused(capsys, "fit", "rnnsearch", "--out", run, "--resume", "--hidden", "9")
    assert "hidden" in sentence
    before = json.loads((run / "config.json").read_text())
    assert main(["fit", "rnnsearch", "--out", str(run), "--resume"]) == 0
    assert "plan is made again" not in capsys.readouterr().err
    assert json.loads((run / "config.json").read_text()) == before


def test_data_are_found_again_from_another_folder(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", str(run)]) == 0
    assert capsys.readouterr().out.startswith("pairs.tsv test, greedy: ")
    assert main(["eval", str(run / "bundle"), "--split", "valid"]) == 2, (
        "a bundle alone does not know the path"
    )
    assert "pairs.tsv" in capsys.readouterr().err


def test_figures_on_other_data_do_not_replace_those_of_the_run(run, tmp_path, capsys):
    other = tmp_path / "other.tsv"
    other.write_text("".join(f"{a}{b}\t{b}{a}\n" for a in "abcde" for b in "fghij"))
    before = (run / "bundle" / "bundle.json").read_bytes()
    assert main(["eval", str(run), "--data", str(other)]) == 0
    assert (run / "bundle" / "bundle.json").read_bytes() == before
    assert json.loads((run / "eval-other.tsv-test.json").read_text())["corpus"] == "other.tsv"


def test_flags_of_another_kind_of_model_are_refused(run, capsys):
    assert "--temperature" in refused(capsys, "predict", run, "ab", "--temperature", "0.5")
    assert "--num-best" in refused(capsys, "predict", run, "ab", "--num-best", "0")
    assert "not both" in refused(capsys, "predict", run, "ab", "--file", "words.txt")


def test_tiny_data_are_trained_on_to_the_end(tmp_path, capsys):
    """Held-out sources are full of symbols that training never saw."""
    (tmp_path / "tiny.tsv").write_text("".join(f"{w}\t{w[::-1]}\n" for w in ("ab", "cd", "ef")))
    out = tmp_path / "run"
    assert (
        main(["fit", "rnnsearch", "--data", str(tmp_path / "tiny.tsv"), "--out", str(out), *SMALL, *FAST])
        == 0
    )
    assert "--allow-unknown" in capsys.readouterr().out
    assert (out / "attention-1.png").is_file()


def test_data_without_a_test_part_are_trained_on_to_the_end(pairs, tmp_path, capsys, monkeypatch):
    from transduce import api

    load = api.load_corpus
    monkeypatch.setattr(api, "load_corpus", lambda *a, **k: dataclasses.replace(load(*a, **k), test=[]))
    out = tmp_path / "run"
    assert main(["fit", "rnnsearch", "--data", str(pairs), "--out", str(out), *SMALL, *FAST]) == 0
    said = capsys.readouterr().out
    assert "no test part" in said and "--split valid" in said and (out / "attention-1.png").is_file()
    assert "no test examples" in refused(capsys, "eval", out)


# ---------------------------------------------------------------- the machine


@pytest.mark.parametrize(
    "problem, message",
    [
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "not enough memory",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"), "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), "runs/a cannot be used: No space left"),
        (OSError(errno.EROFS, "Read-only file system", "runs/a"), "Read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/a"), "Permission denied"),
        (UserError("Mend this."), "Mend this."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value[:12],
)
def test_refusals_of_the_machine_are_one_sentence(problem, message, monkeypatch, capsys):
    fails_with(monkeypatch, problem)
    assert message in refused(capsys, "fit")


def test_a_bug_shows_where_it_is_and_asks_for_a_report(monkeypatch, capsys):
    fails_with(monkeypatch, KeyError("surprise"))
    assert main(["fit"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "surprise" in said and "please report it" in said.splitlines()[-1]


def test_an_interrupt_is_no_mistake(monkeypatch, capsys):
    fails_with(monkeypatch, KeyboardInterrupt())
    assert main(["fit"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_reader_who_leaves_early_is_no_mistake():
    code = "import sys; from transduce.cli.main import main; input(); sys.exit(main(['--help']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait() == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize(
    "files, cores",
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": ""}, None),
        ({}, None),
    ],
)
def test_a_quota_of_cores_is_read(files, cores, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert machine.cpu_quota(tmp_path) == cores


def test_threads_stay_within_the_quota(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr(machine, "cpu_quota", lambda: 2)
        assert machine.set_up() == torch.device("cpu") and torch.get_num_threads() == 2
        monkeypatch.setattr(machine, "cpu_quota", lambda: 8)
        machine.set_up()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["meta", "cuda:99", "abacus"])
def test_devices_that_cannot_compute_here_are_refused(name):
    with pytest.raises(UserError):
        machine.device_named(name)


# ---------------------------------------------------------------- laws, checks


def test_laws_name_what_is_wrong_with_a_module(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "layers_of_mine.py").write_text(
        "import torch\n"
        "from transduce.nn import MinGRU\n"
        "class Forgets(MinGRU):\n"
        "    def forward(self, x, state=None, *, mask=None, resets=None):\n"
        "        y, after = super().forward(x, state, mask=mask, resets=None)\n"
        "        return y, after\n"
        "class Narrow(MinGRU):\n"
        "    def __init__(self, dim):\n"
        "        raise ValueError('too narrow')\n"
        "plain = torch.nn.Linear(3, 3)\n"
        "def linear(dim): return torch.nn.Linear(dim, dim)\n"
    )
    (tmp_path / "broken_module.py").write_text("x = undefined\n")
    assert main(["laws", "layers_of_mine:Forgets", "--dim", "8"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if "BROKEN" in line] == ["9"], "the law of resets, and no other"
    sentence = refused(capsys, "laws", "broken_module:Layer")
    assert "undefined" in sentence and "broken_module.py, line 1" in sentence
    sentence = refused(capsys, "laws", "layers_of_mine:Narrow")
    assert "too narrow" in sentence and "line 9" in sentence
    assert 'Did you mean "Forgets"' in refused(capsys, "laws", "layers_of_mine:Forget")
    assert "not a mixer" in refused(capsys, "laws", "layers_of_mine:linear")
    assert "--dim" in refused(capsys, "laws", "layers_of_mine:Forgets", "--dim", "0")


@pytest.mark.parametrize(
    "value, code, verdict", [(0.1, 0, "all claims hold"), (0.9, 1, "a claim was missed")]
)
def test_a_check_is_recorded_and_a_smoke_run_never_takes_its_place(
    value, code, verdict, tmp_path, capsys, monkeypatch
):
    def check(record):
        record.measure("error", value, Claim("error", "a reason", at_most=0.5))

    page = SimpleNamespace(name="grconv", reproduce=check, kind="pairs", title="", paper="")
    monkeypatch.setattr(systems, "find", lambda name: page)
    assert main(["reproduce", "grconv", "--out", str(tmp_path)]) == code
    assert verdict in capsys.readouterr().out
    kept = (tmp_path / "grconv.json").read_bytes()
    assert json.loads(kept)["measured"][0]["value"] == value
    assert main(["reproduce", "grconv", "--out", str(tmp_path), "--quick"]) == 0
    assert (tmp_path / "grconv.json").read_bytes() == kept
    assert json.loads((tmp_path / "quick" / "grconv.json").read_text())["quick"]
    capsys.readouterr()
    monkeypatch.setattr(systems, "names", lambda: ["grconv"])
    assert main(["systems", "--results", str(tmp_path)]) == 0
    assert f"{int(value < 0.5)} of 1 claims hold" in capsys.readouterr().out


# ---------------------------------------------------------------- the page


def test_the_page_names_commands_and_flags_that_exist(capsys):
    page = (Path(__file__).parent.parent / "docs" / "cli.md").read_text()
    typed = [shlex.split(line[2:]) for line in page.splitlines() if line.startswith("$ transduce ")]
    assert {words[1] for words in typed} >= set(entry.COMMANDS)
    for words in typed:
        command = words[1:3] if words[1] == "fit" and words[2] in systems.names() else words[1:2]
        flags = {word for word in words if word.startswith("--")}
        main([*command, "--help"])
        shown = capsys.readouterr().out
        assert all(f"{flag} " in shown or flag == "--help" for flag in flags), (words, flags)


@pytest.mark.parametrize("flags", [["--heads", "7"], ["--dim", "0"], ["--dropout", "1.5"]])
def test_settings_that_a_layer_refuses_are_one_sentence(tmp_path, capsys, flags):
    data = write_pairs(tmp_path / "pairs.tsv", 30, 5, 4)
    said = refused(capsys, "fit", "transformer", "--data", data, "--out", tmp_path / "run", *flags)
    assert "cannot be built" in said and not (tmp_path / "run").exists()
