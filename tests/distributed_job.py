"""A tiny training run for ``torchrun``: ``distributed_job.py OUT JSON``; the first process writes OUT/losses.json.

Settings in JSON: those of the training configuration, ``resume``, ``shard``, ``stop_at`` (Ctrl-C at that step) and
``die_at`` (SIGKILL of the last process at that step, in its first life only).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from train_toys import Recorder, ToyConfig, pairs, quick, toy

from transduce.cli.launch import leave
from transduce.train.distributed import joined, restarted
from transduce.train.trainer import Trainer


class Mortal(Trainer):
    """Kills the last process at a step."""

    die_at: int | None = None

    def _step(self) -> None:
        if self.progress.step == self.die_at and self.world.rank == self.world.size - 1 and not restarted():
            os.kill(os.getpid(), signal.SIGKILL)
        super()._step()


def main() -> None:
    out, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    resume = settings.pop("resume", False) or (restarted() and (out / "checkpoint").is_dir())
    stop_at, shard = settings.pop("stop_at", None), settings.pop("shard", False)
    Mortal.die_at = settings.pop("die_at", None)
    dropout = settings.pop("dropout", 0.0)
    with joined(torch.device("cpu"), shard=shard) as world:
        data, seen = pairs(), Recorder(stop_at=stop_at)
        system = toy(data, config=ToyConfig(dropout=dropout))
        trainer = Mortal(system, data, quick(**settings), out, reporter=seen, resume=resume, world=world)
        result = trainer.run()
        if world.main:
            kept = out.parent / f"{out.name}.json"
            before = json.loads(kept.read_text()) if resume and kept.exists() else {"losses": []}
            kept.write_text(
                json.dumps(
                    {
                        "losses": before["losses"] + seen.losses,
                        "history": result.history,
                        "stopped": result.stopped_because,
                        "notes": seen.notes,
                    }
                )
            )


if __name__ == "__main__":
    main()
    leave(0)
