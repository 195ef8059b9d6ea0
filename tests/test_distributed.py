"""Several processes train what one trains, go on bit for bit, and survive the death of one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from train_toys import pairs

from transduce.train.distributed import World

HERE = Path(__file__).parent


def torchrun(out: Path, *, restarts: int = 0, **settings) -> dict:
    """Two processes of distributed_job.py; what the first one wrote."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), str(HERE / "distributed_job.py"), str(out), json.dumps(settings)]
    return _run(command, out)


def alone(out: Path, **settings) -> dict:
    return _run([sys.executable, str(HERE / "distributed_job.py"), str(out), json.dumps(settings)], out)


def _run(command: list[str], out: Path) -> dict:
    paths = [str(HERE), str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out.parent / f"{out.name}.json").read_text())


def valid(record: dict) -> list[tuple]:
    return [(h["step"], h["valid_loss"], h["sequence_error"]) for h in record["history"] if "valid_loss" in h]


def test_two_processes_equal_one_up_to_the_order_of_sums(tmp_path):
    one = alone(tmp_path / "one", ema=0.9, accumulate=2)
    two = torchrun(tmp_path / "two", ema=0.9, accumulate=2)
    spread = torchrun(tmp_path / "spread", ema=0.9, accumulate=2, shard=True)
    for other in (two, spread):
        assert len(other["losses"]) == 30
        torch.testing.assert_close(torch.tensor(other["losses"]), torch.tensor(one["losses"]), rtol=0, atol=2e-6)
        for (step, loss, error), (step_1, loss_1, error_1) in zip(valid(other), valid(one), strict=True):
            assert step == step_1 and abs(loss - loss_1) < 2e-6 and error == error_1


@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "sharded"])
def test_a_killed_process_and_ctrl_c_change_no_number(tmp_path, shard):
    """Dropout is on, so the generators of both processes must come back, too."""
    settings = {"dropout": 0.1, "shard": shard, "save_every": 1e-4, "ema": 0.9}
    whole = torchrun(tmp_path / "whole", **settings)
    halted = torchrun(tmp_path / "parts", stop_at=9, **settings)
    assert halted["stopped"].startswith("interrupted") and len(halted["losses"]) == 9
    resumed = torchrun(tmp_path / "parts", resume=True, die_at=17, restarts=2, **settings)
    assert any("resumed at step" in note for note in resumed["notes"])
    assert resumed["stopped"] == "max_steps reached"
    assert valid(resumed) == valid(whole) and resumed["losses"][-5:] == whole["losses"][-5:]


def test_the_rows_of_a_batch_are_shared_without_loss_or_repetition():
    batch = pairs().train.batch(np.arange(7))
    rows = []
    for rank in range(3):
        own, counts = World(rank, 3).share(batch)
        assert counts and own.size == len(own.rows)
        rows += own.rows
    assert sorted(rows) == sorted(batch.rows)
    few = pairs().train.batch(np.array([4, 5]))
    shares = [World(rank, 3).share(few) for rank in range(3)]
    assert [counts for _, counts in shares] == [True, True, False] and all(s.size == 1 for s, _ in shares)


def test_the_command_line_trains_in_two_processes_and_a_mistake_is_one_sentence(tmp_path):
    data = tmp_path / "pairs.tsv"
    words = [f"{a}{b}{c}" for a in "abcdef" for b in "ghijk" for c in "lmno"]
    data.write_text("source\ttarget\n" + "".join(f"{w}\t{w[::-1]}\n" for w in words))
    paths = [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in paths if p)}

    def fit(*flags: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "transduce.cli.main", "fit", "rnnsearch", "--data", str(data)]
        command += ["--out", str(tmp_path / "run"), "--devices", "2", "--encoder", "8", "--hidden", "8", *flags]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)

    done = fit("--max-steps", "4", "--evaluations", "1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "bundle").is_dir() and "2 processes" in done.stderr and "Traceback" not in done.stderr
    again = fit("--max-steps", "4")
    assert again.returncode == 2 and again.stderr.count("holds a run already") == 1
    assert "Traceback" not in again.stderr
