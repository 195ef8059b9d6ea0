"""Kill processes outright (SIGKILL) while they save and while they train, and count what is lost.

``python tests/survival.py`` does it 50 and 20 times and writes results/survival.json. Children are forked from a
process that computes nothing itself, so that a life costs no import.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import torch
from train_toys import Recorder, pairs, quick, toy

from transduce.core.errors import UserError
from transduce.train import checkpoint
from transduce.train.storage import TEMPORARY
from transduce.train.trainer import Trainer


class Unhurried(Recorder):
    """At most a hundred steps a second, so that no life sees the end of the run."""

    def step(self, report: object) -> None:
        super().step(report)
        time.sleep(0.01)


@dataclass
class Survival:
    """``lost``: kills behind which the newest acknowledged checkpoint could not be read, or another came back.
    ``in_the_middle``: kills that left an unfinished folder behind."""

    kills: int = 0
    lost: int = 0
    in_the_middle: int = 0
    losses: list[float] = field(default_factory=list)
    uninterrupted: list[float] = field(default_factory=list)


def life(work: Callable[[], None], seconds: float | None) -> bool:
    """Run ``work`` in a forked process and kill it after ``seconds``. True: it ended by itself."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise AssertionError("the process failed by itself")
    return os.WIFEXITED(status)


def killed_while_saving(folder: Path, *, kills: int, seed: int) -> Survival:
    """Each process saves numbered checkpoints in a loop and notes every number whose save has returned."""
    chance, found = random.Random(seed), Survival()
    place, noted = folder / "checkpoint", folder / "noted"
    noted.write_text("0")

    def save_for_ever() -> None:
        number = int(noted.read_text())
        while True:
            number += 1
            tensors = {"model": {"w": torch.full((40_000,), float(number))}, "other": {"v": torch.ones(3)}}
            checkpoint.save(place, tensors, {"number": number})
            handle = os.open(noted, os.O_WRONLY)
            os.pwrite(handle, str(number).encode(), 0)  # numbers only grow longer, so this is never torn
            os.close(handle)

    for _ in range(kills):
        life(save_for_ever, 0.02 + 0.1 * chance.random())
        found.kills += 1
        found.in_the_middle += any(p.name.startswith(TEMPORARY) for p in place.glob(".tmp-*"))
        acknowledged = int(noted.read_text())
        try:
            stored = checkpoint.load(place)
        except UserError:
            found.lost += acknowledged > 0
            continue
        number = stored.state["number"]
        whole = bool((stored.tensors["model"]["w"] == number).all())
        found.lost += not (whole and number in (acknowledged, acknowledged + 1))
    return found


def killed_while_training(folder: Path, *, kills: int, seed: int) -> Survival:
    """A run that saves all the time is killed at random moments and goes on, until it is done."""
    chance, found = random.Random(seed), Survival()

    def job(out: Path, resume: bool) -> None:
        data = pairs()
        settings = quick(max_steps=60 * (kills + 1), save_every=1e-3, evaluations=4, ema=0.9)
        Trainer(toy(data), data, settings, out, reporter=Unhurried(), resume=resume).run()

    life(lambda: job(folder / "straight", False), None)
    found.uninterrupted = _losses(folder / "straight")
    out, done = folder / "killed", False
    while not done:
        resume = bool(checkpoint.stored(out / "checkpoint"))
        wait = 0.2 + 0.4 * chance.random() if found.kills < kills else None
        done = life(lambda: job(out, resume) if resume else _afresh(job, out), wait)
        found.kills += not done
        found.lost += resume and not checkpoint.stored(out / "checkpoint")
    found.losses = _losses(out)
    return found


def _afresh(job: Callable[[Path, bool], None], out: Path) -> None:
    from transduce.train import prepare_out

    prepare_out(out, force=True)
    job(out, False)


def _losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines for key in ("loss", "valid_loss") if line.get(key) is not None]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        saving = killed_while_saving(Path(folder), kills=50, seed=0)
        training = killed_while_training(Path(folder), kills=20, seed=0)
    same = training.losses == training.uninterrupted
    record = {
        "command": "python tests/survival.py",
        "saving": {"kills": saving.kills, "in_the_middle_of_a_save": saving.in_the_middle, "lost": saving.lost},
        "training": {"kills": training.kills, "lost": training.lost, "losses_bit_identical": same,
                     "losses_compared": len(training.losses)},
        "torch": torch.__version__,
    }  # fmt: skip
    target = Path(__file__).resolve().parent.parent / "results" / "survival.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    sys.exit(bool(saving.lost or training.lost or not same))


if __name__ == "__main__":
    main()
