"""``transduce doctor``: a sound machine is called sound, and what is wrong is named with its remedy."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

from transduce.cli import doctor, doctor_checks, doctor_machine
from transduce.cli.main import main


def named(findings, name):
    (found,) = [f for f in findings if f.name == name]
    return found


@pytest.fixture(scope="module")
def told():
    """The findings of a whole examination in a process of its own, as JSON, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "transduce.cli.main", "doctor", "--json"], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=200,
    )  # fmt: skip
    return json.loads(done.stdout), done.returncode, done.stderr


def test_this_machine_can_do_the_main_job(told):
    report, code, errors = told
    problems = [f for f in report["findings"] if f["status"] == "problem"]
    assert code == 0 and report["ok"] and not problems, (problems, errors)
    sections = {f["section"] for f in report["findings"]}
    wanted = {
        "versions",
        "threads",
        "processor",
        "memory",
        "devices",
        "kernels",
        "ops",
        "data",
        "disk",
        "main job",
    }
    assert wanted <= sections


def test_every_op_is_examined_and_agrees(told):
    from transduce.ops import attention, conv, retention, rnn, scan  # noqa: F401 (they register the ops)
    from transduce.ops.dispatch import known_ops

    ops = {f["name"]: f["value"] for f in told[0]["findings"] if f["section"] == "ops"}
    own = {name for name, op in known_ops().items() if op.__module__.startswith("transduce.ops")}
    assert own <= set(ops)
    assert "numba" in ops["linear_scan"] and "reference" in ops["linear_scan"]


def test_a_refusal_and_a_wrong_backend_are_told(monkeypatch):
    from transduce.ops.scan import linear_scan

    backends = dict(linear_scan._backends)
    monkeypatch.setattr(
        linear_scan, "_backends", {"numba": (backends["numba"][0], lambda *a, **k: "it is cold")}
    )
    assert "numba refuses: it is cold" in named(doctor_machine.ops(), "linear_scan").value
    wrong = {"numba": (lambda *a, **k: 1.0 + backends["numba"][0](*a, **k), lambda *a, **k: None)}
    monkeypatch.setattr(linear_scan, "_backends", wrong)
    found = named(doctor_machine.ops(), "linear_scan")
    assert found.status == "problem" and "differs from the reference by 1" in found.value and found.fix


def test_threads_beyond_the_quota_are_told(monkeypatch):
    monkeypatch.setattr(doctor_machine, "cpu_quota", lambda: 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    found = named(doctor_machine.threads(), "torch")
    assert found.status == "note" and "OMP_NUM_THREADS" in found.fix and "1" in found.fix
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert named(doctor_machine.threads(), "torch").status == "ok"  # set_up lowers them by itself


def test_a_missing_extra_names_the_pip_command(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "tokenizers":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "safetensors" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = list(doctor_checks.packages())
    assert 'pip install "transduce[bpe]"' in named(found, "extra bpe").fix
    base = named(found, "base")
    assert base.status == "problem" and "safetensors 0.0.1" in base.value


def test_a_cache_that_cannot_be_written_is_told(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRANSDUCE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("TRANSDUCE_DATA", str(tmp_path / "nowhere"))
    found = list(doctor_checks.data())
    assert "TRANSDUCE_CACHE" in named(found, "cache").fix
    assert named(found, "data folder").status == "note"


def test_a_broken_part_is_a_finding_and_the_others_go_on(monkeypatch, capsys):
    def broken():
        raise OSError("libgone.so: no such file")
        yield

    quick = lambda: iter([doctor.Finding("x", "y", "ok", "z")])
    for name in ("threads", "processor", "memory", "devices", "kernels", "ops"):
        monkeypatch.setattr(doctor_machine, name, quick)
    for name in ("packages", "data", "disk"):
        monkeypatch.setattr(doctor_checks, name, quick)
    broken.__name__ = "main_job"
    monkeypatch.setattr(doctor_checks, "main_job", broken)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert (
        "PROBLEM" in shown
        and "libgone.so" in shown
        and "1 problem" in shown
        and shown.count("  ok    y") == 9
    )
