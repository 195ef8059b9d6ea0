"""Kernels written in Triton obey the law of their ops, and say why where they cannot run."""

import importlib
import json
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
    "diagonal_scan:diagonal_scan",
    "softmax_scan:softmax_scan",
    "block_scan:block_scan",
    "selective_scan:selective_scan",
    "gla:gated_linear_attention",
    "retention:retention",
    "delta:delta_rule",
    "delta_general:generalised_delta_rule",
    "orthogonal:orthogonal_update",
    "rnn:gru",
    "rnn:lstm",
    "slstm:slstm",
]


def start(job, *names, **variables):
    """A process of its own: triton decides at its import whether kernels are compiled or interpreted."""
    paths = (str(HERE.parent / "src"), os.environ.get("PYTHONPATH", ""))
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **variables}
    command = [sys.executable, str(HERE / job), *names]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(job):
    printed, errors = job.communicate(timeout=800)
    assert job.returncode == 0, errors[-4000:]
    return printed.splitlines()


@pytest.fixture(scope="module")
def laws():
    """What the interpreter found for each op; it is slow, so two processes share them."""
    jobs = [start("triton_job.py", *OPS[part::2], TRITON_INTERPRET="1") for part in range(2)]
    return {found["op"]: found for job in jobs for found in map(json.loads, lines(job))}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", OPS)
def test_the_kernel_obeys_the_law(name, laws):
    found = laws[name]
    assert not found["broken"] and not found["refused"] and found["comparisons"] >= 8


@pytest.mark.timeout(900)
def test_kernels_compile_without_a_device():
    built = lines(start("triton_compile.py"))  # what has not changed comes out of triton's cache
    sources = {path.stem: path.read_text() for path in (HERE.parent / "src/transduce/ops").glob("*_triton.py")}
    launched = {f"{m}:{name}" for m, text in sources.items() for name in re.findall(r"\b(_\w+)\[(?:grid|\()", text)}
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
