"""The command line from end to end on a tiny corpus, and what it says to mistakes."""

import errno
import json
import re
import signal
import subprocess
import sys

import pytest
import torch
from cli_cases import refused, write_pairs

import transduce
from transduce.cli.main import COMMANDS, main
from transduce.train import bundle, progress

SMALL = ["--embed", "8", "--encoder", "8", "--hidden", "16", "--attention", "8"]
FAST = ["--max-steps", "12", "--evaluations", "1", "--evaluation-rows", "20", "--precision", "float32"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.tsv", train=180, held_out=10, longest=6)


@pytest.fixture(scope="module")
def run(pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["fit", "rnnsearch", "--data", str(pairs), "--out", str(out), *SMALL, *FAST]) == 0
    return out


# ---------------------------------------------------------------- help


def test_help_is_fast_because_it_imports_no_torch():
    code = "import sys, transduce.cli.main as m; m.main(['--help']); assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_systems_and_show_describe_every_page(capsys):
    assert main(["systems"]) == 0
    table = capsys.readouterr().out
    for name in ("rnnsearch", "transformer", "gru-lm", "transformer-lm", "grconv"):
        assert name in table
        assert main(["show", name]) == 0
        shown = capsys.readouterr().out
        assert f"transduce fit {name}" in shown and "arXiv" in shown
        assert not re.search(r"--\S+ (True|False)", shown)  # no flag takes one of these


@pytest.mark.parametrize("command", ["systems", "show", "eval", "predict", "reproduce", "laws"])
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert "usage" in capsys.readouterr().out


# ---------------------------------------------------------------- the way of a model


def test_fit_leaves_a_complete_run(run):
    names = {p.name for p in run.iterdir()}
    assert {
        "bundle",
        "checkpoint",
        "config.json",
        "log.jsonl",
        "curve.png",
        "attention-1.png",
        "attention-3.png",
    } <= names
    described = json.loads((run / "bundle" / "bundle.json").read_text())
    assert {"valid", "test", "test_beam_5"} <= set(described["metrics"])
    assert "sequence error" in (run / "bundle" / "README.md").read_text().lower()


def test_predict_answers_texts_files_and_lines(run, tmp_path, capsys, monkeypatch):
    assert main(["predict", str(run), "abc", "cab"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["abc", "cab"]
    (tmp_path / "words.txt").write_text("abc\ncab\n")
    assert main(["predict", str(run), "--file", str(tmp_path / "words.txt")]) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert main(["predict", str(run), "abc", "--num-best", "3", "--scores"]) == 0
    ranked = [float(line.split("\t")[2]) for line in capsys.readouterr().out.splitlines()]
    assert ranked == sorted(ranked, reverse=True) and len(ranked) == 3


def test_eval_prints_intervals_and_keeps_the_figures(run, capsys, monkeypatch, pairs):
    assert main(["eval", str(run), "--data", str(pairs), "--split", "valid", "--beam", "2"]) == 0
    assert "[" in (line := capsys.readouterr().out) and "sequence error" in line
    assert json.loads((run / "eval-valid_beam_2.json").read_text())["beam"] == 2
    for _ in range(2):  # the run remembers its data; a record is added to
        assert main(["eval", str(run), "--record", str(run / "eval-record.json")]) == 0
    record = json.loads((run / "eval-record.json").read_text())
    low, high = record["measured"]["test"]["sequence_error_95"]
    assert 0 <= low <= record["measured"]["test"]["sequence_error"] <= high and record["training"]["steps"] == 12


def test_python_opens_the_same_model(run, capsys):
    model = transduce.load(run)
    assert main(["predict", str(run), "abc"]) == 0
    assert capsys.readouterr().out == f"abc\t{model.predict('abc')}\n"
    assert model.predict(["abc", "cab"]) == [model.predict("abc"), model.predict("cab")]
    assert isinstance(model.predict("abc", beam=3, num_best=2), list)
    session, total = model.start("abc"), 0.0
    for symbol in "cba":
        total += session.next()[symbol]
        session.step(symbol)
    total += session.next()["<eos>"]
    assert session.text == "cba"
    assert total == pytest.approx(model.score("abc", "cba"), abs=1e-4)
    other = session.fork()
    other.step("a")
    assert session.text == "cba" and other.text == "cbaa"


def test_language_models_continue_text(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"the cat {i} sat on the mat" for i in range(200)))
    out = tmp_path / "lm"
    assert main(["fit", "gru-lm", "--data", str(path), "--out", str(out), "--dim", "16", *FAST]) == 0
    capsys.readouterr()
    answers = []
    for seed in ("1", "1", "2"):
        assert (
            main(["predict", str(out), "the ", "--length", "20", "--seed", seed, "--temperature", "1.5"]) == 0
        )
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]
    assert answers[0].startswith("the ")
    assert "bits per character" in json.dumps(
        json.loads((out / "bundle" / "bundle.json").read_text())["metrics"]
    ).replace("_", " ")


def test_an_interrupted_run_goes_on_to_the_same_losses(pairs, tmp_path, monkeypatch, capsys):
    base = ["fit", "rnnsearch", "--data", str(pairs), *SMALL, *FAST, "--log-every", "1"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*base, "--out", str(whole)]) == 0

    class StopsAt5(progress.Silent):
        def step(self, report):
            if report.step == 5:
                signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(progress, "reporter", StopsAt5)
        assert main([*base, "--out", str(parts)]) == 130
    assert "--resume" in capsys.readouterr().out
    assert main(["fit", "rnnsearch", "--data", str(pairs), "--out", str(parts), "--resume"]) == 0
    losses = lambda out: [
        (r["step"], r["loss"])
        for line in (out / "log.jsonl").read_text().splitlines()
        if "loss" in (r := json.loads(line))
    ]
    assert len(losses(whole)) == 12 and losses(parts) == losses(whole)


