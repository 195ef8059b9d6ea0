"""The record of a system's full check: what was measured, against which claim, on which machine.

``transduce reproduce NAME`` makes a :class:`Check`, hands it to the page's ``reproduce`` function and
writes what it collected to ``results/NAME.json`` with its figures beside it. A missed claim is written down
as missed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence

import torch

from transduce.core.protocols import Claim, Model, Objective
from transduce.core.seq import Batch

USUAL_SEEDS = (0, 1)
"""What `transduce reproduce` takes where no seeds are named."""


@dataclass
class Measured:
    """One figure: per seed, the mean that the claim is held against, and whether it holds (None: report
    only)."""

    metric: str
    values: list[float]
    claim: Claim | None
    baseline: float | None

    @property
    def value(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def holds(self) -> bool | None:
        return None if self.claim is None else self.claim.holds(self.value)


@dataclass
class Check:
    """Collects the figures of one reproduction. ``quick`` asks for a smoke run whose figures are not to be
    kept."""

    name: str
    folder: Path
    quick: bool = False
    seeds: Sequence[int] = (0,)
    say: Callable[[str], None] = print
    measured: list[Measured] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def measure(
        self,
        metric: str,
        values: float | Iterable[float],
        claim: Claim | None = None,
        baseline: float | None = None,
    ) -> None:
        """Record a figure, one number or one a seed, and print it with its verdict."""
        numbers = [float(values)] if isinstance(values, (int, float)) else [float(v) for v in values]
        found = Measured(metric, numbers, claim, baseline)
        self.measured.append(found)
        verdict = "" if found.holds is None else ("  holds" if found.holds else "  MISSED")
        bound = "" if claim is None else f"  (claim: {_bound(claim)})"
        spread = f"  seeds {', '.join(f'{v:.4g}' for v in numbers)}" if len(numbers) > 1 else ""
        self.say(f"{metric}: {found.value:.4g}{spread}{bound}{verdict}")

    def figure(self, suffix: str = "") -> Path:
        """Where to save a picture of this check."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.name}{'-' + suffix if suffix else ''}.png"
        self.figures.append(name)
        return self.folder / name

    @property
    def passed(self) -> bool:
        return all(m.holds is not False for m in self.measured)

    def _flags(self) -> list[str]:
        """What stood on the command line beside the name."""
        if self.quick:
            return ["--quick"]
        return [] if tuple(self.seeds) == USUAL_SEEDS else ["--seeds", *map(str, self.seeds)]

    def write(self) -> Path:
        """Write ``<folder>/<name>.json`` atomically and return its path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}.json"
        record = {
            "system": self.name,
            "command": " ".join(["transduce reproduce", self.name, *self._flags()]),
            "quick": self.quick,
            "passed": self.passed,
            "measured": [
                {
                    "metric": m.metric,
                    "value": m.value,
                    "values": m.values,
                    "baseline": m.baseline,
                    "at_most": m.claim.at_most if m.claim else None,
                    "at_least": m.claim.at_least if m.claim else None,
                    "reason": m.claim.reason if m.claim else "reported, no claim",
                    "holds": m.holds,
                }
                for m in self.measured
            ],
            "notes": self.notes,
            "figures": self.figures,
            "seeds": list(self.seeds),
            "seconds": round(time.perf_counter() - self.started, 1),
            "machine": machine(),
        }
        temporary = path.with_suffix(".json.tmp")
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(temporary, path)
        return path


def _bound(claim: Claim) -> str:
    parts = []
    if claim.at_least is not None:
        parts.append(f"at least {claim.at_least:g}")
    if claim.at_most is not None:
        parts.append(f"at most {claim.at_most:g}")
    return " and ".join(parts)


def machine() -> dict[str, Any]:
    """Threads, cores, versions, load and the commit of the source tree, where it can be known."""
    try:
        commit = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    return {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit or None,
    }


class Cycle(NamedTuple):
    """One cycle of the rate: its peak, and the share of the steps after which it is reached."""

    peak: float
    warmup: float = 0.1


def train_steps(
    model: Model,
    objective: Objective,
    batches: Iterator[Batch],
    steps: int,
    *,
    learning_rate: float | Cycle = 1e-3,
    clip: float = 1.0,
    say: Callable[[str], None] | None = None,
    label: str = "",
) -> list[float]:
    """A plain Adam loop for checks on generated data: one-cycle rate, clipping, no files. Returns the
    losses."""
    cycle = learning_rate if isinstance(learning_rate, Cycle) else Cycle(learning_rate)
    optimiser = torch.optim.Adam(model.parameters(), lr=cycle.peak)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, cycle.peak, total_steps=steps, pct_start=cycle.warmup
    )
    generator = torch.Generator().manual_seed(0)
    model.train()
    losses: list[float] = []
    for step in range(steps):
        loss = objective(model, next(batches), step=step, generator=generator)
        optimiser.zero_grad(set_to_none=True)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.total.detach()))
        if say is not None and (step + 1) % max(1, steps // 5) == 0:
            say(f"  {label} step {step + 1}/{steps}  loss {sum(losses[-50:]) / len(losses[-50:]):.4f}")
    model.eval()
    return losses
