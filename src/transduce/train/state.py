"""What a run knows about itself besides tensors, as JSON stores it, and what it returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transduce.data.batching import Prepared

from .plan import Plan
from .signals import EXIT_CODE
from .storage import digest, to_json


@dataclass(frozen=True)
class TrainResult:
    """What a run reached. ``metrics``: figures of the stored weights on held-out examples (``{"valid":
    {...}}``)."""

    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    stopped_because: str
    steps: int
    seconds: float
    bundle: Path | None = None

    @property
    def interrupted(self) -> bool:
        return self.stopped_because.startswith("interrupted")

    @property
    def exit_code(self) -> int:
        """0, or 130 after Ctrl-C or a request to terminate."""
        return EXIT_CODE if self.interrupted else 0


@dataclass
class RunState:
    """The part of a checkpoint that JSON holds. ``seconds``: used so far, over all processes of the run.

    ``evaluated_at``: the last step whose evaluation is done. ``stale``: evaluations since the best one.
    ``parts``: pieces in which a batch is computed. ``loss_sum`` and ``loss_symbols``: the mean training loss since the last line of the log.
    """

    step: int = 0
    seconds: float = 0.0
    plan: Plan | None = None
    precision: str = "float32"
    seconds_per_row: float = 0.0
    evaluated_at: int = 0
    best_step: int | None = None
    best_score: float | None = None
    stale: int = 0
    ema_steps: int = 0
    parts: int = 1
    loss_sum: float = 0.0
    loss_symbols: int = 0
    stopped_because: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """The run ended by itself, so there is nothing to go on with."""
        return bool(self.stopped_because) and not self.stopped_because.startswith("interrupted")

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {
            "plan": None if self.plan is None else self.plan.to_json()
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> RunState:
        plan = stored["plan"]
        return cls(**{**stored, "plan": None if plan is None else Plan(**plan)})


def corpus_record(data: Prepared) -> dict[str, Any]:
    """What a bundle and a run folder say about the data."""
    sizes = {part: len(getattr(data, part).targets) for part in ("train", "valid", "test")}
    return {
        "name": data.corpus_name,
        "kind": data.kind,
        "licence": data.licence,
        "origin": data.origin,
        "sequence_name": data.sequence_name,
        "symbol_name": data.symbol_name,
        **({"windowed": True} if data.windowed else {}),
        **({"metrics": list(data.metrics)} if data.metrics else {}),
        **sizes,
    }


def data_mark(data: Prepared) -> str:
    """Tells data sets apart by vocabularies, sizes and the ids of the first and last training targets."""
    train = data.train.targets
    return digest(to_json([data.spec.to_json(), corpus_record(data), train[:100], train[-100:]]))
