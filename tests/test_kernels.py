"""Launches of compiled kernels on the threads of a runtime that may give fewer than asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

JOB = """
import torch
from transduce.ops.scan import linear_scan
from transduce.ops.kernels import most_threads
torch.manual_seed(0)
torch.set_num_threads(2)
a, b, h0 = torch.rand(2, 512, 256), torch.randn(2, 512, 256), torch.randn(2, 256)
want = linear_scan.run("loop", a, b, h0)
got = linear_scan.run("numba", a, b, h0)
print(most_threads(), float((want - got).abs().max()))
"""


@pytest.mark.parametrize(
    ("setting", "threads"), [({}, 2), ({"OMP_THREAD_LIMIT": "1"}, 1), ({"OMP_DYNAMIC": "true"}, 1)], ids=str
)
def test_threads_that_do_not_come_leave_nothing_undone(setting, threads):
    source = str(Path(__file__).parent.parent / "src")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")} | setting
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (source, environment.get("PYTHONPATH", ""))))
    done = subprocess.run([sys.executable, "-c", JOB], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    granted, distance = done.stdout.split()
    assert int(granted) == threads and float(distance) < 1e-4