# ---------------------------------------------------------------- mistakes


def test_unknown_names_are_answered_with_the_nearest(pairs, tmp_path, capsys):
    assert 'Did you mean "rnnsearch"' in refused(
        capsys, "fit", "rnnserch", "--data", pairs, "--out", tmp_path / "x"
    )
    assert 'Did you mean "cmudict"' in refused(
        capsys, "fit", "rnnsearch", "--data", "cmudct", "--out", tmp_path / "x"
    )
    assert 'Did you mean "predict"' in refused(capsys, "predcit")
    assert not (tmp_path / "x").exists(), "nothing may be left behind"


def test_unknown_settings_are_named(pairs, tmp_path, capsys):
    assert main(["fit", "rnnsearch", "--data", str(pairs), "--out", str(tmp_path / "x"), "--hiden", "3"]) == 2
    shown = "".join(capsys.readouterr())
    assert "--hiden" in shown and "--hidden" in shown and "Traceback" not in shown


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--max-time", "0"], "above 0"),
        (["--max-time", "soon"], "10m or 2h"),
        (["--learning-rate", "-1"], "learning_rate"),
        (["--device", "cuda"], "no CUDA device"),
        (["--device", "abacus"], "no device"),
        (["--source-column", "en"], 'no column "en"'),
        (["--coverage", "--score", "general"], "coverage"),
        (["--resume", "--force"], "not both"),
        (["--resume"], "no run to resume"),
    ],
)
def test_senseless_settings_are_refused(flags, message, pairs, tmp_path, capsys):
    if flags == ["--device", "cuda"] and torch.cuda.is_available():
        flags, message = ["--device", "abacus"], "no device"
    assert message in refused(capsys, "fit", "rnnsearch", "--data", pairs, "--out", tmp_path / "x", *flags)


def test_systems_and_data_must_fit(pairs, tmp_path, capsys):
    assert "plain text" in refused(capsys, "fit", "gru-lm", "--data", pairs, "--out", tmp_path / "x")


