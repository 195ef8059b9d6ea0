"""One small network around each mixer of the catalogue, trained on every task under the same budget."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from transduce.core import state as states
from transduce.core.protocols import Mixer
from transduce.data.synthetic.streams import IGNORE, Task
from transduce.models import Labeller
from transduce.nn.catalogue import MIXERS
from transduce.nn.embed import Embed
from transduce.nn.feedforward import FeedForward
from transduce.nn.stack import mixer_stack

from .check import machine
from .mixer_tasks import TASKS, Trial
from .storage import replace_file, writing
from .streams import stream_accuracy, train_stream


@dataclass(frozen=True)
class Network:
    """The network that every mixer is put into. ``share`` of the usual steps are trained (1 for figures to keep)."""

    dim: int = 64
    layers: int = 2
    share: float = 1.0


def network(mixer: Callable[[int], Mixer], trial: Trial, size: Network) -> nn.Module:
    """Embedding, ``layers`` of x + mixer(norm(x)), x + feedforward(norm(x)), and a label a step or a sequence."""
    embed = nn.Linear(1, size.dim) if trial.num_inputs is None else Embed(trial.num_inputs, size.dim)
    stack = mixer_stack(
        [mixer(size.dim) for _ in range(size.layers)], size.dim, lambda: FeedForward(size.dim, 2 * size.dim)
    )
    return Labeller(embed, stack, size.dim, trial.num_labels, pool=trial.pool)


@torch.no_grad()
def bits_a_symbol(model: nn.Module, task: Task, *, batches: int, batch: int) -> float:
    """Mean cross-entropy of the labelled steps in bits, on the same windows for every model."""
    generator = torch.Generator().manual_seed(7)
    total = 0.0
    for _ in range(batches):
        inputs, labels = task(batch, generator)
        total += float(F.cross_entropy(model(inputs).flatten(0, -2), labels.flatten(), ignore_index=IGNORE))
    return total / batches / math.log(2)


def run(mixer: Callable[[int], Mixer], trial: Trial, size: Network, seed: int) -> dict[str, Any]:
    """Train and test once. Returns the figure of every test, the last loss, steps and seconds."""
    torch.manual_seed(seed)
    model = network(mixer, trial, size)
    started = time.process_time()
    steps = max(2, round(trial.steps * size.share))
    losses = train_stream(
        model, trial.train, steps, batch=trial.batch, learning_rate=trial.learning_rate, seed=seed
    )
    seconds = time.process_time() - started
    rows = trial.test_batch or trial.batch
    score = bits_a_symbol if trial.bits else stream_accuracy
    tests = {
        label: round(score(model, task, batches=trial.test_batches, batch=rows), 4)
        for label, task in trial.tests.items()
    }
    return {
        "tests": tests,
        "loss": round(sum(losses[-20:]) / len(losses[-20:]), 4),
        "steps": steps,
        "processor seconds": round(seconds, 1),
    }


@torch.no_grad()
def costs(mixer: Callable[[int], Mixer], size: Network) -> dict[str, Any]:
    """Parameters of one layer, bytes of its state for one stream behind 64 and 1,024 steps, and whether it grows."""
    torch.manual_seed(0)
    layer = mixer(size.dim).eval()
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in layer.parameters())}
    for steps in (64, 1024):
        _, state = layer(torch.randn(1, steps, size.dim), layer.init_state(1))
        found[f"state bytes at {steps}"] = states.nbytes(state)
    return {**found, "bytes a step": layer.bytes_per_step}


def read(path: Path) -> dict[str, Any]:
    """What an earlier run wrote, or an empty record."""
    if path.is_file():
        return json.loads(path.read_text())
    return {"network": None, "mixers": {}, "refused": {}}


@dataclass(frozen=True)
class Plan:
    """Which mixers on which tasks with which seeds."""

    mixers: Sequence[str]
    tasks: Sequence[str]
    seeds: Sequence[int]
    again: bool = False

    def missing(self, record: Mapping[str, Any]) -> list[tuple[str, str, int]]:
        """What is not in the record yet; everything with ``again``."""
        return [
            (name, task, seed)
            for name in self.mixers
            for task in self.tasks
            for seed in self.seeds
            if self.again or str(seed) not in record["mixers"].get(name, {}).get("tasks", {}).get(task, {})
        ]


def bench(
    plan: Plan,
    size: Network,
    path: Path,
    data_dir: str | Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Do what is missing, writing the record after every training, so that a stopped run goes on where it was.

    A task whose data cannot be had is noted under ``refused`` with the reason. Raises ValueError where the record
    on disk is of another network.
    """
    record = read(path)
    if record["network"] not in (None, asdict(size)):
        raise ValueError(f"{path} holds figures of another network, {record['network']}")
    record["network"] = asdict(size)
    trials: dict[str, Trial | str] = {}
    todo, begun = plan.missing(record), time.perf_counter()
    for number, (name, task, seed) in enumerate(todo):
        trial = trials.setdefault(task, _prepare(task, data_dir)) if task not in trials else trials[task]
        if isinstance(trial, str):
            record["refused"][task] = trial
            continue
        record["refused"].pop(task, None)
        of_mixer = record["mixers"].setdefault(name, {"costs": costs(MIXERS[name], size), "tasks": {}})
        found = {**run(MIXERS[name], trial, size, seed), "commit": machine()["commit"]}
        of_mixer["tasks"].setdefault(task, {})[str(seed)] = found
        _write(path, record)
        left = (time.perf_counter() - begun) / (number + 1) * (len(todo) - number - 1)
        figures = ", ".join(f"{label} {value:.3f}".strip() for label, value in found["tests"].items())
        say(
            f"{name:<20} {task:<12} seed {seed}  {figures:<34} {found['processor seconds']:6.1f} s"
            f"   left {left / 60:.0f} min"
        )
    record["machine"] = {k: v for k, v in machine().items() if k not in ("load", "commit")}
    _write(path, record)
    return record


def _prepare(task: str, data_dir: str | Path | None) -> Trial | str:
    try:
        return TASKS[task](data_dir)
    except Exception as problem:  # data that cannot be had must not end hours of other trainings
        return " ".join(str(problem).split()) or type(problem).__name__


def _write(path: Path, record: Mapping[str, Any]) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(record, indent=1) + "\n").encode())
