"""Completion: what the shells are told, and that asking costs no import of torch."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_cases import refused

import transduce
from transduce import systems
from transduce.cli.completion import SCRIPTS, candidates, corpora, flags_of
from transduce.cli.main import COMMANDS, main
from transduce.data.corpora import names


def test_names_are_those_of_the_catalogue():
    assert candidates(["fit", ""]) == systems.names()
    assert set(corpora()) == set(names())
    assert candidates(["fit", "rnnsearch", "--data", "cmu"]) == ["cmudict"]


def test_commands_flags_and_choices():
    assert set(COMMANDS) < set(candidates([""]))
    assert candidates(["pre"]) == ["predict"]
    assert candidates(["fit", "rnnsearch", "--cov"]) == ["--coverage"]
    assert candidates(["fit", "rnnsearch", "--score", ""]) == ["additive", "location", "general"]
    assert candidates(["eval", "x", "--split", "v"]) == ["valid"]
    assert candidates(["compare", "rnnsearch", "rnn"]) == []  # it stands there already
    assert "transformer" in candidates(["compare", "rnnsearch", ""])
    assert candidates(["data", "ch"]) == ["check"] and "--quarantine" in candidates(["data", "check", "--q"])
    assert candidates(["nothing", ""]) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_offered_stands_in_the_help(command, capsys):
    offered = {f"--{f.name.replace('_', '-')}" for f in flags_of(command, []) if not f.positional}
    assert main([command, *(["rnnsearch"] if command == "fit" else []), "--help"]) == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in offered), offered


def test_runs_are_found_from_any_folder(tmp_path, monkeypatch):
    for name in ("runs/g2p", "runs/other run", "runs/.hidden", "data"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "runs" / "g2p" / "config.json").write_text("{}")
    (tmp_path / "runs" / "other run" / "bundle.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert candidates(["predict", ""]) == ["runs/g2p", "runs/other run", "data/", "runs/"]
    assert candidates(["eval", "runs/g"]) == ["runs/g2p"]
    assert candidates(["eval", f"{tmp_path}/ru"]) == [f"{tmp_path}/runs/"]
    assert candidates(["predict", "nowhere/"]) == []


def test_answers_come_without_torch():
    code = (
        "import sys; from transduce.cli.main import main; main(['--complete', 'fit', 'rnnsearch', '--']);"
        "main(['--completion', 'bash']); assert not {'torch', 'numpy', 'tyro'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--learning-rate" in done.stdout, done.stderr


def test_an_unknown_shell_is_one_sentence(capsys):
    assert "bash, zsh, fish" in refused(capsys, "--completion", "tcsh")
    refused(capsys, "--completion")


@pytest.fixture
def program(tmp_path, monkeypatch):
    """``transduce`` on the path of the shells, and a run to complete."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "transduce"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m transduce.cli.main "$@"\n')
    script.chmod(0o755)
    (tmp_path / "my runs").mkdir()
    (tmp_path / "my runs" / "config.json").write_text("{}")
    source = Path(transduce.__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", str(source.resolve()))  # also from another folder
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)


def shell(name, *arguments):
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    done = subprocess.run([name, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_bash_completes(program):
    ask = 'eval "$(transduce --completion bash)"; COMP_WORDS=(transduce %s); COMP_CWORD=2; _transduce; '
    show = "printf '%s\\n' \"${COMPREPLY[@]}\""
    assert shell("bash", "-c", ask % "fit rnns" + show) == ["rnnsearch"]
    assert shell("bash", "-c", ask % "predict my" + show) == [r"my\ runs"]  # quoted, as bash wants it


def test_fish_completes(program):
    assert set(SCRIPTS) == {"bash", "zsh", "fish"}
    found = shell("fish", "-c", 'transduce --completion fish | source; complete -C "transduce fit rnns"')
    assert found == ["rnnsearch"]


def test_zsh_completes(program, tmp_path):
    (tmp_path / "ask").write_text(
        "compdef() { }\neval \"$(transduce --completion zsh)\"\ncompadd() { print -r -- \"$@\" }\n"
        "words=(transduce fit rnns); CURRENT=3; _transduce\n"
    )  # fmt: skip
    assert shell("zsh", "-f", "ask") == ["-- rnnsearch"]
