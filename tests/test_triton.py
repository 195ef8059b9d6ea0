"""Kernels written in Triton obey the law of their ops, and say why where they cannot run."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

HERE = Path(__file__).parent
OPS = ["scan:linear_scan", "diagonal_scan:diagonal_scan", "softmax_scan:softmax_scan", "block_scan:block_scan"]
OPS += ["selective_scan:selective_scan"]


@pytest.mark.parametrize("name", OPS)
def test_the_kernel_obeys_the_law(name):
    paths = (str(HERE.parent / "src"), os.environ.get("PYTHONPATH", ""))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, str(HERE / "triton_job.py"), name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    op, comparisons, *refused = done.stdout.split("\n")[:-1]
    assert op == name.split(":")[1] and int(comparisons) >= 8 and not refused


@pytest.mark.parametrize("name", OPS)
def test_without_a_device_the_reason_is_told(name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    module, op = name.split(":")
    op = getattr(importlib.import_module(f"transduce.ops.{module}"), op)
    case = op.all_cases()[0]
    assert "triton" not in op.backends and "triton" in op.registered
    assert "CUDA" in op.refusal("triton", *case.args, **case.kwargs)
