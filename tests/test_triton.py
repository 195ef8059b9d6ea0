"""Kernels written in Triton obey the law of their ops, and say why where they cannot run."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

HERE = Path(__file__).parent
OPS = [
    "scan:linear_scan",
    "gla:gated_linear_attention",
    "retention:retention",
    "delta:delta_rule",
    "delta_general:generalised_delta_rule",
    "orthogonal:orthogonal_update",
    "rnn:gru",
    "rnn:lstm",
    "slstm:slstm",
]


def run(job, *names, **variables):
    """The lines that a process of its own printed."""
    paths = (str(HERE.parent / "src"), os.environ.get("PYTHONPATH", ""))
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **variables}
    command = [sys.executable, str(HERE / job), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", OPS)
def test_the_kernel_obeys_the_law(name):
    op, comparisons, *refused = run("triton_job.py", name, TRITON_INTERPRET="1")
    assert op == name.split(":")[1] and int(comparisons) > 20 and not refused


def test_kernels_compile_without_a_device():
    built = run("triton_compile.py")  # what has not changed comes out of triton's cache
    sources = {path.stem: path.read_text() for path in (HERE.parent / "src/transduce/ops").glob("*_triton.py")}
    launched = {f"{m}:{name}" for m, text in sources.items() for name in re.findall(r"(\w+)\[grid\]", text)}
    assert launched and launched <= set(built)


@pytest.mark.parametrize("name", OPS)
def test_without_a_device_the_reason_is_told(name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    module, op = name.split(":")
    op = getattr(importlib.import_module(f"transduce.ops.{module}"), op)
    case = op.all_cases()[0]
    assert "triton" not in op.backends and "triton" in op.registered
    assert "CUDA" in op.refusal("triton", *case.args, **case.kwargs)