def test_an_existing_run_is_never_overwritten(run, pairs, tmp_path, capsys):
    before = (run / "bundle" / "bundle.json").read_bytes()
    sentence = refused(capsys, "fit", "rnnsearch", "--data", pairs, "--out", run)
    assert "--resume" in sentence and "--force" in sentence
    assert (run / "bundle" / "bundle.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert "left alone" in refused(
        capsys, "fit", "rnnsearch", "--data", pairs, "--out", tmp_path / "mine", "--force"
    )
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    "number, words", [(errno.ENOSPC, "No space"), (errno.EROFS, "Read-only"), (errno.EACCES, "denied")]
)
def test_disks_that_refuse_are_one_sentence(number, words, pairs, tmp_path, capsys, monkeypatch):
    from transduce.train import run as run_module

    def refuse(*_, **__):
        raise OSError(
            number,
            {
                errno.ENOSPC: "No space left",
                errno.EROFS: "Read-only file system",
                errno.EACCES: "Permission denied",
            }[number],
        )

    monkeypatch.setattr(run_module, "replace_file", refuse)
    out = tmp_path / "x"
    refused(capsys, "fit", "rnnsearch", "--data", pairs, "--out", out, *SMALL, *FAST)
    assert not any((out / name).exists() for name in ("bundle", "config.json"))


@pytest.mark.parametrize(
    "text, message",
    [("", "empty"), ("a" * 100_000, "100,000 characters"), ("abc!?", '"!", "?"')],
    ids=["empty", "long", "unknown"],
)
def test_texts_that_cannot_be_read_are_refused(text, message, run, capsys):
    assert message in refused(capsys, "predict", run, text)


def test_unknown_symbols_can_be_allowed(run, capsys):
    assert main(["predict", str(run), "abc!", "--allow-unknown"]) == 0


def test_inputs_that_hold_nothing_or_no_text(run, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"abc\n\xe9\n")
    assert "nothing to predict" in refused(capsys, "predict", run, "--file", tmp_path / "empty.txt")
    assert "not UTF-8 (line 2)" in refused(capsys, "predict", run, "--file", tmp_path / "latin.txt")
    assert "cannot be read" in refused(capsys, "predict", run, "--file", tmp_path / "nowhere.txt")


def damaged(run, tmp_path, change):
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(run / "bundle", copy)
    change(copy)
    return copy


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def newer(folder):
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


def twice(folder):
    path = folder / "bundle.json"
    path.write_text(path.read_text().replace("{", '{"kind": "transduce bundle",', 1))


@pytest.mark.parametrize(
    "change, message",
    [
        (cut, "cut|bytes|damaged"),
        (newer, "format version 99"),
        (twice, "ambiguous"),
        (lambda f: (f / "bundle.json").unlink(), "no bundle.json"),
    ],
    ids=["cut", "newer", "duplicate keys", "absent"],
)
def test_damaged_bundles_are_refused(change, message, run, tmp_path, capsys):
    import re

    assert re.search(message, refused(capsys, "predict", damaged(run, tmp_path, change), "abc"))


def test_weights_that_are_not_numbers_are_refused(run, tmp_path, capsys):
    from safetensors.torch import load_file, save

    def poison(folder):
        tensors = load_file(folder / "model.safetensors")
        next(iter(tensors.values())).fill_(float("nan"))
        content = save(tensors)
        (folder / "model.safetensors").write_bytes(content)
        described = json.loads((folder / "bundle.json").read_text())
        described["weights"] = {"bytes": len(content), "sha256": bundle.digest(content)}
        (folder / "bundle.json").write_text(json.dumps(described))

    assert "not finite" in refused(capsys, "predict", damaged(run, tmp_path, poison), "abc")


def test_folders_that_are_no_bundle(tmp_path, capsys):
    assert "no bundle at" in refused(capsys, "predict", tmp_path / "nowhere", "abc")


def test_laws_report_a_layer_and_its_mistakes(capsys):
    assert main(["laws", "transduce.nn.linear_rnn:MinGRU", "--dim", "8"]) == 0
    assert "chunk" in capsys.readouterr().out
    assert "module:name" in refused(capsys, "laws", "MinGRU")
    assert "no callable" in refused(capsys, "laws", "transduce.nn.linear_rnn:Nothing")
    assert "cannot be imported" in refused(capsys, "laws", "no_such_module:Mixer")


def test_reproduce_needs_a_check(capsys):
    assert "no full check" in refused(capsys, "reproduce", "gru-lm")
